"""Dense and convolutional layers whose weight is the image of a parametrization."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.product import linear
from robustcert.network.linear import Convolution, Dense
from robustcert.network.operation import constant
from robustcert.norms.convolution import Pair, pair

# Entries of the largest weight that is constrained once to see whether it keeps its shape.
MAX_CHECKED = 2**20


class ConstrainedLinear(nn.Module):
    """Dense layer ``x -> W x + b`` with ``W`` kept at norm 1 or below by a parametrization.

    The constraint holds up to rounding, which is good for an estimate; a certificate bounds the
    folded weight.

    Args:
        in_features: Size of the input, of shape ``(N, in_features)``.
        out_features: Size of the output.
        parametrization: Module that maps the free weight to the constrained one.
        free_shape: Shape of the free weight, if not that of the constrained one.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = ConstrainedLinear(4, 2, parametrization=CayleyOrthogonal())
        >>> W = layer.weight
        >>> torch.allclose(W @ W.T, torch.eye(2), atol=1e-5)
        True
        >>> layer.parametrizations.weight.original.shape  # what is trained
        torch.Size([2, 4])
    """

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        parametrization: nn.Module,
        free_shape: tuple[int, ...] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(free_shape or (out_features, in_features)))
        orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        unsafe = _needs_no_check(self.weight, free_shape)
        parametrize.register_parametrization(self, "weight", parametrization, unsafe=unsafe)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        return linear(x, self.weight, self.bias)

    def lipschitz_estimate(self) -> float:
        """1, the norm that the constraint aims at."""
        return 1.0

    def fold(self) -> Dense:
        """The layer with its weight as a constant."""
        return Dense(constant(self.weight), None if self.bias is None else constant(self.bias))

    def extra_repr(self) -> str:
        """Sizes, as torch.nn.Linear shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class ConstrainedConv2d(nn.Module):
    """Zero-padded convolution with its operator norm kept at 1 or below by a parametrization.

    Args:
        in_channels: Channels of the input, of shape ``(N, in_channels, H, W)``.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel, or its height and width.
        stride: Step between output positions, one number or two.
        padding: Zeros on each side of the input, one number or two.
        input_size: ``(H, W)`` of the input.
        parametrization: Module that maps the free kernel to the constrained one.
        free_shape: Shape of the free kernel, if not that of the constrained one.
        bias: Whether to add a learned bias.

    Example:
        >>> rule = AOLConvolution()
        >>> layer = ConstrainedConv2d(1, 2, 3, padding=1, input_size=(5, 5), parametrization=rule)
        >>> layer(torch.zeros(1, 1, 5, 5)).shape
        torch.Size([1, 2, 5, 5])
        >>> lipschitz_bound(layer, (1, 5, 5)) < 1.001
        True
    """

    weight: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        input_size: tuple[int, int],
        parametrization: nn.Module,
        free_shape: tuple[int, ...] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride = pair(stride)
        self.padding = pair(padding)
        self.input_size = input_size
        shape = free_shape or (out_channels, in_channels, *pair(kernel_size))
        self.weight = nn.Parameter(torch.empty(shape))
        orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        unsafe = _needs_no_check(self.weight, free_shape)
        parametrize.register_parametrization(self, "weight", parametrization, unsafe=unsafe)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def lipschitz_estimate(self) -> float:
        """1, the norm that the constraint stays under."""
        return 1.0

    def fold(self) -> Convolution:
        """The layer with its kernel as a constant."""
        return Convolution(
            constant(self.weight),
            None if self.bias is None else constant(self.bias),
            self.stride,
            self.padding,
        )


def _needs_no_check(weight: Tensor, free_shape: tuple[int, ...] | None) -> bool:
    """Whether torch is not to compare the shapes of the free weight and the constrained one.

    They differ, or the comparison, for which torch constrains the weight, would take long.
    """
    return free_shape is not None or weight.numel() > MAX_CHECKED
