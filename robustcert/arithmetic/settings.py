"""Settings that decide how torch computes, and what they are where something is proved.

Some belong to the process, others to each of its threads. What settings cannot say, the self-test
of :mod:`robustcert.arithmetic.products` looks for.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

# Beginnings of the names of variables that may change what libraries compute.
VARIABLES = (
    "ONEDNN_",
    "DNNL_",
    "MKL_",
    "OPENBLAS_",
    "CUBLAS_",
    "CUDNN_",
    "HIPBLASLT_",
    "ROCBLAS_",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
# Elements of a tensor for every thread that is to get a part of an elementwise operation.
GRAIN = 32768


class UnsoundArithmeticError(RuntimeError):
    """The machine does not compute, or did not all the time, what error bounds assume."""


@dataclass(frozen=True)
class Setting:
    """A setting of torch.

    Attributes:
        name: What messages call it.
        read: Returns its value.
        write: Sets its value.
        strict: Its value where something is proved.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    strict: Any

    def is_strict(self) -> bool:
        """Whether it has its strict value."""
        try:
            return bool(self.read() == self.strict)
        except RuntimeError:  # Torch refuses to say where its old and its new settings disagree.
            return False


def _attribute(owner: Any, owner_name: str, name: str, strict: Any) -> Setting:
    return Setting(
        f"{owner_name}.{name}",
        lambda: getattr(owner, name),
        lambda value: setattr(owner, name, value),
        strict,
    )


def _process_settings() -> tuple[Setting, ...]:
    cuda, cudnn, mkldnn, nnpack = (
        getattr(torch.backends, name) for name in ("cuda", "cudnn", "mkldnn", "nnpack")
    )
    libraries = (
        # Winograd's and Fourier's transforms, and oneDNN's own environment variables.
        _attribute(cudnn, "torch.backends.cudnn", "enabled", False),
        _attribute(mkldnn, "torch.backends.mkldnn", "enabled", False),
        Setting("NNPACK", torch._C._get_nnpack_enabled, lambda on: nnpack.set_flags(on), False),
    )
    # Read and set after what it disagrees with.
    precision = Setting(
        "torch.set_float32_matmul_precision",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
        "highest",
    )
    if not hasattr(torch.backends, "fp32_precision"):  # torch before 2.9
        owners = {"cuda.matmul": cuda.matmul, "cudnn": cudnn}
        name, strict = "allow_tf32", cast(Any, False)
    else:
        owners = {
            "cuda.matmul": cuda.matmul,
            "cudnn.conv": cudnn.conv,
            "cudnn.rnn": cudnn.rnn,
            "mkldnn.matmul": mkldnn.matmul,
            "mkldnn.conv": mkldnn.conv,
        }
        name, strict = "fp32_precision", "ieee"
    precisions = (
        _attribute(owner, f"torch.backends.{key}", name, strict) for key, owner in owners.items()
    )
    return (*libraries, *precisions, precision)


def _autocast(device: str) -> Setting:
    return Setting(
        f"torch.autocast of {device}",
        lambda: torch.is_autocast_enabled(device),
        lambda on: torch.set_autocast_enabled(device, on),
        False,
    )


def flushes_subnormals() -> bool:
    """Whether this thread loses numbers below the normal range, as inputs or as results."""
    smallest = sys.float_info.min
    # Python's floats are flushed where torch's are.
    return not smallest / 2 > 0


# Settings of the process, and of each thread, in the order in which they are set; they are restored
# in the other.
PROCESS_SETTINGS = _process_settings()
THREAD_SETTINGS = (
    Setting("torch.set_flush_denormal", flushes_subnormals, torch.set_flush_denormal, False),
    _autocast("cpu"),
    _autocast("cuda"),
)


def loose_settings() -> list[str]:
    """Names of the settings that are not strict, of the process and of this thread."""
    return [s.name for s in (*PROCESS_SETTINGS, *THREAD_SETTINGS) if not s.is_strict()]


def variables() -> dict[str, str]:
    """Variables of the environment that are set and may change what libraries compute."""
    return {key: value for key, value in sorted(os.environ.items()) if key.startswith(VARIABLES)}


def check_threads() -> None:
    """Test elementwise arithmetic in this thread and in all that torch shares its work with.

    Workers keep the setting for numbers below the normal range, and the direction of rounding, that
    the thread had which started them.

    Raises:
        UnsoundArithmeticError: a thread flushes subnormal numbers, or does not round to nearest.
    """
    numbers, halves = _halves(torch.get_num_threads())
    found = torch.mul(numbers, torch.tensor(0.5, dtype=torch.float32, device="cpu"))
    if torch.equal(found.view(torch.int32), halves):
        return
    raise UnsoundArithmeticError(
        "a thread of torch flushes numbers below the normal range to zero, or does not round to "
        f"the nearest number ({torch.get_num_threads()} threads): threads keep what was set in the "
        "one that started them. Call torch.set_flush_denormal(False) before the first tensor is "
        "computed, or start a new process without it"
    )


@lru_cache(maxsize=4)
def _halves(threads: int) -> tuple[Tensor, Tensor]:
    """Numbers for every thread, and the bits of their halves."""
    # 3 and 5 times the least number above 0: their halves are ties and go to twice that number.
    # Few of them, because processors are slow with them.
    numbers = torch.ones(threads, GRAIN, dtype=torch.float32, device="cpu")
    numbers.view(torch.int32)[:, :2] = torch.tensor([3, 5], dtype=torch.int32, device="cpu")
    halves = torch.full_like(numbers, 0.5).view(torch.int32)
    halves[:, :2] = 2
    return numbers.flatten(), halves.flatten()
