"""Fixed, stratified splits: the same examples on every machine and for every run seed."""

import numpy as np
import torch
from torch import Tensor


def stratified_split(labels: Tensor, fraction: float, key: int) -> tuple[Tensor, Tensor]:
    """Cut a stratified part out of a labelled set.

    The permutation comes from NumPy's ``RandomState``, whose stream is frozen across versions, so
    a split is a function of the labels, ``fraction`` and ``key`` alone. Along the permutation the
    k-th of a class's n members gets the place (k + 1/2) / n, and the lowest places form the part:
    each class gives its share to within one example.

    Args:
        labels: Class indices, shape ``(N,)``, N at least 2.
        fraction: Share of the examples in the part; at least one example lands on each side.
        key: Chooses the permutation.

    Returns:
        Rows of the rest and of the part, each in increasing order.
    """
    permutation = np.random.RandomState(key).permutation(len(labels))
    shuffled = labels.numpy()[permutation]
    place = np.empty(len(labels))
    for label in np.unique(shuffled):
        members = np.flatnonzero(shuffled == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    size = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    chosen = permutation[np.argsort(place, kind="stable")]
    rest, part = np.sort(chosen[size:]), np.sort(chosen[:size])
    return torch.from_numpy(rest), torch.from_numpy(part)


def random_split(count: int, fraction: float, key: int) -> tuple[Tensor, Tensor]:
    """Cut a part out of ``count`` examples at random, so that all its subsets are equally likely.

    Unlike a stratified part, it is exchangeable with further examples of the same distribution,
    which is what the coverage of conformal prediction rests on.

    Args:
        count: Number of examples, at least 2.
        fraction: Share of the examples in the part; at least one example lands on each side.
        key: Chooses the permutation, as in :func:`stratified_split`.

    Returns:
        Rows of the rest and of the part, each in increasing order.
    """
    permutation = np.random.RandomState(key).permutation(count)
    size = min(max(round(fraction * count), 1), count - 1)
    rest, part = np.sort(permutation[size:]), np.sort(permutation[:size])
    return torch.from_numpy(rest), torch.from_numpy(part)
