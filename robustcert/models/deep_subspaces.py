"""Squared distances to affine subspaces of learned features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustcert.lipschitz import estimate_children
from robustcert.models.classifier import check_sizes
from robustcert.models.layer_family import LayerFamily
from robustcert.models.scores import TrainingScores, distance_scores
from robustcert.models.stack import Stack
from robustcert.models.subspaces import Subspaces
from robustcert.network.fold import fold_children
from robustcert.network.operation import Operation


class DeepSubspaces(nn.Module):
    r"""``depth`` dense layers of ``width`` features, each with an activation, then subspaces.

    Where features are L-Lipschitz, a radius among them is L times one of the input:

    .. math:: r(x) \ge \rho(\varphi(x)) / L ,

    :math:`\rho` being the exact distance at which :class:`Subspaces` change their prediction. With
    orthogonal layers L is 1; with a linear head in place of the subspaces this is
    :class:`robustcert.models.MLP`.

    Args:
        input_shape: Shape of one input, without the batch dimension.
        num_classes: Number of logits.
        width: Outputs of each dense layer.
        depth: Number of dense layers.
        layer: The constraint's layers; the dense one is used.
        activation: Called as ``activation(num_features)``.
        per_class: Subspaces of each class.
        rank: Their dimension.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> family = LayerFamily(dense=CayleyLinear, conv=AOLConv2d)
        >>> model = DeepSubspaces(
        ...     (3,), 2, width=4, depth=1, layer=family, activation=GroupSort, per_class=2, rank=1
        ... )
        >>> model(torch.rand(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int,
        depth: int,
        layer: LayerFamily,
        activation: Callable[[int], nn.Module],
        per_class: int,
        rank: int,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        check_sizes(width, depth)
        stack = Stack(input_shape, activation, mean=mean, std=std)
        stack.flatten()
        for _ in range(depth):
            stack.connect(layer.dense, width)
            stack.activate()
        self.backbone = stack.build()
        features = (stack.features,)
        self.subspaces = Subspaces(features, num_classes, per_class=per_class, rank=rank)

    @torch.no_grad()
    def start_at(self, inputs: Tensor, labels: Tensor) -> None:
        """Put the subspaces at clusters of each class's features, see :meth:`Subspaces.start_at`.

        Args:
            inputs: Shape ``(N, *input_shape)``.
            labels: Classes, shape ``(N,)``.
        """
        if not self.subspaces.started:
            self.subspaces.start_at(self.backbone(inputs), labels)

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
