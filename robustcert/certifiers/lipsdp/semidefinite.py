r"""Lipschitz bounds of networks of dense layers by semidefinite programming, rounding included.

Reference: Fazlyab et al., `Efficient and accurate estimation of Lipschitz constants for deep neural
networks <https://arxiv.org/abs/1906.04893>`_, NeurIPS 2019 (LipSDP); Xu and Sivaranjani,
`ECLipsE <https://arxiv.org/abs/2404.04375>`_, NeurIPS 2024 (layer by layer, and in closed form);
Pauli et al., `Novel quadratic constraints for extending LipSDP beyond slope-restricted activations
<https://arxiv.org/abs/2401.14033>`_, ICLR 2024 (MaxMin).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.errors import NormBoundError
from robustcert.norms.dense import dense_norm_bound, row_distance_bounds
from robustcert.norms.proof import LANCZOS_STEPS, Scaled, energy_up, largest_eigenvalue, scaled
from robustcert.norms.scalars import TINY, UNIT, exact, gamma, root_up, round_up

NOTHING = Fraction(0)
MARGIN = 1e-6
SOFTNESS = (0.1, 0.01, 1e-3, 1e-4)

# Note [ellipsoids] (what the search is for)
# ~~~~~~~~~~~~~~~~~
# Let d be the difference of two inputs of a layer and e that of its outputs. The slopes of the
# activation lie in [m - r, m + r], coordinate by coordinate, so that, with v = V d,
#     e = m v + w,    |w_k| <= r_k |v_k|.
# Suppose that differences of inputs of unit length lead to d in the ellipsoid d' P^-1 d <= 1. Every
# diagonal D > 0 on the coordinates with r > 0 has v'r D^-1 r v - w' D^-1 w >= 0, so that (d, w)
# lies in d' (P^-1 - V'r D^-1 r V) d + w' D^-1 w <= 1, if that form is positive. Its image under
# e = m V d + w is the ellipsoid of, with A = V P V',
#     m A m + m A r (D - r A r)^-1 r A m + D.
# Composed over the layers, from P = I on, the length of w_c - w_j in P, for rows w of the head,
# bounds the pair (c, j). For slopes in [0, 1] these are the bounds of LipSDP-Neuron, by Schur
# complements, with multipliers D^-1. MaxMin keeps the sum of a pair, m = 1 and r = 0, and takes the
# absolute value of its difference, m = 0 and r = 1.
#
# Closed form: if A <= a I, then D = a r (r + |m|) gives the ellipsoid of a (r + |m|)^2 I or less,
# which is never worse than the product of norms: ECLipsE-Fast for slopes in [0, 1].
#
# Note [factor] (why the bound holds)
# ~~~~~~~~~~~~~
# Nothing of the above is trusted. The claim after each layer is |R e| <= kappa |d0| for a matrix R,
# ideally with R'R = P^-1, and the difference d0 of inputs; beside it the product of norms gives
# |e| <= p |d0|. One layer goes from (R, kappa, p) to (S, kappa', p'). For any vector l >= 0 on the
# coordinates with r > 0 and any matrices S, T1, T2, put x = l r v, y = S e. Then |l w| <= |x| and
#     (x, y) = T (R d, l w) + Z1 d + Z2 w,    T = [T1, T2],
#     Z1 = [l r V; S m V] - T1 R,    Z2 = [0; S] - T2 l.
# With tau >= max(1, ||T||) and rho = ||Z1|| p + ||Z2|| p', as |w| <= p' |d0|,
#     |x|^2 + |y|^2 <= (tau sqrt(kappa^2 + |x|^2) + rho)^2    (|d0| = 1).
# The right-hand side less |x|^2 increases with |x|, and |x| <= xi = tau kappa + rho, because the
# rows of x in T are those of T1 alone. Hence
#     kappa'^2 = tau^2 kappa^2 + (tau^2 - 1) xi^2 + 2 tau rho sqrt(kappa^2 + xi^2) + rho^2.
# In exact arithmetic ||T|| = 1 and rho = 0. Here T comes from an untrusted factorisation, tau from
# `dense_norm_bound`, Z1 and Z2 are recomputed with their rounding errors, as in Note [arithmetic]
# of norms/proof.py, and scalars are exact fractions. At the end, for any G,
#     |(w_c - w_j) e| <= |g_c - g_j| kappa + |q_c - q_j| p,    Q = W - G R.
# Layers are V = 2^e (values + rest) as in `Scaled`: the differences are measured in these powers of
# two, and ||rest|| is added to rho.


@dataclass(frozen=True)
class Layer:
    """A linear map and an activation on every coordinate of its output.

    Attributes:
        matrix: The map, shape ``(n, n_in)``.
        low: Least difference quotient, shape ``(n,)``, float64.
        high: Greatest difference quotient.
    """

    matrix: Scaled
    low: Tensor
    high: Tensor

    @property
    def values(self) -> Tensor:
        """The map as a tensor, up to its power of two."""
        return torch.from_numpy(self.matrix.values)

    @property
    def middle(self) -> Tensor:
        """Centres of the intervals of slopes."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Tensor:
        """Half their lengths, rounded up; exactly 0 where the slope is known."""
        middle = self.middle
        return torch.maximum(self.high - middle, middle - self.low) * (1 + 2.0**-50)


def compose(outer: Scaled, inner: Scaled | None) -> Scaled:
    """The map ``outer inner``; one-dimensional values are those of a diagonal map."""
    if inner is None:
        return outer
    a, b = torch.from_numpy(outer.values), torch.from_numpy(inner.values)
    if b.dim() == 1:
        product = a * b
    elif a.dim() == 1:
        product = a[:, None] * b
    else:
        product = a @ b
    norm_a, norm_b = frobenius(a), frobenius(b)
    error = gamma(a.shape[-1]) * norm_a * norm_b
    error += outer.tail * (norm_b + inner.tail) + norm_a * inner.tail
    again = scaled(product)
    unit = Fraction(2) ** -again.exponent
    exponent = again.exponent + outer.exponent + inner.exponent
    return Scaled(again.values, exponent, again.tail + error * unit)


def frobenius(matrix: Tensor) -> Fraction:
    """Frobenius norm, rounded up."""
    return exact(root_up(energy_up(matrix.contiguous().numpy()[None])))


def clean(matrix: Tensor) -> Tensor:
    """A freely chosen matrix without the entries that could underflow in products."""
    return F.hardshrink(matrix, TINY)


def closed_form(layers: Sequence[Layer], slack: float = 1e-2) -> list[Tensor]:
    r"""Diagonals D of Note [ellipsoids] without optimisation.

    Where slopes of -1 and 1 occur, the one that equals the product of norms lies on the boundary of
    what is feasible; ``slack`` moves it inside.
    """
    diagonals = []
    ellipsoid = None
    for layer in layers:
        matrix = layer.values
        gram = matrix @ (matrix.mT if ellipsoid is None else ellipsoid @ matrix.mT)
        peak = max(largest_eigenvalue(gram[None], LANCZOS_STEPS), TINY)
        free = layer.radius > 0
        middle, radius = layer.middle[free].abs(), layer.radius[free]
        boundary = torch.where(middle < radius, 1 + slack * (1 - middle / radius), 1.0)
        diagonals.append(peak * radius * (radius + middle) * boundary)
        step = _next(gram, layer, diagonals[-1])
        if step is None:
            raise NormBoundError("the closed form is not feasible in float64")
        ellipsoid = step[0]
    return diagonals


def search(
    layers: Sequence[Layer],
    head: Tensor,
    iterations: int,
    start: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    r"""Diagonals of Note [ellipsoids] that make the pairwise bounds of ``head`` small, unproved.

    Args:
        layers: The layers.
        head: Rows whose differences count, shape ``(C, n)``, in the unit of the last layer.
        iterations: Largest number of steps of every stage: one, or four where slopes of both signs
            are about as large.
        start: What the search gave for other rows; the closed form by default.
    """
    stages = SOFTNESS if any(soften(layer, 1.0) is not layer for layer in layers) else (0.0,)
    diagonals = start
    for softness in stages if start is None else stages[-1:]:
        softened = [soften(layer, softness) for layer in layers]
        if diagonals is None:
            diagonals = closed_form(softened)
        diagonals = optimise(softened, head, diagonals, iterations)
    return list(diagonals or [])


def soften(layer: Layer, softness: float) -> Layer:
    """A layer with larger ellipsoids for the search, if those of ``layer`` have no barrier.

    What is feasible ends where ``D - r A r`` becomes singular. There the ellipsoid grows without
    bound in proportion to m, so the minimiser keeps away from it unless m is small against r.
    """
    middle, radius = layer.middle, layer.radius
    # If m is the same everywhere, raising it can only enlarge the ellipsoid.
    if (radius == 0).any() or (middle.abs() >= radius).any() or (middle != middle[0]).any():
        return layer
    middle = (middle**2 + softness * radius**2).sqrt()
    return Layer(layer.matrix, middle - radius, middle + radius)


def optimise(
    layers: Sequence[Layer],
    head: Tensor,
    diagonals: Sequence[Tensor],
    iterations: int,
    tolerance: float = 1e-5,
) -> list[Tensor]:
    r"""Lessen the geometric mean of the pairwise bounds over feasible diagonals.

    Limited-memory BFGS in their logarithms, with gradients in closed form. Every accepted iterate
    is feasible and better than the last, so it may stop at any time: at the latest after
    ``iterations``, or when five steps together gain less than ``tolerance``, relatively.
    """
    sizes = [len(diagonal) for diagonal in diagonals]
    if not sum(sizes):
        return list(diagonals)
    first = layers[0].values @ layers[0].values.mT

    def objective(point: Tensor) -> tuple[float, Tensor] | None:
        return _objective(layers, head, first, point.split(sizes))

    point = torch.cat([diagonal.log() for diagonal in diagonals])
    start = objective(point)
    if start is None:
        return list(diagonals)
    value, slope = start
    history = [value]
    steps: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        direction = _two_loops(steps, slope)
        if not direction @ slope < 0:
            steps, direction = [], -slope / slope.abs().max().clamp(min=TINY) * 0.3
        direction = direction * (2 / direction.abs().max().clamp(min=2))
        length, new = 1.0, None
        while new is None and length > 1e-6:
            new = objective(point + length * direction)
            if new is not None and not new[0] <= value + 1e-4 * length * float(direction @ slope):
                new = None
            length /= 2
        if new is None:
            if not steps:
                break
            steps = []
            continue
        move, turn = 2 * length * direction, new[1] - slope
        if move @ turn > 1e-12 * move.norm() * turn.norm():
            steps = [*steps[-19:], (move, turn)]
        point, (value, slope) = point + move, new
        history.append(value)
        if len(history) > 5 and history[-6] - value < tolerance:
            break
    return [part.exp() for part in point.split(sizes)]


def pairwise_bound(layers: Sequence[Layer], head: Scaled, diagonals: Sequence[Tensor]) -> Tensor:
    """Proved pairwise bounds from the ellipsoids that positive diagonals define.

    Args:
        layers: The layers, in turn.
        head: The linear map after them, shape ``(C, n)``.
        diagonals: For each layer a positive number for every coordinate whose slope is not fixed.
            They need not be any good: what is returned is a bound, or there is an error.

    Returns:
        Shape ``(C, C)``, float64, zero on the diagonal.

    Raises:
        NormBoundError: the diagonals are not feasible, or the proof fails in float64.
    """
    claim = Claim(None, Fraction(1), Fraction(1))
    exponent, lower = 0, None
    for depth, (layer, diagonal) in enumerate(zip(layers, diagonals, strict=True), start=1):
        matrix = layer.values
        # The best diagonals may lie on the boundary of what is feasible. These are inside, and by
        # homogeneity the bounds grow by a factor of (1 + MARGIN)^(depth / 2) at most.
        diagonal = diagonal * (1 + MARGIN) ** depth
        image = matrix if lower is None else matrix @ lower
        step = _next(image @ image.mT, layer, diagonal)
        if step is None:
            raise NormBoundError("the multipliers are not feasible")
        ellipsoid = step[0]
        # The ellipsoid is flat if the layer is wider than its input: a larger one holds as well.
        ellipsoid.diagonal().mul_(1 + 1e-10)
        lower, info = torch.linalg.cholesky_ex(ellipsoid)
        if info:
            raise NormBoundError("an ellipsoid is not positive definite in float64")
        identity = torch.eye(len(lower), dtype=torch.float64, device="cpu")
        factor = torch.linalg.solve_triangular(lower, identity, upper=False)
        scale = diagonal.rsqrt()
        free = layer.radius > 0
        weighted = factor @ (layer.middle[:, None] * image)
        left = torch.cat(((scale * layer.radius[free])[:, None] * image[free], weighted))
        right = factor[:, free] / scale
        claim = prove(claim, layer, Witness(factor, scale, left, right))
        exponent += layer.matrix.exponent
    rows = torch.from_numpy(head.values)
    return prove_head(claim, head, rows if lower is None else rows @ lower, exponent)


@dataclass(frozen=True)
class Claim:
    """For differences e after a layer: ``|factor e| <= size`` and ``|e| <= norm`` if |d0| = 1.

    ``factor`` is None for the identity.
    """

    factor: Tensor | None
    size: Fraction
    norm: Fraction


@dataclass(frozen=True)
class Witness:
    """Arbitrary matrices S, l, T1 and the lower part of T2 of Note [factor]."""

    factor: Tensor
    scale: Tensor
    left: Tensor
    right: Tensor


def prove(before: Claim, layer: Layer, witness: Witness) -> Claim:
    """The claim after a layer from that before it, whatever the witness is: Note [factor].

    Raises:
        NormBoundError: nothing finite can be proved.
    """
    factor, left, right = (clean(m) for m in (witness.factor, witness.left, witness.right))
    scale = clean(witness.scale.abs())
    free = layer.radius > 0
    radius, middle = layer.radius[free], layer.middle
    matrix, rest = layer.values, layer.matrix.tail
    norm = exact(dense_norm_bound(matrix)) + rest
    growth = exact(float(torch.cat((layer.low.abs(), layer.high.abs(), radius)).max()))
    norm_after = before.norm * norm * growth

    weighted = clean(middle[:, None] * matrix)
    upper = (scale * radius)[:, None] * matrix[free]
    target = torch.cat((upper, factor @ weighted))
    norm_factor, norm_left = frobenius(factor), frobenius(left)
    error = 3 * UNIT * frobenius(upper) if len(upper) else Fraction(0)
    error += gamma(len(factor) + 1) * norm_factor * frobenius(weighted)
    error += norm_factor * 2 * exact(TINY) * weighted.numel()
    if before.factor is None:
        residual = target - left
    else:
        residual = target - left @ before.factor
        error += gamma(len(before.factor)) * norm_left * frobenius(before.factor)
    error += frobenius(residual) / (1 - UNIT)
    largest = exact(float((scale * radius).max())) * (1 + 2 * UNIT) if len(radius) else Fraction(0)
    error += (largest + exact(float(middle.abs().max())) * norm_factor) * rest

    known = right * scale
    other = Fraction(0)
    if len(radius):
        other = frobenius(factor[:, free] - known) / (1 - UNIT) + 2 * UNIT * frobenius(known)
    rho = error * before.norm + other * norm_after

    zeros = torch.zeros(len(upper), right.shape[1], dtype=torch.float64, device="cpu")
    transfer = torch.cat((left, torch.cat((zeros, right))), dim=1)
    tau = max(Fraction(1), exact(dense_norm_bound(transfer)))
    xi = tau * before.size + rho
    square = (
        (tau * before.size) ** 2
        + (tau**2 - 1) * xi**2
        + 2 * tau * rho * exact(root_up(before.size**2 + xi**2))
        + rho**2
    )
    return Claim(factor, exact(root_up(square)), exact(round_up(norm_after)))


def prove_head(claim: Claim, head: Scaled, image: Tensor, exponent: int) -> Tensor:
    """Pairwise bounds from the last claim and any ``image`` of the head's rows: Note [factor]."""
    rows, image = torch.from_numpy(head.values), clean(image)
    error = 2 * head.tail
    if claim.factor is None:
        residual = rows - image
    else:
        residual = rows - image @ claim.factor
        error += (
            Fraction(3, 2) * gamma(len(claim.factor)) * frobenius(image) * frobenius(claim.factor)
        )
    # Two rows of a matrix differ by at most sqrt(2) of its Frobenius norm.
    error += Fraction(3, 2) * frobenius(residual) / (1 - UNIT)
    unit = Fraction(2) ** (exponent + head.exponent)
    infinity = torch.tensor(math.inf, dtype=torch.float64, device="cpu")
    pairwise = row_distance_bounds(image) * round_up(claim.size * unit)
    pairwise = torch.nextafter(pairwise, infinity) + round_up(error * claim.norm * unit)
    pairwise = torch.nextafter(pairwise, infinity).fill_diagonal_(0.0)
    if not torch.isfinite(pairwise).all():
        raise NormBoundError("the pairwise bounds are not finite")
    return pairwise


def _next(gram: Tensor, layer: Layer, diagonal: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The next ellipsoid with the factor L of ``D - r A r`` and ``L^-1 r A m``, if feasible."""
    free = layer.radius > 0
    radius, middle = layer.radius[free], layer.middle
    inner = torch.diag(diagonal) - radius[:, None] * gram[free][:, free] * radius
    lower, info = torch.linalg.cholesky_ex(inner)
    if info or not torch.isfinite(lower).all():
        return None
    part = radius[:, None] * gram[free] * middle
    part = torch.linalg.solve_triangular(lower, part, upper=False)
    ellipsoid = middle[:, None] * gram * middle + part.mT @ part
    places = free.nonzero()[:, 0]
    ellipsoid[places, places] += diagonal
    return ellipsoid, lower, part


def _objective(
    layers: Sequence[Layer], head: Tensor, first: Tensor, logs: Sequence[Tensor]
) -> tuple[float, Tensor] | None:
    """Mean logarithm of the squared bounds and its gradient by the logarithms of the diagonals."""
    steps = []
    ellipsoid = None
    for layer, log in zip(layers, logs, strict=True):
        matrix = layer.values
        gram = first if ellipsoid is None else matrix @ ellipsoid @ matrix.mT
        step = _next(gram, layer, log.exp())
        if step is None:
            return None
        ellipsoid = step[0]
        steps.append(step)
    if ellipsoid is None:
        return None
    products = head @ ellipsoid @ head.mT
    squares = products.diagonal()[:, None] + products.diagonal() - 2 * products
    pairs = squares > 1e-14 * squares.max()
    weight = torch.where(pairs, 1 / squares, 0.0) / pairs.sum()
    value = float(torch.where(pairs, squares.log(), 0.0).sum() / pairs.sum())
    if not math.isfinite(value):
        return None
    # sum_ij weight_ij |(h_i - h_j)|_P^2 = tr(laplacian head P head')
    laplacian = 2 * (torch.diag(weight.sum(1)) - weight)
    slopes = []
    adjoint = head.mT
    for layer, log, (_, lower, part) in reversed(list(zip(layers, logs, steps, strict=True))):
        free = layer.radius > 0
        moved = torch.linalg.solve_triangular(lower.mT, part @ adjoint, upper=True)
        own = adjoint[free]
        slope = ((own @ laplacian) * own).sum(1) - ((moved @ laplacian) * moved).sum(1)
        slopes.append(slope * log.exp())
        through = layer.middle[:, None] * adjoint
        through[free] += layer.radius[free][:, None] * moved
        adjoint = layer.values.mT @ through
    return value, torch.cat(slopes[::-1])


def _two_loops(steps: Sequence[tuple[Tensor, Tensor]], slope: Tensor) -> Tensor:
    """Minus the inverse Hessian of limited-memory BFGS times ``slope``."""
    direction = slope.clone()
    saved = []
    for move, turn in reversed(steps):
        share = (move @ direction) / (turn @ move)
        saved.append(share)
        direction -= share * turn
    if not steps:
        return -0.3 * direction / direction.abs().max().clamp(min=TINY)
    move, turn = steps[-1]
    direction *= (move @ turn) / (turn @ turn)
    for (move, turn), share in zip(steps, reversed(saved), strict=True):
        direction += (share - (turn @ direction) / (turn @ move)) * move
    return -direction
