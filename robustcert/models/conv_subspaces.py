"""Squared distances to affine subspaces of what convolutions see."""

from collections.abc import Callable, Sequence

from torch import nn

from robustcert.models.classifier import check_sizes
from robustcert.models.feature_subspaces import FeatureSubspaces
from robustcert.models.layer_family import LayerFamily
from robustcert.models.liresnet import convolve
from robustcert.models.stack import Stack


class ConvSubspaces(FeatureSubspaces):
    r"""Stem, ``depth`` 3x3 convolutions of ``width`` channels and neck of LiResNet, then subspaces.

    The subspaces stand in place of the dense layers and the linear head of
    :class:`robustcert.models.LiResNet`: curved pieces, whose distances in features are exact.

    Args:
        input_shape: ``(C, H, W)`` of one input.
        num_classes: Number of logits.
        width: Channels of stem and trunk.
        depth: Convolutions of the trunk; 0 for none.
        layer: The constraint's layers; convolutions are used.
        activation: Called as ``activation(num_features)``.
        per_class: Subspaces of each class.
        rank: Their dimension.
        stem_kernel: Side of the stem's kernel; with ``stem_stride`` the same, it cuts the image in
            patches.
        stem_stride: Its stride.
        neck_channels: Outputs of the neck's convolution, 4x4 with stride 4; twice ``width`` by
            default.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> family = LayerFamily(dense=CholeskyLinear, conv=LiResConv2d)
        >>> sizes = {"width": 4, "depth": 1, "per_class": 2, "rank": 1}
        >>> model = ConvSubspaces((1, 8, 8), 3, **sizes, layer=family, activation=GroupSort)
        >>> model(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 3])
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
        stem_kernel: int = 5,
        stem_stride: int = 2,
        neck_channels: int | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        check_sizes(width, depth, least_depth=0)
        stack = Stack(input_shape, activation, mean=mean, std=std, images="ConvSubspaces")
        convolve(
            stack,
            width,
            depth,
            layer.conv,
            stem=layer.conv,
            stem_kernel=stem_kernel,
            stem_stride=stem_stride,
            neck_channels=neck_channels or 2 * width,
        )
        backbone, features = stack.build(), stack.features
        super().__init__(backbone, features, num_classes, per_class=per_class, rank=rank)
