"""Dense layer orthogonalised by a Cholesky factor (Hu et al., arXiv 2310.02513)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from robustcert.layers.constrained import ConstrainedConv2d, ConstrainedLinear
from robustcert.layers.product import linear, product
from robustcert.network.device import stays_on_device
from robustcert.network.linear import Dense

# Maximum number of entries of a right-hand side that is solved for with the whole triangle; for
# larger ones the triangle is taken in blocks of at most so many rows, which are inverted.
UNBLOCKED, SOLVED = 2**18, 128
# Rows of the blocks in which the gradient of a product is made.
STRIP = 128


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
                return _Orthogonalise.apply(weight.mT, self.ridge, False).mT
            return _Orthogonalise.apply(weight, self.ridge, False)


class _Orthogonalise(torch.autograd.Function):
    """``X -> L^-1 X`` with a backward of two products and one triangular solve.

    With W = L^-1 X and G the gradient at W, Phi(A) the lower triangle of A with half its diagonal:
    dW = L^-1 dX - Phi(L^-1 dS L^-T) W and dS = dX X^T + X dX^T, hence the gradient at X is
    L^-T (G - (P + P^T) W) with P = Phi(G W^T). The ridge is treated as a constant. Where W has one
    use, :class:`_Times`, that gives G - (P + P^T) W for the gradient: ``is_projected``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ridge: float, is_projected: bool) -> Tensor:
        factor = regularised_factor(x, ridge)
        w = solved(factor, x, adjoint=False)
        ctx.is_projected = is_projected
        ctx.save_for_backward(factor, w)
        return w

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        factor, w = ctx.saved_tensors
        inner = grad if ctx.is_projected else _less(grad, _symmetrised_lower(grad, w), w)
        return solved(factor, inner, adjoint=True), None, None


class _Times(torch.autograd.Function):
    """``x W^T``, or ``x W``, of a small batch with W of :class:`_Orthogonalise`.

    A batch of b samples with the gradient g at their outputs y has G = g^T x, a matrix of rank b.
    So has what the triangle P is taken from, G W^T = g^T y, and y is known. Of x W, G is x^T g and
    G W^T is x^T times the gradient at x, known as well. The gradient at W, G - (P + P^T) W, thus
    takes no product of W's cubed size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, is_turned: bool) -> Tensor:
        y = linear(x, w.mT if is_turned else w)
        ctx.is_turned = is_turned
        ctx.save_for_backward(x, w, y)
        # Not y itself, which whoever gets it may change.
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, w, y = ctx.saved_tensors
        at_x, at_w = _Times.apply(grad, w, not ctx.is_turned), None
        # An attack during training asks for the gradient at its inputs alone.
        if torch._C._will_engine_execute_node(ctx.next_functions[1][0]):
            a, b, c = (x, grad, at_x) if ctx.is_turned else (grad, x, y)
            at_w = _low_rank_less(a, b, c, w)
        return at_x, at_w, None


def _low_rank_less(a: Tensor, b: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """``A^T B - (P + P^T) W`` with P the lower triangle of ``A^T C`` and half its diagonal.

    In rows i of P + P^T what lies before the diagonal block is ``A_i^T C_j`` and what lies behind
    it ``C_i^T A_j``, so that sums of ``C_j W_j`` and of ``A_j W_j`` over blocks j are enough.

    Args:
        a: Shape ``(batch, m)``, as ``c``.
        b: Shape ``(batch, n)``.
        c: See above.
        w: Shape ``(m, n)``.
    """
    m = len(w)
    blocks = [slice(start, min(start + STRIP, m)) for start in range(0, m, STRIP)]
    # Sums from the last block on, for differences of two sums would cancel.
    behind = [torch.zeros_like(b)]
    for own in blocks[:0:-1]:
        behind.append(behind[-1] + product(a[:, own], w[own]))
    result = torch.empty_like(w)
    for own in blocks:
        corner = (a[:, own].mT @ c[:, own]).tril()
        left = torch.cat([a[:, own], c[:, own], corner + corner.tril(-1).mT])
        result[own] = product(left.mT, torch.cat([b, -behind.pop(), -w[own]]))
        b = b - product(c[:, own], w[own])
    return result


def solved(factor: Tensor, x: Tensor, *, adjoint: bool) -> Tensor:
    """``L^-1 X``, or ``L^-T X`` if ``adjoint``, for a lower triangle L, in products of blocks.

    Args:
        factor: L, shape ``(m, m)`` or, of several matrices, ``(count, m, m)``.
        x: X, shape ``(m, n)`` or ``(count, m, n)``.
        adjoint: Whether the triangle is transposed.
    """
    m = x.shape[-2]
    if x.numel() <= UNBLOCKED or x.dim() > 2 or stays_on_device(x):
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
        identity = torch.eye(len(rest), dtype=x.dtype, device=x.device)
        inverse = torch.linalg.solve_triangular(factor[own, own], identity, upper=False)
        result[own] = product(inverse.mT if adjoint else inverse, rest)
    return result


def regularised_factor(x: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of ``X X^T + rho I``, where rho is ``ridge`` times the mean diagonal.

    Args:
        x: Shape ``(m, n)`` or, of several matrices, ``(count, m, n)``.
        ridge: Above 0.

    Returns:
        Shape ``(m, m)`` or ``(count, m, m)``. What is above the diagonal means nothing.
    """
    m = x.shape[-2]
    # By rows, for a sum of all squares in one would be less accurate.
    rho = ridge * torch.linalg.vector_norm(x, dim=-1).square().sum(-1) / m
    factor = x.new_empty(*x.shape[:-1], m)
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


@dataclass(frozen=True)
class Chain:
    """What makes a layer's weight: steps from what is trained to a matrix, then Cholesky's rule."""

    free: Tensor
    before: list[nn.Module]
    rule: CholeskyOrthogonal

    def matrix(self) -> Tensor:
        """The matrix that is orthogonalised."""
        x = self.free
        for step in self.before:
            x = step(x)
        return x


def chain_of(layer: nn.Module) -> Chain | None:
    """The chain of a layer whose weight, or kernel of patches, is made by one; else None."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    lists: Any = layer.parametrizations
    steps = lists.weight
    # More than one parametrization is no chain.
    if len(steps) > 1:
        return None
    # A kernel of patches is a matrix, of which the rule is.
    constraint = getattr(steps[0], "rule", steps[0])
    *before, rule = constraint if isinstance(constraint, nn.Sequential) else [constraint]
    return Chain(steps.original, before, rule) if isinstance(rule, CholeskyOrthogonal) else None


def times(layer: ConstrainedLinear | ConstrainedConv2d, x: Tensor) -> Tensor:
    """``x W^T + b`` with W the layer's weight as a matrix, by :class:`_Times` where that pays.

    Args:
        layer: A dense layer, or a convolution on patches, of any constraint.
        x: Shape ``(batch, n)``.
    """
    chain = chain_of(layer) if _may_pay(x) else None
    if chain is None or not _pays(layer, chain, x):
        return linear(x, layer.weight.flatten(1), layer.bias)
    matrix = chain.matrix()
    is_tall = matrix.shape[0] > matrix.shape[1]
    w = _Orthogonalise.apply(matrix.mT if is_tall else matrix, chain.rule.ridge, True)
    y = _Times.apply(x, w, is_tall)
    return y if layer.bias is None else y + layer.bias


def _may_pay(x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and not stays_on_device(x)
        and type(x) in (Tensor, nn.Parameter)
        and x.dim() == 2
        and not torch.is_autocast_enabled("cpu")
        and forward_ad.unpack_dual(x).tangent is None
    )


def _pays(layer: nn.Module, chain: Chain, x: Tensor) -> bool:
    rule, free = chain.rule, chain.free
    parts = layer.get_submodule("parametrizations").modules()
    hooked = (part._forward_hooks or part._forward_pre_hooks for part in parts)
    return (
        layer.training
        and rule.training
        and rule.ready is None
        # A subclass, a hook or a cache would be passed over.
        and type(rule) is CholeskyOrthogonal
        and not any(hooked)
        and not parametrize._cache_enabled
        and free.requires_grad
        and free.dtype == x.dtype
        # 4 batch + STRIP multiplications for each entry of W, not 1.5 m, but in products that are
        # narrower and thus slower.
        and 4 * len(x) + STRIP <= min(free.shape)
    )


class OrthogonalisedLinear(ConstrainedLinear):
    """Dense layer with :class:`CholeskyOrthogonal` last in its parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        return times(self, x)

    def lipschitz_estimate(self) -> float:
        """1, the norm that the constraint stays under."""
        return super().lipschitz_estimate()

    def fold(self) -> Dense:
        """The layer with its weight as a constant."""
        return super().fold()


class CholeskyLinear(OrthogonalisedLinear):
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
