"""Dense layer that is the exponential of a skew matrix (arXiv 1901.08428)."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustcert.layers.constrained import ConstrainedLinear
from robustcert.layers.product import product
from robustcert.network.device import stays_on_device
from robustcert.network.overrides import constant_in_graphs

# Largest norm at which the terms after the eighteenth are below half a unit in the last place.
_REACH = {torch.float32: 3.1, torch.float64: 1.1}

# Maximum number of squarings where the host does not know the norm: norms up to 99 in float32.
MAX_SQUARINGS = 5

# Weights of A, A^2, A^3 and A^6 in the five sums B of the reference, and the identity's.
_SUMS = (
    (-0.100365581030144618, -0.00802924648241156932, -0.000892138498045729985, 0.0),
    (0.397849749499645078, 1.36783778460411720, 0.498289622525382669, -0.000637898194594723280),
    (1.68015813878906206, 0.0571779846478865511, -0.00698210122488052056, 3.34975017086070471e-05),
    (
        -0.0676404519071381882,
        0.0675961301770459655,
        0.0295552570429315521,
        -1.39180257516060693e-05,
    ),
    (0.0, -0.0923364619367118555, -0.0169364939002081722, -1.40086798182036094e-05),
)
# Coefficients of the identity in the second and the third of these sums, counted from 0.
_IDENTITY = {2: -10.9676396052962062, 3: -0.0904316832390810593}


def skew_exponential(a: Tensor) -> Tensor:
    r"""The exponential of skew-Hermitian matrices, in products alone.

    .. math:: \exp(A) = \Big(\sum_{k \le 18} \frac{(2^{-s} A)^k}{k!}\Big)^{2^s}

    with s so large that the powers left out vanish in rounding. The sum takes five products, and
    :math:`\lVert A \rVert \le \lVert A^6 \rVert_F^{1/6}`, which gives s, costs none. Its gradient
    is that along skew-Hermitian matrices.

    Reference: Bader, Blanes and Casas, `Computing the matrix exponential with an optimized Taylor
    polynomial approximation <https://doi.org/10.3390/math7121174>`_, Mathematics 7, 2019.

    On an accelerator, and in a compiled step, the host is not to wait for the norm: then s stays a
    tensor, :data:`MAX_SQUARINGS` squares are taken of which only the first s count, and a norm that
    would need more gives NaN.

    Args:
        a: Shape ``(*, n, n)``, real or complex; unitary for skew-Hermitian matrices.
    """
    return _SkewExponential.apply(a)


# Autograd would add up each of the sums and their gradients term by term, and keep both products of
# a power's derivative. One of these is enough: powers of skew matrices are skew or Hermitian in
# turn, and so is what is needed of their gradients.
class _SkewExponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        powers = a.new_empty(4, *a.shape)
        first, square, cube, sixth = powers.unbind()
        first.copy_(a)
        square.copy_(product(a, a))
        cube.copy_(product(square, a))
        sixth.copy_(product(cube, cube))
        entries = _entries(sixth).flatten(a.dim() - 2)
        norm = torch.linalg.vector_norm(entries, dim=-1).max()
        steps, counts = _squarings(norm, _REACH[a.real.dtype])
        weights, degrees = _constants(a.real.dtype, a.device)
        weights = weights * 2.0 ** -(steps * degrees)
        sums = _combine(weights, powers)
        for k, share in _IDENTITY.items():
            sums[k].diagonal(dim1=-2, dim2=-1).add_(share)
        b1, b2, b3, b4, b5 = sums.unbind()
        ninth = product(b1, b5).add_(b4)
        left = b3 + ninth
        results = [product(left, ninth).add_(b2)]
        for count in counts:
            square = product(results[-1], results[-1])
            results.append(square if count is None else torch.where(count, square, results[-1]))
        known = [count for count in counts if count is not None]
        ctx.save_for_backward(weights, powers, b1, b5, ninth, left, *results[:-1], *known)
        ctx.counted = len(counts)
        return results[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        weights, powers, b1, b5, ninth, left, *rest = ctx.saved_tensors
        results, counts = rest[: ctx.counted], rest[ctx.counted :] or (None,) * ctx.counted
        for result, count in zip(reversed(results), reversed(counts), strict=True):
            adjoint = result.mH.resolve_conj()
            moved = product(grad, adjoint).add_(product(adjoint, grad))
            grad = moved if count is None else torch.where(count, moved, grad)
        sums = grad.new_empty(5, *grad.shape)
        d1, d2, d3, d4, d5 = sums.unbind()
        d2.copy_(grad)
        d3.copy_(product(grad, ninth.mH))
        torch.add(product(left.mH, grad), d3, out=d4)
        d1.copy_(product(d4, b5.mH))
        d5.copy_(product(b1.mH, d4))
        first, square, cube, sixth = _combine(weights.mT, sums).unbind()
        # Of the gradients of odd powers the skew-Hermitian parts matter, of the others the
        # Hermitian ones. A^3 is taken for half of A^2 A + A A^2.
        a, a2, a3, _ = powers.unbind()
        cube = _part(cube.sub_(product(_part(sixth, 1.0), a3), alpha=2), -1.0)
        square = _part(square.sub_(product(cube, a)), 1.0)
        return first.add_(product(a2, cube)).sub_(product(square, a), alpha=2)


# A compiled step has them for constants.
@constant_in_graphs
def _constants(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The weights of the sums, shape ``(5, 4)``, and the degrees of the powers that they are of."""
    return _kept_constants(dtype, device)


# Copied to a device once: a step would wait for it. What is kept may be met again in training,
# which refuses tensors of the inference mode.
@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)
def _kept_constants(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    degrees = torch.tensor([1, 2, 3, 6], dtype=torch.int64, device=device)
    return torch.tensor(_SUMS, dtype=dtype, device=device), degrees


def _squarings(power: Tensor, reach: float) -> tuple[Any, list[Tensor | None]]:
    """The number s of squarings for a sixth power's norm, and for each whether it counts.

    None stands for a squaring that counts for certain.
    """
    if stays_on_device(power):
        # In logarithms, of which a norm of 0 gives minus infinity: no squaring.
        steps = ((power.log2() / 6) - math.log2(reach)).ceil().clamp_min(0)
        steps = torch.where(steps > MAX_SQUARINGS, math.nan, steps)
        return steps, [steps > k for k in range(MAX_SQUARINGS)]
    size = float(power) ** (1 / 6)
    # A norm that is not finite is for the caller to find in the result.
    finite = 0 < size < math.inf
    count = max(0, math.ceil(math.log2(size / reach))) if finite else 0
    return count, [None for _ in range(count)]


def _combine(weights: Tensor, stack: Tensor) -> Tensor:
    """Sums of matrices ``(K, *)`` by real weights ``(J, K)``, shape ``(J, *)``."""
    entries = _entries(stack)
    sums = (weights @ entries.flatten(1)).view(len(weights), *entries.shape[1:])
    return torch.view_as_complex(sums) if stack.is_complex() else sums


def _entries(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _part(x: Tensor, sign: float) -> Tensor:
    """The Hermitian part, or the skew-Hermitian one by a sign of -1."""
    return torch.add(x, x.mH, alpha=sign).mul_(0.5)


class ExponentialOrthogonal(nn.Module):
    r"""Map a square matrix X to the upper left part of :math:`\exp(X - X^\top)`.

    The exponential of a skew-symmetric matrix is orthogonal; a block of all its rows or all its
    columns has orthonormal columns or rows.

    Reference: Lezcano-Casado and Martínez-Rubio, `Cheap orthogonal constraints in neural networks
    <https://arxiv.org/abs/1901.08428>`_, ICML 2019.

    Args:
        in_features: Columns that are kept.
        out_features: Rows that are kept.

    Example:
        >>> ExponentialOrthogonal(2, 2)(torch.tensor([[0.0, -torch.pi / 6], [0.0, 0.0]]))
        tensor([[ 0.8660, -0.5000],
                [ 0.5000,  0.8660]])
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

    Example:
        >>> W = ExponentialLinear(3, 2).weight
        >>> torch.allclose(W @ W.T, torch.eye(2), atol=1e-5)
        True
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
