"""Convolutions that read every position once: a dense layer on patches."""

import math

from torch import Tensor, nn

from robustcert.layers.cholesky import CholeskyOrthogonal, times
from robustcert.layers.constrained import ConstrainedConv2d
from robustcert.network.linear import Convolution
from robustcert.norms.convolution import Pair, pair


class OnPatches(nn.Module):
    """Constrain the matrix ``(out_channels, in_channels * k * k)`` of a kernel, here of side k.

    Patches that do not overlap are different coordinates, so the convolution with stride k and no
    padding has the norm of this matrix.

    Args:
        rule: Maps the free weight to the matrix.
        in_channels: Channels of the input.
        kernel_size: Side of the patches, or height and width.

    Example:
        >>> rule = OnPatches(AOLDense(), in_channels=1, kernel_size=2)
        >>> rule(torch.ones(3, 4)).shape
        torch.Size([3, 1, 2, 2])
    """

    def __init__(self, rule: nn.Module, in_channels: int, kernel_size: Pair) -> None:
        super().__init__()
        self.rule = rule
        self.patch = (in_channels, *pair(kernel_size))

    def forward(self, weight: Tensor) -> Tensor:
        """The kernel ``(out_channels, in_channels, k, k)``."""
        return self.rule(weight).unflatten(1, self.patch)


class PatchConv2d(ConstrainedConv2d):
    """Convolution on disjoint patches, its matrix constrained by ``rule``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the patches; 1 for a projection of channels.
        stride: The same, which is what makes patches disjoint.
        padding: 0.
        input_size: ``(H, W)`` of the input.
        rule: Maps the free weight to a matrix ``(out_channels, in_channels * kernel_size**2)``.
        free_shape: Shape of the free weight.
        bias: Whether to add a learned bias.

    Example:
        >>> rule = CayleyOrthogonal()
        >>> options = {"stride": 2, "padding": 0, "input_size": (4, 4), "bias": False}
        >>> layer = PatchConv2d(1, 4, 2, rule=rule, free_shape=(4, 4), **options)
        >>> x = torch.randn(1, 1, 4, 4)
        >>> f"{layer(x).norm() / x.norm():.4f}"
        '1.0000'
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair,
        padding: Pair,
        input_size: tuple[int, int],
        rule: nn.Module,
        free_shape: tuple[int, int],
        bias: bool,
    ) -> None:
        if pair(stride) != pair(kernel_size) or any(pair(padding)):
            raise ValueError(
                "a convolution on patches needs stride = kernel_size and no padding, got "
                f"kernel_size={kernel_size}, stride={stride}, padding={padding}: use it as "
                "model.layer.patch, beside a model.layer.conv for all others"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            input_size=input_size,
            parametrization=OnPatches(rule, in_channels, kernel_size),
            free_shape=free_shape,
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``."""
        high, wide = self.stride
        if high == wide == 1:
            return super().forward(x)
        # A product of patches and the matrix, which is what it is: on a CPU in half the time of a
        # convolution with large strides, backward included.
        height, width = x.shape[2] // high, x.shape[3] // wide
        blocks = x[:, :, : height * high, : width * wide].unflatten(2, (height, high))
        patches = blocks.unflatten(4, (width, wide)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        y = times(self, patches.flatten(0, 2))
        return y.view(len(x), height, width, -1).permute(0, 3, 1, 2).contiguous()

    def lipschitz_estimate(self) -> float:
        """1, the norm of the matrix up to rounding."""
        return super().lipschitz_estimate()

    def fold(self) -> Convolution:
        """The layer with its kernel as a constant."""
        return super().fold()


class CholeskyPatchConv2d(PatchConv2d):
    """Convolution on disjoint patches, orthonormalised by a Cholesky factor.

    Reference: Hu, Leino, Wang and Fredrikson, `A Recipe for Improved Certifiable Robustness
    <https://arxiv.org/abs/2310.02513>`_, ICLR 2024 (the neck).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the patches, or height and width.
        stride: The same.
        padding: 0.
        input_size: ``(H, W)`` of the input.
        ridge: See :class:`robustcert.layers.CholeskyOrthogonal`.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = CholeskyPatchConv2d(2, 8, 2, stride=2, input_size=(4, 4))
        >>> layer(torch.zeros(1, 2, 4, 4)).shape
        torch.Size([1, 8, 2, 2])
        >>> lipschitz_bound(layer, (2, 4, 4)) < 1
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        input_size: tuple[int, int],
        ridge: float = 1e-3,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            input_size=input_size,
            rule=CholeskyOrthogonal(ridge),
            free_shape=(out_channels, in_channels * math.prod(pair(kernel_size))),
            bias=bias,
        )
