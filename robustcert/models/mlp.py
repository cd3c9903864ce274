"""Multilayer perceptron."""

from collections.abc import Callable, Sequence

from torch import nn

from robustcert.models.classifier import Classifier, check_sizes
from robustcert.models.head import Head
from robustcert.models.layer_family import LayerFamily
from robustcert.models.stack import Stack


class MLP(Classifier):
    """``depth`` dense layers of ``width`` features, each with an activation, and a linear head.

    Args:
        input_shape: Shape of one input, without the batch dimension.
        num_classes: Number of logits.
        width: Outputs of each dense layer.
        depth: Number of dense layers before the head.
        layer: The constraint's layers; the dense one is used.
        activation: Called as ``activation(num_features)``.
        normalize_head: Whether the head's rows have unit norm.
        pool: Side of the windows of an image whose scaled means are read.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> family = LayerFamily(dense=CayleyLinear, conv=AOLConv2d)
        >>> model = MLP((4,), 3, width=8, depth=2, layer=family, activation=GroupSort)
        >>> x = torch.rand(5, 4)
        >>> certify(model, x).prediction.equal(model(x).argmax(1))
        True
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
        normalize_head: bool = True,
        pool: int = 1,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        check_sizes(width, depth)
        stack = Stack(input_shape, activation, mean=mean, std=std)
        stack.shrink(pool)
        stack.flatten()
        for _ in range(depth):
            stack.connect(layer.dense, width)
            stack.activate()
        super().__init__(stack.build(), Head(stack.features, num_classes, normalize=normalize_head))
