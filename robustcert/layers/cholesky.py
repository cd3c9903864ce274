"""Dense layer orthogonalised by a Cholesky factor (Hu et al., arXiv 2310.02513)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustcert.layers.constrained import ConstrainedLinear
from robustcert.layers.product import product
from robustcert.network.device import stays_on_device

# Maximum number of rows of a triangle that is solved with as a whole, and of the blocks of others.
UNBLOCKED, SOLVED = 512, 256


class CholeskyOrthogonal(nn.Module):
    r"""Map a matrix X to :math:`W = L^{-1} X` with :math:`L L^\top = X X^\top + \rho I`.

    :math:`W W^\top = I - \rho L^{-1} L^{-\top}`, so every singular value is
    :math:`s / \sqrt{s^2 + \rho} < 1` for the singular value s of X: nearly orthonormal rows, on
    the safe side. A tall X is orthogonalised by columns.

    Reference: Hu, Leino, Wang and Fredrikson, `A Recipe for Improved Certifiable Robustness
    <https://arxiv.org/abs/2310.02513>`_, ICLR 2024.

    Args:
        ridge: :math:`\rho` over the mean squared row norm of X.

    Example:
        >>> X = torch.diag(torch.tensor([1.0, 0.1]))
        >>> torch.linalg.svdvals(CholeskyOrthogonal(ridge=0.01)(X))
        tensor([0.9975, 0.8151])
    """

    # W of this training step, where it was made with that of other layers.
    ready: Tensor | None = None

    def __init__(self, ridge: float = 1e-3) -> None:
        super().__init__()
        if not ridge > 0:
            raise ValueError(f"ridge must be above 0, got {ridge}: set model.layer.dense.ridge")
        self.ridge = ridge

    def forward(self, weight: Tensor) -> Tensor:
        """Orthogonalise ``weight`` of shape ``(out_features, in_features)``, or a stack of them."""
        if self.ready is not None and self.training:
            return self.ready
        # Factors of half-precision products are worthless, so autocast stops here.
        with torch.autocast(weight.device.type, enabled=False):
            if weight.shape[-2] > weight.shape[-1]:
                return _Orthogonalise.apply(weight.mT, self.ridge).mT
            return _Orthogonalise.apply(weight, self.ridge)


class _Orthogonalise(torch.autograd.Function):
    """``X -> L^-1 X`` with a backward of two products and one triangular solve.

    With W = L^-1 X and G the gradient at W, Phi(A) the lower triangle of A with half its diagonal:
    dW = L^-1 dX - Phi(L^-1 dS L^-T) W and dS = dX X^T + X dX^T, hence the gradient at X is
    L^-T (G - (P + P^T) W) with P = Phi(G W^T). The ridge is treated as a constant.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ridge: float) -> Tensor:
        factor = regularised_factor(x, ridge)
        w = solved(factor, x, adjoint=False)
        ctx.save_for_backward(factor, w)
        return w

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        factor, w = ctx.saved_tensors
        inner = _less(grad, _symmetrised_lower(grad, w), w)
        return solved(factor, inner, adjoint=True), None


def solved(factor: Tensor, x: Tensor, *, adjoint: bool) -> Tensor:
    """``L^-1 X``, or ``L^-T X`` if ``adjoint``, for a lower triangle L, in products of blocks.

    Args:
        factor: L, shape ``(m, m)`` or, of several matrices, ``(count, m, m)``.
        x: X, shape ``(m, n)`` or ``(count, m, n)``.
        adjoint: Whether the triangle is transposed.
    """
    m = x.shape[-2]
    if m <= UNBLOCKED or x.dim() > 2 or stays_on_device(x):
        # X^T L^-T, transposed: a solve from the right reads row-major matrices as they lie in
        # memory, which takes a third of the time.
        turned = factor if adjoint else factor.mT
        return torch.linalg.solve_triangular(turned, x.mT, upper=not adjoint, left=False).mT
    result = torch.empty_like(x)
    blocks = [slice(start, min(start + SOLVED, m)) for start in range(0, m, SOLVED)]
    for own in reversed(blocks) if adjoint else blocks:
        known = slice(own.stop, m) if adjoint else slice(0, own.start)
        beside = factor[known, own].mT if adjoint else factor[own, known]
        rest = x[own] if known.start == known.stop else _less(x[own], beside, result[known])
        result[own] = solved(factor[own, own], rest, adjoint=adjoint)
    return result


def regularised_factor(x: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of ``X X^T + rho I``, where rho is ``ridge`` times the mean diagonal.

    Args:
        x: Shape ``(m, n)`` or, of several matrices, ``(count, m, n)``.
        ridge: Above 0.

    Returns:
        Shape ``(m, m)`` or ``(count, m, m)``, lower triangular.
    """
    m = x.shape[-2]
    rho = ridge * x.square().sum((-2, -1)) / m
    factor = x.new_zeros(*x.shape[:-1], m)
    for start, stop in _blocks(x):
        # Columns start:stop of the product, from the diagonal down, less what is factored already.
        panel = product(x[..., start:, :], x[..., start:stop, :].mT)
        if start:
            done = factor[..., :start]
            panel = _less(panel, done[..., start:, :], done[..., start:stop, :].mT)
        top, below = panel.tensor_split([stop - start], -2)
        top.diagonal(dim1=-2, dim2=-1).add_(rho[..., None])
        corner = cholesky_factor(top)
        factor[..., start:stop, start:stop] = corner
        left = torch.linalg.solve_triangular(corner, below.mT, upper=False).mT
        factor[..., stop:, start:stop] = left
    return factor


def cholesky_factor(gram: Tensor) -> Tensor:
    """Cholesky factors ``(*, m, m)``; without one an error, or NaN where the host would wait."""
    if not stays_on_device(gram):
        return torch.linalg.cholesky(gram)
    factor, failed = torch.linalg.cholesky_ex(gram)
    return factor.masked_fill(failed[..., None, None] > 0, torch.nan)


def _symmetrised_lower(grad: Tensor, w: Tensor) -> Tensor:
    """``P + P^T`` with P the lower triangle of ``G W^T`` and half its diagonal."""
    both = w.new_empty(*w.shape[:-1], w.shape[-2])
    for start, stop in _blocks(w):
        rows = both[..., start:stop, :stop]
        rows[...] = product(grad[..., start:stop, :], w[..., :stop, :].mT)
        corner = rows[..., start:].tril()
        rows[..., start:] = corner + corner.tril(-1).mT
        both[..., :start, start:stop] = rows[..., :start].mT
    return both


def _less(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``C - A B``, of matrices or, in one pass, of stacks."""
    return c - product(a, b) if c.dim() == 2 else torch.baddbmm(c, a, b, alpha=-1)


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    m = x.shape[-2]
    if not stays_on_device(x):
        # Of both products half is enough, and row blocks skip the rest.
        size = 128
    elif x.dim() == 3:
        # Libraries factorise several matrices at once only where these are small.
        size = 512
    else:
        # On an accelerator one large product is faster than its parts, and a graph smaller.
        size = m
    return [(start, min(start + size, m)) for start in range(0, m, size)]


class CholeskyLinear(ConstrainedLinear):
    """Dense layer with orthonormal rows or columns by :class:`CholeskyOrthogonal`.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        ridge: See :class:`CholeskyOrthogonal`.
        bias: Whether to add a learned bias.

    Example:
        >>> lipschitz_bound(CholeskyLinear(8, 4), (8,)) < 1
        True
    """

    def __init__(
        self, in_features: int, out_features: int, *, ridge: float = 1e-3, bias: bool = True
    ) -> None:
        super().__init__(
            in_features, out_features, parametrization=CholeskyOrthogonal(ridge), bias=bias
        )
