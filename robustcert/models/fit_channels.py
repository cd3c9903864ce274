"""A change of the number of channels that computes nothing."""

import torch
from torch import Tensor, nn

from robustcert.network.linear import Convolution


class FitChannels(nn.Module):
    """Keep the first channels, or append channels of zeros: 1-Lipschitz either way.

    Args:
        in_channels: Channels of the input, of shape ``(N, in_channels, H, W)``.
        out_channels: Channels of the output.

    Example:
        >>> FitChannels(1, 3)(torch.ones(1, 1, 1, 1)).flatten()
        tensor([1., 0., 0.])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``."""
        if self.out_channels <= self.in_channels:
            return x[:, : self.out_channels]
        missing = (0, 0, 0, 0, 0, self.out_channels - self.in_channels)
        return nn.functional.pad(x, missing)

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Convolution:
        """A 1x1 convolution with one weight of 1 for every channel that is kept."""
        return Convolution(
            torch.eye(self.out_channels, self.in_channels, dtype=torch.float32, device="cpu")[
                ..., None, None
            ]
        )
