r"""Orthogonal convolutions on a torus, kept as their small free kernel and a rule.

Note [orthogonal] (the maps, their norm, and the error of their evaluation)
~~~~~~~~~~~~~~~~~
On a torus of M positions, let a free kernel of taps :math:`K_a`, whose middle tap is o, have the
blocks :math:`K(\omega) = \sum_a K_a e^{i \omega (a - o)}`. The map has the blocks W of a rule:

* ``exponential``: exp(K - K*), K square. The exponent is skew-Hermitian: W is unitary.
* ``cayley``: with the square part U of K on top of V and A = U - U* + V*V, the columns
  (2 (I + A)^-1 - I) on top of -2 V (I + A)^-1. As A + A* = 2 V*V, they are orthonormal; I + A has a
  Hermitian part of at least I, so that its inverse exists, of norm at most 1. Of wide blocks the
  adjoint of the rule for K*.
* ``polar``: Y = K / ||K* K||_F^(1/2), then ten times Y (3 I - Y* Y) / 2. The first norm is at most
  1, and a step maps singular values s in [0, 1] to s (3 - s^2) / 2, again in [0, 1]. Of wide blocks
  the same.

So W has norm at most 1 at every frequency, whatever K is, and so has the real map, because rules
commute with conjugation. Leaving out rows and columns does not raise it.

Blocks are computed with a bound e on what they are wrong by, Note [balls]. Of K it is, for T taps
and cosines within 2^-48, 3 (gamma_{T+4} + 2^-48) times the norm of the kernel |K|. Of a rule:

* ``exponential``: ||exp(A) - exp(A')|| <= ||A - A'|| for skew-Hermitian A and A', and the computed
  A' is skew-Hermitian to the last bit. B = A' / 2^s has norm at most t <= 1, from that of A'^4, the
  fourth power of that of A': 16 terms of the series of exp(B) leave at most 2 t^16 / 16!, and s
  squares follow, of unitary matrices.
* ``cayley``: for any H and R = I + A, H - R^-1 = (H R - I) R^-1, of norm at most ||H R - I||.
* ``polar``: f = ||G||_F of the exact G = K* K is known up to sqrt(n) w of its ball, so that, with
  r = 2 sqrt(n) w / f <= 1/2, f^(-1/2) is known up to the relative error r / 2; and ||K|| f^(-1/2)
  is at most 1. A step is p(Y) with p odd, of slope at most 3/2 on [-1.1, 1.1]: a function of the
  Hermitian matrix with blocks 0, Y, Y* and 0, whose Lipschitz constant in the Frobenius norm is the
  slope. So radii in that norm grow by 3/2 a step, and by sqrt(n) times what the step is rounded by.

Evaluation: the transform by a product with the real orthonormal basis of cosines and sines, W at
every frequency, and the transform back, for computed blocks W' of size s(W') wrong by

    t = e + gamma s(W') + 2 e_B    times ||x||, and times 1 + 2 t for products of errors,

e_B as in Note [reflection]; the bias is rounded once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcert.arithmetic import products
from robustcert.errors import UnsoundNetworkError
from robustcert.network.balls import UNIT, Ball, exactly, identity_like
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

# Largest error e of blocks, and largest sum t of all errors.
MAX_ERROR, MAX_TOTAL = 2.0**-20, 2.0**-6
# Factor on e, for evaluations by other blocks than these, which are as close.
MARGIN = 2.0
# Steps of the rule ``polar``.
POLAR_STEPS = 10
# Bytes of the blocks that are computed at once.
CHUNK_BYTES = 2**22
# Largest norm of a free kernel: what is computed on the way stays in range.
MAX_NORM = 2.0**30


@dataclass(frozen=True, eq=False)
class OrthogonalConvolution(TorusMap):
    """``x -> W x + b``, W of Note [orthogonal] by the free kernel K.

    Attributes:
        rule: ``exponential``, ``cayley`` or ``polar``.
    """

    kind = "orthogonal_convolution"
    rule: str = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, columns = self.weight.shape[:2]
        if self.rule not in _RULES or (rows != columns and self.rule == "exponential"):
            raise UnsoundNetworkError(
                f"no rule {self.rule} for a kernel {tuple(self.weight.shape)}: expected one of "
                f"{', '.join(_RULES)}, and a square kernel for exponential"
            )

    @property
    def columns(self) -> int:
        return self.weight.shape[1]

    def turned(self, x: Tensor) -> Tensor:
        real, imaginary = (
            part[:, : self.outputs, : x.shape[1]] for part in blocks_of(self).matrices.on(x)
        )
        return by_frequency(x, real, imaginary)

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        blocks = blocks_of(self)
        terms = 2 * len(blocks.matrices.real) + 4
        rounded = gamma(2 * self.weight.shape[1] + 4, unit) * blocks.size
        total = MARGIN * (blocks.error + rounded) + 2 * basis_error(self.map, terms, unit)
        if not total <= MAX_TOTAL:
            raise UnsoundNetworkError(
                f"its blocks are known up to {total:.3g} in an arithmetic of unit roundoff "
                f"{unit:.3g}, and {MAX_TOTAL:.3g} is needed: set certifier.arithmetic=float64",
                self.label,
            )
        norm = 0.0 if self.bias is None else float(self.bias.double().norm())
        places = math.prod(self.output_size)
        tiny = smallest_normal(unit) * math.sqrt(sum(self.weight.shape[:2]) * math.prod(self.map))
        tiny *= terms * (1 + blocks.size) * 2.0**20
        gain = total * (1 + 2 * total) * (1 + 1e-6) + 8 * unit
        return gain + tiny, 4 * unit * norm * math.sqrt(places) + tiny

    def options(self) -> dict[str, Any]:
        return {"rule": self.rule, **super().options()}


@dataclass(frozen=True, eq=False)
class Blocks:
    """W at every frequency, with its error.

    Attributes:
        matrices: Shape ``(F, m, n)``.
        error: e.
        size: s(W').
    """

    matrices: Matrices
    error: float
    size: float


def blocks_of(operation: OrthogonalConvolution) -> Blocks:
    """The blocks of an operation, remembered for its values.

    Raises:
        UnsoundNetworkError: they cannot be computed closely enough.
    """
    size, rule = operation.map, operation.rule
    return remembered((rule, *size), operation.weight, lambda weight: _computed(weight, size, rule))


# What is kept may be met again in training, which refuses tensors of the inference mode.
@torch.inference_mode(mode=False)
@torch.no_grad()
def _computed(weight: Tensor, size: Pair, rule: str) -> Blocks:
    products.check_matrix_products(torch.device("cpu"))
    if not absolute_norm(weight) <= MAX_NORM:
        raise UnsoundNetworkError(f"expected a free kernel of norm up to {MAX_NORM:g}: scale it")
    wide = rule != "exponential" and weight.shape[0] < weight.shape[1]
    real, imaginary, error, largest = [], [], 0.0, 0.0
    for free in _free_blocks(weight, size):
        found = _RULES[rule](free.adjoint).adjoint if wide else _RULES[rule](free)
        real.append(found.real)
        imaginary.append(found.imaginary)
        error, largest = max(error, found.wrong), max(largest, found.size)
    if not error <= MAX_ERROR:
        raise UnsoundNetworkError(
            f"its blocks are known up to {error:.3g}, and {MAX_ERROR:.3g} is needed: its free "
            "kernel is too large or, if it is scaled, too small at a frequency"
        )
    return Blocks(Matrices(torch.cat(real), torch.cat(imaginary)), error, largest)


def _free_blocks(weight: Tensor, size: Pair) -> Iterator[Ball]:
    """K at every frequency, for some of them after the others."""
    rows, columns, *sides = weight.shape
    shifts = np.stack(np.divmod(np.arange(math.prod(sides)), sides[1]), axis=1)
    turns = numerators(size, shifts - [sides[0] // 2, sides[1] // 2])
    cosine, sine = map(torch.from_numpy, roots_of_unity(turns, math.prod(size)))
    flat = weight.flatten(2).permute(2, 0, 1).flatten(1)
    norm = absolute_norm(weight)
    wrong = 3 * (gamma(len(flat) + 4, UNIT) + TWIDDLE_ERROR) * norm
    chunk = max(1, CHUNK_BYTES // (16 * rows * columns))
    for re, im in zip(cosine.split(chunk), sine.split(chunk), strict=True):
        real, imaginary = ((part @ flat).view(-1, rows, columns) for part in (re, im))
        yield Ball(real, imaginary, wrong, norm)


def _exponential(free: Ball) -> Ball:
    skew = free.plus(free.adjoint, -1.0)
    exponent = exactly(skew.real, skew.imaginary)
    one, square = identity_like(exponent), exponent @ exponent
    powers = [one, exponent, square, square @ exponent, square @ square]
    # Of a normal matrix the norm of a power is that of the norm.
    norm = (powers[4].size + powers[4].wrong) ** 0.25 * (1 + 1e-9)
    halvings = max(0, math.frexp(norm)[1])
    size = math.ldexp(norm, -halvings)
    powers = [p.times(2.0 ** (-k * halvings)).known(size**k) for k, p in enumerate(powers)]

    def four_terms(first: int) -> Ball:
        found = one.times(1 / math.factorial(first))
        for k in (1, 2, 3):
            found = found.plus(powers[k], 1 / math.factorial(first + k))
        return found

    found = four_terms(12)
    for first in (8, 4, 0):
        found = four_terms(first).plus(found @ powers[4])
    found = found.known(1.0, 2 * size**16 / math.factorial(16))
    for _ in range(halvings):
        found = (found @ found).known(1.0)
    return found.known(1.0, skew.wrong)


def _cayley(free: Ball) -> Ball:
    columns = free.real.shape[2]
    upper = replace(free, real=free.real[:, :columns], imaginary=free.imaginary[:, :columns])
    lower = replace(free, real=free.real[:, columns:], imaginary=free.imaginary[:, columns:])
    one, tall = identity_like(free), lower.real.shape[1] > 0
    sum_ = one.plus(upper.plus(upper.adjoint, -1.0))
    if tall:
        sum_ = sum_.plus(lower.adjoint @ lower)
    guess = torch.linalg.inv(torch.complex(sum_.real, sum_.imaginary))
    inverse = exactly(guess.real.contiguous(), guess.imag.contiguous())
    # Both what is computed of the residual and what that is wrong by.
    left = (inverse @ sum_).plus(one, -1.0)
    inverse = inverse.known(1.0, left.size + left.wrong)
    found = inverse.times(2.0).plus(one, -1.0).known(1.0)
    if tall:
        below = (lower @ inverse).times(-2.0)
        real = torch.cat([found.real, below.real], 1)
        imaginary = torch.cat([found.imaginary, below.imaginary], 1)
        found = Ball(real, imaginary, found.wrong + below.wrong, 1.0)
    return found


def _polar(free: Ball) -> Ball:
    exact = replace(free, wrong=0.0)
    gram, columns = exact.adjoint @ exact, free.real.shape[2]
    # Of the gram matrix of K itself, whose norm is that of the computed one or nearly.
    norm = math.sqrt(gram.size + gram.wrong)
    doubt = gram.wrong + (2 * norm + free.wrong) * free.wrong
    # Sums of sums of n terms, in any order.
    length = (gram.real.square() + gram.imaginary.square()).sum(2).sum(1).sqrt()
    known = 2 * math.sqrt(columns) * doubt / length + gamma(2 * columns + 8, UNIT)
    scale = 1 / length.sqrt()
    if not float(known.max()) <= 0.5:
        raise UnsoundNetworkError(
            f"its free kernel, which is scaled, is zero at a frequency, up to {doubt:.3g}"
        )
    lost = float((2 * (scale * free.wrong + known) + 4 * UNIT * free.size * scale).max())
    scale = scale[:, None, None]
    # From here on its radius is one in the Frobenius norm.
    y = Ball(free.real * scale, free.imaginary * scale, 1.001 * math.sqrt(columns) * lost, 1.0)
    one, root = identity_like(free), math.sqrt(columns)
    for _ in range(POLAR_STEPS):
        # What a step itself is rounded by: as if it started at what is computed.
        exact = replace(y, wrong=0.0, norm=1 + y.wrong)
        rest = one.times(3.0).plus(exact.adjoint @ exact, -1.0)
        found = (exact @ rest).times(0.5)
        y = found.known(1.0, 1.5 * y.wrong + (root - 1) * found.wrong)
    return y


_RULES: dict[str, Callable[[Ball], Ball]] = {
    "exponential": _exponential,
    "cayley": _cayley,
    "polar": _polar,
}
