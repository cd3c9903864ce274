"""Random orthogonal matrices, from which constrained weights start."""

import torch
from torch import Tensor, nn

# Larger side of the matrices above which reflections are drawn instead of computed.
MAX_FACTORED = 1024
# Reflections that are applied at once, as two products.
PANEL = 128


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
        weight: Shape ``(rows, *)``, contiguous; what follows the rows counts as columns.
    """
    rows, columns = len(weight), weight.numel() // max(1, len(weight))
    if max(rows, columns) <= MAX_FACTORED:
        return nn.init.orthogonal_(weight)
    matrix = weight.view(rows, columns).zero_()
    q = matrix if rows >= columns else matrix.mT
    for start in reversed(range(0, q.shape[1], PANEL)):
        _reflect(q[start:, start:], min(PANEL, q.shape[1] - start))
    return weight


def _reflect(q: Tensor, count: int) -> None:
    r"""Put reflections before a matrix of zeros, but for what comes after them.

    Of reflections :math:`I - t_k v_k v_k^T`, with V of columns v, the product is
    :math:`I - V T V^T`, and the inverse of the triangular T has :math:`1 / t_k` on its diagonal and
    :math:`V^T V` above.

    Reference: Joffrain, Low, Quintana-Ortí, van de Geijn and Van Zee, `Accumulating Householder
    transformations, revisited <https://doi.org/10.1145/1141885.1141886>`_, ACM Trans. Math. Softw.
    2006.
    """
    v = q.new_empty(count, len(q)).normal_().triu_().mT
    first, norms = v.diagonal(), torch.linalg.vector_norm(v, dim=0)
    # The sign that does not cancel.
    signs = torch.ones_like(first).copysign(first)
    scales = 1 + first.abs() / norms
    v /= signs * norms * scales
    v.diagonal().fill_(1)
    inverse = (v.mT @ v).triu_(1)
    inverse.diagonal().copy_(1 / scales)
    # Signs make R's diagonal positive.
    q.diagonal()[:count].copy_(-signs)
    products = torch.cat([v[:count].mT * -signs, v[count:].mT @ q[count:, count:]], dim=1)
    q.addmm_(v, torch.linalg.solve_triangular(inverse, products, upper=True), alpha=-1)
