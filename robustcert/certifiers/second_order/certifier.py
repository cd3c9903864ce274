"""Certified radii from Lipschitz bounds and, where the network is smooth, from its gradients."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.base import Claim, Proof
from robustcert.certifiers.lipschitz import PairwiseCertifier
from robustcert.certifiers.second_order.curvature import (
    LocalSlope,
    Trace,
    descent_distance,
    is_covered,
)
from robustcert.margins import margins
from robustcert.network.forward_error import forward_error
from robustcert.network.network import PlainNetwork
from robustcert.network.units import finite_samples, network_inputs

# Where the curvature is bounded anew, in multiples of what the Lipschitz bound certifies.
REACHES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, math.inf)
# The same for attacks, in multiples of the distance at which the tangent plane vanishes.
ATTACK_REACHES = (1.01, 1.05, 1.1, 1.25, 1.5, 2.0, math.inf)
# Share of a distance that is given up: the checker, whose rounding errors are others, proves what
# is left.
DISTANCE_ALLOWANCE = 1e-6
# Classes nearest by the Lipschitz bound, towards which non-robustness is tried.
ATTACKED = 3


class CombinedCertifier(PairwiseCertifier):
    r"""Lipschitz radii, or larger ones from the gradients of smooth networks.

    The margin over class j falls by at most the integral of

    .. math:: \min(K_{cj},\; g_j + M_j(s)\, s)

    over the distance s, with g the norm of its gradient at the sample and M(s) a bound on how much
    the gradient turns within s, see Note [anchored curvature]. It gains where a gradient is shorter
    than the Lipschitz bound and turns slowly; networks that preserve gradient norms leave it
    little, and piecewise linear ones nothing, for their gradients jump. All of it, g included, is
    bounded with its rounding. Covered are dense layers, convolutions, per-channel scalings and the
    package's smooth activations; any other network gets its Lipschitz radii. Gradients are computed
    only for classes that could still determine the radius.

    References: see :mod:`robustcert.certifiers.second_order.curvature`.

    Args:
        arithmetic: As in :class:`robustcert.certifiers.LipschitzCertifier`.

    Example:
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(1, 1), SmoothAbs(1, temperature=1.0), torch.nn.Linear(1, 2)
        ... )
        >>> values = [[[1.0]], [0.0], 0.0, [[1.0], [0.0]], [0.0, 0.0]]
        >>> for parameter, value in zip(net.parameters(), values):
        ...     parameter.data = torch.tensor(value)
        >>> network, x = fold_network(net, (1,)), torch.tensor([[1.0]])
        >>> for certifier in (LipschitzCertifier(), CombinedCertifier()):
        ...     print(f"{certifier.certify(network, x).radius.item():.4f}")  # the distance is 1
        0.4142
        0.5010
    """

    proof = Proof.SECOND_ORDER
    covers_metric = True

    def __init__(self, arithmetic: Literal["float64", "float32"] = "float64") -> None:
        super().__init__(arithmetic)

    def claim(self, network: PlainNetwork, samples: Iterable[Tensor] = ()) -> Claim:
        """``second-order`` for networks whose gradients are used, else ``lipschitz``."""
        claim = super().claim(network)
        return claim if is_covered(network) else replace(claim, proof=Proof.LIPSCHITZ)

    def distances(
        self,
        network: PlainNetwork,
        inputs: Tensor,
        prediction: Tensor,
        gap: Tensor,
        pairwise: Tensor,
        drift: float,
    ) -> Tensor:
        """Distances within which the prediction stays ahead of each class, shape ``(N, C)``."""
        first_order = super().distances(network, inputs, prediction, gap, pairwise, drift)
        if not is_covered(network):
            return first_order
        trace = Trace(network, inputs.double())
        result = first_order.scatter(1, prediction[:, None], math.inf)
        order = result.argsort(dim=1)
        best = torch.full_like(result[:, 0], math.inf)
        for rival in order[:, :-1].unbind(1):
            known = result.gather(1, rival[:, None])[:, 0]
            # Nothing is certified, and the next class need not be looked at.
            best = torch.where(known > 0, best, -math.inf)
            rows = ((known < best) & (known < math.inf)).nonzero()[:, 0]
            if len(rows) == 0:
                break
            own, other = prediction[rows], rival[rows]
            reaches = torch.stack([factor * known[rows] for factor in REACHES])
            slope = trace.slope(rows, _direction(own, other, result), reaches)
            reached = descent_distance(
                gap[rows, other],
                slope.norm + slope.error + drift,
                pairwise[own, other] + drift,
                reaches,
                slope.curvature,
            )
            reached = reached * (1 - DISTANCE_ALLOWANCE)
            # Where the reached distance is not a number, the known one stays.
            better = torch.where(reached > known[rows], reached, known[rows])
            result[rows, other] = better
            best[rows] = torch.minimum(best[rows], better)
        return result

    @torch.no_grad()
    @strict_arithmetic()
    def adversarial_distance(self, network: PlainNetwork, x: Tensor) -> Tensor:
        r"""Distance within which some input provably has another prediction, or ties.

        Down the gradient the margin is at most :math:`f - g s + M(s) s^2 / 2`, which is 0 at

        .. math:: s = \frac{g - \sqrt{g^2 - 2 M f}}{M} \quad \text{if } g^2 \ge 2 M f .

        It is proved for the real-valued network; no input is looked for.

        Args:
            network: The network.
            x: Inputs of shape ``(N, *input_shape)``.

        Returns:
            Shape ``(N,)``, float64, rounded up; infinite where nothing is proved.
        """
        network = network.owned()
        inputs = network_inputs(x, network.input_shape).double()
        state = forward_error(network, inputs)
        prediction = state.output.argmax(1)
        result = torch.full_like(state.centre, math.inf)
        if not is_covered(network):
            return result
        margin = margins(state.output, prediction)
        allowance = 2 * math.sqrt(2) * (1 + 1e-9) * state.centre[:, None] + margin.abs() * 2.0**-52
        pairwise = self.pairwise_bound(network).to(x.device)[prediction]
        order = (margin / pairwise).scatter(1, prediction[:, None], math.inf).argsort(dim=1)
        trace = Trace(network, inputs)
        rows = torch.arange(len(x), dtype=torch.int64, device=x.device)
        for rival in order[:, : min(ATTACKED, margin.shape[1] - 1)].unbind(1):
            value = (margin + allowance)[rows, rival] * (1 + 1e-9)
            direction = _direction(prediction, rival, margin)
            # The reaches depend on the gradient: one pass without curvature, one with.
            least = _least_norm(trace.slope(rows, direction, value.new_empty(0, len(x))))
            reaches = torch.stack([factor * value / least for factor in ATTACK_REACHES])
            m = trace.slope(rows, direction, reaches).curvature
            square = least.square() - 2 * m * value
            root = 2 * value / (least + square.clamp(min=0).sqrt()) * (1 + 1e-9)
            proved = (least > 0) & (square > 0) & (root <= reaches)
            # A sample that is not clearly on one side of its own boundary is left alone.
            proved &= (margin - allowance)[rows, rival] > 0
            result = torch.minimum(result, torch.where(proved, root, math.inf).amin(0))
        certain = (margin > allowance).scatter(1, prediction[:, None], True).all(1)
        return torch.where(certain & finite_samples(inputs), result, math.inf)


def robust_accuracy_bracket(
    radius: Tensor, adversarial_distance: Tensor, correct: Tensor, epsilon: float
) -> tuple[float, float]:
    """Bounds on the robust accuracy at epsilon that need no attack.

    Args:
        radius: Certified radii, shape ``(N,)``.
        adversarial_distance: From :meth:`CombinedCertifier.adversarial_distance`, shape ``(N,)``.
        correct: Whether the prediction is right, shape ``(N,)``.
        epsilon: In input units.

    Returns:
        The share proved correct and robust, and one less the share that is wrong or proved not
        robust.

    Example:
        >>> radius, changed = torch.tensor([0.5, 0.1, 0.0]), torch.tensor([0.8, 0.2, 0.9])
        >>> correct = torch.tensor([True, True, False])
        >>> low, high = robust_accuracy_bracket(radius, changed, correct, epsilon=0.25)
        >>> f"{low:.4f} {high:.4f}"
        '0.3333 0.3333'
    """
    low = (correct & (radius > epsilon)).double().mean()
    high = (correct & ~(adversarial_distance <= epsilon)).double().mean()
    return float(low), float(high)


def _direction(own: Tensor, other: Tensor, like: Tensor) -> Tensor:
    """The difference of two unit vectors for every sample, ``(N, C)``."""
    zeros = torch.zeros(len(own), like.shape[1], dtype=torch.float64, device=own.device)
    return zeros.scatter(1, other[:, None], -1.0).scatter(1, own[:, None], 1.0)


def _least_norm(slope: LocalSlope) -> Tensor:
    return (slope.norm * (1 - 2.0**-22) - slope.error).clamp(min=0)
