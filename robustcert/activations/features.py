"""How activations address features: constants per feature, neighbouring pairs, groups."""

import torch
from torch import Tensor


def along_features(value: Tensor, x: Tensor) -> Tensor:
    """``value``, a scalar or one number per feature, laid out along dimension 1 of ``x``.

    Raises:
        RuntimeError: ``x`` has another number of features; one must not be copied to several.
    """
    if value.dim() == 0:
        return value
    return value.view(-1, *(1,) * (x.dim() - 2)).expand(x.shape[1:])


def split_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second feature of every pair of neighbours: even and odd ones."""
    # Not unflatten and flatten, which autograd's vectorised Jacobians do not know.
    first, second = x.reshape(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:]).unbind(2)
    return first, second


def join_pairs(first: Tensor, second: Tensor) -> Tensor:
    """The inverse of `split_pairs`."""
    return torch.stack((first, second), dim=2).reshape(
        first.shape[0], 2 * first.shape[1], *first.shape[2:]
    )


def ordered(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller and the larger of two tensors, entry by entry.

    Unlike `torch.minimum` and `torch.maximum`, which halve the gradient at a tie, the result is a
    permutation there too, so gradient norms are preserved, and a function of the two that is
    symmetric and smooth keeps all its derivatives.
    """
    swap = first > second
    return torch.where(swap, second, first), torch.where(swap, first, second)


def check_groups(name: str, num_features: int, group_size: int) -> None:
    """Refuse a number of features that does not split evenly into groups."""
    if num_features % group_size:
        raise ValueError(
            f"{name} cannot split {num_features} features into groups of {group_size}: "
            f"set model.width to a multiple of {group_size}"
        )
