"""The two layers that a constraint offers to a model."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LayerFamily:
    """Dense and convolutional layer of one constraint, as factories.

    Args:
        dense: Called as ``dense(in_features, out_features)``.
        conv: Called as ``conv(in_channels, out_channels, kernel_size, stride=, padding=,
            input_size=)``.

    Example:
        >>> family = LayerFamily(dense=AOLLinear, conv=AOLConv2d)
        >>> family.dense(8, 4)(torch.zeros(1, 8)).shape
        torch.Size([1, 4])
    """

    dense: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
