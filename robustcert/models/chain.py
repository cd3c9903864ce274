"""A network whose architecture is written out in its configuration, layer by layer."""

from collections.abc import Sequence

from torch import nn

from robustcert.models.classifier import Classifier
from robustcert.models.head import Head
from robustcert.models.normalize import Normalize


class Chain(Classifier):
    """Given layers, one after the other, and a linear head.

    The other models are recipes for layers of one family; this one takes whatever it is given, such
    as the layers of a published checkpoint (:mod:`robustcert.convert`).

    Args:
        input_shape: Shape of one input, without the batch dimension.
        num_classes: Number of logits.
        layers: From normalised inputs ``(N, *input_shape)`` to features ``(N, features)``.
        features: Number of features that the head reads.
        normalize_head: Whether the head's rows have unit norm.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> layers = [BjorckLinear(4, 6), GroupSort(6)]
        >>> model = Chain((4,), 3, layers=layers, features=6)
        >>> model(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        layers: Sequence[nn.Module],
        features: int,
        normalize_head: bool = True,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        if features < 1:
            raise ValueError(f"expected at least 1 feature, got {features}: set model.features")
        backbone = nn.Sequential(Normalize(mean, std, channels=input_shape[0]), *layers)
        super().__init__(backbone, Head(features, num_classes, normalize=normalize_head))
