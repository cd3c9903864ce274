"""The arithmetic in which certificates are computed: IEEE, nothing fast."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def strict_arithmetic() -> Iterator[dict[str, Any]]:
    """Switch off TF32, reduced-precision accumulation and flush-to-zero; yield what is in force.

    The error bounds assume that every product and sum is rounded once to the working precision.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()
    saved = (matmul.allow_tf32, cudnn.allow_tf32)
    torch.set_float32_matmul_precision("highest")
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    torch.set_flush_denormal(False)
    try:
        yield {
            "tf32": False,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "flush_denormal": bool(_flushes_subnormals()),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = saved
        torch.set_float32_matmul_precision(precision)


def _flushes_subnormals() -> bool:
    smallest = torch.tensor([torch.finfo(torch.float64).smallest_normal], dtype=torch.float64)
    return float(smallest / 2) == 0.0
