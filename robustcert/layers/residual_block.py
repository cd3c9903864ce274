"""What convex potential and SDP-based Lipschitz layers share: x - 2 W' T s(W x + b)."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.product import linear
from robustcert.network.activation import Activation
from robustcert.network.blocks import ResidualBlock
from robustcert.network.fold import fold
from robustcert.network.operation import constant


class ResidualLayer(nn.Module):
    """Layer ``x -> x - 2 W' (t * s(W x + b))``, 1-Lipschitz if ``T W W'`` has norm 1 at most.

    W' is the transpose of W; :class:`robustcert.network.blocks.ResidualBlock` has the proof, and
    the bound for weights that keep the condition up to rounding only.

    Args:
        weight_shape: That of W: ``(hidden, features)``, or ``(hidden, channels, k, k)`` with k odd
            for a convolution that keeps the size of the map.
        activation: Called as ``activation(hidden)``; slopes in [0, 1], entry by entry.
        bias: Whether to add a learned bias inside.

    Example:
        >>> class Halved(ResidualLayer):
        ...     def scale(self):
        ...         return torch.full((len(self.weight),), 0.5)
        >>> layer = Halved((2, 2), activation=ReLU, bias=False)
        >>> _ = torch.nn.init.eye_(layer.weight)
        >>> layer(torch.tensor([[0.5, -1.5]])).detach()  # x - relu(x) / 2
        tensor([[ 0.2500, -1.5000]])
    """

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        *,
        activation: Callable[[int], nn.Module],
        bias: bool = True,
    ) -> None:
        super().__init__()
        hidden = weight_shape[0]
        self.padding = weight_shape[-1] // 2 if len(weight_shape) == 4 else 0
        self.weight = nn.Parameter(torch.empty(weight_shape))
        orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(hidden)) if bias else None
        self.activation = activation(hidden)
        folded_activation(self.activation)
        self.prepare()

    def prepare(self) -> None:
        """Make the parameters of the scale, if it has any, beside W."""

    @abstractmethod
    def scale(self) -> Tensor:
        """Square root of T's diagonal, shape ``(hidden,)``."""

    def training_scale(self) -> Tensor:
        """What stands for the scale in training; the same unless a subclass says otherwise."""
        return self.scale()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to the same shape."""
        # -2 T W' is scaled as a weight, which is smaller than the map.
        scale = self.training_scale() if self.training else self.scale()
        outer = (-2 * scale * scale).view(-1, *(1,) * (self.weight.dim() - 1)) * self.weight
        if self.weight.dim() == 2:
            return x + linear(self.activation(linear(x, self.weight, self.bias)), outer.mT)
        h = self.activation(F.conv2d(x, self.weight, self.bias, padding=self.padding))
        return x + F.conv_transpose2d(h, outer, padding=self.padding)

    def lipschitz_estimate(self) -> float:
        """1, the constant that the scale aims at."""
        return 1.0

    def fold(self) -> ResidualBlock:
        """The layer with its weight and scale as constants."""
        return ResidualBlock(
            constant(self.weight),
            constant(self.scale()),
            folded_activation(self.activation),
            None if self.bias is None else constant(self.bias),
            padding=self.padding,
        )


class ResidualLinear(ResidualLayer):
    """Dense :class:`ResidualLayer`; a subclass gives the scale.

    Args:
        in_features: Size of the input.
        out_features: Size of the output, the same.
        activation: s, called with the number of rows of W; slopes in [0, 1].
        hidden: Rows of W; as many as columns by default.
        bias: Whether to add a learned bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[int], nn.Module],
        hidden: int | None = None,
        bias: bool = True,
    ) -> None:
        if in_features != out_features:
            raise ValueError(
                f"{type(self).__name__} adds to its input, so it cannot map {in_features} to "
                f"{out_features} features: set model.layer.linear to a layer for such places"
            )
        rows = _rows(hidden, in_features, "dense")
        super().__init__((rows, in_features), activation=activation, bias=bias)


class ResidualConv2d(ResidualLayer):
    """Convolutional :class:`ResidualLayer`; a subclass gives the scale.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, as many.
        kernel_size: Side of the square kernel, odd.
        stride: 1.
        padding: Half the kernel, rounded down.
        input_size: ``(H, W)`` of the input.
        activation: s, called with the number of output channels of W; slopes in [0, 1].
        hidden: Output channels of W; as many as input channels by default.
        bias: Whether to add a learned bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        input_size: tuple[int, int],
        activation: Callable[[int], nn.Module],
        hidden: int | None = None,
        bias: bool = True,
    ) -> None:
        if in_channels != out_channels or stride != 1 or 2 * padding != kernel_size - 1:
            raise ValueError(
                f"{type(self).__name__} adds to its input, so it cannot map {in_channels} to "
                f"{out_channels} channels with kernel_size={kernel_size}, stride={stride}, "
                f"padding={padding}: set model.layer.linear to a layer for such places"
            )
        rows = _rows(hidden, in_channels, "conv")
        shape = (rows, in_channels, kernel_size, kernel_size)
        self.input_size = input_size
        super().__init__(shape, activation=activation, bias=bias)


class ScaledResidualConv2d(ResidualConv2d):
    """:class:`ResidualConv2d` with a free scale, for weights whose scale is known.

    Example:
        >>> layer = ScaledResidualConv2d(2, 2, 3, padding=1, activation=ReLU, input_size=(4, 4))
        >>> layer.scale().detach()  # one for each hidden channel
        tensor([1., 1.])
    """

    def prepare(self) -> None:
        """Make the scale."""
        self.root = nn.Parameter(self.weight.new_ones(len(self.weight)))

    def scale(self) -> Tensor:
        """The scale as it is given."""
        return self.root


def _rows(hidden: int | None, default: int, kind: str) -> int:
    if hidden is not None and hidden < 1:
        raise ValueError(f"hidden must be at least 1, got {hidden}: set model.layer.{kind}.hidden")
    return hidden or default


def folded_activation(activation: nn.Module) -> Activation:
    """The plain form of an activation inside a layer, or ``ValueError`` if it does not belong."""
    folded = fold(activation)
    slopes = getattr(folded[0], "slopes", None) if len(folded) == 1 else None
    if slopes is None or slopes.pairs or slopes.low < 0 or slopes.high > 1:
        known = "unknown slopes" if slopes is None else f"slopes {slopes.low} to {slopes.high}"
        if slopes is not None and slopes.pairs:
            known += " on pairs of features"
        raise ValueError(
            "the activation inside this layer must have slopes in [0, 1], feature by feature, but "
            f"{type(activation).__name__} has {known}: set model.layer.dense.activation and "
            "model.layer.conv.activation to ReLU or Softplus"
        )
    assert isinstance(folded[0], Activation)
    return folded[0]
