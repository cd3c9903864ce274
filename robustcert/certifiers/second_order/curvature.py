r"""How fast the gradient of a margin can turn: what smooth networks let a certificate use.

Two kinds of bounds on the Lipschitz constant of a gradient are here, both from above. The global
one composes the constants of the operations. The one *anchored* at a sample uses what is known
there, see Note [anchored curvature], and is the one that helps.

References: Singla and Feizi, `Second-order provable defenses against adversarial attacks
<https://arxiv.org/abs/2006.00731>`_, ICML 2020; Entesari, Sharifi and Fazlyab, `Compositional
curvature bounds for deep neural networks <https://arxiv.org/abs/2406.05119>`_, ICML 2024.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from robustcert import norms
from robustcert.network import forward_error
from robustcert.network.activation import Activation
from robustcert.network.bounds import operation_bound, shapes
from robustcert.network.branches import Sum
from robustcert.network.linear import Affine, Convolution, Dense, Flatten
from robustcert.network.local_error import absolute_norm, gamma
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation, Shape
from robustcert.norms.scalars import UNIT_ROUNDOFF

log = logging.getLogger(__name__)

# Relative error of one activation's vector-Jacobian product: a derivative within 24 units of
# rounding and at most ten operations, on pairs or groups.
PULL = 64 * UNIT_ROUNDOFF
# Underflow allowance of a network whose weights are below 2^128.
GRADIENT_UNDERFLOW = 2.0**-500
# Smallest bound of a curvature: smaller products lose digits, or are 0.
MIN_SQUARE = 2.0**-1000


def jacobian_lipschitz_bound(operations: Sequence[Operation], input_shape: Shape) -> float:
    r"""Bound the Lipschitz constant of the Jacobian, in operator norm, over the whole space.

    .. math:: M_{g \circ h} \le M_g L_h^2 + L_g M_h

    because :math:`Dg(h(x)) Dh(x) - Dg(h(y)) Dh(y)` is
    :math:`[Dg(h(x)) - Dg(h(y))] Dh(x) + Dg(h(y)) [Dh(x) - Dh(y)]`. Infinite where an operation has
    a fold or is not known.
    """
    lipschitz, curvature = 1.0, 0.0
    for operation, shape in shapes(operations, input_shape):
        own = _own_curvature(operation, shape)
        bound = operation_bound(operation, shape)
        if not own < math.inf or not curvature < math.inf:
            return math.inf
        terms = [(own, lipschitz, lipschitz), (bound, curvature)]
        curvature = norms.sum_up([norms.product_up(term) for term in terms])
        lipschitz = norms.product_up([lipschitz, bound])
    return curvature


def _own_curvature(operation: Operation, input_shape: Shape) -> float:
    # By exact class: a subclass may compute something else.
    if type(operation) in (Dense, Convolution, Affine, Flatten):
        return 0.0
    if type(operation) is Activation:
        return operation.jacobian_lipschitz
    if type(operation) is Sum:
        parts = [jacobian_lipschitz_bound(branch, input_shape) for branch in operation.branches]
        return norms.sum_up(parts) if all(p < math.inf for p in parts) else math.inf
    return math.inf


def pairwise_curvature_bound(network: PlainNetwork) -> Tensor:
    r"""Bounds on the Lipschitz constants of the gradients of logit i minus logit j.

    :math:`M_{ij} = \lVert w_i - w_j \rVert_2 M_{backbone}`, or :math:`\sqrt 2 M` without a head.

    Returns:
        Shape ``(C, C)``, float64, rounded up, zero on the diagonal; infinite off it for piecewise
        linear networks.
    """
    network = network.owned()
    rest = jacobian_lipschitz_bound(network.backbone, network.input_shape)
    if network.head is None:
        classes = network.classes
        distances = torch.full(
            (classes, classes), math.sqrt(2) * (1 + 1e-15), dtype=torch.float64, device="cpu"
        )
        distances.fill_diagonal_(0)
    else:
        distances = norms.row_distance_bounds(network.head.weight)
    product = torch.nextafter(
        distances * rest, torch.tensor(math.inf, dtype=torch.float64, device="cpu")
    )
    return torch.where(distances > 0, product, 0.0)


def second_order_distance(
    gap: Tensor, slope: Tensor, lipschitz: Tensor, curvature: Tensor
) -> Tensor:
    r"""Distance within which a positive function stays positive.

    With value f, gradient norm g, Lipschitz constant L, and M that of the gradient, the gradient
    norm at distance s is at most :math:`\min(L, g + M s)`, whose integral reaches f at

    .. math:: r = \begin{cases} \dfrac{\sqrt{g^2 + 2 M f} - g}{M}
        & \text{if } f \le (L^2 - g^2) / 2M \\[1ex]
        \dfrac fL + \dfrac{(L - g)^2}{2 M L} & \text{otherwise.} \end{cases}

    The first case alone is Entesari et al.'s (2024); f/L is the Lipschitz certificate. No rounding
    is accounted for; see :func:`descent_distance`.

    Args:
        gap: f, positive.
        slope: g, at most L.
        lipschitz: L, positive.
        curvature: M; infinite where the gradient jumps.
    """
    curvature = curvature.clamp(max=1e150)
    # The first case in a form that neither cancels nor divides by a small curvature.
    early = 2 * gap / (slope + torch.hypot(slope, (2 * curvature * gap).sqrt()))
    late = gap / lipschitz + (lipschitz - slope).square() / (2 * curvature * lipschitz)
    is_early = 2 * curvature * gap <= lipschitz.square() - slope.square()
    return torch.where(is_early, early, late)


def descent_distance(
    gap: Tensor, slope: Tensor, lipschitz: Tensor, reaches: Tensor, curvature: Tensor
) -> Tensor:
    r"""Like :func:`second_order_distance`, with a curvature that grows with the distance.

    The gradient norm at distance s is at most :math:`\min(L, g + M(s_i) s)` for s up to
    :math:`s_i`, so the pieces between successive :math:`s_i` are integrated in turn. Rounded down.

    Args:
        gap: f, shape ``(N,)``.
        slope: g, shape ``(N,)``.
        lipschitz: L, shape ``(N,)``.
        reaches: Distances :math:`s_i`, increasing, the last one infinite; shape ``(S, N)``.
        curvature: Bounds that hold up to each of them, shape ``(S, N)``.
    """
    # The sum of what earlier pieces spend is off by far less than this, relative to the gap.
    left = gap * (1 - 1e-9)
    slope = torch.minimum(slope, lipschitz)
    start = torch.zeros_like(gap)
    distance = torch.full_like(gap, math.inf)
    for end, m in zip(reaches, curvature.clamp(max=1e150), strict=True):
        # Up to the turn the quadratic bound is used, after it the constant one: each holds
        # everywhere, so the place of the turn need not be exact.
        # At slope L it has turned already; the quotient would be 0 / 0 for m = 0.
        climb = torch.where(slope < lipschitz, (lipschitz - slope) / m, 0.0)
        turn = torch.minimum(torch.maximum(climb, start), end)
        rate = slope + m * start
        length = (turn - start).nan_to_num(posinf=1e150)
        quadratic = length * (rate + m * length / 2)
        early = start + 2 * left / (rate + torch.hypot(rate, (2 * m * left).sqrt()))
        late = turn + (left - quadratic) / lipschitz
        stop = torch.where(left <= quadratic, early, late)
        here = (left > 0) & (stop <= end)
        distance = torch.where(here & distance.isinf(), stop, distance)
        spent = (quadratic + lipschitz * (end - turn).nan_to_num(nan=0.0)) * (1 + 1e-12)
        left = torch.where(here, -1.0, left - spent)
        start = end
    # No piece used the gap up: proof of nothing, so 0, and the caller keeps what it knew.
    return torch.where(torch.isfinite(distance), distance, 0.0) * (1 - 1e-12)


# Note [anchored curvature]
# Let f(x) = v . T_n(...T_1(x)), J_l(x) the Jacobian of T_l where x takes it, and u_l(x) the
# gradient of f with respect to the output of T_l. Changing one factor at a time from x to y,
#
#     grad f(y) - grad f(x) = sum_l J_1(y)' ... J_{l-1}(y)' [J_l(y) - J_l(x)]' u_l(x).
#
# The factors on the left have norms with product at most P_l, the Lipschitz constant of what comes
# before T_l, and u_l(x) is what backpropagation at x computes: no bound is needed for it. A smooth
# activation acts on groups k of its inputs (single entries, differences of pairs, whole groups),
# and its Jacobian on each changes by at most a_k |change of the group|, so that with |y - x| = s
#
#     |grad f(y) - grad f(x)| <= s sum_l P_l^2 max_k a_k |u_{l,k}(x)|.
#
# That is smaller than the global bound in three ways: a maximum over groups in place of the length
# of u_l, roughly sqrt(width) times larger; the actual u_l in place of the product of norms; and a_k
# anchored at the group's value t and limited to changes up to P_l s, because a unit far from its
# fold has hardly any curvature. Where the derivative p of the unit rises from -c to c, steepest at
# 0 and symmetrically, no chord from |t| is steeper than (p(|t|) - p(|t| - d)) / min(d, |t|) for
# changes up to d: one of length at least |t| rises no more than that over no less, and the average
# of the curvature over shorter ones grows with their length.


@dataclass(frozen=True)
class LocalSlope:
    """The gradient of a difference of logits, and how far around it changes.

    Attributes:
        gradient: Computed gradient, shape ``(N, *input_shape)``; in a metric, with respect to u.
        norm: Its computed norm, shape ``(N,)``.
        error: Bound on the distance to the real gradient's norm, shape ``(N,)``.
        curvature: Bounds on the change of the gradient per distance, shape ``(S, N)``: the i-th
            holds up to the i-th distance asked for.
    """

    gradient: Tensor
    norm: Tensor
    error: Tensor
    curvature: Tensor


class Trace:
    """A forward pass in float64 whose states are kept for bounds on gradients.

    Args:
        network: The network; see :func:`is_covered`.
        x: Inputs of shape ``(N, *input_shape)``, float64.
    """

    def __init__(self, network: PlainNetwork, x: Tensor) -> None:
        network = network.owned()
        self.operations = network.operations
        self.metric = network.space.metric
        self.states = list(forward_error.forward_steps(network, x))

    def slope(self, rows: Tensor, direction: Tensor, reaches: Tensor) -> LocalSlope:
        r"""Bound the gradient of ``direction . logits`` and its change.

        The error E of the computed backward pass obeys, from one operation to the one before it,

        .. math:: E \leftarrow L E + (M D + \rho) \lVert \hat u \rVert

        with D the error of the operation's computed input, through which its Jacobian (constant M)
        is evaluated in the wrong place, and :math:`\rho` the rounding of the product.

        Args:
            rows: Which inputs, shape ``(N,)``.
            direction: Shape ``(N, C)``, exact.
            reaches: Distances, shape ``(S, N)``.
        """
        u = direction
        error = torch.zeros_like(u[:, 0])
        total = torch.zeros_like(reaches)
        for operation, state in zip(
            reversed(self.operations), reversed(self.states[:-1]), strict=True
        ):
            z, centre, length = state.output[rows], state.centre[rows], norm_up(u)
            bound = operation_bound(operation, tuple(z.shape[1:]))
            if isinstance(operation, Activation):
                assert operation.jacobian is not None
                local = operation.jacobian(operation, z, centre)
                share = local.share(u)
                # The error may lie in any group.
                weight = share + error.view(-1, *(1,) * (share.dim() - 1))
                for i, reach in enumerate(reaches):
                    chord = local.chord(reach * (state.lipschitz * (1 + 1e-12)))
                    most = (chord * weight).flatten(1).amax(1)
                    # Raised where the square of a constant, or its product, would be subnormal.
                    square = max(state.lipschitz**2, MIN_SQUARE)
                    total[i] += (square * (1 + 1e-12) * most).clamp_min(MIN_SQUARE)
                u = local.pull(u)
                own = operation.jacobian_lipschitz * centre + PULL
            else:
                u, relative = _transpose(operation, z, u)
                own = torch.full_like(centre, relative)
            error = (bound * error + own * length) * (1 + 1e-12) + GRADIENT_UNDERFLOW
        if self.metric is not None:
            length = norm_up(u)
            u, relative = _transpose(self.metric, u, u)
            stretch = self.states[0].lipschitz
            error = (stretch * error + relative * length) * (1 + 1e-12) + GRADIENT_UNDERFLOW
        norm = u.flatten(1).norm(dim=1)
        return LocalSlope(u, norm, error + 2.0**-22 * norm, total * (1 + 1e-9))


def is_covered(network: PlainNetwork) -> bool:
    """Whether the gradients of the network can be bounded: smooth, and made of known operations."""
    metric = network.space.metric
    for operation in network.operations if metric is None else (metric, *network.operations):
        if type(operation) is Activation:
            if operation.jacobian is None:
                say_once(operation.function.__name__)
            if operation.jacobian is None or not operation.jacobian_lipschitz < math.inf:
                return False
        elif type(operation) not in (Dense, Convolution, Affine, Flatten):
            return False
        # See GRADIENT_UNDERFLOW.
        if any(t.numel() and float(t.abs().max()) > 2.0**127 for t in operation.tensors().values()):
            return False
    return True


@cache
def say_once(activation: str) -> None:
    """Warn, once in a process, that gradients are not used because of an activation."""
    log.warning(
        "second-order bounds do not cover the activation %s, whose networks get their Lipschitz "
        "radii: its fold() states no jacobian (robustcert/activations/tanh.py is an example; "
        "one with kinks has none)",
        activation,
    )


def norm_up(u: Tensor) -> Tensor:
    """L2 norm of every sample, not below the exact one, underflow aside."""
    return u.flatten(1).norm(dim=1) * (1 + 2.0**-22) + GRADIENT_UNDERFLOW


def _transpose(operation: Operation, z: Tensor, u: Tensor) -> tuple[Tensor, float]:
    """A linear operation's transpose times ``u``, and its relative error."""
    if isinstance(operation, Dense):
        weight = operation.weight.to(u)
        return u @ weight, gamma(len(weight) + 1, UNIT_ROUNDOFF) * absolute_norm(operation.weight)
    if isinstance(operation, Convolution):
        weight = operation.weight.to(u)
        o = operation
        pulled = conv2d_input(list(z.shape), weight, u, o.stride, o.padding, o.dilation, o.groups)
        terms = weight.shape[0] * math.prod(weight.shape[2:]) + 1
        return pulled, gamma(terms, UNIT_ROUNDOFF) * absolute_norm(operation.weight)
    if isinstance(operation, Affine):
        scale = operation.scale.to(u).view(-1, *(1,) * (u.dim() - 2))
        return u * scale.expand(u.shape[1:]), 2 * UNIT_ROUNDOFF * float(operation.scale.abs().max())
    assert isinstance(operation, Flatten)
    return u.view(z.shape), 0.0
