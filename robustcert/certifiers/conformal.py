r"""Split-conformal prediction sets that hold under perturbations of the input.

Let :math:`s(x, y)` be a score that is large where y fits x badly, and :math:`s_1, \dots, s_n` the
scores of n calibration samples that neither training nor the choice of a checkpoint has seen. With
a coverage c let

.. math:: k = \lceil (n + 1)\, c \rceil, \qquad q = s_{(k)},

the k-th smallest score, infinite if k > n.

**Coverage.** If the calibration samples and a test sample (x, y) are exchangeable, so are their
n + 1 scores, because the score does not depend on any of them. The rank of the test score among the
n + 1, ties broken at random, is then uniform, and :math:`s(x, y) \le q` wherever it is at most k:
with probability at least :math:`k / (n + 1) \ge c`, over the draw of calibration and test together.

**Under perturbations.** Let :math:`|s(x', y) - s(x, y)| \le K_y r` whenever
:math:`\lVert x' - x \rVert_2 \le r`, with a proved K. Then :math:`s(x, y) \le q` implies

.. math:: y \in C_r(x') = \{ y : s(x', y) - K_y r \le q \}

for *all* these x' at once: whoever chooses x', knowing x, y and all scores, does not lower the
coverage. Nothing is smoothed and nothing is sampled. Scores of calibration are rounded up and those
of the test down, by the proved error of the evaluation, so that sets are only larger than in
exact arithmetic; the same argument holds with these scores.

It is a statement on average over samples: not for every x, nor for every class or group, and it
fails where test samples are drawn differently from those of the calibration.

References: Vovk, Gammerman and Shafer, *Algorithmic learning in a random world*, 2005; Lei et al.,
`Distribution-free predictive inference for regression <https://arxiv.org/abs/1604.04173>`_, 2018;
for sets that are inflated by a Lipschitz constant, Massena et al., `Efficient robust conformal
prediction via Lipschitz-bounded networks <https://arxiv.org/abs/2506.05434>`_, ICML 2025.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
from torch import Tensor

from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.base import Certifier
from robustcert.certifiers.intervals import IntervalCertifier
from robustcert.certifiers.lipschitz import LipschitzCertifier, PairwiseCertifier
from robustcert.margins import least_of_rivals, margins
from robustcert.network.forward_error import forward_error
from robustcert.network.network import PlainNetwork
from robustcert.network.units import network_inputs

# Root of 2, with an allowance for the roundings of what it multiplies.
ROOT2 = math.sqrt(2) * (1 + 1e-9)
# Relative allowance for the roundings of a score.
ROUNDING = 2.0**-48


def quantile_index(count: int, coverage: float) -> int:
    """k, the least integer not below ``(count + 1) coverage``, the coverage read as a decimal."""
    return math.ceil((count + 1) * Fraction(repr(float(coverage))))


def threshold(scores: Tensor, coverage: float) -> float:
    """q: the k-th smallest score, infinite if there are too few; NaN counts as infinite."""
    k = quantile_index(len(scores), coverage)
    if k > len(scores):
        return math.inf
    return float(scores.double().nan_to_num(nan=math.inf, posinf=math.inf).sort().values[k - 1])


class PredictionSets(ABC):
    """Prediction sets of a network, calibrated once.

    Args:
        network: The folded network.
        coverage: c, above 0 and below 1.

    Raises:
        ValueError: the coverage is no such number.
        UnsoundNetworkError: a constant cannot be proved.
    """

    # What a set consists of, as its size is counted.
    unit: str

    def __init__(self, network: PlainNetwork, coverage: float) -> None:
        if not 0 < coverage < 1:
            raise ValueError(f"coverage: expected a share between 0 and 1, got {coverage}")
        self.network, self.coverage = network, coverage
        self.count, self.threshold = 0, math.inf

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take the threshold from samples that nothing else has seen.

        Args:
            batches: Inputs ``(N, *input_shape)`` and targets ``(N,)``.
        """
        scores = torch.cat([self.scores(x, y).cpu() for x, y in batches])
        self.count = len(scores)
        self.threshold = threshold(scores, self.coverage)

    @abstractmethod
    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of samples, rounded up, shape ``(N,)``, float64."""

    @abstractmethod
    def contain(self, x: Tensor, y: Tensor, radius: float) -> Tensor:
        """Whether the sets at inputs hold the targets, shape ``(N,)``.

        Args:
            x: Inputs, perturbed by at most ``radius``, shape ``(N, *input_shape)``.
            y: Targets, shape ``(N,)``.
            radius: Perturbation that the sets allow for, in input units.
        """

    @abstractmethod
    def sizes(self, x: Tensor, radius: float) -> Tensor:
        """Sizes of the sets at inputs, in :attr:`unit`, shape ``(N,)``, float64."""

    @abstractmethod
    def misfit(self, y: Tensor, radius: float) -> Callable[[Tensor], Tensor]:
        """What an attack makes large: the differentiable score at points, less its allowance."""


class IntervalSets(PredictionSets):
    """Intervals of a regression: the score is the absolute residual, with the output's constant.

    Args:
        network: The folded network, with one output.
        coverage: As for :class:`PredictionSets`.
        certifier: Certifier of the network, see :class:`IntervalCertifier`.
    """

    unit = "width in units of the target"

    def __init__(
        self, network: PlainNetwork, coverage: float, certifier: Certifier | None = None
    ) -> None:
        super().__init__(network, coverage)
        self.certifier = IntervalCertifier(certifier)

    def intervals(self, x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of the sets, rounded outwards, shape ``(N,)``."""
        return self.certifier.certify(self.network, x).interval(radius, extra=self.threshold)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance from the target to the farther end of what the output may be."""
        lower, upper = self.certifier.certify(self.network, x).interval(0.0)
        farthest = torch.maximum(y.double() - lower, upper - y.double())
        return farthest * (1 + ROUNDING)

    def contain(self, x: Tensor, y: Tensor, radius: float) -> Tensor:
        """Whether the target is between the ends."""
        lower, upper = self.intervals(x, radius)
        return (lower <= y.double()) & (y.double() <= upper)

    def sizes(self, x: Tensor, radius: float) -> Tensor:
        """Widths."""
        lower, upper = self.intervals(x, radius)
        return upper - lower

    def misfit(self, y: Tensor, radius: float) -> Callable[[Tensor], Tensor]:
        """The absolute residual; its allowance is the same everywhere."""
        return lambda x: (self.network(x)[:, 0] - y.double()).abs()


class LabelSets(PredictionSets):
    r"""Sets of labels: :math:`s(x, y) = \max_{j \ne y} f_j(x) - f_y(x)`, the margin of the rivals.

    Within r of x' the difference :math:`f_j - f_y` is at least its value at x' less
    :math:`K_{yj} r`, so a label is left out where
    :math:`\max_{j \ne y} (f_j - f_y)(x') - K_{yj} r > q`.

    Args:
        network: The folded network.
        coverage: As for :class:`PredictionSets`.
        certifier: Gives the pairwise constants, if it has some; :class:`LipschitzCertifier` else.
    """

    unit = "labels"

    def __init__(
        self, network: PlainNetwork, coverage: float, certifier: Certifier | None = None
    ) -> None:
        super().__init__(network, coverage)
        pairs = certifier if isinstance(certifier, PairwiseCertifier) else LipschitzCertifier()
        with strict_arithmetic():
            self.pairwise = pairs.pairwise_bound(network)

    @torch.no_grad()
    @strict_arithmetic()
    def _logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Logits in float64 and an allowance for the error of their differences, shape (N, 1).
        inputs = network_inputs(x, self.network.input_shape).double()
        found = forward_error(self.network, inputs)
        return found.output, ROOT2 * found.centre[:, None]

    def _fits(self, x: Tensor, radius: float) -> Tensor:
        """Scores of every label, rounded down, less what a perturbation may change; ``(N, C)``."""
        logits, error = self._logits(x)
        constants = self.pairwise.to(logits.device) * radius * (1 + ROUNDING)
        # The entry (y, j) of sample i: logit j minus logit y, less its allowance.
        lead = logits[:, None, :] - logits[:, :, None]
        least = lead - lead.abs() * ROUNDING - error[:, :, None] - constants
        own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        return torch.where(own, -math.inf, least).amax(2)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Lead of the strongest rival, negative where the label is predicted."""
        logits, error = self._logits(x)
        margin = margins(logits, y)
        return -least_of_rivals(margin - margin.abs() * ROUNDING - error, y)

    def labels(self, x: Tensor, radius: float) -> Tensor:
        """Which labels the sets hold, shape ``(N, C)``; all where a logit is no number."""
        return ~(self._fits(x, radius) > self.threshold)

    def contain(self, x: Tensor, y: Tensor, radius: float) -> Tensor:
        """Whether the label is in the set."""
        return self.labels(x, radius).gather(1, y[:, None])[:, 0]

    def sizes(self, x: Tensor, radius: float) -> Tensor:
        """Numbers of labels."""
        return self.labels(x, radius).sum(1).double()

    def misfit(self, y: Tensor, radius: float) -> Callable[[Tensor], Tensor]:
        """The score with the allowance of each rival."""
        allowance = self.pairwise[y.cpu()].to(y.device) * radius
        return lambda x: -least_of_rivals(margins(self.network(x), y) + allowance, y)
