"""The arithmetic in which certificates are computed: IEEE, nothing fast."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def strict_arithmetic() -> Iterator[dict[str, Any]]:
    """Switch off TF32, bfloat16 products and flush-to-zero; yield what is in force.

    The error bounds assume that every product and sum is rounded once to the working precision.
    What was set before is set again afterwards.
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
    try:
        yield {
            "tf32": False,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "flush_denormal": _flushes_subnormals(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_float32_matmul_precision(precision)
        for switch in saved:
            setattr(*switch)


def _switches() -> list[tuple[Any, str, Any]]:
    cuda, cudnn, mkldnn = (getattr(torch.backends, name) for name in ("cuda", "cudnn", "mkldnn"))
    if not hasattr(torch.backends, "fp32_precision"):  # torch before 2.9
        return [(cuda.matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    owners = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)
    return [(owner, "fp32_precision", "ieee") for owner in owners]


def _flushes_subnormals() -> bool:
    smallest = torch.tensor([torch.finfo(torch.float64).smallest_normal], dtype=torch.float64)
    return float(smallest / 2) == 0.0
