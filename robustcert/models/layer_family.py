"""The two layers that a constraint offers to a model."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

# One number for height and width, or one of each: a signal is a map of height 1.
Pair = int | tuple[int, int]


@dataclass(frozen=True)
class LayerFamily:
    """Dense and convolutional layer of one constraint, as factories.

    Args:
        dense: Called as ``dense(in_features, out_features)``.
        conv: Called as ``conv(in_channels, out_channels, kernel_size, stride=, padding=,
            input_size=)``; kernel_size, stride and padding are numbers, or pairs for kernels that
            are not square.

    Example:
        >>> family = LayerFamily(dense=AOLLinear, conv=AOLConv2d)
        >>> family.dense(8, 4)(torch.zeros(1, 8)).shape
        torch.Size([1, 4])
    """

    dense: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
