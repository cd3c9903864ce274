"""Lipschitz bounds of networks of dense layers from given ellipsoids, rounding included."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.certifiers.lipsdp.layers import Layer, frobenius
from robustcert.certifiers.lipsdp.search import next_ellipsoid
from robustcert.errors import NormBoundError
from robustcert.norms.dense import dense_norm_bound, row_distance_bounds
from robustcert.norms.proof import Scaled
from robustcert.norms.scalars import TINY, UNIT, exact, gamma, root_up, round_up

# Share by which diagonals are raised in each layer, so that they lie inside what is feasible.
MARGIN = 1e-6

# Note [factor] (why the bound holds)
# ~~~~~~~~~~~~~
# Nothing of Note [ellipsoids] of search.py is trusted. The claim after each layer is |R e| <= kappa
# |d0| for a matrix R, ideally with R'R = P^-1, and the difference d0 of inputs; beside it the
# product of norms gives |e| <= p |d0|. One layer goes from (R, kappa, p) to (S, kappa', p'). For
# any vector l >= 0 on the coordinates with r > 0 and any matrices S, T1, T2, put x = l r v, y = S
# e. Then |l w| <= |x| and
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
        step = next_ellipsoid(image @ image.mT, layer, diagonal)
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


def clean(matrix: Tensor) -> Tensor:
    """A freely chosen matrix without the entries that could underflow in products."""
    return F.hardshrink(matrix, TINY)
