"""Convolutional networks for signals, such as time series."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustcert.models.classifier import Classifier, check_sizes
from robustcert.models.head import Head
from robustcert.models.layer_family import LayerFamily
from robustcert.models.stack import Stack
from robustcert.network.linear import Reshape


class AsMap(nn.Module):
    """A signal as a map of height 1, so that it goes through convolutions of maps.

    Args:
        channels: Channels of the signal.
        steps: Its length.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.shape = (channels, 1, steps)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, T)`` to ``(N, C, 1, T)``."""
        return torch.unsqueeze(x, 2)

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Reshape:
        """The same entries in another shape."""
        return Reshape(self.shape)


class ConvNet1d(Classifier):
    """Convolutions along time, then a dense layer and a linear head.

    A signal ``(C, T)`` is a map of height 1, and a convolution along time one with a kernel of
    height 1: layers, norms, checker and export are those of images. The first ``depth - 1``
    convolutions have 3 taps and the stride 1; the last has 4 taps and the stride 2. There are two
    such stages, the second with twice the channels of the first.

    Args:
        input_shape: ``(C, T)`` of one input.
        num_classes: Number of logits.
        width: Outputs of the dense layer.
        depth: Convolutions of each stage.
        layer: The constraint's layers.
        activation: Called as ``activation(num_features)``.
        channels: Channels of the first stage; by default a quarter of ``width``, in multiples of 4.
        normalize_head: Whether the head's rows have unit norm.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> family = LayerFamily(dense=AOLLinear, conv=AOLConv2d)
        >>> model = ConvNet1d((1, 16), 2, width=8, depth=1, layer=family, activation=GroupSort)
        >>> model(torch.zeros(5, 1, 16)).shape
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
        channels: int | None = None,
        normalize_head: bool = True,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        check_sizes(width, depth)
        if len(input_shape) != 2:
            raise ValueError(
                f"ConvNet1d takes signals (C, T), got inputs of shape {tuple(input_shape)}: set "
                "model=convnet for images, model=mlp for rows of a table"
            )
        if input_shape[1] < 4:
            raise ValueError(
                f"ConvNet1d halves a signal twice, got one of {input_shape[1]} steps: set model=mlp"
            )
        channels = 4 * max(1, width // 16) if channels is None else channels
        if channels < 1:
            raise ValueError(f"expected channels of at least 1, got {channels}: set model.channels")
        stack = Stack(input_shape, activation, mean=mean, std=std)
        stack.add(AsMap(*input_shape))
        stack.size = (1, input_shape[1])
        for stage in (1, 2):
            for position in range(depth):
                taps, stride = (4, 2) if position == depth - 1 else (3, 1)
                stack.convolve(
                    layer.conv, stage * channels, (1, taps), stride=(1, stride), padding=(0, 1)
                )
                stack.activate()
        stack.flatten()
        stack.connect(layer.dense, width)
        stack.activate()
        super().__init__(stack.build(), Head(stack.features, num_classes, normalize=normalize_head))
