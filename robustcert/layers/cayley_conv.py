"""Convolution orthogonalised by the Cayley transform (Trockman and Kolter, arXiv 2104.07167)."""

from torch import Tensor

from robustcert.layers.cayley import cayley
from robustcert.layers.fft import FrequencyConstraint, FrequencyConv2d


class CayleyFrequencies(FrequencyConstraint):
    r"""The Cayley transform of every frequency's block.

    For a tall block with the square part U on top of V and :math:`A = U - U^* + V^* V`, the columns
    of :math:`\begin{pmatrix} (I - A)(I + A)^{-1} \\ -2 V (I + A)^{-1} \end{pmatrix}` are
    orthonormal, see :class:`robustcert.layers.CayleyOrthogonal`.

    Reference: Trockman and Kolter, `Orthogonalizing Convolutional Layers with the Cayley Transform
    <https://arxiv.org/abs/2104.07167>`_, ICLR 2021.

    Example:
        >>> rule = CayleyFrequencies(2, 2, stride=(1, 1), padding=(0, 0), period=(4, 4))
        >>> kernel = rule(torch.randn(rule.free_shape((1, 1))))
        >>> f"{kernel.square().sum():.4f}"  # an isometry of two channels
        '2.0000'
    """

    rule = "cayley"

    def constrain(self, blocks: Tensor) -> Tensor:
        """Orthogonalise complex blocks ``(F, m, n)``."""
        return cayley(blocks)


class CayleyConv2d(FrequencyConv2d):
    """Circular convolution with orthonormal rows or columns by :class:`CayleyFrequencies`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the free kernel, in input positions, or its height and width.
        stride: Step between output positions, one number or two.
        padding: That of the zero-padded convolution whose output size it has.
        input_size: ``(H, W)`` of the input.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = CayleyConv2d(2, 2, 3, padding=1, input_size=(8, 8), bias=False)
        >>> x = torch.randn(1, 2, 8, 8)
        >>> f"{layer(x).norm() / x.norm():.4f}"
        '1.0000'
    """

    constraint = CayleyFrequencies
