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
    """

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
    """

    constraint = SkewFrequencies
