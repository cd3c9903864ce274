r"""Local Lipschitz bounds of dense networks on l2 balls, for many samples at once, with rounding.

Reference: Fazlyab et al., `Efficient and accurate estimation of Lipschitz constants for deep neural
networks <https://arxiv.org/abs/1906.04893>`_, NeurIPS 2019 (LipSDP, also with slopes of a ball).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustcert.certifiers.lipsdp.layers import NOTHING, Layer, compose, frobenius
from robustcert.network.local_error import gamma
from robustcert.norms.proof import Scaled, scaled
from robustcert.norms.scalars import UNIT_ROUNDOFF, round_up
from robustcert.relaxations.backward import FLOOR, SLACK, Diagonal, Linear, Matrix, Step
from robustcert.relaxations.curves import Curve

# Of the power mean over rivals that the multipliers are chosen for.
SHARPNESS = 32
# Share of the radius of slopes that their middle is moved by for the search, see `soften` of
# certifiers/lipsdp/search.py.
SOFTNESS = 0.03

# Note [images] (why the bounds hold)
# ~~~~~~~~~~~~~
# The values of two points of a ball after a layer differ by J d0, d0 the difference of the points,
# for a matrix J that is a product of layers (m + r S) V: V is a linear map, and the quotients of
# the activation between the two are m + r s with |s| <= 1, coordinate by coordinate. The claim
# after each layer is J J' <= P (as quadratic forms) for all such J, and it starts with P = I.
#
# One layer takes it to (m + r S) A (m + r S) for any A >= V P V'. With rho = sqrt(r), for any
# multipliers g > 0 and any P' suppose that the form
#     B = diag(P' - r g, g) - [m; rho] A [m, rho]  >=  -eta I.
# Put (x, rho S x) into it: x'P'x - x'r g x + x'r g S^2 x - x'(m + r S) A (m + r S) x is at least
# -eta (1 + max r) |x|^2, and S^2 <= 1, so P' + eta (1 + max r) I is the next claim. The least P'
# for g is m A m + X X' + r g with L L' = g - rho A rho and X = m A rho L'^-1, for which
# B = [-X; L] [-X; L]'. L and X are not trusted: eta is the norm of what is left of B, computed with
# its rounding. Where a slope is known, r = 0, nothing is lost, and on a ball without folds P = JJ'.
#
# g = D_g / r_g of the global bound (Note [ellipsoids] of certifiers/lipsdp/search.py; D_g,
# r_g there) is feasible for all slopes in the global intervals, and gives no larger an ellipsoid:
# with a = (m - m_g) / r_g and b = r / r_g, |a| + b <= 1, put a x + b z into the global form and use
# (a x + b z)^2 <= |a| x^2 + b z^2, coordinate by coordinate.
#
# A difference of logits is at most sqrt((w_c - w_j)' P (w_c - w_j)) |d0|. Linear maps are
# 2^e (values + rest) as in `Scaled`, and everything is measured in these powers of two.
#
# Roundings: gamma_k, k at least 8 above the terms of the sums, times Frobenius norms of what is
# multiplied; FLOOR for underflow; SLACK for sums of nonnegative numbers. A matrix that is only
# known up to epsilon in norm gets 2 epsilon on its diagonal: half of it is for adding it.


@dataclass(frozen=True, eq=False)
class Map:
    """A linear map ``2^exponent (values + rest)``.

    ``norm`` bounds the Frobenius norm of values, shape ``(n, n_in)``; ``tail`` the norm of rest.
    """

    values: Tensor
    exponent: int
    norm: float
    tail: float


@dataclass(frozen=True, eq=False)
class Chain:
    """A dense network as linear maps to the arguments of its curves, and one to the logits.

    Attributes:
        maps: One before every curve.
        head: After the last.
        gram: The first map's :func:`image` of the unit ball, shape ``(1, n, n)``.
    """

    maps: tuple[Map, ...]
    head: Map
    gram: Tensor

    def layers(self, curves: Sequence[Curve]) -> list[Layer]:
        """The maps with the slopes of all inputs, as ``lipsdp`` has them."""
        layers = []
        for linear, curve in zip(self.maps, curves, strict=True):
            far = torch.full((1, len(curve.fixed)), 1e150, dtype=torch.float64, device="cpu")
            low, high = (slope[0] for slope in curve.slopes(-far, far))
            # Unproved, so that neither the rest nor the exponent matters.
            layers.append(Layer(Scaled(linear.values.numpy(), 0, NOTHING), low, high))
        return layers

    def to(self, device: torch.device) -> "Chain":
        """A copy on another device."""
        maps = tuple(replace(m, values=m.values.to(device)) for m in (*self.maps, self.head))
        return Chain(maps[:-1], maps[-1], self.gram.to(device))


def chain_of(steps: Sequence[Step], features: int) -> Chain:
    """The steps of :func:`robustcert.relaxations.backward.steps_of`, on the CPU, as maps.

    Args:
        steps: The steps.
        features: Of the input.
    """
    maps = []
    linear: Scaled | None = None
    for step in steps:
        if isinstance(step, Linear):
            linear = compose(_scaled(step, features), linear)
            features = len(linear.values)
        else:
            maps.append(_map(linear, features))
            linear = None
    head = _map(linear, features)
    first = maps[0] if maps else head
    return Chain(tuple(maps), head, image(first, None))


def _scaled(step: Linear, features: int) -> Scaled:
    if isinstance(step, Matrix):
        return scaled(step.weight)
    if isinstance(step, Diagonal):
        return scaled(step.scale)
    # Entries of 1, -1 and 1/2: pulling the identity back is exact.
    return scaled(step.pull(torch.eye(features, dtype=torch.float64, device="cpu")[None])[0][0])


def _map(linear: Scaled | None, features: int) -> Map:
    if linear is None:
        linear = scaled(torch.eye(features, dtype=torch.float64, device="cpu"))
    values = torch.from_numpy(linear.values)
    values = values.diag() if values.dim() == 1 else values
    return Map(values, linear.exponent, round_up(frobenius(values)), round_up(linear.tail))


def _length(matrix: Tensor) -> Tensor:
    """Frobenius norms of a batch of matrices, at least."""
    # The factor covers the rounding of 2^31 squares and their sum; the last term, their underflow.
    return torch.linalg.matrix_norm(matrix) * (1 + 2.0**-22) + matrix[0].numel() * 2.0**-500


def image(linear: Map, ellipsoid: Tensor | None) -> Tensor:
    """``A >= V P V'`` without the map's power of two, for P of shape ``(N, n, n)``; None: I."""
    values = linear.values
    if ellipsoid is None:
        gram = (values @ values.mT)[None]
        size = torch.ones(1, dtype=torch.float64, device=values.device)
    else:
        gram = values @ ellipsoid @ values.mT
        gram = (gram + gram.mT) / 2
        size = _length(ellipsoid)
    terms = gamma(2 * max(values.shape) + 16, UNIT_ROUNDOFF)
    error = terms * linear.norm**2 + linear.tail * (2 * linear.norm + linear.tail)
    return _raised(gram, (error * size + FLOOR) * SLACK)


def _raised(matrix: Tensor, error: Tensor) -> Tensor:
    return matrix + torch.diag_embed((2 * error)[:, None].expand(-1, matrix.shape[1]))


@dataclass(frozen=True)
class Slopes:
    """Difference quotients within ``radius`` of ``middle``, shapes ``(N, n)``."""

    middle: Tensor
    radius: Tensor

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> "Slopes":
        """The radius is rounded up, and 0 exactly where both are equal."""
        middle = (low + high) / 2
        return cls(middle, torch.maximum(high - middle, middle - low) * (1 + 2.0**-50))

    def softened(self) -> "Slopes":
        """With larger ellipsoids, which grow without bound where they stop being feasible."""
        middle = torch.hypot(self.middle, SOFTNESS * self.radius)
        return Slopes(torch.where(self.middle < 0, -middle, middle), self.radius)


@dataclass(frozen=True)
class Passed:
    """An ellipsoid P' of Note [images] before rounding is charged, with the factors L and X."""

    ellipsoid: Tensor
    lower: Tensor
    across: Tensor


def passed(gram: Tensor, slopes: Slopes, multipliers: Tensor) -> tuple[Passed, Tensor]:
    """The least P' for the multipliers, and where it exists, shape ``(N,)``; no proof."""
    middle, root = slopes.middle[:, :, None], slopes.radius.sqrt()[:, :, None]
    inner = torch.diag_embed(multipliers) - root * gram * root.mT
    lower, info = torch.linalg.cholesky_ex(inner)
    side = root * gram * middle.mT
    across = torch.linalg.solve_triangular(lower, side, upper=False).mT
    ellipsoid = middle * gram * middle.mT + across @ across.mT
    ellipsoid = ellipsoid + torch.diag_embed(slopes.radius * multipliers)
    return Passed(ellipsoid, lower, across), info == 0


def proved(gram: Tensor, slopes: Slopes, multipliers: Tensor) -> Tensor:
    """An ellipsoid P' that holds, whatever the multipliers are; NaN or infinite if they are bad.

    Args:
        gram: A of Note [images], shape ``(N or 1, n, n)``.
        slopes: Of the curve.
        multipliers: g, at least 0, shape ``(N, n)``.
    """
    found, _ = passed(gram, slopes, multipliers)
    middle, root = slopes.middle[:, :, None], slopes.radius.sqrt()[:, :, None]
    lower, across = found.lower, found.across
    side = root * gram * middle.mT
    inner = torch.diag_embed(multipliers) - root * gram * root.mT
    corner = _length(inner - lower @ lower.mT)
    beside = _length(side - lower @ across.mT)
    # What is multiplied, by Frobenius norms; what was subtracted last is in `corner` and `beside`.
    size = slopes.middle.abs().amax(1) + root.amax((1, 2))
    size = size.square() * _length(gram) + (_length(lower) + _length(across)).square()
    size = size + (1 + slopes.radius.amax(1)) * multipliers.norm(dim=1)
    terms = gamma(2 * multipliers.shape[1] + 16, UNIT_ROUNDOFF)
    eta = (corner + beside + 4 * terms * size + FLOOR) * SLACK
    ellipsoid = (found.ellipsoid + found.ellipsoid.mT) / 2
    return _raised(ellipsoid, eta * (1 + slopes.radius.amax(1)) * SLACK)


def improved(
    chain: Chain,
    slopes: Sequence[Slopes],
    starts: Sequence[Sequence[Tensor]],
    own: Tensor,
    gap: Tensor,
    iterations: int,
) -> list[Tensor]:
    r"""Multipliers that make the largest quotient of a logit's bound and ``gap`` smaller; no proof.

    Where the gradient by g vanishes, :math:`r u^2 = y^2` for the vector u that the head's row
    becomes on its way back and :math:`y = (\operatorname{diag}(g) - \rho A \rho)^{-1} \rho A m u`;
    for weighted rows, their weighted sums. A step moves log g by the logarithm of the quotient,
    which is Newton's if y is inversely proportional to g, and is shortened for the samples that
    it does not help.

    Args:
        chain: The network.
        slopes: For every curve.
        starts: Multipliers, for every curve ``(N, n)``; the best of them is improved.
        own: Logits to compare with, shape ``(N,)``.
        gap: What the bounds are divided by, positive; infinite for rows that don't count.
        iterations: Number of steps tried.
    """
    slopes = [slope.softened() for slope in slopes]
    best, *others = (list(start) for start in starts)
    value, change = _ascent(chain, slopes, best, own, gap)
    length = torch.ones_like(value)
    for i in range(len(others) + iterations):
        if i < len(others):
            tried = others[i]
        else:
            tried = [g * (length[:, None] * c).exp() for g, c in zip(best, change, strict=True)]
        new, turned = _ascent(chain, slopes, tried, own, gap)
        better = new < value
        value = torch.where(better, new, value)
        if i >= len(others):
            length = torch.where(better, (1.5 * length).clamp(max=1), length / 3)
        best = [torch.where(better[:, None], t, b) for t, b in zip(tried, best, strict=True)]
        change = [torch.where(better[:, None], t, c) for t, c in zip(turned, change, strict=True)]
    return best


def _ascent(
    chain: Chain, slopes: Sequence[Slopes], multipliers: Sequence[Tensor], own: Tensor, gap: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logarithms of the largest quotients, infinite if infeasible, and steps of log g."""
    gram, feasible, found = chain.gram, torch.ones_like(own, dtype=torch.bool), []
    for linear, slope, g in zip((*chain.maps[1:], chain.head), slopes, multipliers, strict=True):
        step, exists = passed(gram, slope, g)
        feasible = feasible & exists
        found.append((gram, step))
        values = linear.values
        if linear is not chain.head:
            gram = values @ step.ellipsoid @ values.mT
    rows = (values[own][:, None] - values) / gap[:, :, None]
    squares = ((rows @ step.ellipsoid) * rows).sum(2)
    value = torch.where(feasible, squares.amax(1).log(), math.inf)
    # A high power mean instead of the largest, so that no rival is forgotten.
    weight = (squares / squares.amax(1, keepdim=True)).pow(SHARPNESS).sqrt()[:, :, None]
    back = (rows * weight).mT
    changes = []
    for i in reversed(range(len(slopes))):
        middle, radius = slopes[i].middle[:, :, None], slopes[i].radius[:, :, None]
        step = found[i][1]
        moved = torch.linalg.solve_triangular(step.lower.mT, step.across.mT @ back, upper=True)
        target, now = (radius * back.square()).sum(2), moved.square().sum(2)
        floor = 1e-12 * now.amax(1, keepdim=True) + FLOOR
        changes.append(((now + floor) / (target + floor)).log().div(2).clamp(-1, 1))
        if i:
            back = chain.maps[i].values.mT @ (middle * back + radius.sqrt() * moved)
    return value, changes[::-1]


def row_lengths(ellipsoid: Tensor | None, linear: Map, own: Tensor) -> Tensor:
    """Bounds on logit ``own`` minus every logit, over the input's distance, shape ``(N, C)``."""
    rows = linear.values[own][:, None] - linear.values
    norm = rows.norm(dim=2) * (1 + 2.0**-22) + rows.shape[2] * 2.0**-500
    if ellipsoid is None:
        square, size = norm.square(), torch.ones_like(norm[:, :1])
    else:
        square, size = ((rows @ ellipsoid) * rows).sum(2), _length(ellipsoid)[:, None]
    error = gamma(2 * rows.shape[2] + 16, UNIT_ROUNDOFF) * norm.square() * size
    length = (square.clamp(min=0) + error + FLOOR).sqrt() + 2 * linear.tail * size.sqrt()
    return length * SLACK
