r"""The proof behind every norm bound: an untrusted factor, its residual, exact scalars."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.errors import NormBoundError
from robustcert.norms.closeness import closeness
from robustcert.norms.device import placed
from robustcert.norms.eigenvalues import DIRECT_SIZE, largest_eigenvalue
from robustcert.norms.scalars import TINY, UNIT, exact, gamma, root_up, round_up, sum_of_squares_up

# Note [arithmetic] (what is assumed of float64)
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Let u = 2^-53 and gamma_k = k u / (1 - k u). The proofs assume of float64, on the CPU and on the
# device that norms/device.py names, that every entry of a matrix product, and every sum of squares,
# is a sum of k products evaluated in some order, each operation rounded to nearest, fused or not.
# Its error is then at most gamma_k times the sum of the products' magnitudes (Higham, Accuracy and
# Stability of Numerical Algorithms, ch. 3 and 4). Every classical BLAS qualifies; Strassen, TF32,
# emulated float64 and products of complex numbers by three real ones do not, so complex products
# are spelled out in real ones. Roots are rounded to nearest. Cosines, sines and what is rounded up
# or exact are the CPU's wherever the products are; factors and estimates may be anybody's.
#
# Underflow: weights are scaled by a power of two until the largest lies in [1/2, 1). Those below
# 2^-300 become zero, and the change is added to the bound; float32 weights span 2^277 and never
# meet this. Entries of a factor below 2^-300 become zero too, which is free because the factor is
# arbitrary. All products are then zero or at least 2^-900. Only squares of a residual can be
# smaller: they are charged 2^-1022 each, so that flushing denormals to zero is covered as well.
#
# Note [residual] (why the bound holds)
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Lemma. For any matrices A and R of n columns and any t, let E = t I - A^H A - R^H R. Then
# |A x|^2 = t |x|^2 - |R x|^2 - x^H E x, hence ||A||^2 <= t + ||E||. R and t need no property at
# all: they come from an estimate and a Cholesky factorisation, and only E is evaluated with care.
#
# In float64, let A have m rows, phi = ||A||_F^2, G = fl(A^H A), S = fl(t I - G); R is n x n and
# F = R^H. The columns of S - F F^H are evaluated block by block, by H1 = fl(F F^H) over the columns
# of F before the block, P = fl(S - H1), H2 = fl(F F^H) over the block's own, and D = fl(P - H2); P
# is what a Cholesky factorisation needs as well. With H = H1 + H2,
#     E = (t I - G - S) + (S - H1 - P) + (P - H2 - D) + D + (G - A^H A) + (H - F F^H).
#  * S differs from t I - G on the diagonal only, by at most u |t - G_ii| <= u |t| + u G_ii.
#  * |S - H1 - P| <= u |P| and |P - H2 - D| <= u |D|, and |P| <= (1 + u) |D| + |H2|, entrywise.
#  * Real A: || G - A'A || <= gamma_m || |A|'|A| ||_F <= gamma_m phi, likewise gamma_n ||F||_F^2.
#  * Complex A = X + iY: A^H A = (X'X + Y'Y) + i (T - T') with T = X'Y. The real part is one
#    product of 2m terms, wrong by gamma_2m phi in norm; the imaginary part is wrong by
#    gamma_{m+1} (|X|'|Y| + |Y|'|X|), hence by gamma_{m+1} 2 ||X||_F ||Y||_F <= gamma_{m+1} phi in
#    norm. Together at most 2 gamma_2m phi, likewise 2 gamma_2n ||F||_F^2, where the imaginary part
#    is one product of 2n terms too.
#  * Where no row of A has entries in units of columns more than b units apart, G and S are exactly
#    zero beyond b. The columns of a panel are taken to reach b units below its last, F is zero
#    further down, and so is D, where each entry is a sum of zeros. Products leave out columns of F
#    that do not reach a row. A unit is one column, or all channels of a position.
#  * F is a lower triangle, whose zeros only shorten sums. E is Hermitian: D is computed from its
#    diagonal blocks down, and the entries above are bounded by their mirror images.
# G_ii <= (1 + gamma) phi, so u G_ii is absorbed by one more unit in the index of gamma, and
# u ||H2||_F <= u c (1 + gamma) ||F||_F^2 by two more. With c, k = 1, m for real and 2, 2m for
# complex matrices (l in place of k for F, where m is n),
#     ||A||^2 <= t + u |t| + ||D||_F / (1 - u)^2 + c gamma_{k+1} phi + c gamma_{l+2} ||F||_F^2.
# The right-hand side is evaluated in exact rationals. phi is the trace of A^H A: the diagonal of G,
# added up, is a sum of m n squares in some order.

Array = NDArray[np.float64]

# What an eigenvalue is raised by that was computed rather than estimated, relative to it.
RAISE = 1e-9
# Maximum and minimum number of columns of a Gram matrix that are formed, or factorised, at once;
# of many matrices at once, whose time is that of products and not of calls, the minimum is less.
BLOCK, LEAST_BLOCK, LEAST_OF_MANY, MANY = 96, 32, 24, 16


@dataclass(frozen=True)
class Scaled:
    """A weight as ``2**exponent * (values + rest)``, all entries of ``values`` below 1.

    ``values`` is an exact float64 copy; ``tail`` is at least the sum of the magnitudes of ``rest``.
    """

    values: Array
    exponent: int
    tail: Fraction

    def unscale(self, norm: Fraction) -> float:
        """Bound of the weight's norm from a bound ``norm`` of the norm of ``values``."""
        return round_up((norm + self.tail) * Fraction(2) ** self.exponent)


def scaled(weight: Tensor | NDArray[Any]) -> Scaled:
    """Scale ``weight`` exactly; see Note [arithmetic]. The exponent of a zero weight is 0."""
    if isinstance(weight, np.ndarray):
        weight = torch.from_numpy(weight.copy())
    tensor = weight.detach().cpu().contiguous()
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}.get(tensor.element_size())
    if not tensor.is_floating_point() or integer is None:
        raise ValueError(f"Expected weights in a floating-point dtype but got {tensor.dtype}")
    if tensor.numel() == 0:
        raise ValueError(f"Expected a weight with entries but got shape {tuple(tensor.shape)}")
    values = tensor.to(torch.float64)
    low, high = torch.aminmax(values)
    peak = max(-float(low), float(high), float(high - high))  # NaN and infinity end in NaN
    if not math.isfinite(peak):
        raise NormBoundError(f"A weight of shape {tuple(tensor.shape)} contains NaN or infinity")
    # A thread that treats denormals as zero would convert them, unlike their bits, to zero.
    nonzero = tensor.view(integer) & torch.iinfo(integer).max
    if nonzero.count_nonzero() != values.count_nonzero():
        raise NormBoundError("This process flushes denormal weights to zero; no bound holds then")
    if peak == 0:
        return Scaled(values.numpy(), 0, Fraction(0))
    exponent = math.frexp(peak)[1]
    if abs(exponent) > 900:
        raise NormBoundError(f"The largest weight, {peak}, lies outside the range 2**-900..2**900")
    # In place, but not in the caller's weight.
    values = torch.mul(values, 2.0**-exponent, out=None if values is tensor else values)
    tail = Fraction(0)
    if tensor.dtype == torch.float64:
        kept = torch.nn.functional.hardshrink(values, TINY)
        tail = int((kept != values).sum()) * Fraction(TINY)
        values = kept
    return Scaled(values.numpy(), exponent, tail)


def energy_up(*parts: Array) -> Fraction:
    """Largest squared Frobenius norm in a batch (*, m, n), rounded up; parts are summed."""
    flat = [part.reshape(part.shape[0], -1) for part in parts]
    total = sum(np.einsum("bi,bi->b", part, part) for part in flat)
    return sum_of_squares_up(float(np.max(total)), len(flat) * flat[0].shape[1])


@dataclass(frozen=True)
class Panel:
    """Columns ``start`` to ``stop`` of a matrix that is zero outside a band.

    Attributes:
        start: First column, and first row on or below the diagonal.
        stop: Column after the last.
        end: Row after the last that these columns reach.
    """

    start: int
    stop: int
    end: int


def panels(size: int, band: int, unit: int = 1, count: int = 1) -> Iterator[Panel]:
    """All columns of a matrix that is zero where columns and rows are more than ``band`` units off.

    A unit is that many neighbours. There are ``BLOCK`` columns in a panel, less in a narrow band or
    a small matrix, still less where ``count`` matrices are many; whole units if they fit in.
    """
    reach = band * unit
    # Of a matrix that is one panel, nothing above the diagonal would be left out.
    parts, least = (4, LEAST_OF_MANY) if count >= MANY else (2, LEAST_BLOCK)
    some = size // parts if 2 * reach >= size else (reach + unit) // 3
    width = min(BLOCK, max(least, some))
    if unit <= width:
        width = -(-width // unit) * unit
    for start in range(0, size, width):
        stop = min(start + width, size)
        end = min(size, ((stop - 1) // unit + band + 1) * unit)
        yield Panel(start, stop, end)


def bandwidth(reads: NDArray[np.bool_]) -> int:
    """Largest distance of two columns that share a row, (m, n) telling which rows read which."""
    first, last = reads.argmax(1), reads.shape[1] - 1 - reads[:, ::-1].argmax(1)
    return int((last - first)[reads.any(1)].max(initial=0))


def squares(matrices: Tensor) -> Tensor:
    """Sums of squares (b,) of a batch (b, m, n)."""
    return torch.linalg.vector_norm(matrices, dim=(-2, -1)).square()


def hermitian_product(
    real: Tensor, imag: Tensor | None, reads: NDArray[np.bool_], band: int
) -> tuple[Tensor, Tensor | None]:
    """``A^H A`` of a batch (b, m, n) of matrices ``real + i imag``, in real products only.

    ``reads``, (m, n), is False where all of them are zero, and ``band`` is its bandwidth.
    """
    size = real.shape[-1]
    symmetric = real.new_zeros(len(real), size, size)
    skew = None if imag is None else torch.zeros_like(symmetric)
    for panel in panels(size, band):
        rows = np.flatnonzero(reads[:, panel.start : panel.stop].any(1))
        if not len(rows):
            continue
        used = slice(int(rows[0]), int(rows[-1]) + 1)
        parts = [
            part[:, used, panel.start : panel.end] for part in (real, imag) if part is not None
        ]
        own = [part[..., : panel.stop - panel.start] for part in parts]
        # From the diagonal down: half of the product is enough.
        _fill(symmetric, panel, _joined(parts).mT @ _joined(own), 1)
        if skew is not None:
            _fill(skew, panel, parts[0].mT @ own[1] - (own[0].mT @ parts[1]).mT, -1)
    return symmetric, skew


def _joined(parts: list[Tensor]) -> Tensor:
    # One part is not copied.
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _fill(matrices: Tensor, panel: Panel, below: Tensor, sign: int) -> None:
    # What stands in the panel's columns, and its mirror image above the diagonal.
    start, stop, end = panel.start, panel.stop, panel.end
    matrices[:, start:stop, start:end] = sign * below.mT
    matrices[:, start:end, start:stop] = below


@dataclass(frozen=True)
class Gram:
    """``A^H A`` of a batch of matrices with what the error analysis needs to know of ``A``.

    Attributes:
        real, imag: Its parts, (b, n, n).
        rows: Number of products that are charged for an entry.
        band: Largest distance, in units, of columns of A that share a row.
        energy: Bound of the largest squared Frobenius norm of A.
        unit: Number of neighbouring columns that count as one there.
    """

    real: Tensor
    imag: Tensor | None
    rows: int
    band: int
    energy: Fraction
    unit: int = 1

    @staticmethod
    def of(real: Array, imag: Array | None = None) -> "Gram":
        """Gram matrices of a batch (b, m, n)."""
        reads = (real != 0).any(0) if imag is None else ((real != 0) | (imag != 0)).any(0)
        other = None if imag is None else placed(imag)
        band = bandwidth(reads)
        product = hermitian_product(placed(real), other, reads, band)
        trace = float(product[0].diagonal(dim1=-2, dim2=-1).sum(-1).max())
        energy = sum_of_squares_up(trace, (1 if imag is None else 2) * real[0].size)
        return Gram(*product, real.shape[-2], band, energy)

    def __getitem__(self, index: Any) -> "Gram":
        imag = None if self.imag is None else self.imag[index]
        return replace(self, real=self.real[index], imag=imag)

    @property
    def parts(self) -> list[Tensor]:
        """The real part, and the imaginary one if there is any."""
        return [self.real] if self.imag is None else [self.real, self.imag]

    def tensor(self) -> Tensor:
        """The matrices as one real or complex tensor."""
        return whole(self.parts)


def whole(parts: list[Tensor]) -> Tensor:
    """One real or complex tensor of its parts."""
    return torch.complex(*parts) if len(parts) == 2 else parts[0]


@dataclass(frozen=True)
class Residual:
    """What lower triangles F leave of ``t I - A^H A``, for a batch.

    Attributes:
        found: Whether F is a factor that was asked for and found, (b,).
        energy: Computed squares of the Frobenius norm of F, (b,).
        rest: The same of the residual ``t I - A^H A - F F^H``.
        terms: 1 for real, 2 for complex matrices.
        size: Number of columns.
    """

    found: Tensor
    energy: Tensor
    rest: Tensor
    terms: int
    size: int

    def __getitem__(self, index: Tensor) -> "Residual":
        return replace(
            self, found=self.found[index], energy=self.energy[index], rest=self.rest[index]
        )


def factorise(gram: Gram, t: float, factor: Tensor | None = None) -> Residual:
    """Factorise ``t I - A^H A`` by Cholesky and find what is left of it: Note [residual].

    Block by block, because products are faster than the library's factorisation of large matrices.

    Args:
        gram: Gram matrices (b, n, n).
        t: A guess of the squared norm.
        factor: Take the lower triangles of these matrices (b, n, n) instead of Cholesky factors.
    """
    terms, size = len(gram.parts), gram.real.shape[-1]
    # (X + iY)(X' + iY')^H has the real part [X Y][X' Y']' and the imaginary part [Y -X][X' Y']':
    # what is to the left in both, panel by panel, of real parts alone [X]. What is above a panel's
    # diagonal, or below what it reaches, is not read.
    factors = [gram.real.new_empty(len(gram.real), size, terms * size) for _ in gram.parts]
    energy = gram.real.new_zeros(len(gram.real))
    rest, found = energy.clone(), torch.ones_like(energy, dtype=torch.bool)
    before: list[Panel] = []
    band = gram.band if factor is None else size
    for panel in panels(size, band, gram.unit, len(energy)):
        start, stop, end = panel.start, panel.stop, panel.end
        width = stop - start
        left = [-part[:, start:end, start:stop] for part in gram.parts]
        left[0].diagonal(dim1=-2, dim2=-1)[:, :width] += t
        _subtract_products(left, factors, before, panel)
        if factor is None:
            values, failed = _cholesky_panel(whole(left))
            found &= failed == 0
            if not found.any():
                break
        else:
            values = factor[:, start:, start:stop].tril()
        own = [part[:, start:end, terms * start : terms * stop] for part in factors]
        _lay_out(own, values)
        energy += squares(own[0])
        _subtract_products(left, factors, [panel], panel)
        for part in left:
            # Blocks below the diagonal stand for those above as well.
            rest += squares(part[:, :width]) + 2 * squares(part[:, width:])
        before = [known for known in _joined_panels([*before, panel]) if known.end > stop]
    return Residual(found, energy, rest, terms, size)


def _lay_out(own: list[Tensor], values: Tensor) -> None:
    """Columns of a factor as products read them: [X Y] and [Y -X], of real ones [X]."""
    width = values.shape[-1]
    if not values.is_complex():
        own[0][...] = torch.nn.functional.hardshrink(values, TINY)
        return
    real, imag = (torch.nn.functional.hardshrink(part, TINY) for part in (values.real, values.imag))
    own[0][..., :width], own[0][..., width:] = real, imag
    own[1][..., :width] = imag
    torch.neg(real, out=own[1][..., width:])


def _joined_panels(panels: list[Panel]) -> list[Panel]:
    """Neighbours that reach equally far as one."""
    *others, last = panels
    if others and others[-1].end == last.end:
        others[-1] = replace(others[-1], stop=last.stop)
        return others
    return panels


def _subtract_products(
    left: list[Tensor], factors: list[Tensor], columns: list[Panel], panel: Panel
) -> None:
    """Subtract what some columns of F make of the rows of a panel, as parts of a complex product.

    Added up before: Note [residual] has one rounding for all of it.
    """
    for part, rows in zip(left, factors, strict=True):
        total: Tensor | None = None
        # The last reach furthest.
        for known in reversed(columns):
            own = slice(len(factors) * known.start, len(factors) * known.stop)
            right = factors[0][:, panel.start : min(panel.stop, known.end), own].mT
            product = rows[:, panel.start : known.end, own] @ right
            if total is None:
                total = product
            else:
                total[:, : product.shape[1], : product.shape[2]] += product
        if total is not None:
            part[:, : total.shape[1], : total.shape[2]] -= total


def _cholesky_panel(panel: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of a Cholesky factor from those of what is left to factorise; 0 where found."""
    width = panel.shape[-1]
    corner, failed = torch.linalg.cholesky_ex(panel[:, :width])
    if width == panel.shape[1]:
        return corner, failed
    below = torch.linalg.solve_triangular(corner.mH, panel[:, width:], upper=True, left=False)
    return torch.cat((corner, below), 1), failed


def charge(gram: Gram, t: float, residual: Residual) -> Fraction:
    r"""Bound the largest squared norm in a batch by the residual of any factors.

    .. math:: \lVert A \rVert^2 \le t + \lVert t I - A^H A - F F^H \rVert

    with all rounding included: Note [residual].

    Args:
        gram: Gram matrices (b, n, n).
        t: As given to :func:`factorise`.
        residual: What that returned.
    """
    terms, size = residual.terms, residual.size
    rest = sum_of_squares_up(float(residual.rest.max()), terms * size**2)
    energy = sum_of_squares_up(float(residual.energy.max()), terms * size**2)
    return (
        exact(t)
        + abs(exact(t)) * UNIT
        + exact(root_up(rest)) / (1 - UNIT) ** 2
        + terms * gamma(terms * gram.rows + 1) * gram.energy
        + terms * gamma(terms * size + 2) * energy
    )


def residual_bound(gram: Gram, t: float, factor: Tensor) -> Fraction:
    """Bound the largest squared norm in a batch, whatever ``t`` and ``factor`` are.

    Arguments as for :func:`factorise`.
    """
    return charge(gram, t, factorise(gram, t, factor))


def squared_norm_bound(real: Array, imag: Array | None = None, floor: float = 0.0) -> Fraction:
    """Bound the largest squared spectral norm in a batch of matrices ``real + i imag``.

    Args:
        real: Real parts, (b, m, n), entries zero or between 2**-407 and 2**16 in magnitude.
        imag: Imaginary parts, or None.
        floor: A bound below this is of no use to the caller and need not be found.

    Raises:
        NormBoundError: if the matrices are not finite or no factorisation succeeds.
    """
    return bound_by_gram(Gram.of(real, imag), floor)


def bound_by_gram(
    gram: Gram, floor: float = 0.0, estimate: float | None = None, start: Tensor | None = None
) -> Fraction:
    """The same from Gram matrices.

    Args:
        gram: Gram matrices (b, n, n).
        floor: As for :func:`squared_norm_bound`.
        estimate: One of their largest eigenvalue, if it is known.
        start: Vectors (b, n) near their largest, if they are known, to begin estimates with.
    """
    size = gram.real.shape[-1]
    # A direct eigenvalue is good to rounding, a Lanczos estimate is not.
    close = closeness()
    ladder = (RAISE, *close.raises) if size <= DIRECT_SIZE else close.raises
    # The largest squared norm is at least energy / n: this only keeps t from being zero.
    least = max(floor, float(gram.energy) * 2.0**-60)
    bound = Fraction(0)
    if floor > 0:
        # What is below the floor needs no estimate.
        bound, done = settled(gram, floor)
        gram, start = gram[~done], None if start is None else start[~done]
    failures = 0
    while len(gram.real) and failures < len(ladder):
        steps = min(close.steps << failures, 8 * close.steps)
        if estimate is None:
            gain = 0.0 if failures else close.gain
            estimate = largest_eigenvalue(gram.tensor(), steps, gain, start)
        found, done = settled(gram, max(least, estimate * (1 + ladder[failures])))
        bound = max(bound, found)
        # Where some are settled, another matrix is larger than the one that was estimated.
        failures += not done.any()
        gram, estimate, start = gram[~done], None, None
    if len(gram.real):
        raise NormBoundError(f"No Cholesky factor found for a matrix of {gram.rows} x {size}")
    return bound


def settled(gram: Gram, t: float) -> tuple[Fraction, Tensor]:
    """Bound of the squared norms of those that have a factor at ``t``, 0 without any, and which."""
    residual = factorise(gram, t)
    done = residual.found
    if not done.any():
        return Fraction(0), done
    return charge(gram, t, residual[done]), done
