"""Forward error: how far the computed logits are from the real ones, at a point and around it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcert.plain import Operation, PlainNetwork, Shape, Sum, gamma, operation_bound

# Norms of computed activations are themselves computed, in float64, and enlarged by this factor,
# which covers sums of up to 2^40 squares.
_NORM_SLACK = 1 + 2e-4 * 2.0**-10
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}


@dataclass(frozen=True)
class ForwardError:
    r"""A forward pass with its error, affine in the distance from the centre.

    Within l2 distance r of the centre, computed and real outputs differ by at most
    :math:`\mathrm{centre} + \mathrm{growth} \cdot r` in the l2 norm.

    Attributes:
        output: Computed outputs, shape ``(N, *)``.
        centre: Shape ``(N,)``, float64.
        growth: Per unit of distance.
        lipschitz: Bound on the constant of the real map so far.
    """

    output: Tensor
    centre: Tensor
    growth: float
    lipschitz: float


def forward_error(network: PlainNetwork, x: Tensor) -> ForwardError:
    r"""Evaluate a plain network with a bound on the error of its arithmetic.

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
    """
    start = ForwardError(x, torch.zeros(len(x), dtype=torch.float64, device=x.device), 0.0, 1.0)
    return _run(network.operations, start, network.input_shape, UNIT[x.dtype])


def _norm(z: Tensor) -> Tensor:
    return z.flatten(1).double().norm(dim=1) * _NORM_SLACK


def _run(
    operations: Sequence[Operation], state: ForwardError, shape: Shape, unit: float
) -> ForwardError:
    for operation in operations:
        if isinstance(operation, Sum):
            state = _run_sum(operation, state, shape, unit)
        else:
            state = _step(operation, state, shape, unit)
        shape = operation.output_shape(shape)
    return state


def _step(operation: Operation, state: ForwardError, shape: Shape, unit: float) -> ForwardError:
    bound = operation_bound(operation, shape)
    a, b = operation.rounding(shape, unit)
    centre = bound * state.centre
    if a or b:
        centre = centre + a * (_norm(state.output) + 2 * state.centre) + b
    growth = bound * state.growth + a * (state.lipschitz + state.growth)
    lipschitz = bound * state.lipschitz
    # A handful of roundings a step; the slack is far above them and far below what matters.
    return ForwardError(
        operation(state.output), centre * (1 + 1e-9), growth * (1 + 1e-9), _up(lipschitz)
    )


def _run_sum(operation: Sum, state: ForwardError, shape: Shape, unit: float) -> ForwardError:
    branches = [_run(branch, state, shape, unit) for branch in operation.branches]
    g = gamma(len(branches), unit)
    norms = torch.stack([_norm(b.output) + 2 * b.centre for b in branches]).sum(0)
    lipschitz = _up(sum(b.lipschitz for b in branches))
    growth = sum(b.growth for b in branches)
    return ForwardError(
        torch.stack([b.output for b in branches]).sum(0),
        (torch.stack([b.centre for b in branches]).sum(0) + g * norms) * (1 + 1e-9),
        (growth + g * (lipschitz + growth)) * (1 + 1e-9),
        lipschitz,
    )


def _up(value: float) -> float:
    return math.nextafter(value * (1 + 1e-12), math.inf)
