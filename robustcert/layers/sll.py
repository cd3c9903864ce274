"""SDP-based Lipschitz layers (Araujo et al., arXiv 2303.03169)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.layers.residual import ResidualLayer, residual_kernel_shape, residual_shape


def diagonal_scale(correlation: Tensor, log_q: Tensor) -> Tensor:
    r"""Square root of :math:`T_{ii} = 1 / \sum_j |C_{ij}| q_j / q_i`; 1 for a zero row.

    With Q the diagonal of q, :math:`Q (T^{-1} - C) Q^{-1}` is diagonally dominant for a symmetric
    C, hence :math:`C \preceq T^{-1}`.
    """
    sums = (correlation * (log_q[None] - log_q[:, None]).exp()).sum(1)
    return torch.where(sums == 0, 1.0, sums).rsqrt()


class SLLLinear(ResidualLayer):
    r"""Dense :math:`x \mapsto x - 2 W^\top T s(W x + b)` with T of :func:`diagonal_scale`.

    Reference: Araujo, Havens, Delattre, Allauzen and Hu, `A Unified Algebraic Perspective on
    Lipschitz Neural Networks <https://arxiv.org/abs/2303.03169>`_, ICLR 2023.

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
        shape = residual_shape(in_features, out_features, hidden, "an SLL layer")
        super().__init__(shape, activation=activation, bias=bias)
        self.log_q = nn.Parameter(torch.zeros(shape[0]))

    def scale(self) -> Tensor:
        """Square roots of T's diagonal."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return diagonal_scale((self.weight @ self.weight.mT).abs(), self.log_q)


class SLLConv2d(ResidualLayer):
    r"""Convolutional :math:`x \mapsto x - 2 W^\top T s(W x + b)`.

    :math:`C_{ij}` sums the magnitudes of the correlations of channels i and j over all shifts,
    which bounds every row of :math:`W W^\top` on an unbounded grid.

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
        shape = residual_kernel_shape(
            in_channels, out_channels, kernel_size, stride, padding, hidden, "an SLL convolution"
        )
        super().__init__(shape, activation=activation, bias=bias)
        self.log_q = nn.Parameter(torch.zeros(shape[0]))

    def scale(self) -> Tensor:
        """Square roots of T's diagonal."""
        with torch.autocast(self.weight.device.type, enabled=False):
            shifts = F.conv2d(self.weight, self.weight, padding=self.weight.shape[-1] - 1)
            return diagonal_scale(shifts.abs().sum((2, 3)), self.log_q)
