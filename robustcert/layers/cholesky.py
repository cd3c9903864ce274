"""Dense layer orthogonalised by a Cholesky factor (Hu et al., arXiv 2310.02513)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustcert.layers.constrained import ConstrainedLinear


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

    def __init__(self, ridge: float = 1e-3) -> None:
        super().__init__()
        if not ridge > 0:
            raise ValueError(f"ridge must be above 0, got {ridge}: set model.layer.dense.ridge")
        self.ridge = ridge

    def forward(self, weight: Tensor) -> Tensor:
        """Orthogonalise ``weight`` of shape ``(out_features, in_features)``."""
        # Factors of half-precision products are worthless, so autocast stops here.
        with torch.autocast(weight.device.type, enabled=False):
            if weight.shape[0] > weight.shape[1]:
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
        # X^T L^-T, transposed: a solve from the right reads row-major matrices as they lie in
        # memory, which takes a third of the time.
        w = torch.linalg.solve_triangular(factor.mT, x.mT, upper=True, left=False).mT
        ctx.save_for_backward(factor, w)
        return w

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        factor, w = ctx.saved_tensors
        inner = torch.addmm(grad, _symmetrised_lower(grad, w), w, alpha=-1)
        return torch.linalg.solve_triangular(factor, inner.mT, upper=False, left=False).mT, None


def regularised_factor(x: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of ``X X^T + rho I``, where rho is ``ridge`` times the mean diagonal.

    Args:
        x: Shape ``(m, n)``.
        ridge: Above 0.

    Returns:
        Shape ``(m, m)``, lower triangular.
    """
    rho = ridge * x.square().sum() / x.shape[0]
    factor = x.new_zeros(x.shape[0], x.shape[0])
    for start, stop in _blocks(x):
        # Columns start:stop of the product, from the diagonal down, less what is factored already.
        panel = x[start:] @ x[start:stop].mT
        if start:
            panel.addmm_(factor[start:, :start], factor[start:stop, :start].mT, alpha=-1)
        top, below = panel[: stop - start], panel[stop - start :]
        top.diagonal().add_(rho)
        corner = torch.linalg.cholesky(top)
        factor[start:stop, start:stop] = corner
        factor[stop:, start:stop] = torch.linalg.solve_triangular(corner, below.mT, upper=False).mT
    return factor


def _symmetrised_lower(grad: Tensor, w: Tensor) -> Tensor:
    """``P + P^T`` with P the lower triangle of ``G W^T`` and half its diagonal."""
    both = w.new_empty(w.shape[0], w.shape[0])
    for start, stop in _blocks(w):
        torch.mm(grad[start:stop], w[:stop].mT, out=both[start:stop, :stop])
        corner = both[start:stop, start:stop].tril()
        both[start:stop, start:stop] = corner + corner.tril(-1).mT
        both[:start, start:stop] = both[start:stop, :start].mT
    return both


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    # Of both products half is enough, and row blocks skip the rest. On an accelerator one large
    # product is faster than its parts, and a graph smaller.
    whole = x.device.type != "cpu" or torch.compiler.is_compiling()
    size = x.shape[0] if whole else 128
    return [(start, min(start + size, x.shape[0])) for start in range(0, x.shape[0], size)]


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
