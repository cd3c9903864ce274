"""The theorem, once: margins, pairwise constants and the certified radius."""

import torch
from torch import Tensor


def margins(logits: Tensor, target: Tensor) -> Tensor:
    r"""Margin of the target class over every class, :math:`m_j = f_y - f_j`.

    Args:
        logits: Shape ``(N, C)``.
        target: Class indices, shape ``(N,)``.

    Returns:
        Shape ``(N, C)``, zero in the target's own column.
    """
    return logits.gather(1, target[:, None]) - logits


def smallest_margin(logits: Tensor, target: Tensor) -> Tensor:
    r"""Margin of the target class over its strongest rival, :math:`\min_{j \ne y} f_y - f_j`.

    Args:
        logits: Shape ``(N, C)``.
        target: Class indices, shape ``(N,)``.

    Returns:
        Shape ``(N,)``; infinite if there is no other class.
    """
    return least_of_rivals(margins(logits, target), target)


def row_distances(weight: Tensor) -> Tensor:
    r"""Distances :math:`\lVert w_i - w_j \rVert_2` between the rows of a head, an estimate.

    Computed from one Gram matrix, so that it costs one small product also for many classes.
    Differentiable everywhere, with gradient 0 on the diagonal and between equal rows.

    Args:
        weight: Shape ``(C, D)``.

    Returns:
        Shape ``(C, C)``, zero on the diagonal.
    """
    gram = weight @ weight.mT
    squares = gram.diagonal()
    distance2 = squares[:, None] + squares[None, :] - 2 * gram
    # sqrt has an infinite slope at 0: equal rows are moved to a constant before it is taken.
    floor = torch.finfo(weight.dtype).tiny
    positive = distance2 > floor
    return torch.where(positive, distance2, 1.0).sqrt() * positive


def certified_radius(logits: Tensor, target: Tensor, pairwise: Tensor) -> Tensor:
    r"""Radius of the open :math:`\ell_2` ball on which ``target`` stays the prediction.

    .. math:: r = \min_{j \ne y} \frac{f_y(x) - f_j(x)}{K_{yj}}

    because :math:`f_y - f_j` falls by at most :math:`K_{yj} r` within distance :math:`r` (Tsuzuku
    et al. 2018; Leino et al. 2021). The minimum runs over all classes: the runner-up logit need
    not belong to the nearest boundary. It is proved if ``pairwise`` is a bound and an estimate if
    ``pairwise`` is an estimate; rounding is the caller's matter (see ``certifiers``).

    Args:
        logits: Shape ``(N, C)``.
        target: Class indices, shape ``(N,)``.
        pairwise: ``pairwise[i, j]`` bounds the Lipschitz constant of logit i minus logit j; shape
            ``(C, C)``. Where it is 0 the margin never changes: the radius is infinite if the
            margin is positive.

    Returns:
        Shape ``(N,)``, in input units; differentiable, with a finite gradient wherever the radius
        is finite. Tied and wrong rows get a radius that is not positive; rows with a NaN or
        infinite logit get NaN, which compares false with every threshold.
    """
    margin, constant = margins(logits, target), pairwise[target]
    moves = constant != 0
    # Divided by 1 where the constant is 0, as is the own class's: its gradient would be NaN.
    ratio = margin / torch.where(moves, constant, 1.0)
    # A tie between two classes that never move apart stays one: 0, not certified.
    never = margin.detach().sign() * float("inf")
    ratio = torch.where(moves | (margin == 0), ratio, never)
    radius = least_of_rivals(ratio, target)
    # An infinite logit has overflowed: what it should have been is not known.
    return torch.where(torch.isfinite(logits).all(1), radius, float("nan"))


def least_of_rivals(values: Tensor, target: Tensor) -> Tensor:
    """Least value over all classes but the target's.

    Args:
        values: Shape ``(N, C)``.
        target: Class indices, shape ``(N,)``.

    Returns:
        Shape ``(N,)``; infinite if there is no other class.
    """
    return values.scatter(1, target[:, None], float("inf")).amin(1)
