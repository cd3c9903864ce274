"""Block reflector orthogonal layers (Lai et al., arXiv 2505.15174)."""

import torch
from torch import Tensor, nn

from robustcert.layers.constrained import ConstrainedLinear
from robustcert.layers.fft import FrequencyConstraint, FrequencyConv2d


def block_reflector(v: Tensor) -> Tensor:
    r"""Reflect at the orthogonal complement of V's columns, :math:`I - 2 V (V^* V)^{-1} V^*`.

    With V = QR this is :math:`I - 2 Q Q^*`, unitary and Hermitian whatever V is; the factorisation
    does not square V's condition, as a solve with :math:`V^* V` would.

    Args:
        v: Shape ``(*, m, n)`` with n at most m, real or complex.
    """
    q = torch.linalg.qr(v).Q
    identity = torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)
    return identity - 2 * q @ q.mH


class BlockReflector(nn.Module):
    """Map V ``(m, n)`` to the upper left part of its reflection.

    Rows or columns of the larger square are kept, so they are orthonormal.

    Reference: Lai et al., `Enhancing Certified Robustness via Block Reflector Orthogonal Layers and
    Logit Annealing Loss <https://arxiv.org/abs/2505.15174>`_, ICML 2025.

    Args:
        in_features: Columns that are kept.
        out_features: Rows that are kept.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, weight: Tensor) -> Tensor:
        """The orthogonal ``(out_features, in_features)`` from V."""
        with torch.autocast(weight.device.type, enabled=False):
            return block_reflector(weight)[: self.out_features, : self.in_features]


def rank(size: int) -> int:
    """Half of the dimensions are reflected, at least one."""
    return max(1, size // 2)


class BROLinear(ConstrainedLinear):
    """Dense layer with orthonormal rows or columns by :class:`BlockReflector`.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Whether to add a learned bias.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        size = max(in_features, out_features)
        super().__init__(
            in_features,
            out_features,
            parametrization=BlockReflector(in_features, out_features),
            free_shape=(size, rank(size)),
            bias=bias,
        )


class ReflectorFrequencies(FrequencyConstraint):
    """A block reflector at every frequency; rows or columns of the larger square are kept."""

    def free_shape(self, kernel_size: int) -> tuple[int, ...]:
        """Half as many columns as rows, the larger number of channels."""
        size = max(self.out_channels, self.in_channels * self.stride**2)
        return size, rank(size), kernel_size, kernel_size

    def constrain(self, blocks: Tensor) -> Tensor:
        """Reflect complex blocks ``(F, m, n)``."""
        square = block_reflector(blocks)
        return square[:, : self.out_channels, : self.in_channels * self.stride**2]


class BROConv2d(FrequencyConv2d):
    """Convolution with orthonormal rows or columns on a torus by :class:`ReflectorFrequencies`.

    The map is extended by zeros and the output cropped, so that its opposite borders hardly meet.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the free kernel, in input positions.
        stride: Step between output positions.
        padding: That of the zero-padded convolution whose output size it has.
        input_size: ``(H, W)`` of the input.
        margin: Rows and columns of zeros.
        bias: Whether to add a learned bias.
    """

    constraint = ReflectorFrequencies

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        input_size: tuple[int, int],
        margin: int = 2,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            input_size=input_size,
            margin=margin,
            bias=bias,
        )
