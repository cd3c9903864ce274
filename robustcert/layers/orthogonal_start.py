"""Random orthogonal matrices, from which constrained weights start."""

import torch
from torch import Tensor, nn

# Larger side of the matrices above which reflections are drawn instead of computed.
MAX_FACTORED = 1024


@torch.no_grad()
def orthogonal_(weight: Tensor) -> Tensor:
    r"""Fill a weight with a uniformly random matrix of orthonormal rows or columns.

    The uniform distribution is that of Q in the factorisation :math:`G = Q R` of a normal matrix,
    R's diagonal being positive. Q is a product of reflections, the k-th of which maps a normal
    vector of ``m - k`` entries to a multiple of the first unit vector, whatever the ones before it
    were. Large matrices are made of reflections drawn so, without factoring a matrix that would
    give them; others by `torch.nn.init.orthogonal_`.

    Reference: Stewart, `The efficient generation of random orthogonal matrices with an application
    to condition estimators <https://doi.org/10.1137/0717034>`_, SIAM J. Numer. Anal. 1980.

    Args:
        weight: Shape ``(rows, *)``; what follows the rows counts as columns.
    """
    rows, columns = len(weight), weight.numel() // max(1, len(weight))
    if max(rows, columns) <= MAX_FACTORED:
        return nn.init.orthogonal_(weight)
    large, small = max(rows, columns), min(rows, columns)
    vectors = weight.new_empty(small, large).normal_().triu_().mT
    first, norms = vectors.diagonal(), torch.linalg.vector_norm(vectors, dim=0)
    # The sign that does not cancel; the leading entry of a reflection's vector is 1, not stored.
    signs = torch.ones_like(first).copysign(first)
    scales = 1 + first.abs() / norms
    q = torch.linalg.householder_product(vectors / (signs * norms * scales), scales)
    q = q.mul_(-signs)
    return weight.copy_((q if rows == large else q.mT).reshape(weight.shape))
