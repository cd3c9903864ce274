"""The 1-Lipschitz convolutional network that layers are compared in."""

import math
from collections.abc import Callable, Sequence

from torch import nn

from robustcert.models.classifier import Classifier, check_sizes
from robustcert.models.fit_channels import FitChannels
from robustcert.models.head import Head
from robustcert.models.layer_family import LayerFamily
from robustcert.models.stack import Stack


class LipConvNet(Classifier):
    """Blocks of convolutions that keep the map's shape, each followed by a downsizing.

    The image is extended by channels of zeros to ``width`` and goes through a 1x1 convolution.
    Block k has ``depth`` 3x3 convolutions of ``2**k * width`` channels; the first half of its
    channels then moves every 2x2 window into channels, which doubles their number. There are as
    many blocks as height and width can both be halved, five at 32x32; below 4x4 the kernels are
    1x1. A dense layer and the head follow. ``depth`` is 5 and ``width`` 16, 32, 64 or 128 for XS,
    S, M and L.

    Reference: Prach, Brau, Buttazzo and Lampert, `1-Lipschitz Layers Compared
    <https://arxiv.org/abs/2311.16833>`_, CVPR 2024.

    Args:
        input_shape: ``(C, H, W)`` of one input.
        num_classes: Number of logits.
        width: Channels of the first block.
        depth: Convolutions of each block.
        layer: The constraint's layers.
        activation: Called as ``activation(num_features)``.
        downsample: Called as ``downsample(channels, 2)``: moves 2x2 windows into channels.
        normalize_head: Whether the head's rows have unit norm.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> family = LayerFamily(dense=AOLLinear, conv=AOLConv2d)
        >>> model = LipConvNet(
        ...     (1, 4, 4),
        ...     3,
        ...     width=4,
        ...     depth=2,
        ...     layer=family,
        ...     activation=GroupSort,
        ...     downsample=InvertibleDownsampling,
        ... )
        >>> model(torch.rand(5, 1, 4, 4)).shape
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
        downsample: Callable[[int, int], nn.Module],
        normalize_head: bool = True,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        check_sizes(width, depth)
        stack = Stack(input_shape, activation, mean=mean, std=std, images="LipConvNet")
        if width < stack.features:
            raise ValueError(
                f"expected a width of at least the image's {stack.features} channels, got {width}: "
                "set model.width"
            )
        stack.add(FitChannels(stack.features, width), width)
        stack.convolve(layer.conv, width, 1)
        stack.activate()
        channels = width
        while math.gcd(2, *stack.size) == 2:
            kernel = 3 if min(stack.size) > 3 else 1
            for _ in range(depth):
                stack.convolve(layer.conv, channels, kernel, padding=kernel // 2)
                stack.activate()
            kept = max(1, channels // 2)
            stack.add(FitChannels(stack.features, kept), kept)
            stack.add(downsample(kept, 2), 4 * kept)
            stack.size = tuple(side // 2 for side in stack.size)
            channels *= 2
        stack.flatten()
        stack.connect(layer.dense, channels)
        super().__init__(stack.build(), Head(stack.features, num_classes, normalize=normalize_head))
