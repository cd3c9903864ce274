"""Means of windows of an image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.network.linear import Convolution
from robustcert.network.window_norm import check_map


class MeanPool(nn.Module):
    r"""Means of disjoint windows w of side s, scaled: :math:`\frac{1}{s} \sum_{i \in w} x_i`.

    Its rows are orthonormal, so its Lipschitz constant is 1: it keeps the part of an image that is
    constant in every window, with its norm. Natural images have nearly all of theirs there.

    Args:
        channels: Channels of the input, of shape ``(N, channels, H, W)``.
        size: Side s of the windows; it must divide the height and the width.

    Example:
        >>> MeanPool(1, 2)(torch.ones(1, 1, 2, 4)).squeeze()
        tensor([2., 2.])
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channels = channels
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H / size, W / size)``."""
        check_map(x, self.size)
        return self.size * F.avg_pool2d(x, self.size)

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Convolution:
        """The means as a convolution of each channel by itself."""
        k = self.size
        taps = torch.full((self.channels, 1, k, k), 1 / k, dtype=torch.float32, device="cpu")
        return Convolution(taps, stride=(k, k), groups=self.channels)
