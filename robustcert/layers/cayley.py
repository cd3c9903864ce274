"""Dense layer orthogonalised by the Cayley transform (Trockman and Kolter, arXiv 2104.07167)."""

import torch
from torch import Tensor, nn

from robustcert.layers.constrained import ConstrainedLinear


class CayleyOrthogonal(nn.Module):
    r"""Map a matrix to one with orthonormal rows or columns by the Cayley transform.

    For a tall matrix with blocks U (square) and V below it, and
    :math:`A = U - U^\top + V^\top V`:

    .. math:: W = \begin{pmatrix} (I - A)(I + A)^{-1} \\ -2 V (I + A)^{-1} \end{pmatrix},
        \qquad W^\top W = I

    because :math:`A + A^\top = 2 V^\top V` gives
    :math:`(I - A)^\top (I - A) + 4 V^\top V = (I + A)^\top (I + A)`; and I + A is invertible, since
    its symmetric part is at least I. A wide matrix is transposed first.

    Reference: Trockman and Kolter, `Orthogonalizing Convolutional Layers with the Cayley Transform
    <https://arxiv.org/abs/2104.07167>`_, ICLR 2021.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Orthogonalise ``weight`` of shape ``(out_features, in_features)``."""
        with torch.autocast(weight.device.type, enabled=False):
            if weight.shape[0] < weight.shape[1]:
                return self._tall(weight.mT).mT
            return self._tall(weight)

    @staticmethod
    def _tall(weight: Tensor) -> Tensor:
        columns = weight.shape[1]
        square, below = weight[:columns], weight[columns:]
        a = square - square.mT + below.mT @ below
        identity = torch.eye(columns, dtype=weight.dtype, device=weight.device)
        stacked = torch.cat([identity - a, -2 * below])
        return torch.linalg.solve(identity + a, stacked, left=False)


class CayleyLinear(ConstrainedLinear):
    """Dense layer with orthonormal rows or columns by :class:`CayleyOrthogonal`.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Whether to add a learned bias.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, parametrization=CayleyOrthogonal(), bias=bias)
