"""The convolutional networks of GloRo (2C2F, 4C3F, 6C2F) and of any other size."""

import math
from collections.abc import Callable, Sequence

from torch import nn

from robustcert.models.classifier import Classifier, check_sizes
from robustcert.models.head import Head
from robustcert.models.layer_family import LayerFamily
from robustcert.models.normalize import Normalize


class ConvNet(Classifier):
    """Two stages of convolutions, then dense layers and a linear head.

    The second stage has twice the channels of the first. The last convolution of each stage is 4x4
    with stride 2 and halves the map; the others are 3x3. ``2C2F`` is depth 2 with one hidden dense
    layer, ``4C3F`` depth 4 with two, ``6C2F`` depth 6 with one.

    Reference: Leino, Wang and Fredrikson, `Globally-Robust Neural Networks
    <https://arxiv.org/abs/2102.08452>`_, ICML 2021.

    Args:
        input_shape: ``(C, H, W)`` of one input.
        num_classes: Number of logits.
        width: Outputs of each hidden dense layer.
        depth: Number of convolutions, split evenly over the stages (the first takes an odd one).
        layer: The constraint's layers.
        activation: Called as ``activation(num_features)``.
        channels: Channels of the first stage; by default a sixteenth of ``width``, in multiples of
            4.
        dense_depth: Number of hidden dense layers.
        normalize_head: Whether the head's rows have unit norm.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> family = LayerFamily(dense=AOLLinear, conv=AOLConv2d)
        >>> sizes = {"width": 8, "depth": 2, "channels": 2}
        >>> model = ConvNet((1, 8, 8), 3, layer=family, activation=GroupSort, **sizes)
        >>> [tuple(p.weight.shape) for p in model.backbone if hasattr(p, "weight")]
        [(2, 1, 4, 4), (4, 2, 4, 4), (8, 16)]
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
        channels: int | None = None,
        dense_depth: int = 1,
        normalize_head: bool = True,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        check_sizes(width, depth, least_depth=2)
        if len(input_shape) != 3:
            raise ValueError(
                f"ConvNet takes images (C, H, W), got inputs of shape {tuple(input_shape)}: "
                "set model=mlp or another dataset"
            )
        channels = 4 * max(1, width // 64) if channels is None else channels
        if channels < 1 or dense_depth < 0:
            raise ValueError(
                f"expected channels of at least 1 and a dense_depth of at least 0, got {channels} "
                f"and {dense_depth}: set model.channels and model.dense_depth"
            )
        normalization = Normalize(mean, std, channels=input_shape[0])
        convolutions, features, size = _convolutions(
            input_shape, depth, channels, layer, activation
        )
        hidden: list[nn.Module] = []
        inputs = features * math.prod(size)
        for _ in range(dense_depth):
            nonlinearity = activation(width)
            hidden += [layer.dense(inputs, width), nonlinearity]
            inputs = getattr(nonlinearity, "out_features", width)
        super().__init__(
            nn.Sequential(normalization, *convolutions, nn.Flatten(), *hidden),
            Head(inputs, num_classes, normalize=normalize_head),
        )


def _convolutions(
    input_shape: Sequence[int],
    depth: int,
    channels: int,
    layer: LayerFamily,
    activation: Callable[[int], nn.Module],
) -> tuple[list[nn.Module], int, tuple[int, int]]:
    """The two stages, with the channels and the map's size after them."""
    in_features, height, width = input_shape
    modules: list[nn.Module] = []
    for stage, convolutions in enumerate((math.ceil(depth / 2), depth // 2)):
        out_channels = channels * 2**stage
        for position in range(convolutions):
            if min(height, width) < 2:
                raise ValueError(
                    f"a map of {height}x{width} cannot be halved: ConvNet needs images of at "
                    "least 4x4; set model=mlp"
                )
            try:
                nonlinearity = activation(out_channels)
            except ValueError as error:
                raise ValueError(
                    f"{error} (the convolutions have {out_channels} features: model.channels)"
                ) from error
            strided = position == convolutions - 1
            kernel, stride = (4, 2) if strided else (3, 1)
            size = (height, width)
            modules += [
                layer.conv(
                    in_features, out_channels, kernel, stride=stride, padding=1, input_size=size
                ),
                nonlinearity,
            ]
            in_features = getattr(nonlinearity, "out_features", out_channels)
            if strided:
                height, width = height // 2, width // 2
    return modules, in_features, (height, width)
