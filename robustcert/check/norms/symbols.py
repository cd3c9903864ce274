r"""Proved upper bounds on the norms of convolutions, from the blocks of their Fourier transform.

Write the position that output i reads by tap k as :math:`s i + d k - p = s (i + a) +
\rho` with :math:`0 \le \rho < s`: on the s subsampled signals :math:`x_\rho[q] = x[s q + \rho]`,
taps are shifts by a. Taps that read only padding are dropped. Put signals, :math:`\lceil n / s
\rceil` long, and outputs on a circle of M positions. An output i < n' reads the position i + a; it
reads what the padded convolution reads if no negative position wraps onto the signal, :math:`M + a
\ge \lceil n / s \rceil`, and no position passes the end, :math:`n' + a \le M`. With M so large
the convolution is a part of a circular one, which the Fourier transform splits into the blocks
:math:`K(\omega) = \sum_a K_a e^{i \omega a}`, :math:`\omega \in 2 \pi \mathbb{Z} / M`: the norm is
at most the largest norm of a block. Two dimensions are two independent indices, groups are separate
maps, and the block at :math:`-\omega` is conjugate to that at :math:`\omega`.

For a large M there is a coarser grid. :math:`q = |K(\omega) v|^2 \ge 0` is a trigonometric
polynomial in each variable, of degree D, the largest difference of shifts. With c = max q / 2, the
inequality of Bernstein and Szegő for q - c gives :math:`q(\omega_0 + \delta) \ge c (1 + \cos D
\delta)` around a maximum, hence :math:`\max q \le \max_{grid} q / \cos^2 (\pi D / 2 N)` for N > D
equidistant points.

A complex block X + iY has the norm of the real matrix [[X, -Y], [Y, X]], to which the dense proof
applies. Cosines come from balls and are within 2^-52, so that phases, products of two, are within
10 units of 2^-53, and T of them times taps within 10 + T more, relative to :math:`\sum_a |K_a|`.

A convolution on a circle whose length the stride divides has those blocks with the circle's length
over the stride for M.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import UNIT
from robustcert.check.effort import UNLIMITED, Effort, NotTriedError
from robustcert.check.fixed_point import Floats, flint
from robustcert.check.network.operation import Operation, Window
from robustcert.check.norms.cost import proof_seconds, proof_work
from robustcert.check.norms.dense import Proof, estimate, frobenius, proof_bytes, proved
from robustcert.check.norms.grams import Grams, is_by_taps, taps_bytes, taps_work
from robustcert.check.norms.scalars import UNDERFLOW, root_down, root_up
from robustcert.check.processes import Answer, answers
from robustcert.check.reader import Array

# Maximum length of a circle on which every frequency is evaluated; longer ones get a coarser grid.
MAX_FULL_GRID = 256
# Maximum numbers of frequencies, and of taps that read the input.
MAX_POINTS, MAX_TAPS = 2**20, 2**14
# Least number of operations of a proof that is divided over processes, roughly.
MIN_SHARED_WORK = 2.0**40
# Maximum number of values of the symbols that are computed at once.
MAX_SYMBOL_VALUES = 2**19


@dataclass(frozen=True)
class Axis:
    """One dimension of a convolution.

    Attributes:
        taps: Taps that read the input, as (kernel index, shift a, residue rho).
        inputs: Number of input positions.
        outputs: Number of output positions.
        points: Number of frequencies of the grid.
        inverse_loss: Lower bound of the factor cos^2 of a coarser grid; 1 on the full one.
    """

    taps: list[tuple[int, int, int]]
    inputs: int
    outputs: int
    points: int
    inverse_loss: Fraction

    @staticmethod
    def of(
        kernel: int, size: int, outputs: int, stride: int, padding: int, dilation: int
    ) -> "Axis":
        """One dimension of a zero-padded convolution."""
        taps = []
        for k in range(kernel):
            offset = dilation * k - padding
            first = max(0, -(offset // stride))  # the least i with stride i + offset >= 0
            if first < outputs and stride * first + offset < size:
                taps.append((k, offset // stride, offset % stride))
        shifts = [a for _, a, _ in taps] or [0]
        signal = -(-size // stride)
        circle = max(signal - min([*shifts, 0]), outputs + max([*shifts, 0]))
        degree = max(shifts) - min(shifts)
        if degree == 0:
            return Axis(taps, size, outputs, 1, Fraction(1))
        coarse = 32 * degree
        if circle <= max(MAX_FULL_GRID, coarse):
            return Axis(taps, size, outputs, circle, Fraction(1))
        angle = Fraction(355, 113) / 64  # an upper bound of pi D / 2 N
        return Axis(taps, size, outputs, coarse, (1 - angle**2 / 2) ** 2)


# A dimension of a single position.
SINGLE = Axis([(0, 0, 0)], 1, 1, 1, Fraction(1))


def axes_of(operation: Operation) -> tuple[Axis, Axis]:
    """Both dimensions of a zero-padded convolution."""
    window = Window.of(operation)
    rows, columns = (
        Axis.of(
            window.kernel[d],
            operation.input_shape[1 + d],
            operation.output_shape[1 + d],
            window.stride[d],
            window.padding[d],
            window.dilation[d],
        )
        for d in (0, 1)
    )
    return rows, columns


def circles_of(operation: Operation) -> tuple[Axis, Axis]:
    """Both dimensions of a convolution on a circle whose length the stride divides."""
    options, (height, width) = operation.options, operation.tensors["weight"].shape[2:]

    def axis(period: int, d: int) -> Axis:
        stride, padding = options["stride"][d], options["padding"][d]
        offsets = [(k, k - padding) for k in range(period)]
        taps = [(k, offset // stride, offset % stride) for k, offset in offsets]
        outputs = operation.output_shape[1 + d]
        return Axis(taps, operation.input_shape[1 + d], outputs, period // stride, Fraction(1))

    return axis(height, 0), axis(width, 1)


def prove_symbols(
    operation: Operation, bound: Fraction, rows: Axis, columns: Axis, effort: Effort = UNLIMITED
) -> Proof:
    """Prove a bound on the norm of a convolution by the norms of its symbols.

    Raises:
        NotTriedError: there is no time to try all frequencies.
    """
    work = symbol_work(operation, rows, columns)
    if math.isinf(work):
        return Proof()
    symbols = Symbols.of(operation, rows, columns)
    loss = symbol_error(operation, rows, columns)
    # The bound at the frequencies of the grid that implies `bound` at all frequencies.
    limit = bound * root_down(rows.inverse_loss * columns.inverse_loss)
    grams = _grams(operation, symbols, limit, rows, columns)
    function = partial(_obeys, symbols, limit, loss, grams=grams)
    if all(_answers(function, symbols.batches, work, effort)):
        residual = "exact residual" if grams is None else "residual with its rounding"
        return Proof(f"symbols on a {rows.points}x{columns.points} grid, {residual}")
    return Proof()


@dataclass(frozen=True)
class Along:
    """A convolution with the positions of one dimension as channels, transformed along the other.

    Attributes:
        operation: The convolution, with the larger weight.
        axes: Its dimensions, one of them :data:`SINGLE`.
        dimension: The other, 0 or 1.
    """

    operation: Operation
    axes: tuple[Axis, Axis]
    dimension: int


def prove_along(
    operation: Operation, along: Along, bound: Fraction, effort: Effort = UNLIMITED
) -> Proof:
    """Prove a bound on the norm of a convolution by larger blocks, of one dimension's transform.

    A block is tried only at frequencies where those of both dimensions' transform, of which it is a
    part, are not proved to obey the bound.

    Raises:
        NotTriedError: there is no time to try all frequencies.
    """
    axes = axes_of(operation)
    small, large = Symbols.of(operation, *axes), Symbols.of(along.operation, *along.axes)
    losses = symbol_error(operation, *axes), symbol_error(along.operation, *along.axes)
    limit = bound * root_down(axes[0].inverse_loss * axes[1].inverse_loss)
    function = partial(_obeys_along, small, large, along.dimension, limit, losses)
    work = symbol_work(along.operation, *along.axes)
    if all(_answers(function, len(large.points), work, effort)):
        points = "x".join(str(axis.points) for axis in along.axes)
        return Proof(f"symbols on a {points} grid, exact residual")
    return Proof()


def _obeys_along(
    small: "Symbols",
    large: "Symbols",
    dimension: int,
    limit: Fraction,
    losses: tuple[Fraction, Fraction],
    number: int,
) -> bool:
    frequency, circle = large.points[number, dimension], large.circles[dimension].shape[1]
    same = np.isin(small.points[:, dimension], (frequency, -frequency % circle))
    parts = small.at(small.points[same])
    if all(_obeys(parts, limit, losses[0], batch) for batch in range(parts.batches)):
        return True
    return _obeys(large.at(large.points[number : number + 1]), limit, losses[1], 0)


def estimate_symbols(
    operation: Operation, rows: Axis, columns: Axis, effort: Effort = UNLIMITED
) -> float:
    """Norm of a convolution by its symbols, without proof; infinite beyond the limits.

    Raises:
        NotTriedError: there is no time for all frequencies.
    """
    if math.isinf(symbol_work(operation, rows, columns)):
        return math.inf
    work = _integer_work(operation, rows, columns)
    symbols = Symbols.of(operation, rows, columns)
    largest = max(_answers(partial(_largest, symbols), symbols.batches, work, effort))
    return largest / math.sqrt(rows.inverse_loss * columns.inverse_loss)


def _answers(
    function: Callable[[int], Answer], batches: int, work: float, effort: Effort
) -> Iterator[Answer]:
    # Of a function of a batch of symbols, for all batches, as long as there is time.
    processes = min(effort.processes, batches) if work >= MIN_SHARED_WORK else 1
    effort.require(proof_seconds(work) / processes)
    for answer in answers(function, range(batches), processes):
        effort.require(0.0)
        yield answer


def _obeys(
    symbols: "Symbols",
    limit: Fraction,
    loss: Fraction,
    number: int,
    *,
    grams: Grams | None = None,
) -> bool:
    if grams is not None:
        phases = symbols.phases(symbols.points_of(number), grams.shifts)
        if grams.obey(*phases, limit):
            return True
    return proved(symbols.batch(number), limit, loss)


def _is_by_taps(shape: tuple[int, ...], groups: int, rows: Axis, columns: Axis) -> bool:
    if groups > 1 or _residues(rows) * _residues(columns) > 1:
        return False
    taps, points = len(rows.taps) * len(columns.taps), rows.points * columns.points
    return is_by_taps(shape[0], shape[1], taps, points)


def _grams(
    operation: Operation, symbols: "Symbols", limit: Fraction, rows: Axis, columns: Axis
) -> Grams | None:
    weight = operation.wide("weight")
    if limit <= 0 or not _is_by_taps(weight.shape, symbols.groups, rows, columns):
        return None
    (taps,) = symbols.taps
    return Grams.of(weight[:, :, taps[:, 0], taps[:, 1]], taps[:, 2:], limit)


def _largest(symbols: "Symbols", number: int) -> float:
    return estimate(symbols.batch(number))


def require_symbols(operation: Operation, rows: Axis, columns: Axis) -> None:
    """Refuse symbols beyond the limits.

    Raises:
        NotTriedError: there are more frequencies or taps than are evaluated.
    """
    if math.isinf(symbol_work(operation, rows, columns)):
        raise NotTriedError(
            f"{rows.points}x{columns.points} frequencies of {len(rows.taps)}x{len(columns.taps)} "
            f"taps, of which up to {MAX_POINTS} and {MAX_TAPS} are evaluated"
        )


def symbol_work(operation: Operation, rows: Axis, columns: Axis) -> float:
    """Number of operations of the proof by symbols, roughly; infinite beyond the limits."""
    points, taps = rows.points * columns.points, len(rows.taps) * len(columns.taps)
    if points > MAX_POINTS or taps > MAX_TAPS:
        return math.inf
    shape, groups = operation.tensors["weight"].shape, operation.options.get("groups", 1)
    if _is_by_taps(shape, groups, rows, columns):
        # Half of the frequencies are conjugate to others.
        return taps_work(shape[0], shape[1], taps, points / 2)
    return _integer_work(operation, rows, columns)


def _integer_work(operation: Operation, rows: Axis, columns: Axis) -> float:
    # In integers at all frequencies, or of all eigenvalues, which take about that time.
    out, inner = operation.tensors["weight"].shape[:2]
    groups = operation.options.get("groups", 1)
    sides = 2 * out // groups, 2 * inner * _residues(rows) * _residues(columns)
    return rows.points * columns.points / 2 * groups * proof_work(*sides)


def _residues(axis: Axis) -> int:
    return len({residue for *_, residue in axis.taps}) or 1


def symbol_error(operation: Operation, rows: Axis, columns: Axis) -> Fraction:
    """Upper bound of the norm of the error of a computed symbol."""
    out, inner = operation.tensors["weight"].shape[:2]
    taps = max(1, len(rows.taps) * len(columns.taps))
    weight = abs(operation.wide("weight"))
    sums: dict[tuple[int, int], Floats] = {}
    for i, _, r in rows.taps:
        for j, _, s in columns.taps:
            sums[r, s] = sums.get((r, s), np.zeros((out, inner))) + weight[:, :, i, j]
    energy = sum((frobenius(part) ** 2 for part in sums.values()), Fraction(0))
    # The last term covers products that underflow.
    return root_up(2 * energy) * (11 + taps) * Fraction(UNIT) * (1 + Fraction(1, 2**10)) + UNDERFLOW


@dataclass(frozen=True)
class Symbols:
    """The symbols of a convolution at all frequencies of a grid, batch by batch.

    Attributes:
        weight: The weight, as stored.
        groups: Number of groups.
        taps: Taps (kernel indices, shifts) by the residues that they read.
        points: The frequencies, ``(P, 2)``: of two opposite ones, whose blocks are conjugate and
            have one norm, the first.
        circles: Cosines and sines, see :func:`circle`, of both dimensions.
        step: Number of frequencies of a batch.
    """

    weight: Array
    groups: int
    taps: tuple[NDArray[np.int64], ...]
    points: NDArray[np.int64]
    circles: tuple[Floats, Floats]
    step: int

    @staticmethod
    def of(operation: Operation, rows: Axis, columns: Axis) -> "Symbols":
        """The symbols of a convolution."""
        weight, groups = operation.tensors["weight"], operation.options.get("groups", 1)
        residues: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
        for i, a, r in rows.taps:
            for j, b, s in columns.taps:
                residues.setdefault((r, s), []).append((i, j, a, b))
        height, width = rows.points, columns.points
        points = [
            (f, g)
            for f in range(height // 2 + 1)
            for g in range(width)
            if (f, g) <= (-f % height, -g % width)
        ]
        entries = 4 * weight.shape[0] * weight.shape[1] * len(residues)
        most = max(map(len, residues.values()), default=1)
        return Symbols(
            weight,
            groups,
            tuple(np.array(taps, np.int64) for taps in residues.values()),
            np.array(points, np.int64),
            (circle(height), circle(width)),
            max(1, MAX_SYMBOL_VALUES // (most + entries)),
        )

    def at(self, points: NDArray[np.int64]) -> "Symbols":
        """The symbols at some of the frequencies only."""
        return replace(self, points=points)

    @property
    def batches(self) -> int:
        """Number of batches."""
        return -(-len(self.points) // self.step)

    def batch(self, number: int) -> Floats:
        """One batch, as real matrices [[X, -Y], [Y, X]]."""
        if not self.taps:
            return np.zeros((1, 1, 1))
        weight, points = self.weight, self.points_of(number)
        out, inner = weight.shape[0] // self.groups, weight.shape[1]
        real, imag = [], []
        for taps in self.taps:
            kernels = np.stack([weight[:, :, i, j].ravel() for i, j in taps[:, :2].tolist()])
            kernels = kernels.astype(np.float64, copy=False)
            cosine, sine = self.phases(points, taps[:, 2:])
            shape = (len(points) * self.groups, out, inner)
            real.append((cosine @ kernels).reshape(shape))
            imag.append((sine @ kernels).reshape(shape))
        x, y = np.concatenate(real, axis=2), np.concatenate(imag, axis=2)
        return np.concatenate((np.concatenate((x, -y), 2), np.concatenate((y, x), 2)), 1)

    def points_of(self, number: int) -> NDArray[np.int64]:
        """The frequencies of a batch."""
        return self.points[number * self.step : (number + 1) * self.step]

    def phases(self, points: NDArray[np.int64], shifts: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Cosines and sines ``(F, S)`` of frequencies times shifts ``(S, 2)``, within 10 units."""
        (f, g), (row_circle, column_circle) = points.T, self.circles
        c1, s1 = row_circle[:, np.outer(f, shifts[:, 0]) % row_circle.shape[1]]
        c2, s2 = column_circle[:, np.outer(g, shifts[:, 1]) % column_circle.shape[1]]
        return c1 * c2 - s1 * s2, s1 * c2 + c1 * s2


def circle(points: int) -> Floats:
    """Cosines and sines of ``2 pi k / points``, shape ``(2, points)``, within 2^-52."""
    if points == 1:
        return np.array([[1.0], [0.0]])
    module = flint()
    with module.ctx.workprec(128):
        angles = [module.fmpq(2 * k, points) for k in range(points)]
        pairs = [module.arb.sin_cos_pi_fmpq(angle) for angle in angles]
        return np.array([[float(c) for _, c in pairs], [float(s) for s, _ in pairs]])


def _taps_bytes(shape: tuple[int, ...], groups: int, rows: Axis, columns: Axis) -> int:
    taps = len(rows.taps) * len(columns.taps)
    return taps_bytes(shape[0], shape[1], taps) if _is_by_taps(shape, groups, rows, columns) else 0


def symbol_bytes(shape: tuple[int, ...], groups: int, rows: Axis, columns: Axis) -> int:
    """Bytes that the proof for a batch of symbols takes, or at one point if that is more."""
    out, inner = 2 * shape[0] // groups, 2 * shape[1] * _residues(rows) * _residues(columns)
    taps = len(rows.taps) * len(columns.taps)
    count = max(groups, MAX_SYMBOL_VALUES // (out * inner))
    return (
        8 * max(MAX_SYMBOL_VALUES, taps)
        + 2 * 8 * count * out * inner
        + proof_bytes(out, inner, count)
        + _taps_bytes(shape, groups, rows, columns)
    )
