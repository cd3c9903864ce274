r"""Search for the ellipsoids that make semidefinite Lipschitz bounds small, unproved.

Reference: Fazlyab et al., `Efficient and accurate estimation of Lipschitz constants for deep neural
networks <https://arxiv.org/abs/1906.04893>`_, NeurIPS 2019 (LipSDP); Xu and Sivaranjani,
`ECLipsE <https://arxiv.org/abs/2404.04375>`_, NeurIPS 2024 (layer by layer, and in closed form);
Pauli et al., `Novel quadratic constraints for extending LipSDP beyond slope-restricted activations
<https://arxiv.org/abs/2401.14033>`_, ICLR 2024 (MaxMin).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustcert.certifiers.lipsdp.layers import Layer
from robustcert.errors import NormBoundError
from robustcert.norms.closeness import closeness
from robustcert.norms.eigenvalues import largest_eigenvalue
from robustcert.norms.scalars import TINY

# Shares of the radius of slopes by which the stages of a search raise their middle; see `soften`.
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
        peak = max(largest_eigenvalue(gram[None], closeness().steps), TINY)
        free = layer.radius > 0
        middle, radius = layer.middle[free].abs(), layer.radius[free]
        boundary = torch.where(middle < radius, 1 + slack * (1 - middle / radius), 1.0)
        diagonals.append(peak * radius * (radius + middle) * boundary)
        step = next_ellipsoid(gram, layer, diagonals[-1])
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


def next_ellipsoid(
    gram: Tensor, layer: Layer, diagonal: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
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
        step = next_ellipsoid(gram, layer, log.exp())
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
