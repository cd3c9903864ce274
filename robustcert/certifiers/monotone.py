r"""Directions in which a network never falls or never rises, proved from its operations.

Let :math:`h(x) = g(x) + w \cdot x` and K bound the Lipschitz constant of g. For t > 0

.. math:: h(x + t e_i) - h(x) \ge w_i t - K t,

so h never falls with feature i if :math:`w_i \ge K`, and never rises if :math:`w_i \le -K`. The
same holds of logit 1 minus logit 0 where the logits are -a h and a h with a > 0, and of a map of
x that is such an h of :math:`z_i = c_i x_i + d_i` with every c_i > 0. The statement is about the
real-valued network; an evaluation in floating point follows it up to its rounding.
"""

from collections.abc import Sequence

import torch

from robustcert.network.bounds import sequence_bound
from robustcert.network.branches import Sum
from robustcert.network.linear import Affine, Dense
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation


def monotone_directions(network: PlainNetwork) -> tuple[int, ...] | None:
    """+1, -1 or 0 for every feature, as above; None where the network has no such form.

    Raises:
        UnsoundNetworkError: a bound cannot be proved.
    """
    network = network.owned()
    if len(network.input_shape) != 1 or not network.operations:
        return None
    _, (first, *rest) = _split(network)
    if not isinstance(first, Sum) or len(first.branches) != 2:
        return None
    branch, line = first.branches
    if len(line) != 1 or not isinstance(line[0], Dense) or line[0].weight.shape[0] != 1:
        return None
    if rest and not (len(rest) == 1 and _is_difference(rest[0])):
        return None
    bound = sequence_bound(branch, network.input_shape)
    # A float64 comparison of constants with a bound that is rounded up: no further rounding.
    slopes = line[0].weight[0].double().cpu().tolist()
    return tuple((slope >= bound) - (-slope >= bound) for slope in slopes)


def direction_costs(network: PlainNetwork) -> dict[str, float]:
    """Constants of h and of g, whose quotient is what the directions cost.

    Args:
        network: One that has :func:`monotone_directions`.
    """
    network = network.owned()
    before, (total, *_) = _split(network)
    assert isinstance(total, Sum)
    return {
        "constant": sequence_bound([*before, total], network.input_shape),
        "without": sequence_bound([*before, *total.branches[0]], network.input_shape),
    }


def _split(network: PlainNetwork) -> tuple[Sequence[Operation], Sequence[Operation]]:
    """An increasing map of every feature that a network begins with, and what follows."""
    first = network.operations[0]
    # By exact class: a subclass may compute something else.
    if type(first) is not Affine or len(network.operations) < 2:
        return (), network.operations
    increasing = first.scale.dim() == 1 and bool((first.scale > 0).all())
    return network.operations[:increasing], network.operations[increasing:]


def _is_difference(operation: object) -> bool:
    """Whether an operation gives the logits -a h and a h, a > 0, of its one input h."""
    if not isinstance(operation, Dense) or operation.bias is not None:
        return False
    weight = operation.weight
    if weight.shape != torch.Size((2, 1)):
        return False
    return float(weight[1, 0]) == -float(weight[0, 0]) > 0
