r"""Distance to where a quadratic function vanishes, from below and exact, by duality.

For :math:`q(\delta) = f + g^T \delta + \delta^T A \delta` with f > 0, the least
:math:`\lVert\delta\rVert^2` with :math:`q(\delta) \le 0` is at least

.. math:: D(\lambda) = \min_\delta \lVert\delta\rVert^2 + \lambda\, q(\delta)
    = \lambda f - \tfrac{\lambda^2}{4}\, g^T (I + \lambda A)^{-1} g

for every :math:`\lambda \ge 0` with :math:`I + \lambda A` positive definite, because the added term
is not positive where q is not. So any such multiplier is a proof; by the S-lemma the best one is
exact, though nothing that is not convex was assumed.

Reference: Boyd and Vandenberghe, *Convex Optimization*, appendix B (the S-procedure).
"""

import torch
from torch import Tensor


def quadric_distance(
    value: Tensor,
    along: Tensor,
    across: Tensor,
    eigenvalues: Tensor,
    iterations: int = 60,
) -> Tensor:
    """Lower bounds on the distance at which quadratic functions vanish, tight up to bisection.

    Args:
        value: f, shape ``(N,)``.
        along: The gradient's coordinates in A's eigenvectors, shape ``(N, R)``.
        across: Squared norm of the rest of the gradient, on which A is 0, shape ``(N,)``.
        eigenvalues: Of A, shape ``(R,)``.
        iterations: Halvings of the multiplier's interval.

    Returns:
        Shape ``(N,)``; 0 where f is not positive. Rounding is left out, see the caller.
    """
    low = torch.zeros_like(value)
    # Beyond the pole I + lambda A is indefinite; where A has no negative part there is none.
    steepest = (-eigenvalues).max().clamp_min(1e-12)
    high = torch.full_like(value, float(1 / steepest) * (1 - 1e-12))
    for _ in range(iterations):
        middle = (low + high) / 2
        # The dual's slope is q at the minimiser.
        delta = -middle[:, None] / 2 * along / (1 + middle[:, None] * eigenvalues)
        slope = value + (along * delta).sum(1) + (eigenvalues * delta.square()).sum(1)
        rising = slope - middle / 2 * across > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    inverse = (along.square() / (1 + low[:, None] * eigenvalues)).sum(1) + across
    dual = low * value - low.square() / 4 * inverse
    return torch.where(value > 0, dual.clamp_min(0).sqrt(), 0.0)
