"""A learned translation that tells positions apart."""

import torch
from torch import Tensor, nn

from robustcert.network.linear import Affine
from robustcert.network.operation import constant


class Position(nn.Module):
    """Add a learned map, ``x + p``: 1-Lipschitz whatever it is.

    Args:
        shape: ``(C, H, W)`` of one input.

    Example:
        >>> layer = Position((1, 2, 2))
        >>> layer(torch.zeros(1, 1, 2, 2)).shape, lipschitz_bound(layer, (1, 2, 2))
        (torch.Size([1, 1, 2, 2]), 1.0)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        return x + self.shift

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Affine:
        """The translation with a constant for every entry."""
        return Affine(constant(torch.ones_like(self.shift[:, 0, 0])), constant(self.shift))
