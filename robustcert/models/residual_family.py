"""A family whose own layers keep the shape of their input."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from robustcert.models.layer_family import LayerFamily, Pair


class ResidualFamily(LayerFamily):
    """Residual layers where input and output have one shape, and linear ones elsewhere.

    Args:
        dense: Called as ``dense(features, features)``.
        conv: Called as ``conv(channels, channels, kernel_size, stride=1, padding=kernel_size // 2,
            input_size=)`` with odd square kernels.
        linear: Layers for all other places.

    Example:
        >>> from functools import partial
        >>> linear = LayerFamily(dense=AOLLinear, conv=AOLConv2d)
        >>> relu = {"activation": ReLU}
        >>> family = ResidualFamily(partial(CPLLinear, **relu), partial(CPLConv2d, **relu), linear)
        >>> isinstance(family.dense(4, 4), CPLLinear), isinstance(family.dense(4, 2), AOLLinear)
        (True, True)
    """

    def __init__(
        self,
        dense: Callable[..., nn.Module],
        conv: Callable[..., nn.Module],
        linear: LayerFamily,
    ) -> None:
        super().__init__(
            dense=partial(_dense, dense, linear.dense), conv=partial(_conv, conv, linear.conv)
        )


def _dense(
    residual: Callable[..., nn.Module],
    linear: Callable[..., nn.Module],
    in_features: int,
    out_features: int,
    **options: Any,
) -> nn.Module:
    layer = residual if in_features == out_features else linear
    return layer(in_features, out_features, **options)


def _conv(
    residual: Callable[..., nn.Module],
    linear: Callable[..., nn.Module],
    in_channels: int,
    out_channels: int,
    kernel_size: Pair,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    **options: Any,
) -> nn.Module:
    keeps = (
        isinstance(kernel_size, int)
        and in_channels == out_channels
        and (stride, padding) == (1, (kernel_size - 1) / 2)
    )
    layer = residual if keeps else linear
    return layer(in_channels, out_channels, kernel_size, stride=stride, padding=padding, **options)
