"""Convex potential layers (Meunier et al., arXiv 2110.12690)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustcert.layers.residual import ResidualLayer, residual_kernel_shape, residual_shape
from robustcert.spectral import gram_iteration


class CPLLinear(ResidualLayer):
    r"""Dense :math:`x \mapsto x - \frac{2}{\lVert W \rVert^2} W^\top s(W x + b)`.

    A step of gradient descent on a convex potential, hence 1-Lipschitz. The norm is taken by Gram
    iteration, which errs on the large side.

    Reference: Meunier, Delattre, Araujo and Allauzen, `A dynamical system perspective for Lipschitz
    neural networks <https://arxiv.org/abs/2110.12690>`_, ICML 2022.

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
        shape = residual_shape(in_features, out_features, hidden, "a convex potential layer")
        super().__init__(shape, activation=activation, bias=bias)

    def scale(self) -> Tensor:
        """One over the norm for every row."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return inverse(gram_iteration(self.weight)).expand(len(self.weight))


class CPLConv2d(ResidualLayer):
    r"""Convolutional :math:`x \mapsto x - \frac{2}{\lVert W \rVert^2} W^\top s(W x + b)`.

    The norm of the zero-padded convolution is at most that of the circular one on a map enlarged by
    the padding; Gram iteration runs on its frequencies.

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
            in_channels, out_channels, kernel_size, stride, padding, hidden, "a CPL convolution"
        )
        super().__init__(shape, activation=activation, bias=bias)
        self.period = (
            max(input_size[0] + padding, kernel_size),
            max(input_size[1] + padding, kernel_size),
        )

    def scale(self) -> Tensor:
        """One over the norm for every row."""
        with torch.autocast(self.weight.device.type, enabled=False):
            blocks = torch.fft.rfft2(self.weight, s=self.period).flatten(2).permute(2, 0, 1)
            return inverse(complex_gram_iteration(blocks)).expand(len(self.weight))


def inverse(norm: Tensor) -> Tensor:
    """One over a norm; 1 for a zero weight, which any scale suits."""
    return 1 / torch.where(norm == 0, 1.0, norm)


def complex_gram_iteration(blocks: Tensor, iterations: int = 6) -> Tensor:
    """Largest norm of complex matrices ``(F, m, n)`` by Gram iteration, rounding apart from above.

    The scales are taken out before every product and held constant, as in
    :func:`robustcert.spectral.gram_iteration`.
    """
    matrix = blocks if blocks.shape[1] >= blocks.shape[2] else blocks.mH
    logarithm = torch.zeros(len(matrix), dtype=matrix.real.dtype, device=matrix.device)
    for step in range(iterations):
        size = matrix.detach().abs().amax((1, 2))
        size = torch.where(size == 0, 1.0, size)
        logarithm = logarithm + size.log() / 2**step
        matrix = matrix / size[:, None, None]
        matrix = matrix.mH @ matrix
    squares = (matrix.real.square() + matrix.imag.square()).sum((1, 2))
    zero = squares == 0
    root = torch.where(zero, 1.0, squares).log() / 2 ** (iterations + 1)
    return torch.where(zero, 0.0, (root + logarithm).exp()).amax()
