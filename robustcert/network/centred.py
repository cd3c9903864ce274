r"""Sums that subtract a mean: a multiple of the input, and a weighted sum of every group.

On a group of n entries such a sum is :math:`M = a I + c\, \mathbf 1 r^\top`, r being the weights.
With :math:`s = c \sum_i r_i` and :math:`p = c^2 n \sum_i r_i^2`, M acts as a multiple by a where
both 1 and r are orthogonal to a vector, in the input and in the output. On what is left, two
dimensions at most, it has the determinant :math:`a (a + s)` and, squared and added up, singular
values of :math:`T = 2 a^2 + 2 a s + p`. So their squares are the roots of
:math:`\lambda^2 - T \lambda + a^2 (a + s)^2`, between which :math:`a^2` lies, for the polynomial is
:math:`a^2 (s^2 - p) \le 0` there, and

.. math:: \lVert M \rVert^2 = \tfrac12 \big(T + (T^2 - 4 a^2 (a + s)^2)^{1/2}\big).

Without its mean a vector is no longer than it was, :math:`\lVert M \rVert = 1`, where the two
branches have constants that add up to 2.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from robustcert.network.bounds import run
from robustcert.network.linear import Affine, Dense, Flatten, Gather, Reshape
from robustcert.network.operation import Operation, Shape
from robustcert.norms.scalars import exact, root_up

READING = (Flatten, Gather, Reshape)


def centred_bound(branches: Sequence[Sequence[Operation]], shape: Shape) -> float | None:
    """Bound of the constant of a sum of branches that subtracts a mean; None of other sums.

    Args:
        branches: Each a sequence of operations on the same input.
        shape: Shape of one input.
    """
    if len(branches) != 2:
        return None
    scaling, other = sorted(branches, key=len)
    multiple, found = _multiple(scaling), _group_sums(other, shape)
    if multiple is None or found is None:
        return None
    row, factors = found
    total, squares = sum(row, Fraction(0)), sum((r * r for r in row), Fraction(0))
    return max(
        _norm_up(multiple, c * total, c * c * len(row) * squares) for c in {*map(exact, factors)}
    )


def _norm_up(a: Fraction, s: Fraction, p: Fraction) -> float:
    trace = 2 * a * a + 2 * a * s + p
    root = exact(root_up(trace**2 - (2 * a * (a + s)) ** 2))
    return root_up((trace + root) / 2)


def _multiple(branch: Sequence[Operation]) -> Fraction | None:
    """The number by which a branch multiplies its input, whatever it adds."""
    if not branch:
        return Fraction(1)
    only = branch[0]
    if len(branch) > 1 or not isinstance(only, Affine) or (only.scale != only.scale[0]).any():
        return None
    return exact(float(only.scale[0]))


def _group_sums(
    branch: Sequence[Operation], shape: Shape
) -> tuple[list[Fraction], Iterable[float]] | None:
    """Weights within a group, and the factors by which groups' sums are subtracted from entries.

    None where the branch is something else: every entry has to be in one group, and to get a
    multiple of its sum, the same one in all of the group.
    """
    places = [i for i, op in enumerate(branch) if isinstance(op, Dense)]
    if len(places) != 1:
        return None
    dense, before, after = branch[places[0]], branch[: places[0]], branch[places[0] + 1 :]
    assert isinstance(dense, Dense)
    if len(dense.weight) != 1 or not all(isinstance(op, READING) for op in before):
        return None
    entries = torch.arange(math.prod(shape), dtype=torch.int64, device="cpu")
    members = run(before, entries.view(1, *shape) + 1)[0].unflatten(-1, (1, -1)).flatten(0, -2) - 1
    if not torch.equal(members.flatten().sort().values, entries):
        return None
    spread = _spread(after, tuple(run(before, entries.view(1, *shape)).shape[1:-1]), len(members))
    group = torch.empty_like(entries)
    group[members] = torch.arange(len(members), dtype=torch.int64, device="cpu")[:, None]
    if spread is None or tuple(spread[0].shape) != shape:
        return None
    factors = spread[1].flatten()[members]
    if not torch.equal(spread[0].flatten(), group) or (factors != factors[:, :1]).any():
        return None
    return [exact(float(r)) for r in dense.weight[0]], set(factors[:, 0].tolist())


def _spread(after: Sequence[Operation], left: Shape, count: int) -> tuple[Tensor, Tensor] | None:
    """The group whose sum every entry of the output gets, and its factor."""
    groups = torch.arange(1, 1 + count, dtype=torch.int64, device="cpu").view(1, *left, 1)
    factors = torch.ones(groups.shape, dtype=torch.float64, device="cpu")
    scaled = False
    for op in after:
        if isinstance(op, Affine) and not scaled:
            along = op.scale.double().view(-1, *(1,) * (groups.dim() - 2))
            factors, scaled = factors * along, True
        elif isinstance(op, READING):
            groups, factors = op(groups), op(factors)
        else:
            return None
    return groups[0] - 1, factors[0]
