r"""Reflections at the range of a circular convolution, kept as its small kernel.

Note [reflection] (the map, its norm, and the error of its evaluation)
~~~~~~~~~~~~~~~~~
On a torus of M positions let :math:`(V d)(p) = \sum_a V_a\, d(p + a)`, from n channels to m. The
Fourier transform makes blocks :math:`U = \sum_a V_a e^{i \omega a}` of it and :math:`G = U^* U` of
:math:`V^T V`. With :math:`\rho = \mathrm{ridge} \cdot \mathrm{tr}(G) / n`, the map is

    W = I - 2 U (G + rho I)^-1 U*.

It is symmetric, and its eigenvalues are 1 and :math:`1 - 2 s^2 / (s^2 + \rho)` for singular values
s of U: its norm is at most 1, whatever V is. Without a ridge it is orthogonal.

Inverses. H is a Hermitian matrix, computed anyhow. All eigenvalues of :math:`H (G + \rho I)` are
those of the Hermitian :math:`(G + \rho I)^{1/2} H (G + \rho I)^{1/2}`, so that these are within

    e = || H (G + rho I) - I ||_inf

of 1. As :math:`G \le G + \rho I`, the map with H for the inverse is within 2 e of W; and e < 1
shows that the inverse exists. e is computed: the residual of the computed G~, plus ||H||_inf times
the error of G~, plus the rounding of the product, gamma_2n ||H||_inf ||G~||_inf. Complex numbers
are pairs of real ones, and ||.||_inf counts the absolute values of both parts.

Entries of G~ are sums over taps k of g_k e^{i w k}, whose rounding is relative to sum |g_k|, with
g_k = sum_a V_a' V_{a+k}, whose rounding is relative to T = S'S with S = sum_a |V_a|: absolute
values of what is added.

Evaluation. c = V' x, its transform by a product with the real orthonormal basis B of cosines and
sines, H at every frequency, the transform back, and V. Let v >= ||V||, from v^2 = max ||G||_inf, s
the norm of the kernel |V| and k^2 = max ||H||_inf (1 + e), so that ||V H|| and ||H V'|| are at most
k. With e_V = gamma s for each convolution, e_B = gamma sqrt(2 F) + 2^-48 sqrt(2 M) for each product
with B, whose rows have length 1, and e_H = gamma ||H||_inf, all orders of summation included, the
computed V H V' x is wrong by at most

    t = e + 2 k e_V + 2 k e_B v + v^2 e_H    times ||x||, and times 1 + 2 t for products of errors,

as 1 / v is at most k, so that each error is relative to what is computed, and t is at most 2^-6.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.arithmetic import products
from robustcert.errors import UnsoundNetworkError
from robustcert.network.local_error import absolute_norm, gamma, smallest_normal
from robustcert.network.operation import Shape
from robustcert.network.torus import (
    TWIDDLE_ERROR,
    Matrices,
    Pair,
    TorusMap,
    basis_error,
    by_frequency,
    numerators,
    remembered,
)
from robustcert.norms.symbols import roots_of_unity

# Largest error e of Note [reflection]: beyond it, columns of V depend on each other too much.
MAX_ERROR = 2.0**-20
# Largest sum of all errors, t there: what is left out of products of errors is small.
MAX_TOTAL = 2.0**-6
# Products that are summed by one product of matrices: a short sum is rounded less.
SUMMED_ROWS = 32
# Largest norm of a kernel or an inverse: what is computed on the way stays in range.
MAX_SIZE = 2.0**30
# Factor on the error, for evaluations with other inverses than these, which are as close.
MARGIN = 1.05
# Bytes of the blocks that are inverted at once.
CHUNK_BYTES = 2**25


@dataclass(frozen=True, eq=False)
class Reflection(TorusMap):
    """``x -> W x + b``, W of Note [reflection] by the kernel V, n at most m.

    Attributes:
        ridge: Multiple of the mean eigenvalue of G that is added to G.
    """

    kind = "reflection"
    ridge: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, columns = self.weight.shape[:2]
        if not (1 <= columns <= rows and self.ridge >= 0):
            raise UnsoundNetworkError(
                f"no reflection by a kernel {tuple(self.weight.shape)} with ridge {self.ridge}: "
                "expected no more columns than rows, and a ridge of at least 0"
            )

    @property
    def columns(self) -> int:
        return len(self.weight)

    def turned(self, x: Tensor) -> Tensor:
        weight, matrices = self.weight.to(x), inverses_of(self).matrices.on(x)
        inner = _wrapped(x, weight[: x.shape[1]].transpose(0, 1).flip(2, 3), backwards=True)
        turned = _wrapped(by_frequency(inner, *matrices), weight[: self.outputs], backwards=False)
        if self.outputs > x.shape[1]:
            x = F.pad(x, (0, 0, 0, 0, 0, self.outputs - x.shape[1]))
        return x[:, : self.outputs] - 2 * turned

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        weight, inverses = self.weight, inverses_of(self)
        rows, columns, *sides = weight.shape
        count, places = math.prod(self.map), math.prod(self.output_size)
        kernel = gamma(math.prod(sides) * rows + 2, unit) * absolute_norm(weight)
        terms = 2 * len(inverses.matrices.real) + 4
        basis = basis_error(self.map, terms, unit)
        inverse = gamma(2 * columns + 4, unit) * inverses.size
        v = math.sqrt(inverses.gram) * (1 + 1e-12)
        k = math.sqrt(inverses.size * (1 + inverses.error)) * (1 + 1e-12)
        turned = inverses.error + 2 * k * kernel + 2 * k * basis * v + v * v * inverse
        if not turned <= MAX_TOTAL:
            raise UnsoundNetworkError(
                "its kernel is too large, or its columns depend on each other too much, for an "
                f"arithmetic of unit roundoff {unit:.3g}: set certifier.arithmetic=float64, or "
                "train with a ridge",
                self.label,
            )
        if not max(absolute_norm(weight), v, k, inverses.size) <= MAX_SIZE:
            raise UnsoundNetworkError(
                f"expected a kernel and inverses of norms up to {MAX_SIZE:g}: scale its kernel, "
                "which does not change the map",
                self.label,
            )
        norm = 0.0 if self.bias is None else float(self.bias.double().norm())
        tiny = smallest_normal(unit) * math.sqrt(len(weight) * count) * terms * 2.0**20
        # More than a checker with other inverses takes.
        gain = (2 * turned * (1 + 2 * turned) + 8 * unit) * MARGIN
        shift = 2 * unit * norm * math.sqrt(places) * MARGIN
        scale = 1 + k + v + float(weight.abs().max())
        return gain + tiny * scale**4, shift + tiny * scale**4

    def options(self) -> dict[str, Any]:
        return {**super().options(), "ridge": float(self.ridge).hex()}


def _wrapped(x: Tensor, kernel: Tensor, *, backwards: bool) -> Tensor:
    """The circular correlation with a kernel, whose last tap is at the output if ``backwards``."""
    for axis in (2, 3):
        more = kernel.shape[axis] - 1
        reads = torch.arange(x.shape[axis] + more, dtype=torch.int64, device=x.device)
        x = x.index_select(axis, (reads - more * backwards) % x.shape[axis])
    return products.conv2d(x, kernel)


@dataclass(frozen=True, eq=False)
class Inverses:
    """H of Note [reflection] at every frequency, with what its errors are relative to.

    Attributes:
        matrices: H, shape ``(F, n, n)``.
        error: e.
        size: The largest ||H||_inf.
        gram: The largest ||G||_inf.
    """

    matrices: Matrices
    error: float
    size: float
    gram: float


def inverses_of(operation: Reflection) -> Inverses:
    """The inverses of an operation, remembered for its values.

    Raises:
        UnsoundNetworkError: no inverse is close enough.
    """
    size, ridge = operation.map, operation.ridge
    rule = ("reflection", *size, ridge)
    return remembered(rule, operation.weight, lambda weight: _inverted(weight, size, ridge))


# What is kept may be met again in training, which refuses tensors of the inference mode.
@torch.inference_mode(mode=False)
@torch.no_grad()
def _inverted(weight: Tensor, size: Pair, ridge: float) -> Inverses:
    """Inverses of every block of a torus, with their error."""
    products.check_matrix_products(torch.device("cpu"))
    columns = weight.shape[1]
    sums = weight.abs().sum((2, 3))
    total = float((sums.mT @ sums.sum(1)).max()) * (1 + 1e-9)
    shifts, taps = _taps(weight)
    added = float(taps.abs().sum(0).sum(1).max()) * (1 + 1e-9)
    unit = 2.0**-53
    terms = SUMMED_ROWS + 1 + math.ceil(math.log2(weight[:, 0].numel()))
    lost = gamma(terms, unit) * total
    # Of both parts, with the mean of the diagonal that a ridge is a multiple of.
    lost = 2 * (lost + (gamma(len(taps) + 4, unit) + TWIDDLE_ERROR) * (added + lost)) * (1 + ridge)
    lost += gamma(columns + 4, unit) * ridge * total
    identity = torch.eye(columns, dtype=torch.float64, device="cpu")
    real, imaginary = [], []
    error = largest = gram = 0.0
    for re, im in _grams(shifts, taps, size):
        # Exactly Hermitian; what that changes is within the error of both halves.
        re, im = (re + re.mT) / 2, (im - im.mT) / 2
        mean = re.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        re = re + ridge * mean * identity
        try:
            inverse = torch.linalg.inv(torch.complex(re, im))
        except torch.linalg.LinAlgError as failed:
            raise UnsoundNetworkError("columns of its kernel depend on each other") from failed
        a, b = inverse.real, inverse.imag
        a, b = (a + a.mT) / 2, (b - b.mT) / 2
        residual = _rows(a @ re - b @ im - identity, a @ im + b @ re)
        inverse_size, gram_size = _rows(a, b), _rows(re, im)
        rounding = gamma(2 * columns + 4, unit) * inverse_size * gram_size
        error = max(error, residual + rounding + inverse_size * lost)
        largest, gram = max(largest, inverse_size), max(gram, gram_size + lost)
        real.append(a)
        imaginary.append(b)
    if not error * (1 + 1e-9) <= MAX_ERROR:
        raise UnsoundNetworkError(
            f"columns of its kernel depend on each other too much: inverses are known up to "
            f"{error:.3g}, and {MAX_ERROR:.3g} is needed: train with a ridge"
        )
    more = 1 + 1e-9
    matrices = Matrices(torch.cat(real), torch.cat(imaginary))
    return Inverses(matrices, error * more, largest * more, gram * more)


def _rows(real: Tensor, imaginary: Tensor) -> float:
    """The largest sum of absolute values of a row of complex matrices, both parts counted."""
    found = float((real.abs().sum(2) + imaginary.abs().sum(2)).max()) * (1 + 1e-9)
    return found if math.isfinite(found) else math.inf


def _taps(weight: Tensor) -> tuple[np.ndarray[Any, Any], Tensor]:
    """Shifts k, shape ``(K, 2)``, and g_k of Note [reflection], shape ``(K, n, n)``."""
    height, width = weight.shape[2:]
    shifts: list[Pair] = []
    taps: list[Tensor] = []
    for k, m in np.ndindex(height, 2 * width - 1):
        m -= width - 1
        if (k, m) < (0, 0):
            continue
        first = weight[:, :, : height - k, max(0, -m) : width - max(0, m)]
        second = weight[:, :, k:, max(0, m) : width + min(0, m)]
        found = _product(*(part.transpose(0, 1).flatten(1) for part in (first, second)))
        shifts, taps = [*shifts, (k, m)], [*taps, found]
        if (k, m) != (0, 0):
            shifts, taps = [*shifts, (-k, -m)], [*taps, found.mT]
    return np.array(shifts), torch.stack(taps)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """``first second'``, with sums of a few products that are added in pairs, and these again."""
    count = first.shape[1]
    parts = 1 << max(0, math.ceil(math.log2(count / SUMMED_ROWS)))
    each = -(-count // parts)
    left, right = (
        F.pad(x, (0, parts * each - count)).unflatten(1, (parts, each)) for x in (first, second)
    )
    products_of_parts = left.transpose(0, 1) @ right.permute(1, 2, 0)
    while len(products_of_parts) > 1:
        low, high = products_of_parts.chunk(2)
        products_of_parts = low + high
    return products_of_parts[0]


def _grams(
    shifts: np.ndarray[Any, Any], taps: Tensor, size: Pair
) -> Iterator[tuple[Tensor, Tensor]]:
    """Real and imaginary parts of G, shape ``(f, n, n)``, for some frequencies after the others."""
    columns, flat = taps.shape[1], taps.flatten(1)
    cosine, sine = map(torch.from_numpy, roots_of_unity(numerators(size, shifts), math.prod(size)))
    chunk = max(1, CHUNK_BYTES // (16 * columns * columns))
    for re, im in zip(cosine.split(chunk), sine.split(chunk), strict=True):
        yield (re @ flat).view(-1, columns, columns), (im @ flat).view(-1, columns, columns)
