"""Free layers whose norm is estimated and regularised by the objective (GloRo, 2102.08452)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert import norms
from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.product import linear
from robustcert.network.linear import Convolution, Dense
from robustcert.network.operation import constant
from robustcert.norms.convolution import Pair, pair


class UnconstrainedLinear(nn.Module):
    r"""Dense layer with a free weight; its norm is estimated by warm-started power iteration.

    Training reads :math:`\lVert W v \rVert / \lVert v \rVert` with v held constant, so that the
    objective pays for the norm through its gradient. Every estimate in training mode moves v
    further; in evaluation mode v stays.

    Reference: Leino, Wang and Fredrikson, `Globally-Robust Neural Networks
    <https://arxiv.org/abs/2102.08452>`_, ICML 2021.

    Args:
        in_features: Size of the input, of shape ``(N, in_features)``.
        out_features: Size of the output.
        iterations: Power iterations per training step.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = UnconstrainedLinear(2, 2)
        >>> layer.weight.data = torch.diag(torch.tensor([3.0, 1.0]))
        >>> f"{lipschitz_bound(layer, (2,)):.4f}"
        '3.0000'
        >>> bool(lipschitz_estimate(layer) <= 3)  # by power iteration, from below
        True
    """

    vector: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, iterations: int = 2, bias: bool = True
    ) -> None:
        super().__init__()
        _check_iterations(iterations)
        self.iterations = iterations
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.register_buffer("vector", torch.randn(in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        return linear(x, self.weight, self.bias)

    def lipschitz_estimate(self) -> Tensor:
        """The norm from below, differentiable in the weight."""
        iterations = self.iterations if self.training else 0
        norm, vector = norms.power_iteration(self.weight, self.vector, iterations)
        if self.training:
            self.vector.copy_(vector)
        return norm

    def fold(self) -> Dense:
        """The layer with its weight as a constant."""
        return Dense(constant(self.weight), None if self.bias is None else constant(self.bias))


class UnconstrainedConv2d(nn.Module):
    """Zero-padded convolution with a free kernel; the norm of the operator is estimated.

    The power iteration runs on the convolution itself, at its input size, stride and padding, not
    on the reshaped kernel, whose norm may be off by the kernel's side.

    Args:
        in_channels: Channels of the input, of shape ``(N, in_channels, H, W)``.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel, or its height and width.
        stride: Step between output positions, one number or two.
        padding: Zeros on each side of the input, one number or two.
        input_size: ``(H, W)`` of the input.
        iterations: Power iterations per training step.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = UnconstrainedConv2d(1, 1, 3, padding=1, input_size=(8, 8))
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> f"{torch.linalg.matrix_norm(layer.weight[0, 0]):.4f}"  # of the reshaped kernel
        '3.0000'
        >>> f"{lipschitz_bound(layer, (1, 8, 8)):.4f}"  # of the convolution
        '8.2909'
    """

    vector: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        input_size: tuple[int, int],
        iterations: int = 2,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check_iterations(iterations)
        self.stride = pair(stride)
        self.padding = pair(padding)
        self.iterations = iterations
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *pair(kernel_size)))
        orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("vector", torch.randn(1, in_channels, *input_size))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def lipschitz_estimate(self) -> Tensor:
        """The norm from below, differentiable in the kernel."""
        iterations = self.iterations if self.training else 0
        norm, vector = norms.conv_power_iteration(
            self.weight, self.vector, iterations, stride=self.stride, padding=self.padding
        )
        if self.training:
            self.vector.copy_(vector)
        return norm

    def fold(self) -> Convolution:
        """The layer with its kernel as a constant."""
        return Convolution(
            constant(self.weight),
            None if self.bias is None else constant(self.bias),
            self.stride,
            self.padding,
        )


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(
            f"iterations must be at least 1, got {iterations}: set model.layer.dense.iterations "
            "and model.layer.conv.iterations"
        )
