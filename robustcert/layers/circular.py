"""Circular convolution with a free kernel: the map's opposite borders meet."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.network.linear import CircularConvolution
from robustcert.network.operation import constant


class UnconstrainedCircularConv2d(nn.Module):
    """Convolution on a torus that holds the map and ``margin`` rows and columns of zeros.

    Output position p reads the kernel's first tap at p - ``padding``; the output has the size of
    the map. Its norm is that of the Fourier transform's largest block.

    Args:
        in_channels: Channels of the input, of shape ``(N, in_channels, *input_size)``.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel, at most those of the torus.
        padding: How far the first tap is before the output position.
        input_size: ``(H, W)`` of the input; another size is refused.
        margin: Zeros that keep one border of the map from the other.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = UnconstrainedCircularConv2d(2, 3, (3, 3), padding=1, input_size=(4, 4))
        >>> layer(torch.zeros(1, 2, 4, 4)).shape
        torch.Size([1, 3, 4, 4])
        >>> lipschitz_bound(layer, (2, 4, 4)) >= layer.lipschitz_estimate().item()
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *,
        padding: int = 0,
        input_size: tuple[int, int],
        margin: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.input_size = (input_size[0], input_size[1])
        self.period = (input_size[0] + margin, input_size[1] + margin)
        if margin < 0 or any(k > n for k, n in zip(kernel_size, self.period, strict=True)):
            raise ValueError(
                f"a kernel of {tuple(kernel_size)} does not fit a torus of {self.period}: set "
                "kernel_size"
            )
        self.padding = padding
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel_size))
        orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, *input_size)`` to ``(N, out_channels, *input_size)``."""
        return self._operation(self.weight, self.bias)(x)

    def lipschitz_estimate(self) -> Tensor:
        """The norm, differentiable in the kernel."""
        blocks = torch.fft.rfft2(self.weight, s=self.period).flatten(2).permute(2, 0, 1)
        return torch.linalg.matrix_norm(blocks, 2).max()

    def _operation(self, weight: Tensor, bias: Tensor | None) -> CircularConvolution:
        height, width = (n - k for n, k in zip(self.period, weight.shape[2:], strict=True))
        return CircularConvolution(
            F.pad(weight, (0, width, 0, height)),
            bias,
            input_size=self.input_size,
            output_size=self.input_size,
            padding=(self.padding, self.padding),
        )

    def fold(self) -> CircularConvolution:
        """The layer with its kernel, as large as the torus, as a constant."""
        bias = None if self.bias is None else constant(self.bias)
        return self._operation(constant(self.weight), bias)
