r"""Norm bounds of matrices, and distances of their rows."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.norms.device import or_on_the_cpu
from robustcert.norms.proof import Scaled, energy_up, scaled, squared_norm_bound
from robustcert.norms.scalars import TINY, exact, gamma, root_up, round_up

Matrix = Tensor | NDArray[Any]


@or_on_the_cpu
def dense_norm_bound(weight: Matrix) -> float:
    r"""Bound the spectral norm of a matrix, rounding included.

    .. math:: \lVert W \rVert_2^2 \le t + \lVert t I - W^\top W - R^\top R \rVert_F

    for every ``t`` and ``R``. They come from a Lanczos estimate and a Cholesky factorisation, which
    need not be trusted; the residual is evaluated with its rounding errors bounded, see Note
    [residual] in ``norms/proof.py``. The excess over the true norm is about
    5e-10 up to 256 rows or columns and 5e-7 above, seldom more.

    Reference: Rump, `Verification of positive definiteness
    <https://doi.org/10.1007/s10543-006-0056-1>`_, BIT 2006 (the factorisation, a-priori bounded).

    Args:
        weight: Shape ``(m, n)``, floating point; float64 keeps every narrower dtype exactly.

    Raises:
        NormBoundError: if the weight is not finite or nothing can be proved.
        ValueError: if it is not a matrix with entries.
    """
    copy = tall(weight)
    if not copy.values.any():
        return copy.unscale(Fraction(0))
    return copy.unscale(exact(root_up(squared_norm_bound(copy.values[None]))))


def gram_bound(weight: Matrix, iterations: int = 10) -> float:
    r"""Bound the spectral norm of a matrix by Gram iteration, rounding included: a second opinion.

    .. math:: \lVert M_k \rVert^2 = \lVert M_k^\top M_k \rVert
        \le \lVert M_{k+1} \rVert + \gamma \lVert M_k \rVert_F^2, \qquad
        M_{k+1} = \mathrm{fl}(M_k^\top M_k),

    each rounded iterate being the exact start of the next step. Nothing is estimated, but a flat
    spectrum of size ``n`` costs a factor of ``n ** 2**-(iterations + 1)``.

    Reference: Delattre et al., `Efficient bound of Lipschitz constant for convolutional layers by
    Gram iteration <https://arxiv.org/abs/2305.16173>`_, ICML 2023 (in exact arithmetic).

    Args:
        weight: Shape ``(m, n)``, floating point.
        iterations: Number of products.

    Raises:
        NormBoundError: if the weight is not finite or leaves the range of float64.
        ValueError: if it is not a matrix with entries.
    """
    copy = tall(weight)
    matrix = copy.values
    if not matrix.any():
        return copy.unscale(Fraction(0))
    steps = []
    for _ in range(iterations):
        exponent = math.frexp(float(np.abs(matrix).max()))[1]
        matrix = matrix * 2.0**-exponent
        small = np.abs(matrix) < TINY
        matrix[small] = 0.0
        error = gamma(len(matrix)) * energy_up(matrix[None])
        steps.append((exponent, error, int(small.sum()) * Fraction(TINY)))
        matrix = matrix.T @ matrix
    norm = exact(root_up(energy_up(matrix[None])))
    for exponent, error, cut in reversed(steps):
        norm = (exact(root_up(norm + error)) + cut) * Fraction(2) ** exponent
    return copy.unscale(norm)


def row_distance_bounds(weight: Matrix) -> Tensor:
    r"""Bound the distances :math:`\lVert w_i - w_j \rVert_2` of the rows of a head from above.

    Args:
        weight: Shape ``(C, D)``, floating point.

    Returns:
        Shape ``(C, C)`` in float64, zero on the diagonal; never less than the exact distance.

    Raises:
        NormBoundError: if the weight is not finite or leaves the range of float64.
        ValueError: if it is not a matrix with entries.
    """
    copy = scaled(matrix_of(weight))
    rows = torch.from_numpy(copy.values)
    # One rounding per difference and square, D - 1 per sum, half of that after the root; eight
    # more units pay for the operations below.
    growth = round_up(1 / (1 - gamma(rows.shape[1] + 16)))
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") * growth
    distances = (distances + round_up(2 * copy.tail)) * 2.0**copy.exponent
    return distances.fill_diagonal_(0.0)


def matrix_of(weight: Matrix) -> Matrix:
    """``weight`` if it is a matrix, else an error."""
    if weight.ndim != 2:
        raise ValueError(f"Expected a weight of shape (m, n) but got {tuple(weight.shape)}")
    return weight


def tall(weight: Matrix) -> Scaled:
    """Scale a matrix, transposed where it has more columns than rows."""
    copy = scaled(matrix_of(weight))
    rows, columns = copy.values.shape
    if rows >= columns:
        return copy
    return Scaled(copy.values.T, copy.exponent, copy.tail)
