"""What every model is: a backbone and a linear head."""

from torch import Tensor, nn

from robustcert.lipschitz import estimate_children
from robustcert.margins import row_distances
from robustcert.models.head import Head
from robustcert.models.scores import TrainingScores, lipschitz_scores
from robustcert.network.fold import fold_children
from robustcert.network.operation import Operation


class Classifier(nn.Module):
    r"""Logits ``head(backbone(x))`` with :math:`K_{ij} = L_{backbone} \lVert w_i - w_j \rVert_2`.

    Args:
        backbone: Maps inputs ``(N, *input_shape)`` to features ``(N, D)``.
        head: Maps features to logits ``(N, C)``.

    Example:
        >>> backbone = torch.nn.Sequential(CayleyLinear(4, 4), GroupSort(4))
        >>> model = Classifier(backbone, Head(4, 3))
        >>> bound = pairwise_lipschitz_estimate(model)
        >>> bound.shape, bool((bound <= 2.001).all())  # rows of unit norm are at most 2 apart
        (torch.Size([3, 3]), True)
    """

    def __init__(self, backbone: nn.Sequential, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, C)``."""
        return self.head(self.backbone(x))

    def training_scores(self, x: Tensor) -> TrainingScores:
        """Logits and the estimates of their pairwise constants."""
        return lipschitz_scores(self, x)

    def lipschitz_estimate(self) -> Tensor:
        """Estimate for the map from input to all logits."""
        return estimate_children(("backbone", self.backbone), ("head", self.head))

    def pairwise_lipschitz_estimate(self) -> Tensor:
        """Estimates for the differences of logits, shape ``(C, C)``."""
        features = estimate_children(("backbone", self.backbone))
        return features * row_distances(self.head.weight)

    def fold(self) -> list[Operation]:
        """The plain operations of backbone and head."""
        return fold_children(("backbone", self.backbone), ("head", self.head))


def check_sizes(width: int, depth: int, least_depth: int = 1) -> None:
    """Raise ``ValueError`` for a width or depth that no network can have."""
    if width < 1:
        raise ValueError(f"expected a width of at least 1, got {width}: set model.width")
    if depth < least_depth:
        raise ValueError(
            f"expected a depth of at least {least_depth}, got {depth}: set model.depth"
        )
