"""Orthogonal convolutions from 2x2 projector blocks (arXiv 1911.00937, arXiv 2501.07930)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.layers.cayley import CayleyOrthogonal
from robustcert.layers.constrained import ConstrainedConv2d
from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.norms.convolution import Pair, pair


class BCOP(nn.Module):
    r"""Compose an orthogonal kernel of 1x2 and 2x1 projector blocks and one strided matrix.

    With an orthogonal projector P, the two taps :math:`[P, I - P]` are an orthogonal convolution on
    an unbounded grid: :math:`P + (I - P) e^{i w}` is unitary. So are their compositions. The last
    factor reads every window of ``stride`` by ``stride`` once, by a matrix with orthonormal rows or
    columns. Zero padding on a finite map takes a part of the matrix, whose norm is at most 1.

    Reference: Li et al., `Preventing Gradient Attenuation in Lipschitz Constrained Convolutional
    Networks <https://arxiv.org/abs/1911.00937>`_, NeurIPS 2019 (BCOP); Boissin et al., `An Adaptive
    Orthogonal Convolution Scheme <https://arxiv.org/abs/2501.07930>`_, ICML 2025 (the last factor).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, at least the stride; or height and width.
        stride: Step between output positions, one number or two.

    Example:
        >>> kernel = BCOP(2, 2, 3, stride=1)(torch.randn(2, 2))
        >>> kernel.shape
        torch.Size([2, 2, 3, 3])
        >>> f"{kernel.square().sum():.4f}"  # an isometry of two channels
        '2.0000'
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Pair, *, stride: Pair
    ) -> None:
        super().__init__()
        excess = tuple(k - s for k, s in zip(pair(kernel_size), pair(stride), strict=True))
        if min(excess) < 0:
            raise ValueError(
                f"an orthogonal convolution reads every input: a kernel of side {kernel_size} is "
                f"too small for stride {stride}; use layer=aol"
            )
        self.in_channels = in_channels
        self.stride = pair(stride)
        self.residues = math.prod(self.stride)
        self.channels = max(in_channels, -(-out_channels // self.residues))
        self.excess = excess
        self.orthogonal = CayleyOrthogonal()
        frames = torch.empty(sum(excess), self.channels, self.channels // 2)
        for frame in frames:
            orthogonal_(frame)
        self.frames = nn.Parameter(frames)

    def forward(self, weight: Tensor) -> Tensor:
        """The kernel from the free matrix ``(out_channels, channels * residues)``."""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = self.orthogonal(weight)
            kernel = matrix.unflatten(1, (self.channels, *self.stride))
            identity = torch.eye(self.channels, dtype=weight.dtype, device=weight.device)
            for frame, (step, axis) in zip(self.frames, self._blocks(), strict=True):
                basis = self.orthogonal(frame)
                projector = basis @ basis.mT
                taps = [projector, identity - projector]
                # Turned every second time, so that a projector of rank 0 does not move the image.
                block = torch.stack(taps if step % 2 else taps[::-1], -1)
                block = block[..., None, :] if axis else block[..., None]
                kernel = compose(kernel, block)
            return kernel[:, : self.in_channels]

    def _blocks(self) -> list[tuple[int, int]]:
        """Number and axis of every block: of both axes in turn, as many as the kernel exceeds."""
        return sorted((k, axis) for axis in (0, 1) for k in range(self.excess[axis]))


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Kernel of the convolution by ``inner``, stride 1, and then by ``outer``, any stride."""
    padding = (inner.shape[2] - 1, inner.shape[3] - 1)
    return F.conv2d(outer, inner.transpose(0, 1).flip(2, 3), padding=padding)


class BCOPConv2d(ConstrainedConv2d):
    """Zero-padded convolution, orthogonal but for the border, by :class:`BCOP`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, even or odd, at least the stride; or height and width.
        stride: Step between output positions, one number or two.
        padding: Zeros on each side of the input, one number or two.
        input_size: ``(H, W)`` of the input.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = BCOPConv2d(4, 4, 3, padding=2, input_size=(6, 6), bias=False)
        >>> x = torch.randn(1, 4, 6, 6)
        >>> f"{layer(x).norm() / x.norm():.4f}"  # so much padding that nothing is cut off
        '1.0000'
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
        bias: bool = True,
    ) -> None:
        rule = BCOP(in_channels, out_channels, kernel_size, stride=stride)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            input_size=input_size,
            parametrization=rule,
            free_shape=(out_channels, rule.channels * rule.residues),
            bias=bias,
        )
