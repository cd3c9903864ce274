"""What networks of distances to subspaces of features are: a backbone, then subspaces."""

import torch
from torch import Tensor, nn

from robustcert.lipschitz import estimate_children
from robustcert.models.scores import TrainingScores, distance_scores
from robustcert.models.subspaces import Subspaces
from robustcert.network.fold import fold_children
from robustcert.network.operation import Operation

# Maximum number of inputs whose features are computed at once before training.
START_BATCH = 1000


class FeatureSubspaces(nn.Module):
    r"""Squared distances to affine subspaces of the features of a backbone.

    Where features are L-Lipschitz, a radius among them is L times one of the input:

    .. math:: r(x) \ge \rho(\varphi(x)) / L ,

    :math:`\rho` being the exact distance at which :class:`Subspaces` change their prediction. With
    orthogonal layers L is 1.

    Args:
        backbone: Maps inputs ``(N, *input_shape)`` to features ``(N, D)``.
        features: Their number.
        num_classes: Number of logits.
        per_class: Subspaces of each class.
        rank: Their dimension.

    Example:
        >>> backbone = torch.nn.Sequential(CayleyLinear(3, 4), GroupSort(4))
        >>> model = FeatureSubspaces(backbone, 4, 2, per_class=2, rank=1)
        >>> model(torch.rand(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        backbone: nn.Sequential,
        features: int,
        num_classes: int,
        *,
        per_class: int,
        rank: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.subspaces = Subspaces((features,), num_classes, per_class=per_class, rank=rank)

    @torch.no_grad()
    def start_at(self, inputs: Tensor, labels: Tensor) -> None:
        """Put the subspaces at clusters of each class's features, see :meth:`Subspaces.start_at`.

        Args:
            inputs: Shape ``(N, *input_shape)``.
            labels: Classes, shape ``(N,)``.
        """
        if not self.subspaces.started:
            features = [self.backbone(x) for x in inputs.split(START_BATCH)]
            self.subspaces.start_at(torch.cat(features), labels)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, C)``."""
        return self.subspaces(self.backbone(x))

    def training_scores(self, x: Tensor) -> TrainingScores:
        """Minus the estimated distances to other classes as logits, with constants of 1."""
        classes = self.subspaces.num_classes
        return distance_scores(lambda y: self.distance_logits(x, y), classes, x.device)

    def distance_logits(self, x: Tensor, target: Tensor) -> Tensor:
        """Minus the estimated radius towards each class, 0 for the target; shape ``(N, C)``."""
        distances = self.subspaces.distance_logits(self.backbone(x), target)
        return distances / estimate_children(("backbone", self.backbone)).to(distances)

    def fold(self) -> list[Operation]:
        """The plain operations of the layers and the quadratics."""
        return fold_children(("backbone", self.backbone), ("subspaces", self.subspaces))
