"""The arithmetic in which certificates are computed: IEEE, nothing fast."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def strict_arithmetic() -> Iterator[dict[str, Any]]:
    """Switch off TF32, bfloat16 products, flush-to-zero and transforms; yield what is in force.

    The error bounds assume of every sum of products that it is one, in some order, each operation
    rounded once to the working precision. cuDNN and, on CPUs, NNPACK may compute a convolution by
    Winograd's or Fourier's transform instead, whose errors are larger: both are switched off, so
    that convolutions are matrix products. What was set before is set again afterwards.
    """
    switches = _switches()
    saved = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
    flushed = _flushes_subnormals()
    for switch in switches:
        setattr(*switch)
    # Torch holds this beside the switches and refuses to say what it is where they disagree.
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)
    nnpack = torch.backends.nnpack.set_flags(False)
    try:
        yield {
            "tf32": False,
            "cudnn": torch.backends.cudnn.enabled,
            "nnpack": False,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "flush_denormal": _flushes_subnormals(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
    finally:
        torch.backends.nnpack.set_flags(*nnpack)
        torch.set_flush_denormal(flushed)
        torch.set_float32_matmul_precision(precision)
        for switch in saved:
            setattr(*switch)


def cpu_products_are_strict() -> bool:
    """Whether dense products on the CPU are computed so already, in a microsecond.

    Reading is much cheaper than switching. Convolutions are not spoken of.
    """
    backends = torch.backends
    if not hasattr(backends, "fp32_precision"):  # torch before 2.9
        precise = True
    else:
        mkldnn: Any = backends.mkldnn
        precise = mkldnn.matmul.fp32_precision in ("ieee", "none")
    # Python's floats are flushed where torch's are: both are the thread's.
    smallest = sys.float_info.min
    return (
        precise
        and torch.get_float32_matmul_precision() == "highest"
        and smallest / 2 > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _switches() -> list[tuple[Any, str, Any]]:
    cuda, cudnn, mkldnn = (getattr(torch.backends, name) for name in ("cuda", "cudnn", "mkldnn"))
    transforms = (cudnn, "enabled", False)
    if not hasattr(torch.backends, "fp32_precision"):  # torch before 2.9
        return [(cuda.matmul, "allow_tf32", False), (cudnn, "allow_tf32", False), transforms]
    owners = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)
    return [*((owner, "fp32_precision", "ieee") for owner in owners), transforms]


def _flushes_subnormals() -> bool:
    smallest = torch.tensor(
        [torch.finfo(torch.float64).smallest_normal], dtype=torch.float64, device="cpu"
    )
    return float(smallest / 2) == 0.0
