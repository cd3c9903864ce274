"""Linear residual layers, I + gamma W (Hu et al., arXiv 2301.12549)."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from robustcert.layers.centering import Centering
from robustcert.layers.cholesky import CholeskyOrthogonal, OrthogonalisedLinear
from robustcert.layers.unconstrained import UnconstrainedConv2d, UnconstrainedLinear
from robustcert.network.linear import Convolution
from robustcert.network.operation import constant
from robustcert.norms.convolution import Pair, pair


class LinearResidual(nn.Module):
    r"""Add the identity, :math:`I + \gamma W`, to a dense weight or to a kernel's middle tap.

    Reference: Hu, Zou, Wang, Leino and Fredrikson, `Unlocking Deterministic Robustness
    Certification on ImageNet <https://arxiv.org/abs/2301.12549>`_, NeurIPS 2023.

    Args:
        gamma: Size of the residual at the start of training.

    Example:
        >>> LinearResidual(gamma=0.5)(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        tensor([[1.0000, 0.5000],
                [0.0000, 1.0000]])
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        if not gamma > 0:
            raise ValueError(
                f"gamma must be above 0, got {gamma}: set model.layer.dense.gamma and "
                "model.layer.conv.gamma"
            )
        self.gamma = gamma

    def forward(self, weight: Tensor) -> Tensor:
        """Add the identity to ``weight`` of shape ``(n, n)`` or ``(n, n, k, l)``, both odd."""
        residual = self.gamma * weight
        tap = residual
        if weight.dim() == 4:
            down, right = (side // 2 for side in weight.shape[2:])
            tap = residual[..., down, right]
        # A constant has no gradient, and in place it takes no second matrix.
        with torch.no_grad():
            tap.diagonal().add_(1.0)
        return residual


class LiResLinear(UnconstrainedLinear):
    r"""Dense layer :math:`x \mapsto x + \gamma W x + b`, its norm estimated as a whole.

    Where input and output differ in size there is no identity, and the weight is free.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        gamma: Size of the residual.
        iterations: Power iterations per training step.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = LiResLinear(2, 2, gamma=0.5)
        >>> _ = torch.nn.init.eye_(layer.parametrizations.weight.original)
        >>> f"{lipschitz_bound(layer, (2,)):.4f}"  # the norm of I + I / 2
        '1.5000'
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        gamma: float = 0.3,
        iterations: int = 2,
        bias: bool = True,
    ) -> None:
        super().__init__(in_features, out_features, iterations=iterations, bias=bias)
        residual = LinearResidual(gamma)
        if in_features == out_features:
            parametrize.register_parametrization(self, "weight", residual)


class LiResConv2d(UnconstrainedConv2d):
    r"""Convolution :math:`x \mapsto x + \gamma\, W * x + b`, its norm estimated as a whole.

    Where input and output differ in shape there is no identity, and the kernel is free.

    With centering the mean of the branch :math:`\gamma\, W * x` (of the whole output where there is
    no identity) is subtracted; in evaluation it is a constant and belongs to the bias.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel, or its height and width.
        stride: Step between output positions, one number or two.
        padding: Zeros on each side of the input, one number or two.
        input_size: ``(H, W)`` of the input.
        gamma: Size of the residual.
        iterations: Power iterations per training step.
        centering: Whether to subtract the branch's mean, see :class:`robustcert.layers.Centering`.
        bias: Whether to add a learned bias.

    Example:
        >>> LiResConv2d(2, 2, 3, padding=1, input_size=(4, 4)).residual
        True
        >>> LiResConv2d(2, 2, 3, padding=1, stride=2, input_size=(4, 4)).residual  # another size
        False
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
        gamma: float = 0.3,
        iterations: int = 2,
        centering: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            input_size=input_size,
            iterations=iterations,
            bias=bias,
        )
        residual = LinearResidual(gamma)
        kept = tuple(2 * p + 1 for p in self.padding)
        self.residual = (
            in_channels == out_channels and self.stride == (1, 1) and pair(kernel_size) == kept
        )
        if self.residual:
            parametrize.register_parametrization(self, "weight", residual)
        self.centering = Centering(out_channels) if centering else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``."""
        if self.centering is None:
            return super().forward(x)
        weight = self.weight
        shift = -self.centering.offset(lambda: self._branch_mean(x, weight))
        shift = shift if self.bias is None else shift + self.bias
        return F.conv2d(x, weight, shift, self.stride, self.padding)

    def _branch_mean(self, x: Tensor, weight: Tensor) -> Tensor:
        """Mean of the branch, ``(out_channels,)``: it is linear, so one image, the mean, has it."""
        with torch.autocast(x.device.type, enabled=False):
            image = x.mean(0, keepdim=True, dtype=weight.dtype)
            y = F.conv2d(image, weight, None, self.stride, self.padding)
            return (y - image if self.residual else y).mean((0, 2, 3))

    def lipschitz_estimate(self) -> Tensor:
        """The norm from below, differentiable in the kernel; centering does not change it."""
        return super().lipschitz_estimate()

    def fold(self) -> Convolution:
        """The layer with its kernel as a constant, and the running mean in its bias."""
        operation = super().fold()
        if self.centering is None:
            return operation
        mean = self.centering.mean
        return replace(operation, bias=constant(-mean if self.bias is None else self.bias - mean))


class CholeskyResidualLinear(OrthogonalisedLinear):
    r"""Dense layer with the rows of :math:`I + \gamma W` orthonormalised by a Cholesky factor.

    Where input and output differ in size there is no identity.

    Reference: Hu, Leino, Wang and Fredrikson, `A Recipe for Improved Certifiable Robustness
    <https://arxiv.org/abs/2310.02513>`_, ICLR 2024.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        gamma: Size of the residual.
        ridge: See :class:`robustcert.layers.CholeskyOrthogonal`.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = CholeskyResidualLinear(4, 4, gamma=0.01)
        >>> f"{torch.dist(layer.weight, torch.eye(4)):.2f}"  # I, but for gamma
        '0.01'
        >>> lipschitz_bound(layer, (4,)) < 1
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        gamma: float = 0.3,
        ridge: float = 1e-3,
        bias: bool = True,
    ) -> None:
        rules: list[nn.Module] = [LinearResidual(gamma), CholeskyOrthogonal(ridge)]
        if in_features != out_features:
            del rules[0]
        super().__init__(
            in_features, out_features, parametrization=nn.Sequential(*rules), bias=bias
        )
