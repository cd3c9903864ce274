"""Random orthogonal matrices, from which constrained weights start."""

import torch
from torch import Tensor, nn

from robustcert.layers.product import product

# Larger side of the matrices above which reflections are drawn instead of computed.
MAX_FACTORED = 1024
# Reflections that are applied at once, as products.
PANEL = 256


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
    count, length = sorted((rows, columns))
    q = weight.new_empty(0, length - count)
    for start in reversed(range(0, count, PANEL)):
        q = _reflected(q, min(PANEL, count - start))
    weight.view(rows, columns).copy_(q if rows <= columns else q.mT)
    return weight


def _reflected(q: Tensor, count: int) -> Tensor:
    r"""A matrix with orthonormal rows, (n, m), with ``count`` more reflections after it.

    They act on ``count`` more entries as well: with E of the first rows of I and signs S, the
    result is

    .. math:: \begin{pmatrix} S E \\ 0 \quad Q \end{pmatrix} (I - V^T T^T V).

    Of reflections :math:`I - t_k v_k v_k^T`, with rows v of V, the product in turn is
    :math:`I - V^T T V`, and the inverse of the triangular T has :math:`1 / t_k` on its diagonal and
    :math:`V V^T` above.

    Reference: Joffrain, Low, Quintana-Ortí, van de Geijn and Van Zee, `Accumulating Householder
    transformations, revisited <https://doi.org/10.1145/1141885.1141886>`_, ACM Trans. Math. Softw.
    2006.

    Returns:
        Shape (count + n, count + m).
    """
    v = q.new_empty(count, count + q.shape[1]).normal_().triu_()
    first, norms = v.diagonal(), torch.linalg.vector_norm(v, dim=1)
    # The sign that does not cancel.
    signs = torch.ones_like(first).copysign(first)
    scales = 1 + first.abs() / norms
    v /= (signs * norms * scales)[:, None]
    v.diagonal().fill_(1)
    inverse = product(v, v.mT).triu_(1)
    inverse.diagonal().copy_(1 / scales)
    t = torch.linalg.solve_triangular(
        inverse, torch.eye(count, dtype=v.dtype, device=v.device), upper=True
    )
    # Signs make R's diagonal positive.
    products = torch.cat([(v[:, :count] * -signs).mT, product(q, v[:, count:].mT)])
    whole = product(product(products, t.mT).neg_(), v)
    whole[count:, count:] += q
    whole.diagonal()[:count] -= signs
    return whole
