"""Where a network is certified: a device whose float64 is exact, and what it fails with."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from robustcert.certifiers import UnsoundArithmeticError
from robustcert.certifiers.arithmetic import check_device
from robustcert.errors import ConfigError, typed

log = logging.getLogger(__name__)

# Failures of a device that torch has classes for.
_DEVICE_ERRORS = (
    torch.OutOfMemoryError,
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError),
)
# What others say, which are plain RuntimeErrors: of the CPU's allocator, and of accelerators
# and their libraries, in versions of torch that have no class for them.
_OF_THE_CPU = re.compile("DefaultCPUAllocator")
_OF_AN_ACCELERATOR = re.compile(
    r"\b(CUDA|HIP|XPU|MPS|cuBLAS|cuDNN|cuSOLVER|cuSPARSE|cuFFT|hipBLAS|MIOpen)( driver| backend)? "
    r"(error|out of memory)|_STATUS_\w+",
    re.IGNORECASE,
)


def checked_device(name: str, key: str = "device") -> torch.device:
    """The device of a name, whose float64 is that of IEEE 754.

    Args:
        name: As torch has it.
        key: Setting that errors name.

    Raises:
        ConfigError: there is no such device here, or it has no such arithmetic.
    """
    try:
        device = torch.device(name)
        check_device(device)
    except UnsoundArithmeticError as error:
        raise ConfigError(f"{key}: {error}") from error
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}: no float64 arithmetic on {name!r} here: {reason}") from error
    return device


def chosen_device(
    name: str | None, default: torch.device | None = None, key: str = "device"
) -> torch.device:
    """The device that is asked for or, if none is, the default where its float64 is exact.

    Args:
        name: As torch has it; None leaves the choice.
        default: The device of training; by default the accelerator that is there, or the CPU.
        key: Setting that messages name.

    Raises:
        ConfigError: the device that is asked for, or the CPU in place of another, does not compute
            as certificates need.
    """
    if name is not None:
        return checked_device(name, key)
    default = _accelerator() if default is None else default
    if default.type != "cpu":
        try:
            return checked_device(str(default), key)
        except ConfigError as error:
            log.info("certifying on the CPU: %s", error)
    return checked_device("cpu", key)


def _accelerator() -> torch.device:
    """The accelerator of this machine, or the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


@contextmanager
def failures_named(device: torch.device) -> Iterator[None]:
    """What a device fails with, in one line that names it; other errors are none of its."""
    try:
        yield
    except RuntimeError as error:
        if not is_of_device(error, device):
            raise
        other = "" if device.type == "cpu" else "; or set device=cpu"
        raise ConfigError(
            f"device: {device} failed: {str(error).splitlines()[0]}. Batches that were certified "
            f"are kept, and {typed('certify')} with the same settings goes on after them; with "
            f"less memory, set a smaller batch_size{other}"
        ) from error


def is_of_device(error: RuntimeError, device: torch.device) -> bool:
    """Whether an error is a failure of the device, and not of a program that runs there."""
    if isinstance(error, _DEVICE_ERRORS):
        return True
    # A class of its own has a meaning of its own.
    if type(error) is not RuntimeError:
        return False
    if _OF_THE_CPU.search(str(error)):
        return True
    return device.type != "cpu" and bool(_OF_AN_ACCELERATOR.search(str(error)))
