"""Circular shifts of groups of channels, a permutation of the entries of a map."""

import torch
from torch import Tensor


def circular_shift(x: Tensor, moved: int) -> Tensor:
    """Roll four groups of ``moved`` channels by one position: down, up, right, left.

    Example:
        >>> x = torch.zeros(1, 4, 2, 2)
        >>> x[:, 0, 0] = 1.0
        >>> circular_shift(x, 1)[0, 0]  # down by one row
        tensor([[0., 0.],
                [1., 1.]])
    """
    groups = [moved, moved, moved, moved, x.shape[1] - 4 * moved]
    down, up, right, left, rest = x.split(groups, 1)
    return torch.cat([down.roll(1, 2), up.roll(-1, 2), right.roll(1, 3), left.roll(-1, 3), rest], 1)
