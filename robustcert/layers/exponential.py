"""Dense layer that is the exponential of a skew matrix (arXiv 1901.08428)."""

import torch
from torch import Tensor, nn

from robustcert.layers.constrained import ConstrainedLinear


class ExponentialOrthogonal(nn.Module):
    r"""Map a square matrix X to the upper left part of :math:`\exp(X - X^\top)`.

    The exponential of a skew-symmetric matrix is orthogonal; a block of all its rows or all its
    columns has orthonormal columns or rows.

    Reference: Lezcano-Casado and Martínez-Rubio, `Cheap orthogonal constraints in neural networks
    <https://arxiv.org/abs/1901.08428>`_, ICML 2019.

    Args:
        in_features: Columns that are kept.
        out_features: Rows that are kept.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, weight: Tensor) -> Tensor:
        """Orthogonalise ``weight``, square, of the larger of the two sizes."""
        with torch.autocast(weight.device.type, enabled=False):
            square = torch.linalg.matrix_exp(weight - weight.mT)
            return square[: self.out_features, : self.in_features]


class ExponentialLinear(ConstrainedLinear):
    """Dense layer with orthonormal rows or columns by :class:`ExponentialOrthogonal`.

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
            parametrization=ExponentialOrthogonal(in_features, out_features),
            free_shape=(size, size),
            bias=bias,
        )
