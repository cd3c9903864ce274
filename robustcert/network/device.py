"""What the host may wait for in a training step."""

import torch
from torch import Tensor


def stays_on_device(x: Tensor) -> bool:
    """Whether a step must not wait for a value: on an accelerator, and in a compiled graph."""
    return x.device.type != "cpu" or torch.compiler.is_compiling()
