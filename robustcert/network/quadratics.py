r"""Quadratic logits and the distance at which their differences vanish, by duality.

For :math:`q(\delta) = f + g^T \delta + \delta^T A \delta` with f > 0, the least
:math:`\lVert\delta\rVert^2` with :math:`q(\delta) \le 0` is at least

.. math:: D(\lambda) = \min_\delta \lVert\delta\rVert^2 + \lambda\, q(\delta)
    = \lambda f - \tfrac{\lambda^2}{4}\, g^T (I + \lambda A)^{-1} g

for every :math:`\lambda \ge 0` with :math:`I + \lambda A` positive definite, because the added term
is not positive where q is not. So any such multiplier is a proof; by the S-lemma the best one is
exact, though nothing that is not convex was assumed.

Reference: Boyd and Vandenberghe, *Convex Optimization*, appendix B (the S-procedure).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustcert.arithmetic.products import linear
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation, Shape

# What is said where a Lipschitz constant of quadratics is asked for.
UNBOUNDED = (
    "the slope of a quadratic has no bound, and so there is no Lipschitz certificate: set "
    "certifier=quadratic"
)


@dataclass(frozen=True, eq=False)
class Quadratics(Operation):
    r"""Logits that are the largest of their class's convex quadratics, on inputs ``(N, D)``.

    .. math:: u_p(x) = \lVert W_p x - o_p \rVert^2 + \langle a_p, x \rangle + b_p

    With orthonormal rows W it is :math:`\lVert x \rVert^2` less the squared distance to an affine
    subspace, and nothing here rests on it that they are orthonormal.

    Attributes:
        frame: W, shape ``(P, m, D)``, the quadratics of the first class first.
        offset: o, shape ``(P, m)``.
        slope: a, shape ``(P, D)``.
        shift: b, shape ``(P,)``.
        classes: Number of logits, which divides P.
    """

    kind = "quadratics"
    frame: Tensor
    offset: Tensor
    slope: Tensor
    shift: Tensor
    classes: int

    def pieces(self, x: Tensor) -> Tensor:
        """Every quadratic, shape ``(N, P)``."""
        count, rank, _ = self.frame.shape
        within = linear(x, self.frame.to(x).flatten(0, 1)).view(-1, count, rank)
        squares = (within - self.offset.to(x)).square().sum(2)
        return squares + linear(x, self.slope.to(x)) + self.shift.to(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, C)``."""
        return self.pieces(x).view(len(x), self.classes, -1).amax(2)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """There is none: ``ValueError``."""
        raise ValueError(UNBOUNDED)

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        """None that is affine in the input's norm: ``ValueError``."""
        raise ValueError(UNBOUNDED)

    def options(self) -> dict[str, Any]:
        """The number of logits."""
        return {"classes": self.classes}

    def tensors(self) -> dict[str, Tensor]:
        """All constants."""
        return {
            "frame": self.frame,
            "offset": self.offset,
            "slope": self.slope,
            "shift": self.shift,
        }


def split_quadratics(network: PlainNetwork) -> tuple[PlainNetwork, Quadratics] | None:
    """What computes the features of a network, and its quadratics of them; None without any."""
    last = network.operations[-1] if network.operations else None
    # By exact class: a subclass may compute something else.
    if type(last) is not Quadratics:
        return None
    return replace(network, operations=network.operations[:-1]), last


def best_multiplier(
    value: Tensor,
    along: Tensor,
    across: Tensor,
    eigenvalues: Tensor,
    largest: Tensor,
    iterations: int = 60,
) -> Tensor:
    """Multipliers that maximise the dual, up to bisection; see the module.

    Args:
        value: f, any shape ``S``.
        along: The gradient's coordinates in A's eigenvectors, shape ``(*S, R)``.
        across: Squared norm of the rest of the gradient, on which A is 0, shape ``S``.
        eigenvalues: Of A, shape ``(*S, R)`` or one that expands to it.
        largest: What multipliers are kept below, shape ``S`` or one that expands to it.
        iterations: Halvings of the multiplier's interval.

    Returns:
        Shape ``S``; 0 where f is not positive.
    """
    low, high = torch.zeros_like(value), largest.expand(value.shape)
    for _ in range(iterations):
        middle = (low + high) / 2
        # The dual's slope is q at the minimiser.
        delta = -middle[..., None] / 2 * along / (1 + middle[..., None] * eigenvalues)
        slope = value + (along * delta).sum(-1) + (eigenvalues * delta.square()).sum(-1)
        rising = slope - middle / 2 * across > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return torch.where(value > 0, low, 0.0)


def quadratic_distance(
    value: Tensor, along: Tensor, across: Tensor, eigenvalues: Tensor, iterations: int = 60
) -> Tensor:
    """Lower bounds on the distance at which quadratic functions vanish, tight up to bisection.

    Its gradient is that of the dual with the multiplier held fixed, which at the best one is the
    gradient of the distance.

    Args:
        value: f, any shape ``S``.
        along: The gradient's coordinates in A's eigenvectors, shape ``(*S, R)``.
        across: Squared norm of the rest of the gradient, on which A is 0, shape ``S``.
        eigenvalues: Of A, shape ``(R,)`` or one that expands to ``(*S, R)``.
        iterations: Halvings of the multiplier's interval.

    Returns:
        Shape ``S``; 0 where f is not positive. Rounding is left out, see the caller.
    """
    # Beyond the pole I + lambda A is indefinite; where A has no negative part there is none.
    steepest = (-eigenvalues).amax(-1).clamp_min(1e-12)
    room = torch.finfo(value.dtype).eps ** 0.75
    with torch.no_grad():
        largest = (1 - room) / steepest
        best = best_multiplier(value, along, across, eigenvalues, largest, iterations)
    inverse = (along.square() / (1 + best[..., None] * eigenvalues)).sum(-1) + across
    dual = best * value - best.square() / 4 * inverse
    # Not clamped at 0, where a root has no gradient.
    positive = dual > torch.finfo(value.dtype).tiny
    return torch.where(positive, torch.where(positive, dual, 1.0).sqrt(), 0.0)
