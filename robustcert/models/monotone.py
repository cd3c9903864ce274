r"""A network that never falls or never rises with chosen features, by a linear term.

Let g be a network of one output whose Lipschitz constant is at most K, and s hold +1 for features
with which the output may not fall, -1 for those with which it may not rise, and 0 elsewhere. Then

.. math:: h(x) = g(x) + K \, s \cdot x

is monotone in the marked features, because g moves by at most K per unit of each. The constant of
h is at most :math:`K (1 + \sqrt m)` for m marked features: that is the price, in radii and widths
of intervals.

A normalisation :math:`z_i = (x_i - \mu_i) / \sigma_i` that g begins with is shared by both terms:
h is then monotone in z, and so in x, and K is measured where features have the same unit.

Training takes the estimate of K; evaluation and the fold take the bound that is proved of the fold
of g, rounded up, so that what is certified is monotone whatever training estimated.

Reference: Kitouni, Nolte and Williams, `Expressive monotonic neural networks
<https://arxiv.org/abs/2307.07512>`_, ICLR 2023, whose g is 1-Lipschitz by constraint.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustcert.lipschitz import lipschitz_estimate
from robustcert.models.classifier import Classifier
from robustcert.models.normalize import Normalize
from robustcert.models.scores import TrainingScores, lipschitz_scores
from robustcert.network.bounds import sequence_bound
from robustcert.network.branches import Sum
from robustcert.network.fold import fold_children
from robustcert.network.linear import Dense
from robustcert.network.operation import Operation


class Monotone(nn.Module):
    """``g(x) + K s.x``, as the output of a regression or as the difference of two logits.

    Args:
        model: g, with one output, for inputs of shape ``(N, features)``.
        directions: s: +1, -1 or 0 for every feature.
        num_classes: 1 for a regression; 2 for logits -h / 2 and h / 2, whose difference is h.

    Raises:
        ValueError: there are more outputs, or the directions do not fit the features.

    Example:
        >>> g = torch.nn.Linear(2, 1)
        >>> h = Monotone(g, [1, 0], input_shape=(2,), num_classes=1).eval()
        >>> x = torch.zeros(1, 2)
        >>> bool(h(x + torch.tensor([1.0, 0.0])) >= h(x))  # whatever the weights of g are
        True
    """

    directions: Tensor
    difference: Tensor

    def __init__(
        self,
        model: nn.Module,
        directions: Sequence[int],
        *,
        input_shape: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        if num_classes > 2:
            raise ValueError(
                f"a direction is of a regression or of the difference of two logits, but there "
                f"are {num_classes} classes: set model.monotone=null"
            )
        if len(input_shape) != 1 or len(directions) != input_shape[0]:
            raise ValueError(
                f"expected one direction for each feature of inputs {tuple(input_shape)}, got "
                f"{len(directions)}: set model.monotone to as many of 1, -1 and 0"
            )
        if not set(directions) <= {-1, 0, 1}:
            raise ValueError(f"expected 1, -1 or 0, got {list(directions)}: set model.monotone")
        self.model = model
        self.input_shape = tuple(input_shape)
        self.register_buffer("directions", torch.tensor(directions, dtype=torch.float32))
        halves = [[-0.5], [0.5]] if num_classes == 2 else []
        self.register_buffer("difference", torch.tensor(halves, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, 1)``, or logits ``(N, 2)``."""
        slope = self._estimate() if self.training else self.slope()
        z = x if self._normalize is None else self._normalize(x)
        h = self.model(x) + (slope * (z @ self.directions.to(z)))[:, None]
        return h @ self.difference.to(h).mT if len(self.difference) else h

    def slope(self) -> Tensor:
        """K: the proved bound of g after its normalisation, rounded up to the weights' dtype."""
        dtype = torch.float64 if self.directions.dtype == torch.float64 else torch.float32
        bound = sequence_bound(self._folded()[1], self.input_shape)
        found = torch.tensor(bound, dtype=dtype, device="cpu")
        if float(found) < bound:
            found = torch.nextafter(found, torch.full_like(found, math.inf))
        return found

    def training_scores(self, x: Tensor) -> TrainingScores:
        """Logits and the estimates of their pairwise constants."""
        return lipschitz_scores(self, x)

    def lipschitz_estimate(self) -> Tensor:
        """Estimate for the map to the output, or to both logits."""
        constant = self._constant()
        return constant * math.sqrt(0.5) if len(self.difference) else constant

    def pairwise_lipschitz_estimate(self) -> Tensor:
        """Estimates for the differences of outputs, shape ``(C, C)``."""
        count = max(1, len(self.difference))
        constant = self._constant()
        return constant * (1 - torch.eye(count, dtype=constant.dtype, device=constant.device))

    @property
    def _normalize(self) -> Normalize | None:
        first = self.model.backbone[0] if isinstance(self.model, Classifier) else None
        return first if isinstance(first, Normalize) else None

    def _folded(self) -> tuple[list[Operation], list[Operation]]:
        """The normalisation that g begins with, if it has one, and the rest of g."""
        operations = fold_children(("model", self.model))
        shared = 0 if self._normalize is None else 1
        return operations[:shared], operations[shared:]

    def _estimate(self) -> Tensor:
        """Estimate of K."""
        whole, first = lipschitz_estimate(self.model), self._normalize
        return whole if first is None else whole / first.lipschitz_estimate()

    def _constant(self) -> Tensor:
        """Estimate of the constant of h, K (1 + root of m)."""
        marked = float(self.directions.abs().sum())
        return lipschitz_estimate(self.model) * (1 + math.sqrt(marked))

    def fold(self) -> list[Operation]:
        """The sum of g and the linear term, with the proved K as a constant."""
        line = Dense((self.slope() * self.directions.cpu())[None], name="directions")
        first, rest = self._folded()
        total: list[Operation] = [*first, Sum((tuple(rest), (line,)), name="monotone")]
        if len(self.difference):
            total.append(Dense(self.difference.cpu(), name="difference"))
        return total
