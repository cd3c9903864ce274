"""What convex potential and SDP-based Lipschitz layers share: x - 2 W' T s(W x + b)."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.lipschitz import fold
from robustcert.plain import Activation, ResidualBlock, constant


class ResidualLayer(nn.Module):
    """Layer ``x -> x - 2 W' (t * s(W x + b))``, 1-Lipschitz if ``T W W'`` has norm 1 at most.

    W' is the transpose of W; :class:`robustcert.plain.ResidualBlock` has the proof, and the bound
    for weights that keep the condition up to rounding only.

    Args:
        weight_shape: That of W: ``(hidden, features)``, or ``(hidden, channels, k, k)`` with k odd
            for a convolution that keeps the size of the map.
        activation: Called as ``activation(hidden)``; slopes in [0, 1], entry by entry.
        bias: Whether to add a learned bias inside.
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
        nn.init.orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(hidden)) if bias else None
        self.activation = activation(hidden)
        folded_activation(self.activation)

    @abstractmethod
    def scale(self) -> Tensor:
        """Square root of T's diagonal, shape ``(hidden,)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to the same shape."""
        scale = self.scale().view(-1, *(1,) * (self.weight.dim() - 2))
        if self.weight.dim() == 2:
            h = self.activation(F.linear(x, self.weight, self.bias)) * scale * scale
            return x - 2 * F.linear(h, self.weight.mT)
        h = F.conv2d(x, self.weight, self.bias, padding=self.padding)
        h = self.activation(h) * scale * scale
        return x - 2 * F.conv_transpose2d(h, self.weight, padding=self.padding)

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


def residual_shape(
    in_features: int, out_features: int, hidden: int | None, kind: str
) -> tuple[int, int]:
    """Shape of a dense W, or ``ValueError`` for sizes that no residual has."""
    if in_features != out_features:
        raise ValueError(
            f"{kind} adds to its input, so it cannot map {in_features} to {out_features} features: "
            "set model.layer.linear to a layer for such places"
        )
    if hidden is not None and hidden < 1:
        raise ValueError(f"hidden must be at least 1, got {hidden}: set model.layer.dense.hidden")
    return hidden or in_features, in_features


def residual_kernel_shape(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    padding: int,
    hidden: int | None,
    kind: str,
) -> tuple[int, int, int, int]:
    """Shape of a convolutional W, or ``ValueError`` for shapes that no residual has."""
    if in_channels != out_channels or stride != 1 or 2 * padding != kernel_size - 1:
        raise ValueError(
            f"{kind} adds to its input, so it cannot map {in_channels} to {out_channels} channels "
            f"with kernel_size={kernel_size}, stride={stride}, padding={padding}: set "
            "model.layer.linear to a layer for such places"
        )
    if hidden is not None and hidden < 1:
        raise ValueError(f"hidden must be at least 1, got {hidden}: set model.layer.conv.hidden")
    return hidden or in_channels, in_channels, kernel_size, kernel_size
