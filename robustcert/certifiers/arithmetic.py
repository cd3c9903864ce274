"""The arithmetic in which certificates are computed: IEEE, nothing fast."""

import logging
import math
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from robustcert.arithmetic.products import (
    check_large_products,
    check_matrix_products,
    products_are_tested,
    tested_products,
)
from robustcert.arithmetic.settings import (
    PROCESS_SETTINGS,
    THREAD_SETTINGS,
    UnsoundArithmeticError,
    check_threads,
    flushes_subnormals,
    variables,
)
from robustcert.norms.device import CPU, Place, computed_on

__all__ = [
    "UnsoundArithmeticError",
    "bounds_on",
    "check_device",
    "float64_products_are_strict",
    "strict_arithmetic",
]


log = logging.getLogger(__name__)


class _Region:
    """The process's settings, strict while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: list[Any] = []
        self._changes: list[str] = []

    def enter(self) -> int:
        """Make the settings strict; returns how many changes had been seen before."""
        with self._lock:
            if self._inside == 0:
                self._saved = []
                try:
                    for setting in PROCESS_SETTINGS:
                        self._saved.append(setting.read())
                        setting.write(setting.strict)
                except RuntimeError as error:
                    self._restore()
                    raise UnsoundArithmeticError(
                        f"{setting.name} cannot be read, maybe because another thread was setting "
                        f"it: {error}"
                    ) from error
            else:
                self._watch()
            self._inside += 1
            return len(self._changes)

    def leave(self, seen: int) -> list[str]:
        """Names of settings that were changed since; the last to leave restores what was before."""
        with self._lock:
            self._watch()
            changes = self._changes[seen:]
            self._inside -= 1
            if self._inside == 0:
                self._changes = []
                self._restore()
            return changes

    def _restore(self) -> None:
        # All that were saved: fewer than there are, where one could not be read.
        pairs = zip(PROCESS_SETTINGS, self._saved, strict=False)
        for setting, value in reversed(list(pairs)):
            setting.write(value)

    def _watch(self) -> None:
        """Remember what is not strict any more, for all who are inside, and make it strict."""
        loose = [setting for setting in PROCESS_SETTINGS if not setting.is_strict()]
        self._changes += [setting.name for setting in loose]
        if loose:
            for setting in PROCESS_SETTINGS:
                setting.write(setting.strict)


_region = _Region()


@contextmanager
def strict_arithmetic() -> Iterator[dict[str, Any]]:
    """Switch off TF32, bfloat16 products, flush-to-zero and transforms; yield what is in force.

    The error bounds assume of every sum of products that it is one, in some order, each operation
    rounded once to the working precision. cuDNN and, on CPUs, NNPACK may compute a convolution by
    Winograd's or Fourier's transform instead, whose errors are larger, and oneDNN may compute it in
    bfloat16 where a variable asks for that: all are switched off, so that convolutions are matrix
    products. Products of networks are tested as well, see :mod:`robustcert.arithmetic.products`.

    Regions nest, and threads enter and leave them in any order: the first one in saves the
    process's settings, the last one out restores them. All are read again at the end.

    Raises:
        UnsoundArithmeticError: a setting was changed meanwhile, so that what was computed is not to
            be used; or the machine's arithmetic is not what bounds assume.

    Example:
        >>> with strict_arithmetic() as settings:
        ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
        >>> settings["tf32"]
        False
    """
    seen = _region.enter()
    saved = [setting.read() for setting in THREAD_SETTINGS]
    changes: list[str] = []
    try:
        for setting in THREAD_SETTINGS:
            setting.write(setting.strict)
        # An outer region of this thread has tested the same workers.
        if not products_are_tested():
            check_threads()
            check_matrix_products(torch.device("cpu"))
        with tested_products():
            yield _record()
        changes += [setting.name for setting in THREAD_SETTINGS if not setting.is_strict()]
    finally:
        for setting, value in zip(THREAD_SETTINGS, saved, strict=True):
            setting.write(value)
        changes += _region.leave(seen)
    if changes:
        raise UnsoundArithmeticError(
            f"{', '.join(dict.fromkeys(changes))}: expected a setting that nobody touches while "
            "something is certified, but it was changed meanwhile, maybe by another thread: what "
            "was computed is discarded. Set it before or after"
        )


# Results of float64 that shorter or emulated arithmetic does not have. Roots are left out: those of
# libraries are off by a unit in the last place, which bounds allow for.
_KNOWN: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor], str, str, str], ...] = (
    ("a sum", torch.add, "0x1p+53", "0x1.8p+1", "0x1.0000000000002p+53"),
    ("a difference", torch.sub, "0x1p+0", "0x1p-54", "0x1p+0"),
    ("a product", torch.mul, "0x1.999999999999ap-4", "0x1.8p+1", "0x1.3333333333334p-2"),
    ("a product of large and small", torch.mul, "0x1p+1000", "0x1.8p-1000", "0x1.8p+0"),
    ("a subnormal product", torch.mul, "0x1.8p-1022", "0x1p-1", "0x1.8p-1023"),
    ("a quotient", torch.div, "0x1p+0", "0x1.8p+1", "0x1.5555555555555p-2"),
)


def check_device(device: torch.device) -> None:
    """Compare float64 operations and products of matrices on a device with known results.

    Products of a network's own shapes are tested where they are evaluated.

    Raises:
        UnsoundArithmeticError: a result is another, as where float64 is emulated.
        RuntimeError: there is no such device, or it has no float64; TypeError or AssertionError on
            some.
    """
    with strict_arithmetic():
        for name, operation, first, second, expected in _KNOWN:
            one, other = (
                torch.tensor([float.fromhex(value)] * 64, dtype=torch.float64, device=device)
                for value in (first, second)
            )
            found = operation(one, other).cpu()
            if (found != float.fromhex(expected)).any():
                raise UnsoundArithmeticError(
                    f"float64 on {device} is not that of IEEE 754: expected {expected} of {name}, "
                    f"got {float(found[0]).hex()}, so that nothing is certified there. Set "
                    "device=cpu"
                )
        check_matrix_products(device)


@contextmanager
def bounds_on(device: torch.device) -> Iterator[Place]:
    """Within it, bounds of norms are computed in float64 on a device, with the CPU's proof.

    What the proof rests on is tested there before. On a device that lacks it nothing is proved: the
    CPU proves all bounds, and where the device fails, those for which it does. The log says so.

    Example:
        >>> from robustcert.norms import dense_norm_bound
        >>> with bounds_on(torch.device("cpu")):
        ...     bound = dense_norm_bound(torch.eye(2))
        >>> 1 <= bound < 1 + 1e-9
        True
    """
    with computed_on(device if _proves(device) else CPU) as place:
        yield place


def _proves(device: torch.device) -> bool:
    """Whether a device has the arithmetic that bounds of norms rest on; if not, it is said once."""
    if device.type == "cpu":
        return True
    try:
        check_device(device)
        with strict_arithmetic():
            check_bounds_arithmetic(device)
    # As check_device says, errors of every kind.
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        _warn_once(f"{device} proves no bounds, and the CPU does: {reason}")
        return False
    return True


@cache
def _warn_once(line: str) -> None:
    log.warning(line)


def check_bounds_arithmetic(device: torch.device) -> None:
    """What bounds of norms need of a device beyond :func:`check_device`, as sizes vary too much.

    Raises:
        UnsoundArithmeticError: products of large matrices may be emulated or are inexact, or a
            root is not rounded to nearest.
    """
    asked = [f"{k}={v}" for k, v in variables().items() if "EMULATE" in k and v not in ("", "0")]
    if asked:
        raise UnsoundArithmeticError(f"{', '.join(asked)} asks for emulated products: unset it")
    check_large_products(device)
    # Sums of squares are computed as norms, which are then squared: k^2 + 1 is exact.
    pairs = torch.ones(4096, 1, 2, dtype=torch.float64, device=CPU)
    pairs[:, 0, 0] = torch.arange(len(pairs), dtype=torch.float64, device=CPU)
    found = torch.linalg.vector_norm(pairs.to(device), dim=(-2, -1)).tolist()
    if found != [math.sqrt(k * k + 1) for k in range(len(pairs))]:
        raise UnsoundArithmeticError(f"float64 roots on {device} are not rounded to nearest")


def _record() -> dict[str, Any]:
    """What a certificate says of the arithmetic; settings are as written, or there is an error."""
    return {
        "tf32": False,
        "cudnn": False,
        "nnpack": False,
        "mkldnn": False,
        "float32_matmul_precision": "highest",
        "flush_denormal": flushes_subnormals(),
        "self_tested": True,
        "variables": variables(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


class _Known(threading.local):
    """Numbers of threads with which this thread's workers were tested."""

    def __init__(self) -> None:
        self.threads: set[int] = set()


_known = _Known()


def float64_products_are_strict() -> bool:
    """Whether dense float64 products on the CPU are computed so already, in a few microseconds.

    Reading is much cheaper than switching. No setting asks for less in float64, but those of the
    thread. Convolutions are not covered.

    Example:
        >>> with strict_arithmetic():
        ...     float64_products_are_strict()
        True
    """
    strict = not flushes_subnormals() and not torch.is_autocast_enabled("cpu")
    threads = torch.get_num_threads()
    if strict and threads not in _known.threads:
        check_threads()
        _known.threads.add(threads)
    return strict
