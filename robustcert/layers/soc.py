"""Skew orthogonal convolution (Singla and Feizi, arXiv 2105.11417)."""

from torch import Tensor

from robustcert.layers.exponential import skew_exponential
from robustcert.layers.fft import FrequencyConstraint, FrequencyConv2d


class SkewFrequencies(FrequencyConstraint):
    r"""The exponential of a skew convolution, frequency by frequency.

    A kernel minus its transpose (channels exchanged, taps reflected) has skew-Hermitian blocks
    :math:`K - K^*`, whose exponential is unitary. It is evaluated on the blocks rather than as a
    truncated series of convolutions, so no norm above 1 is left by the truncation. Where the
    channels differ, rows or columns of the larger square are kept.

    Reference: Singla and Feizi, `Skew Orthogonal Convolutions
    <https://arxiv.org/abs/2105.11417>`_, ICML 2021.

    Example:
        >>> rule = SkewFrequencies(2, 2, stride=(1, 1), padding=(0, 0), period=(4, 4))
        >>> K = rule(torch.tensor([[0.0, torch.pi / 6], [0.0, 0.0]])[:, :, None, None])
        >>> K[:, :, 0, 0].diagonal()  # a turn by 30 degrees
        tensor([0.8660, 0.8660])
    """

    rule = "exponential"

    def free_shape(self, kernel_size: tuple[int, int]) -> tuple[int, ...]:
        """A square one, of the larger number of channels."""
        size = max(self.out_channels, self.in_channels * self.residues)
        return size, size, *kernel_size

    def constrain(self, blocks: Tensor) -> Tensor:
        """Orthogonalise complex blocks ``(F, n, n)``."""
        orthogonal = skew_exponential(blocks - blocks.mH)
        return orthogonal[:, : self.out_channels, : self.in_channels * self.residues]


class SOCConv2d(FrequencyConv2d):
    """Circular convolution with orthonormal rows or columns by :class:`SkewFrequencies`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the free kernel, in input positions, or its height and width.
        stride: Step between output positions, one number or two.
        padding: That of the zero-padded convolution whose output size it has.
        input_size: ``(H, W)`` of the input.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = SOCConv2d(2, 2, 3, padding=1, input_size=(8, 8), bias=False)
        >>> x = torch.randn(1, 2, 8, 8)
        >>> f"{layer(x).norm() / x.norm():.4f}"
        '1.0000'
    """

    constraint = SkewFrequencies
