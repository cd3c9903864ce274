"""Layers that change the resolution of a map and keep its norm, or its parts' norms."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.plain import Activation, Convolution


def norm_pool(x: Tensor, size: int) -> Tensor:
    """Euclidean norm of every window of ``size`` by ``size`` positions, channel by channel."""
    windows = F.pixel_unshuffle(x, size).unflatten(1, (-1, size * size))
    return torch.linalg.vector_norm(windows, dim=2)


class NormPool2d(nn.Module):
    r"""Norms of disjoint windows, :math:`\sqrt{\sum_{i \in w} x_i^2}`.

    Each norm is 1-Lipschitz in its own window, and the windows do not overlap, so the squares of
    the changes add up: the map is 1-Lipschitz, and its gradient has unit norm for every window that
    is not zero.

    Reference: Boureau, Ponce and LeCun, `A theoretical analysis of feature pooling in visual
    recognition <https://icml.cc/Conferences/2010/papers/638.pdf>`_, ICML 2010.

    Args:
        size: Side of the windows; it must divide the height and the width.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size = _check(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H / size, W / size)``."""
        return norm_pool(x, self.size)

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Activation:
        """The norms as a pure function."""
        # A sum of n squares is wrong by a factor of 1 + n u, its root by half of that and one more
        # rounding; a scaled evaluation divides and multiplies once more. The norm of the outputs is
        # that of the inputs. Squares that underflow: the root of n 2^-126 in float32, in units of
        # 2^-24, is size 2^-39, and far less in float64.
        error = (self.size**2 / 2 + 6.0, self.size * 2.0**-38)
        return Activation(norm_pool, {"size": self.size}, lipschitz=1.0, error=error, squares=True)


class InvertibleDownsampling(nn.Module):
    """Move every ``size`` by ``size`` window into channels: a permutation of the entries.

    Reference: Jacobsen, Smeulders and Oyallon, `i-RevNet: deep invertible networks
    <https://arxiv.org/abs/1802.07088>`_, ICLR 2018.

    Args:
        channels: Channels of the input, of shape ``(N, channels, H, W)``.
        size: Side of the windows; it must divide the height and the width.
    """

    def __init__(self, channels: int, size: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.size = _check(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C size^2, H / size, W / size)``."""
        return F.pixel_unshuffle(x, self.size)

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Convolution:
        """The permutation as a convolution with one tap of 1 for every output."""
        k = self.size
        taps = torch.eye(k * k).view(k * k, 1, k, k).repeat(self.channels, 1, 1, 1)
        return Convolution(taps, stride=(k, k), groups=self.channels)


def _check(size: int) -> int:
    if size < 1:
        raise ValueError(f"expected windows of side 1 at least, got {size}: set size")
    return size
