"""Residues of positions modulo a stride, moved into channels and back."""

from torch import Tensor
from torch.nn import functional as F


def to_residues(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """Blocks of ``stride`` positions as channels, ``(N, C, H, W)`` to ``(N, C h w, H/h, W/w)``."""
    high, wide = stride
    if high == wide:
        # At stride 1 nothing moves, and torch would copy the map.
        return x if high == 1 else F.pixel_unshuffle(x, high)
    blocks = x.unflatten(3, (-1, wide)).unflatten(2, (-1, high))
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def from_residues(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """The inverse of :func:`to_residues`."""
    high, wide = stride
    if high == wide:
        return x if high == 1 else F.pixel_shuffle(x, high)
    blocks = x.unflatten(1, (-1, high, wide)).permute(0, 1, 4, 2, 5, 3)
    return blocks.flatten(4, 5).flatten(2, 3)
