"""A family with a layer of its own for convolutions on patches."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from robustcert.models.layer_family import LayerFamily, Pair


class PatchFamily(LayerFamily):
    """One layer for convolutions that read every position once, another for all others.

    Args:
        dense: Called as ``dense(in_features, out_features)``.
        patch: Convolutions whose stride is the kernel's size, without padding; 1x1 ones included.
        conv: All other convolutions.

    Example:
        >>> family = PatchFamily(dense=CholeskyLinear, patch=CholeskyPatchConv2d, conv=AOLConv2d)
        >>> patches = family.conv(1, 4, 2, stride=2, padding=0, input_size=(4, 4))
        >>> overlapping = family.conv(4, 4, 3, stride=1, padding=1, input_size=(4, 4))
        >>> isinstance(patches, CholeskyPatchConv2d), isinstance(overlapping, AOLConv2d)
        (True, True)
    """

    def __init__(
        self,
        dense: Callable[..., nn.Module],
        patch: Callable[..., nn.Module],
        conv: Callable[..., nn.Module],
    ) -> None:
        super().__init__(dense=dense, conv=partial(_conv, patch, conv))


def _conv(
    patch: Callable[..., nn.Module],
    conv: Callable[..., nn.Module],
    in_channels: int,
    out_channels: int,
    kernel_size: Pair,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    **options: Any,
) -> nn.Module:
    layer = patch if stride == kernel_size and padding in (0, (0, 0)) else conv
    return layer(in_channels, out_channels, kernel_size, stride=stride, padding=padding, **options)
