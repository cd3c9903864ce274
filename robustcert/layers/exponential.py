"""Dense layer that is the exponential of a skew matrix (arXiv 1901.08428)."""

import math

import torch
from torch import Tensor, nn

from robustcert.layers.constrained import ConstrainedLinear

# Largest norm for which the series may end with its eleventh power: what it leaves out is below
# half a unit in the last place.
_REACH = {torch.float32: 1.3, torch.float64: 0.24}


def skew_exponential(a: Tensor) -> Tensor:
    r"""The exponential of skew-Hermitian matrices, in products alone.

    .. math:: \exp(A) = \Big(\sum_{k \le 11} \frac{(2^{-s} A)^k}{k!}\Big)^{2^s}

    with s so large that the powers left out vanish in rounding. The sum takes five products, and
    :math:`\lVert A \rVert \le \lVert A^4 \rVert_F^{1/4}`, which gives s, costs none.

    Args:
        a: Shape ``(*, n, n)``, real or complex; unitary for skew-Hermitian matrices.
    """
    square = a @ a
    fourth, cube = square @ square, square @ a
    entries = fourth.detach()
    entries = torch.view_as_real(entries) if a.is_complex() else entries
    size = float(torch.linalg.vector_norm(entries.flatten(a.dim() - 2), dim=-1).max()) ** 0.25
    # A norm that is not finite is for the caller to find in the result.
    finite = 0 < size < math.inf
    steps = max(0, math.ceil(math.log2(size / _REACH[a.dtype.to_real()]))) if finite else 0
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)

    def part(first: int) -> Tensor:
        """Four terms of the series, divided by the scaled power that they have in common."""
        weights = [2.0 ** -(steps * k) / math.factorial(first + k) for k in range(4)]
        terms = weights[1] * a
        for weight, power in zip(weights[:1] + weights[2:], (identity, square, cube), strict=True):
            terms = terms.add_(power, alpha=weight)
        return terms

    fourth = fourth * 2.0 ** (-4 * steps)
    total = part(4) + part(8) @ fourth
    total = part(0) + total @ fourth
    for _ in range(steps):
        total = total @ total
    return total


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
            square = skew_exponential(weight - weight.mT)
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
