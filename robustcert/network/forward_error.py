"""Forward error: how far the computed logits are from the real ones, at a point and around it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation
from robustcert.network.bounds import operation_bound, operation_rounding
from robustcert.network.branches import Concatenation, Sum
from robustcert.network.local_error import gamma
from robustcert.network.network import PlainNetwork, prefix_bounds
from robustcert.network.operation import Operation

# Unit roundoff of the arithmetic: the relative error of one operation is at most this.
UNIT_ROUNDOFFS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}


@dataclass(frozen=True)
class ForwardError:
    r"""A forward pass with its error, affine in the distance from the centre.

    Within distance r of the centre, in l2 or in the metric of the network's space, computed and
    real outputs differ by at most :math:`\mathrm{centre} + \mathrm{growth} \cdot r` in the l2 norm,
    as long as r is below ``reach``.

    Attributes:
        output: Computed outputs, shape ``(N, *)``.
        centre: Shape ``(N,)``, float64.
        growth: Per unit of distance.
        lipschitz: Bound on the constant of the real map so far.
        reach: Distance within which nothing overflows, shape ``(N,)``, float64; not positive
            where it cannot be excluded even at the centre.
    """

    output: Tensor
    centre: Tensor
    growth: float
    lipschitz: float
    reach: Tensor


def forward_error(network: PlainNetwork, x: Tensor) -> ForwardError:
    r"""Evaluate a folded network with a bound on the error of its arithmetic.

    With N the operation's Lipschitz bound, :math:`(a, b)` its local error
    :math:`a \lVert z \rVert + b`, :math:`\hat z` the computed input and P the Lipschitz bound of
    everything before:

    .. math:: D_l \le N D_{l-1} + a \lVert \hat z \rVert + b

    at the centre. At distance r the computed input has norm at most
    :math:`\lVert \hat z \rVert + P r + D_{l-1}(0) + D_{l-1}(r)`, which keeps D affine in r.

    Args:
        network: The network; its constants may be on any device.
        x: Inputs of shape ``(N, *input_shape)``, float64 or float32: the arithmetic whose error is
            bounded. Every order of summation and fused multiply-add are covered; TF32 is not.

    Raises:
        UnsoundNetworkError: a bound cannot be proved, or the arithmetic would round the constants.
        ValueError: the inputs have another shape than the network's.
    """
    if tuple(x.shape[1:]) != tuple(network.input_shape):
        raise ValueError(
            f"expected inputs of shape (N, {', '.join(map(str, network.input_shape))}), "
            f"got {tuple(x.shape)}"
        )
    if network.dtype == torch.float64 and x.dtype != torch.float64:
        raise UnsoundNetworkError(
            "the network has float64 constants, which float32 arithmetic would round: set "
            "certifier.arithmetic=float64"
        )
    with torch.autocast(x.device.type, enabled=False):
        for state in forward_steps(network, x):
            last = state
    return last


def forward_steps(network: PlainNetwork, x: Tensor) -> Iterator[ForwardError]:
    """Like :func:`forward_error`, with every state from the input to the logits.

    Args:
        network: The network.
        x: Inputs of shape ``(N, *input_shape)``, float64.
    """
    network = network.owned()
    # Of x + S u as a function of u, and what is known of each state besides the product.
    known = prefix_bounds(network) if network.space.metric is not None else None
    state = _start(x, known[0] if known else 1.0)
    yield state
    for k, operation in enumerate(network.operations):
        state = _run([operation], state)
        if known:
            state = replace(state, lipschitz=min(state.lipschitz, known[k + 1]))
        yield state


def _start(x: Tensor, lipschitz: float) -> ForwardError:
    zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return ForwardError(x, zero, growth=0.0, lipschitz=lipschitz, reach=zero + math.inf)


def _run(operations: Sequence[Operation], state: ForwardError) -> ForwardError:
    for operation in operations:
        state = _JOINED.get(type(operation), _step)(operation, state)
    return state


def _step(operation: Operation, state: ForwardError) -> ForwardError:
    shape = tuple(state.output.shape[1:])
    bound = operation_bound(operation, shape)
    a, b = operation_rounding(operation, shape, UNIT_ROUNDOFFS[state.output.dtype])
    exact = ForwardError(
        operation(state.output),
        bound * state.centre,
        bound * state.growth,
        bound * state.lipschitz,
        state.reach,
    )
    squares = isinstance(operation, Activation) and operation.squares
    if a == b == 0 and not squares:
        return _charge(exact, torch.zeros_like(state.centre), 0.0)
    size, slope = _norm(state.output) + 2 * state.centre, state.lipschitz + state.growth
    if squares:
        room = math.sqrt(torch.finfo(state.output.dtype).max) * 2.0**-20 - size
        exact = replace(exact, reach=torch.minimum(exact.reach, room / slope))
    return _charge(exact, a * size + b, a * slope)


def _step_sum(operation: Operation, state: ForwardError) -> ForwardError:
    assert isinstance(operation, Sum)
    branches = [_run(branch, state) for branch in operation.branches]
    exact = ForwardError(
        torch.stack([b.output for b in branches]).sum(0),
        torch.stack([b.centre for b in branches]).sum(0),
        sum(b.growth for b in branches),
        sum(b.lipschitz for b in branches),
        torch.stack([b.reach for b in branches]).amin(0),
    )
    g = gamma(len(branches), UNIT_ROUNDOFFS[state.output.dtype])
    size = torch.stack([_norm(b.output) + 2 * b.centre for b in branches]).sum(0)
    return _charge(exact, g * size, g * (exact.lipschitz + exact.growth))


def _step_concatenation(operation: Operation, state: ForwardError) -> ForwardError:
    # Errors side by side: the squares of their norms add up, and nothing is rounded.
    assert isinstance(operation, Concatenation)
    branches = [_run(branch, state) for branch in operation.branches]
    exact = ForwardError(
        torch.cat([b.output for b in branches], operation.axis + 1),
        reduce(torch.hypot, (b.centre for b in branches)),
        math.hypot(*(b.growth for b in branches)),
        math.hypot(*(b.lipschitz for b in branches)),
        torch.stack([b.reach for b in branches]).amin(0),
    )
    return _charge(exact, torch.zeros_like(exact.centre), 0.0)


# What evaluates the operations that have branches.
_JOINED: dict[type[Operation], Callable[[Operation, ForwardError], ForwardError]] = {
    Sum: _step_sum,
    Concatenation: _step_concatenation,
}


def _charge(exact: ForwardError, centre: Tensor, growth: float) -> ForwardError:
    """Add an operation's own error, ``centre + growth * r`` at distance r, to what it inherits."""
    dtype = exact.output.dtype
    # No intermediate value of an operation exceeds its error over the unit roundoff by 2^40.
    room = torch.finfo(dtype).max * UNIT_ROUNDOFFS[dtype] * 2.0**-40 - centre
    # A handful of roundings a step; the slack is far above them and far below what matters.
    slack = 1 + 1e-9
    return ForwardError(
        exact.output,
        (exact.centre + centre) * slack,
        math.nextafter((exact.growth + growth) * slack, math.inf),
        math.nextafter(exact.lipschitz * slack, math.inf),
        torch.minimum(exact.reach, room / growth),
    )


def _norm(z: Tensor) -> Tensor:
    # The factor covers the rounding of 2^31 squares and their sum; the last term, their underflow.
    flat = z.flatten(1).double()
    return flat.norm(dim=1) * (1 + 2.0**-22) + math.sqrt(flat.shape[1]) * 2.0**-511
