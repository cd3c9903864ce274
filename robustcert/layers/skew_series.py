"""Skew orthogonal convolution as its authors evaluate it: a series of zero-padded convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.network.operation import constant
from robustcert.network.skew_series import SkewSeries


class SkewSeriesConv2d(nn.Module):
    r"""The first terms of the exponential of a skew zero-padded convolution.

    :math:`x \mapsto b + \sum_{k \le n} A^k x / k!`, A having the kernel :math:`(W - W^\top) / 2`
    with channels exchanged and taps reflected in :math:`W^\top`. All powers are taken on the map
    itself, whose border cuts each of them off, so that it is no convolution.
    :class:`robustcert.network.skew_series.SkewSeries` has the bound, above 1 by what the terms left
    out amount to.

    Reference: Singla and Feizi, `Skew Orthogonal Convolutions
    <https://arxiv.org/abs/2105.11417>`_, ICML 2021.

    Args:
        channels: Channels of the input and of the output.
        kernel_size: Side of the square kernel, odd.
        terms: n.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = SkewSeriesConv2d(2, 3)
        >>> f"{lipschitz_bound(layer, (2, 4, 4)):.3f}"
        '1.000'
    """

    scales: Tensor

    def __init__(
        self, channels: int, kernel_size: int, *, terms: int = 12, bias: bool = True
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or terms < 1:
            raise ValueError(
                f"expected an odd kernel and terms of at least 1, got {kernel_size} and {terms}: "
                "set kernel_size and terms"
            )
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.empty(channels, channels, kernel_size, kernel_size))
        orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.register_buffer("scales", 1 / torch.arange(1, 1 + terms))

    def kernel(self) -> Tensor:
        """The skew kernel."""
        return (self.weight - self.weight.transpose(0, 1).flip(2, 3)) / 2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape."""
        kernel, z = self.kernel(), x
        for scale in self.scales.flip(0):
            z = x + scale * F.conv2d(z, kernel, padding=self.padding)
        return z if self.bias is None else z + self.bias[:, None, None]

    def lipschitz_estimate(self) -> float:
        """1, the constant of the exponential."""
        return 1.0

    def fold(self) -> SkewSeries:
        """The layer with its kernel as a constant."""
        return SkewSeries.of(
            weight=constant(self.kernel()),
            scales=constant(self.scales),
            bias=None if self.bias is None else constant(self.bias),
        )
