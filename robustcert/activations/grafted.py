"""Grafted activations: some units are lines, the others ReLUs or MaxMin pairs."""

from typing import Literal

import torch
from torch import Tensor, nn

from robustcert.activations.features import (
    along_features,
    check_groups,
    join_pairs,
    ordered,
    split_pairs,
)
from robustcert.network.activation import Activation
from robustcert.network.local_error import counted
from robustcert.network.operation import constant

FOLD, LINE, CROSSED = 0.0, 1.0, 2.0


def grafted(x: Tensor, graft: Tensor, slope: Tensor, shift: Tensor, pairs: int) -> Tensor:
    """Units with a graft of 0 fold; the others are lines ``slope * x + shift``.

    Without ``pairs`` every feature is a unit and its fold a ReLU. With ``pairs`` every two
    neighbours are one, put in increasing order; in a line with a graft of 2 they are exchanged.
    """
    units = along_features(graft, split_pairs(x)[0] if pairs else x)
    if not pairs:
        line = along_features(slope, x) * x + along_features(shift, x)
        return torch.where(units == FOLD, x.relu(), line)
    first, second = split_pairs(x)
    crossed = units == CROSSED
    straight = join_pairs(torch.where(crossed, second, first), torch.where(crossed, first, second))
    line = along_features(slope, x) * straight + along_features(shift, x)
    own = split_pairs(line)
    folds = units == FOLD
    both = (
        torch.where(folds, fold, value)
        for fold, value in zip(ordered(first, second), own, strict=True)
    )
    return join_pairs(*both)


class Grafted(nn.Module):
    r"""ReLU or MaxMin, of which a share of the units has been replaced by lines.

    A grafted unit computes :math:`a x + b` with learned :math:`|a| \le 1` and b, so that the
    activation stays 1-Lipschitz and has no fold there. Of a MaxMin pair both members become lines,
    in the order in which most samples have them. No unit is grafted at first;
    :class:`robustcert.training.callbacks.LinearityGrafting` chooses some during training.

    Reference: Chen et al., `Linearity grafting: relaxed neuron pruning helps certifiable robustness
    <https://arxiv.org/abs/2206.07839>`_, ICML 2022, for ReLU and bounds of the input interval.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        base: What units are before they are grafted.

    Example:
        >>> activation = Grafted(2, base="relu")
        >>> activation.graft_units(torch.tensor([True, False]), torch.tensor([[1.0, 1.0]]))
        >>> activation(torch.tensor([[-1.5, -1.5]])).detach()  # of slope 1, as on most inputs
        tensor([[-1.5000,  0.0000]])
    """

    graft: Tensor

    def __init__(self, num_features: int, base: Literal["maxmin", "relu"] = "maxmin") -> None:
        super().__init__()
        if base not in ("maxmin", "relu"):
            raise ValueError(
                f"Grafted(base={base!r}) must be maxmin or relu: set model.activation.base"
            )
        self.pairs = int(base == "maxmin")
        check_groups("Grafted", num_features, 1 + self.pairs)
        self.num_features = self.out_features = num_features
        self.register_buffer("graft", torch.zeros(num_features // (1 + self.pairs)))
        self.raw_slope = nn.Parameter(torch.ones(num_features))
        self.shift = nn.Parameter(torch.zeros(num_features))

    def slope(self) -> Tensor:
        """Slopes of the lines, shape ``(C,)``, in [-1, 1]."""
        raw = self.raw_slope
        # Reflected at -1 and 1 rather than clipped there, so that no slope loses its gradient.
        return torch.where(raw.abs() > 1, 2 * raw.sign() - raw, raw).clamp(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return grafted(x, self.graft, self.slope(), self.shift, self.pairs)

    @torch.no_grad()
    def graft_units(self, units: Tensor, x: Tensor) -> None:
        """Replace units by the piece that most inputs are on.

        Args:
            units: Which, boolean, shape ``(C,)`` or ``(C / 2,)``.
            x: Inputs of the activation, shape ``(N, C, *)``.
        """
        if self.pairs:
            first, second = split_pairs(x)
            crossed = _share(first > second) > 0.5
            self.graft[units] = torch.where(crossed, CROSSED, LINE)[units]
            return
        self.graft[units] = LINE
        self.raw_slope[units] = (_share(x > 0) > 0.5).to(self.raw_slope)[units]

    def lipschitz_bound(self) -> float:
        """1: sorting and ReLU are 1-Lipschitz, lines have slopes in [-1, 1], units are disjoint."""
        return 1.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        shift = constant(self.shift * self._of_features(self.graft != FOLD))
        # A product within u |x| and a sum within u (|x| + |b|); folds only select.
        error = counted(2.0, float(shift.abs().max())) if self.graft.any() else (0.0, 0.0)
        return Activation(
            function=grafted,
            constants={
                "graft": constant(self.graft),
                "slope": constant(self.slope()),
                "shift": shift,
                "pairs": self.pairs,
            },
            lipschitz=1.0,
            error=error,
        )

    def _of_features(self, units: Tensor) -> Tensor:
        return units.repeat_interleave(2) if self.pairs else units


def _share(condition: Tensor) -> Tensor:
    """Share of samples and positions, feature by feature."""
    return condition.double().transpose(0, 1).flatten(1).mean(1)
