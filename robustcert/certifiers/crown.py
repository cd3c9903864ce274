"""Certified radii from linear bounds of the network on the ball: CROWN."""

import math
from typing import Literal

import torch
from torch import Tensor

from robustcert.certifiers.base import Proof
from robustcert.certifiers.lipschitz import PairwiseCertifier
from robustcert.margins import least_of_rivals
from robustcert.network.forward_error import forward_error
from robustcert.network.network import PlainNetwork
from robustcert.relaxations.backward import Relaxation, Step, chunks, rival_rows, steps_of
from robustcert.relaxations.curves import Curve

# Radii are sought between the Lipschitz radius over and times 2^OCTAVES, in so many halvings.
OCTAVES = 16
HALVINGS = 19
# Maximum number of entries of a tensor of a pass.
MAX_ENTRIES = 2**23


class CROWNCertifier(PairwiseCertifier):
    r"""Lipschitz radii, or larger ones from linear bounds of the network on the ball.

    Every activation is put between two lines that hold for the arguments that it can have on the
    ball; the margins are then bounded by linear functions of the input, whose least value on the
    ball is known. The radius is the largest found by bisection at which every margin stays above
    what rounding can take off it. All of it is vectorised over samples and classes and bounded with
    its rounding, see Note [backward bounds] of :mod:`robustcert.relaxations.backward`.

    Covered are dense networks with ReLU, MaxMin, absolute values (all or a share of them), zigzags,
    softplus, tanh and the smooth forms of MaxMin and the absolute value.

    Args:
        alone: Whether to leave the Lipschitz bound out, to compare the two.
        arithmetic: As in :class:`robustcert.certifiers.LipschitzCertifier`.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        >>> ramp = [[[1.0], [1.0]], [0.0, -2.0], [[1.0, -1.0], [0.0, 0.0]], [0.0, 0.0]]
        >>> for parameter, value in zip(net.parameters(), ramp):
        ...     parameter.data = torch.tensor(value)
        >>> network, x = fold_network(net, (1,)), torch.tensor([[1.0]])
        >>> for certifier in (LipschitzCertifier(), CROWNCertifier()):
        ...     print(f"{certifier.certify(network, x).radius.item():.4f}")  # the distance is 1
        0.5000
        1.0000
    """

    proof = Proof.CROWN

    def __init__(
        self, alone: bool = False, arithmetic: Literal["float64", "float32"] = "float64"
    ) -> None:
        super().__init__(arithmetic)
        self.alone = alone

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
        steps = steps_of(network, inputs.device)
        known = least_of_rivals(first_order, prediction)
        open_ = (known > 0) & (known < math.inf)
        # Half of what rounding may take off a margin is spent at the point.
        centre = forward_error(network, inputs).centre * (math.sqrt(2) * (1 + 1e-9))
        found = torch.where(open_, 0.0, known)
        rows = open_.nonzero()[:, 0]
        widest = max((len(step.fixed) for step in steps if isinstance(step, Curve)), default=1)
        for part in chunks(len(rows), max(1, MAX_ENTRIES // (2 * widest * widest))):
            some = rows[part]
            x, own = inputs[some].double().flatten(1), prediction[some]
            found[some] = _search(steps, x, own, gap.shape[1], known[some], centre[some], drift)
        if self.alone:
            return found[:, None].expand_as(gap)
        return torch.maximum(first_order, found[:, None])


def _search(
    steps: list[Step],
    x: Tensor,
    own: Tensor,
    classes: int,
    scale: Tensor,
    centre: Tensor,
    drift: float,
) -> Tensor:
    """The largest radii at which every margin is proved, by bisection of their logarithms."""
    rows = rival_rows(own, classes)
    proved = torch.zeros_like(scale)
    low, high = torch.full_like(scale, -OCTAVES), torch.full_like(scale, OCTAVES)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        radius = scale * torch.exp2(middle)
        relaxation = Relaxation(steps, x, radius)
        margin = least_of_rivals(relaxation.plane(rows).least(x, radius), own)
        certified = margin > (centre + drift * radius) * (1 + 1e-9)
        for lower, upper in relaxation.bounds:
            certified &= (torch.isfinite(lower) & torch.isfinite(upper)).all(1)
        proved = torch.where(certified, torch.maximum(proved, radius), proved)
        low = torch.where(certified, middle, low)
        high = torch.where(certified, high, middle)
    return proved
