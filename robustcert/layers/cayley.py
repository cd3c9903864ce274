"""Dense layer orthogonalised by the Cayley transform (Trockman and Kolter, arXiv 2104.07167)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustcert.layers.constrained import ConstrainedLinear
from robustcert.layers.product import product
from robustcert.network.device import stays_on_device

# Side of blocks that are transposed, or inverted, as one.
TILE = 256


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

    Example:
        >>> CayleyOrthogonal()(torch.tensor([[0.0, 0.5], [0.0, 0.0]]))
        tensor([[ 0.6000, -0.8000],
                [ 0.8000,  0.6000]])
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Orthogonalise ``weight`` of shape ``(out_features, in_features)``."""
        with torch.autocast(weight.device.type, enabled=False):
            return cayley(weight)


def cayley(weight: Tensor) -> Tensor:
    """The transform of :class:`CayleyOrthogonal` for matrices ``(*, m, n)``, real or complex."""
    if weight.shape[-2] < weight.shape[-1]:
        return _Cayley.apply(weight.mH).mH
    return _Cayley.apply(weight)


class _Cayley(torch.autograd.Function):
    """The transform of tall matrices, with a backward of products alone.

    With M = (I + A)^-1 the blocks of W are 2 M - I and -2 V M, so M is read off W. From
    dM = -M dA M, and G and H the gradients at the blocks, the gradient at V with A held is
    B = -2 H M^T, that at A is -M^T (2 G M^T + V^T B), and dA = dU - dU^T + dV^T V + V^T dV. Complex
    matrices have their adjoints in place of transposes.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        columns = weight.shape[-1]
        square, below = weight.split([columns, weight.shape[-2] - columns], -2)
        a = _skew_(square.clone())
        if below.shape[-2]:
            a += product(below.mH, below)
        a.diagonal(dim1=-2, dim2=-1).add_(1)
        inverse = _invert(a, torch.empty_like(a))
        ctx.save_for_backward(inverse, below)
        # A needs its memory no more.
        w = torch.mul(inverse, 2, out=a)
        w.diagonal(dim1=-2, dim2=-1).sub_(1)
        return torch.cat([w, -2 * product(below, inverse)], -2) if below.shape[-2] else w

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        inverse, below = ctx.saved_tensors
        adjoint = inverse.mH.resolve_conj()
        upper, lower = grad.split([inverse.shape[-1], below.shape[-2]], -2)
        middle = product(upper, adjoint)
        if not below.shape[-2]:
            return _skew_(product(adjoint, middle).mul_(-2))
        at_below = -2 * product(lower, adjoint)
        at_a = -product(adjoint, product(below.mH, at_below).add_(middle, alpha=2))
        at_below += product(below, at_a + at_a.mH)
        return torch.cat([_skew_(at_a), at_below], -2)


def _skew_(x: Tensor) -> Tensor:
    """X - X^*, of one matrix in place and by tiles: whole rows and columns would miss the cache."""
    if x.dim() > 2 or torch.compiler.is_compiling():
        return (x - x.mH).contiguous()
    for i in range(0, len(x), TILE):
        for j in range(0, i + 1, TILE):
            below, above = x[i : i + TILE, j : j + TILE], x[j : j + TILE, i : i + TILE]
            below.copy_(below - above.mT)
            if j < i:
                torch.neg(below.mT, out=above)
    return x


def _invert(a: Tensor, out: Tensor) -> Tensor:
    """Inverse of a matrix whose symmetric part is at least I, in products but for small blocks.

    Without one, of entries that are not finite, an error, or NaN where the host would wait. ``out``
    may be written to.

    With blocks P, Q, R, S, T = P^-1 Q, U = R P^-1 and Z = (S - R T)^-1 it has the blocks
    P^-1 + T Z U, -T Z, -Z U and Z. No pivots are needed: P and S - R T have a symmetric part of at
    least I too, so that no inverse on the way has a norm above 1.
    """
    half = a.shape[-1] // 2
    # Of many matrices each is small, and an accelerator prefers its own routine.
    if stays_on_device(a):
        inverse, failed = torch.linalg.inv_ex(a)
        return inverse.masked_fill(failed[..., None, None] > 0, torch.nan)
    if a.dim() > 2 or half < TILE:
        return out.copy_(torch.linalg.inv(a))
    # Rounding counts by the square of the norm.
    if torch.linalg.matrix_norm(a) > 4 * len(a) ** 0.5:
        return out.copy_(torch.linalg.inv(a))
    first = _invert(a[:half, :half], out[:half, :half])
    t, u = product(first, a[:half, half:]), product(a[half:, :half], first)
    last = a[half:, half:] - product(a[half:, :half], t)
    last = _invert(last, out[half:, half:])
    right = torch.neg(product(t, last), out=out[:half, half:])
    torch.neg(product(last, u), out=out[half:, :half])
    first -= product(right, u)
    return out


class CayleyLinear(ConstrainedLinear):
    """Dense layer with orthonormal rows or columns by :class:`CayleyOrthogonal`.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Whether to add a learned bias.

    Example:
        >>> layer, x, y = CayleyLinear(3, 5), torch.randn(3), torch.randn(3)
        >>> f"{torch.dist(layer(x), layer(y)) / torch.dist(x, y):.4f}"  # distances are kept
        '1.0000'
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, parametrization=CayleyOrthogonal(), bias=bias)
