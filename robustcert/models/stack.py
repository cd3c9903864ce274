"""Layers put one after the other, with the shape of the map between them."""

from collections.abc import Callable, Sequence

from torch import nn

from robustcert.models.layer_family import Pair
from robustcert.models.mean_pool import MeanPool
from robustcert.models.normalize import Normalize


class Stack:
    """A backbone under construction: its modules so far, and the shape of what they give.

    Args:
        input_shape: ``(C, *)`` of one input.
        activation: Called as ``activation(num_features)`` after every layer.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.
        images: The model's name, if it takes images ``(C, H, W)`` only.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        activation: Callable[[int], nn.Module],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        images: str = "",
    ) -> None:
        if images and len(input_shape) != 3:
            raise ValueError(
                f"{images} takes images (C, H, W), got inputs of shape {tuple(input_shape)}: "
                "set model=mlp or another dataset"
            )
        self.activation = activation
        self.features = input_shape[0]
        self.size = tuple(input_shape[1:])
        self.modules: list[nn.Module] = [Normalize(mean, std, channels=input_shape[0])]

    def add(self, module: nn.Module, features: int | None = None) -> None:
        """Append a module; it keeps the number of features unless another is given."""
        self.modules.append(module)
        self.features = self.features if features is None else features

    def activate(self) -> None:
        """Append an activation."""
        nonlinearity = self.activation(self.features)
        self.add(nonlinearity, getattr(nonlinearity, "out_features", self.features))

    def convolve(
        self,
        conv: Callable[..., nn.Module],
        channels: int,
        kernel: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
    ) -> None:
        """Append a convolution, without an activation.

        Raises:
            ValueError: the kernel does not fit the map.
        """
        height, width = self.size
        size = tuple(
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(self.size, *map(_pair, (kernel, stride, padding)), strict=True)
        )
        if min(size) < 1:
            raise ValueError(
                f"a kernel of side {kernel} does not fit a map of {height}x{width}: use larger "
                "images, a smaller stride (model.stem_stride) or model=mlp"
            )
        self.add(
            conv(
                self.features,
                channels,
                kernel,
                stride=stride,
                padding=padding,
                input_size=(height, width),
            ),
            channels,
        )
        self.size = size

    def shrink(self, size: int) -> None:
        """Append the scaled means of windows of this side, unless it is 1.

        Raises:
            ValueError: the windows do not tile the map, or there is no map.
        """
        if size == 1:
            return
        if size < 1 or len(self.size) != 2 or any(n % size for n in self.size):
            raise ValueError(
                f"expected windows that tile images (C, H, W), got a side of {size} for inputs of "
                f"shape {(self.features, *self.size)}: set model.pool"
            )
        self.add(MeanPool(self.features, size))
        self.size = tuple(n // size for n in self.size)

    def flatten(self) -> None:
        """Append a flattening of the map."""
        entries = self.features
        for side in self.size:
            entries *= side
        self.add(nn.Flatten(), entries)
        self.size = ()

    def connect(self, dense: Callable[..., nn.Module], width: int) -> None:
        """Append a dense layer, without an activation."""
        self.add(dense(self.features, width), width)

    def build(self) -> nn.Sequential:
        """The backbone."""
        return nn.Sequential(*self.modules)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
