"""Squared distances to affine subspaces of learned features."""

from collections.abc import Callable, Sequence

from torch import nn

from robustcert.models.classifier import check_sizes
from robustcert.models.feature_subspaces import FeatureSubspaces
from robustcert.models.layer_family import LayerFamily
from robustcert.models.stack import Stack


class DeepSubspaces(FeatureSubspaces):
    r"""``depth`` dense layers of ``width`` features, each with an activation, then subspaces.

    Images may be read through means of windows first, which leaves fewer features to fit.

    With a linear head in place of the subspaces this is :class:`robustcert.models.MLP`.

    Args:
        input_shape: Shape of one input, without the batch dimension.
        num_classes: Number of logits.
        width: Outputs of each dense layer.
        depth: Number of dense layers; 0 for subspaces of what is read.
        layer: The constraint's layers; the dense one is used.
        activation: Called as ``activation(num_features)``.
        per_class: Subspaces of each class.
        rank: Their dimension.
        pool: Side of the windows of an image whose scaled means are read.
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
        pool: int = 1,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        check_sizes(width, depth, least_depth=0)
        stack = Stack(input_shape, activation, mean=mean, std=std)
        stack.shrink(pool)
        stack.flatten()
        for _ in range(depth):
            stack.connect(layer.dense, width)
            stack.activate()
        backbone, features = stack.build(), stack.features
        super().__init__(backbone, features, num_classes, per_class=per_class, rank=rank)
