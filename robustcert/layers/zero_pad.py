"""Zeros around a map, where the layer behind it reads the border."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.network.linear import Convolution


class ZeroPad2d(nn.Module):
    """Add ``size`` rows and columns of zeros on every side: 1-Lipschitz, it keeps all norms.

    Args:
        channels: Channels of the input, of shape ``(N, channels, H, W)``.
        size: Rows and columns on each side.

    Example:
        >>> ZeroPad2d(1, 1)(torch.ones(1, 1, 1, 1))[0, 0]
        tensor([[0., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        if channels < 1 or size < 0:
            raise ValueError(
                f"expected at least 1 channel and a size of at least 0, got {channels} and {size}: "
                "set channels and size"
            )
        self.channels = channels
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H + 2 size, W + 2 size)``."""
        return F.pad(x, (self.size,) * 4)

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Convolution:
        """The map as a convolution with one tap of 1 for every channel."""
        taps = torch.ones(self.channels, 1, 1, 1, dtype=torch.float32, device="cpu")
        return Convolution(taps, padding=(self.size, self.size), groups=self.channels)
