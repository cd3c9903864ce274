r"""Norm bounds of convolutions on short maps: symbols along one dimension, the other one kept."""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from robustcert.norms.closeness import closeness
from robustcert.norms.device import placed
from robustcert.norms.eigenvalues import (
    DIRECT_SIZE,
    ROUGH_STEPS,
    lanczos,
    random_start,
    ritz_pairs,
)
from robustcert.norms.proof import (
    Array,
    Gram,
    bound_by_gram,
    hermitian_product,
    settled,
    squares,
)
from robustcert.norms.scalars import exact, root_up, sum_of_squares_up
from robustcert.norms.symbols import Axis, Taps, blocks, norm_of_map, symbol_error, symbols
from robustcert.norms.taps import gram_error, symbol_grams
from robustcert.norms.waves import Waves

# Note [one dimension] (why symbols along one are closer)
# ~~~~~~~~~~~~~~~~~~~~
# A convolution with the symbols K(v, w) of Note [symbol] is also one along the width alone, whose
# channels are all rows of all channels: a tap is the matrix, of weights and zeros, that a column of
# the kernel makes of the rows, zero padding included. Its blocks T(w) are restrictions of the
# convolutions along the height with blocks K(v, w). So
#     ||T(w)|| <= max_v ||K(v, w)||,
# and nothing is lost at the upper and the lower border. T(w) has c_out n_out rows and c_in n
# columns, so it is used on short axes only, where the border matters, and only for frequencies w
# where some K(v, w) has no factor at what is proved of the others: mostly for one. Likewise along
# the height; both is the whole matrix. Circular axes are never cut open: their wrapped taps read
# the signal.
#
# Products. T(w) consists of the blocks K_t(w) of the rows t of the kernel, one wherever an output q
# reads an input p by t, and zeros. So
#     (T(w)^H T(w))_{p p'} = sum of K_t^H K_t' over all q that read p by t and p' by t',
# which takes one product for every pair of rows of the kernel. In float64 an entry is the same sum
# of products as that of the matrices, in one of the orders that Note [arithmetic] leaves open: with
# K_t of R rows and Q outputs, a sum of 2 R Q products in the real part. In the imaginary part, the
# R products of each of two sums, their difference and less than Q additions are at most R Q + 1
# roundings, as Note [residual] counts for m = R Q. Likewise T T^H, inputs and outputs swapped.
#
# Errors. Entries of T(w) are those of K_t(w), whose error in the Frobenius norm Note [symbol]
# bounds. With N blocks, that of T(w) is at most root N times the largest of these.

# A map is short, and worth its own matrices, up to this many points per degree of its kernel.
POINTS_PER_EXCESS = 6
# Maximum number of multiplications, and of entries, of matrices along one dimension: what the
# checker, which has no use for the band, can do as well.
MAX_WORK = 2**31
MAX_TAPS = 2**25
# The axis of a map of one pixel.
PIXEL = Axis.of(1, 1, 1, 0, 1, circular=False)


@dataclass(frozen=True)
class Lines:
    """A convolution along one dimension, whose channels are the positions of the other.

    Attributes:
        taps: Shifts (T, 2) along the dimension and taps (T, groups rows, c_out, c_in) of all rows
            of the kernel, for every residue.
        axes: Both dimensions, with a pixel in place of the one that is kept.
        kept: That one.
        groups: Number of groups.
        reads: Which column of blocks, or -1 for none, the block of a kernel's row is in for every
            row of blocks, shape (rows of blocks, rows of the kernel).
        columns: Number of columns of blocks.
        wide: Whether it is transposed: columns of blocks are then outputs, else inputs.
        waves: What vectors of symbols along both dimensions are on the columns.
    """

    taps: Taps
    axes: tuple[Axis, Axis]
    kept: Axis
    groups: int
    reads: NDArray[np.int64]
    columns: int
    wide: bool
    waves: Waves

    @staticmethod
    def of(weight: Array, axes: tuple[Axis, Axis], kept: int) -> "Lines":
        """Keep one dimension, 0 or 1, of a map with the weight (groups, c_out, c_in, kh, kw)."""
        groups, out, inner = weight.shape[:3]
        axis, other = axes[kept], axes[1 - kept]
        # The rows of a kernel that read the signal are groups of their own.
        kernel = np.moveaxis(weight, 3 + kept, 1)[:, [tap for tap, *_ in axis.taps]]
        kernel = np.expand_dims(kernel.reshape(-1, *kernel.shape[2:]), 3 + kept)
        pair = (PIXEL, other) if kept == 0 else (other, PIXEL)
        wide = out * axis.outputs < inner * other.residues * axis.inputs
        size, columns = (axis.inputs, axis.outputs) if wide else (axis.outputs, axis.inputs)
        reads = np.full((size, len(axis.taps)), -1)
        for row, (*_, outs, ins) in enumerate(axis.taps):
            reads[ins if wide else outs, row] = outs if wide else ins
        waves = Waves.of_outputs(out, columns) if wide else Waves.of_inputs(inner, axes, kept)
        return Lines(blocks(kernel, pair), pair, axis, groups, reads, columns, wide, waves)

    def names(self, points: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frequencies of the symbols of all groups at grid points (F, 2) of both dimensions."""
        points = points[:, self.place]
        # Opposite ones have conjugate blocks.
        return np.repeat(np.minimum(points, -points % self.period), self.groups)

    @property
    def place(self) -> int:
        """Dimension that is transformed."""
        return 0 if self.axes[1] is PIXEL else 1

    @property
    def period(self) -> int:
        """Number of its grid points."""
        return self.axes[self.place].points

    @property
    def width(self) -> int:
        """Number of columns of a block."""
        _, _, out, inner = self.taps[0][1].shape
        return out if self.wide else inner * len(self.taps)

    def grams(self, frequencies: list[int], some: "Estimated") -> list[tuple[Gram, torch.Tensor]]:
        """Gram matrices of the blocks of all groups, those of real blocks apart: they cost less.

        Beside them, where estimates of their largest eigenvalues start: see :meth:`start`.
        """
        real = [f for f in frequencies if 2 * f % self.period == 0]
        rest = [f for f in frequencies if 2 * f % self.period]
        return [(self.gram(few), self.starts(few, some)) for few in (real, rest) if few]

    def starts(self, frequencies: list[int], some: "Estimated") -> torch.Tensor:
        """Vectors (frequencies groups, n) near the largest of the blocks of all groups."""
        names = placed(self.names(some.points))
        group = torch.arange(len(names), dtype=torch.int64, device=names.device) % self.groups
        found = []
        for frequency, own in product(frequencies, range(self.groups)):
            among = torch.where((names == frequency) & (group == own), some.largest, -1.0)
            index = int(among.argmax())
            start = self.start(some.points[index // self.groups], some.vectors[index])
            found.append(start.real if 2 * frequency % self.period == 0 else start)
        return torch.stack(found)

    def gram(self, frequencies: list[int]) -> Gram:
        """Gram matrices of the blocks of all groups at some frequencies."""
        real, imag = self.rows(frequencies)
        products = hermitian_product(real, imag, np.ones(real.shape[1:], np.bool_), real.shape[-1])
        whole, other = (None if part is None else self._placed(part) for part in products)
        assert whole is not None
        rows, size = real.shape[-2] * len(self.reads), self.columns * self.width
        trace = float(whole.diagonal(dim1=-2, dim2=-1).sum(-1).max())
        energy = sum_of_squares_up(trace, (1 if imag is None else 2) * rows * size)
        return Gram(whole, other, rows, self._reach, energy, unit=self.width)

    def rows(self, frequencies: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Blocks of all rows of the kernel, side by side, of all groups at some frequencies.

        Returns:
            Real and, where there are any, imaginary parts, (frequencies groups, r, rows c).
        """
        points = np.zeros((len(frequencies), 2), dtype=np.int64)
        points[:, self.place] = frequencies
        chunks = [(real, imag) for _, real, imag in symbols(self.taps, self.axes, points)]
        parts = [imag for _, imag in chunks if imag is not None]
        imag = self._beside(parts) if any(part.any() for part in parts) else None
        return self._beside([real for real, _ in chunks]), imag

    def blocks_and_start(
        self, point: NDArray[np.int64], vector: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks of all rows of the kernel, as :meth:`rows`, and where estimates of them start.

        Args:
            point: A grid point (2,) of both dimensions, whose blocks are meant.
            vector: An eigenvector, (m,), of a symbol there.

        Returns:
            Real or complex, (groups, r, rows c), and (groups, n).
        """
        real, imag = self.rows([int(self.names(point[None])[0])])
        start = self.start(point, vector)
        if imag is None:
            return real, start.real.expand(len(real), -1)
        return torch.complex(real, imag), start.expand(len(real), -1)

    def quotients(self, blocks: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Largest eigenvalues (b,) of the Gram matrices of blocks, from below, without forming any.

        Arguments as :meth:`blocks_and_start` returns them.
        """
        # As in ritz_pairs, vectors are in single precision and their quotients are not.
        narrow = blocks.to(torch.complex64 if blocks.is_complex() else torch.float32)
        close = closeness()
        _, ritz = lanczos(
            lambda x: self._back(self._through(x, narrow), narrow),
            start.to(narrow),
            close.steps,
            close.gain,
        )
        ritz = ritz.to(blocks.dtype)
        return (squares(self._through(ritz, blocks)) / squares(ritz[..., None])).nan_to_num(0.0)

    def start(self, point: NDArray[np.int64], vector: torch.Tensor) -> torch.Tensor:
        """A complex vector (n,) near the largest of a block: a symbol's wave, cut off softly.

        A random one where symbols have other columns. Arguments as for :meth:`blocks_and_start`.
        """
        if len(vector) != self.waves.entries.max() + 1:
            return random_start(self.columns * self.width).to(torch.complex128)
        turn = 2 * math.pi * float(point[1 - self.place]) / self.kept.points
        wave = torch.polar(placed(self.waves.sizes), placed(turn * self.waves.turns))
        whole = (wave[:, None] * vector[placed(self.waves.entries)]).flatten()
        return whole.conj() if 2 * point[self.place] > self.period else whole

    def _through(self, x: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """Rows of blocks applied to vectors (b, n), shape (b, rows of blocks, r)."""
        units = x.unflatten(1, (self.columns, -1))
        # What is not read is zero.
        units = torch.nn.functional.pad(units, (0, 0, 1, 0))
        return units[:, self._read].flatten(2) @ blocks.mT

    def _back(self, y: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """The adjoint of that."""
        rows = self.reads.shape[1]
        terms = (y @ blocks.conj()).unflatten(2, (rows, -1)).flatten(1, 2)
        units = terms.new_zeros(len(y), self.columns + 1, terms.shape[2])
        return units.index_add(1, self._read.flatten(), terms)[:, 1:].flatten(1)

    @cached_property
    def _read(self) -> torch.Tensor:
        return placed(self.reads + 1)

    def _beside(self, chunks: list[Array]) -> torch.Tensor:
        """Blocks of all rows of the kernel side by side, of chunks (f groups rows, r, c)."""
        out, inner = self.taps[0][1].shape[2:]
        blocks = placed(np.concatenate(chunks))
        # What comes has r >= c.
        if (out < inner * len(self.taps)) != self.wide:
            blocks = blocks.mT
        return blocks.unflatten(0, (-1, self.reads.shape[1])).transpose(1, 2).flatten(2)

    def _placed(self, products: torch.Tensor) -> torch.Tensor:
        """Sums over all rows of blocks of what every two of their blocks make."""
        kernel_rows, columns, width = self.reads.shape[1], self.columns, self.width
        own = products.unflatten(2, (kernel_rows, width)).unflatten(1, (kernel_rows, width))
        whole = products.new_zeros(len(products), columns, width, columns, width)
        # Away from the ends the same are added up everywhere.
        for pairs, places in _meetings(tuple(map(tuple, self.reads.tolist()))):
            (first, second), *others = pairs
            block = sum((own[:, i, :, j] for i, j in others), own[:, first, :, second])
            for left, right in places:
                whole[:, left, :, right] = block
        return whole.flatten(3).flatten(1, 2)

    @property
    def _reach(self) -> int:
        """Largest distance of two columns that share a row, of blocks."""
        last = self.reads.max(1)
        first = np.where(self.reads >= 0, self.reads, last[:, None]).min(1)
        return int((last - first).max(initial=0))

    @property
    def error(self) -> Fraction:
        """Bound of the rounding error of every block in norm."""
        return exact(root_up(Fraction(int((self.reads >= 0).sum())))) * symbol_error(self.taps)


@lru_cache
def _meetings(
    reads: tuple[tuple[int, ...], ...],
) -> tuple[tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]], ...]:
    """Pairs of a kernel's rows that meet in a block, with all blocks, row and column, of each.

    Args:
        reads: Those of :class:`Lines`, which every convolution of such a map and kernel has.
    """
    columns = np.array(reads)
    terms: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for first, second in product(range(columns.shape[1]), repeat=2):
        both = columns[:, [first, second]]
        for left, right in both[(both >= 0).all(1)].tolist():
            terms.setdefault((left, right), []).append((first, second))
    places: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
    for place, pairs in terms.items():
        places.setdefault(tuple(pairs), []).append(place)
    # What is remembered, and proved with, nobody may change.
    return tuple((pairs, tuple(blocks)) for pairs, blocks in places.items())


@dataclass(frozen=True)
class Estimated:
    """Gram matrices of symbols along both dimensions, with estimates of their eigenvalues.

    Attributes:
        points: Grid points (F, 2).
        gram: Gram matrices of all groups, (F groups, n, n).
        largest: Estimates from below of their largest eigenvalues.
        vectors: Their vectors, (F groups, n).
    """

    points: NDArray[np.int64]
    gram: Gram
    largest: torch.Tensor
    vectors: torch.Tensor

    @staticmethod
    def of(points: NDArray[np.int64], gram: Gram) -> "Estimated":
        """Estimate roughly."""
        return Estimated(points, gram, *ritz_pairs(gram.tensor(), ROUGH_STEPS))


@dataclass(frozen=True)
class Begun:
    """What is known of the blocks along one dimension before anything is proved.

    Attributes:
        lines: The blocks.
        frequency: That of the largest symbol, whose block seems to be the largest.
        estimate: Estimate from below of the largest eigenvalue of its Gram matrices.
    """

    lines: Lines
    frequency: int
    estimate: float

    @staticmethod
    def along(several: list[Lines], both: list[Estimated]) -> "list[Begun]":
        """Begin with the largest symbol, along each dimension."""
        some = max(both, key=lambda some: float(some.largest.max()))
        index = int(some.largest.argmax())
        point = some.points[index // several[0].groups]
        blocks, starts = zip(
            *(one.blocks_and_start(point, some.vectors[index]) for one in several), strict=True
        )
        if _are_alike(several, blocks):
            # At once: calls take most of the time of a step.
            found = several[0].quotients(torch.cat(blocks), torch.cat(starts)).chunk(len(several))
        else:
            found = tuple(map(Lines.quotients, several, blocks, starts))
        names = [int(one.names(some.points)[index]) for one in several]
        estimates = [float(quotients.max()) for quotients in found]
        return list(map(Begun, several, names, estimates))

    def bound(self, both: list[Estimated]) -> Fraction:
        """Bound of the squared norms of the blocks at all frequencies."""
        gram = self.lines.gram([self.frequency])
        # Eigenvalues of small matrices are computed.
        estimate = self.estimate if gram.real.shape[-1] > DIRECT_SIZE else None
        bound = bound_by_gram(gram, estimate=estimate)
        for some in both:
            names = self.lines.names(some.points)
            rest = names != self.frequency
            found, done = settled(some.gram[placed(rest)], float(bound))
            bound = max(bound, found)
            left = sorted(set(names[rest][~done.cpu().numpy()].tolist()))
            for gram, start in self.lines.grams(left, some):
                bound = max(bound, bound_by_gram(gram, float(bound), start=start))
        return bound


def _are_alike(several: list[Lines], blocks: tuple[torch.Tensor, ...]) -> bool:
    """Whether blocks of several lines are of one kind, and read alike."""
    first, *others = several
    return all(
        block.shape == blocks[0].shape
        and block.dtype == blocks[0].dtype
        and one.columns == first.columns
        and np.array_equal(one.reads, first.reads)
        for one, block in zip(others, blocks[1:], strict=True)
    )


def mixed_norm_bound(weight: Array, axes: tuple[Axis, Axis]) -> Fraction | None:
    """Bound of the norm by symbols in one dimension only, or None where that is dear or idle."""
    kept = [k for k in (0, 1) if _is_worth_unrolling(weight, axes, k)]
    if not kept:
        return None
    taps = blocks(weight, axes)
    both = [Estimated.of(points, gram) for points, gram in symbol_grams(taps, axes)]
    begun = Begun.along([Lines.of(weight, axes, k) for k in kept], both)
    least: Fraction | None = None
    for one in sorted(begun, key=lambda one: one.estimate):
        # An estimate from below tells that nothing is to be won along the other dimension.
        if least is None or one.estimate * (1 + closeness().worth) < least:
            along = one.bound(both)
            least = along if least is None else min(least, along)
    assert least is not None
    # Symbols of both kinds have their errors.
    error = max(gram_error(taps, axes), *(one.lines.error for one in begun))
    return norm_of_map(least, error, axes)


def _is_worth_unrolling(weight: Array, axes: tuple[Axis, Axis], kept: int) -> bool:
    groups, out, inner = weight.shape[:3]
    axis, other = axes[kept], axes[1 - kept]
    small, large = sorted((out * axis.outputs, inner * axis.inputs * other.residues))
    work = other.points * groups * small**2 * large
    taps = weight.size * axis.outputs * axis.inputs // weight.shape[3 + kept]
    # On longer axes the symbols are close already.
    short = axis.points <= POINTS_PER_EXCESS * axis.degree
    return short and work <= MAX_WORK and taps <= MAX_TAPS
