r"""Proved bounds on norms of convolutions on small maps, by what of their symbols fits into a map.

A zero-padded convolution is a part of a circular one (``symbols.py``): the signal x is extended by
zeros, and outputs are left out. Leaving none out gives :math:`|A x|^2 \le \sum_w |K_w z_w|^2` for
the coefficients z of x in an orthonormal basis, of real signals :math:`c\, Re(z e^{i w q})`, with
:math:`c^2 = 2 / M` for M positions, or 1 / M where w is its own opposite and z is real. Complex
vectors are written as twice as many real numbers.

Let V have any columns, :math:`N = K (I - V V')`, :math:`W = K V`, a = V'z and b = z - V a. Let
:math:`\nu \ge \lVert N \rVert`, and let V'V be within d of I, and W'W within h of a diagonal matrix
D; :math:`\lVert N V \rVert \le m`, :math:`\lVert N' W \rVert \le k`. With :math:`|a|, |b| \le
(1 + d) |z|` and :math:`|b|^2 \le |z|^2 - |a|^2 + d (1 + d) |z|^2`,

.. math:: |K z|^2 = |N b + N V a + W a|^2 - \ldots \le \nu^2 (|z|^2 - |a|^2) + a' D a + e |z|^2,
    \qquad e = \nu^2 d (1 + d) + (1 + d)^2 (2 \nu m + m^2 + h) + 2 (1 + d) k,

for :math:`K z = N z + W a`, :math:`N z = N b + N V a` and :math:`z' N' W a \le k |z| |a|`. So
:math:`|A x|^2 \le (\nu^2 + e) |x|^2 + |B x|^2` where the rows of B are the signals of the columns
of V, times :math:`(D_i - \nu^2)^{1/2}`, within the map. The norm of B B' is proved as one matrix.

Two signals within the map have the inner product :math:`c c' / 2\; Re(v \bar v' \Delta(w - w') + v
v' \Delta(w + w'))`, with :math:`\Delta(w) = \sum_q e^{i w q}` over the map, a product of two sums.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import FLOAT64
from robustcert.check.effort import UNLIMITED, Effort
from robustcert.check.fixed_point import Floats
from robustcert.check.network.operation import Operation
from robustcert.check.norms.cost import proof_seconds, proof_work
from robustcert.check.norms.dense import Proof, proof_bytes, proved
from robustcert.check.norms.symbols import Axis, Symbols, axes_of, circle, symbol_error
from robustcert.check.processes import answers

# Share of singular values that are kept, and their number at most.
KEPT_SHARE, MAX_VECTORS = 0.125, 4096
# Limits of maps that are tried: positions of a circle for each difference of shifts and in all, and
# channels at least and at most.
MAX_LENGTH, MAX_POSITIONS, LEAST_CHANNELS, MAX_CHANNELS = 8, 256, 256, 1024
# Maximum number of entries of the squares of all symbols, which are held at the same time.
MAX_SQUARES = 2**24
# Largest error of an entry of B B' over the lengths of its two rows on the circle: sums of at most
# 2 MAX_CHANNELS and MAX_POSITIONS products each, and of cosines within 2^-52.
ENTRY_ERROR = Fraction(1, 2**36)
# What covers the rounding of a few operations between positive numbers.
MORE = 1 + 2.0**-30
# Lanczos steps of an estimate, and what it is raised by; what a threshold is raised by, which has
# to cover the rounding of what is left of a symbol.
LANCZOS_STEPS, ROOM, RAISE = 128, 1 + 2.0**-22, 1 + 2.0**-22


@dataclass(frozen=True)
class Block:
    """A symbol and its singular vectors, of the map or of its transpose, whichever is taller.

    Attributes:
        matrix: The symbol as a real matrix.
        vectors: Right singular vectors in columns, complex, by increasing singular values.
        values: Squares of these.
        real: Whether the frequency is its own opposite: its matrix acts on real parts only.
    """

    matrix: Floats
    vectors: Any
    values: Floats
    real: bool


def is_tried(operation: Operation) -> bool:
    """Whether a convolution is within the limits."""
    axes, (out, inner) = axes_of(operation), operation.tensors["weight"].shape[:2]
    sides = sorted((out, inner * math.prod(len({r for *_, r in axis.taps}) for axis in axes)))
    spread = [
        max((a for _, a, _ in axis.taps), default=0) - min((a for _, a, _ in axis.taps), default=0)
        for axis in axes
    ]
    return (
        operation.options["groups"] == 1
        and sides[0] >= LEAST_CHANNELS
        and sides[1] <= MAX_CHANNELS
        and sides[0] ** 2 * axes[0].points * axes[1].points <= MAX_SQUARES
        and all(axis.inverse_loss == 1 for axis in axes)
        and all(
            0 < a.points <= min(MAX_LENGTH * s, MAX_POSITIONS)
            for a, s in zip(axes, spread, strict=True)
        )
    )


def prove_truncated(operation: Operation, bound: Fraction, effort: Effort = UNLIMITED) -> Proof:
    """Prove a bound on the norm of a convolution on a small map.

    Raises:
        NotTriedError: there is no time for it.
    """
    if not is_tried(operation):
        return Proof()
    axes = axes_of(operation)
    flipped, points = _is_flipped(operation, axes), Symbols.of(operation, *axes).points
    effort.require(proof_seconds(truncated_work(operation)) / effort.processes)
    blocks = _blocks(operation, effort.processes)
    nu = _threshold(blocks) * RAISE
    limit = bound - symbol_error(operation, *axes)
    rests = answers(partial(_rest, nu), blocks, effort.processes)
    columns, largest, energy = [], 0.0, 0.0
    for number, (block, found) in enumerate(zip(blocks, rests, strict=True)):
        if found is None:
            return Proof()
        largest = max(largest, found[0])
        lengths = _lengths(found[1], nu)
        columns += _columns(number, block, lengths)
        energy += (1 if block.real else 2) * float((lengths**2).sum()) * MORE
    square = limit**2 - Fraction(nu) ** 2 - Fraction(largest)
    gram = _within(points, columns, axes, _sides(operation, axes, flipped))
    if limit > 0 and square > 0 and proved(gram[None], square, ENTRY_ERROR * Fraction(energy)):
        return Proof("large singular values of symbols within the map, exact residual")
    return Proof()


def estimate_truncated(operation: Operation, effort: Effort = UNLIMITED) -> float:
    """The least bound that :func:`prove_truncated` may reach, in float64 and a little above.

    Raises:
        NotTriedError: there is no time for it.
    """
    axes = axes_of(operation)
    effort.require(proof_seconds(truncated_work(operation)) / effort.processes)
    blocks = _blocks(operation, effort.processes)
    nu, columns = _threshold(blocks) * RAISE, []
    for number, block in enumerate(blocks):
        columns += _columns(number, block, _lengths(block.values[block.values > nu * nu], nu))
    sides = _sides(operation, axes, _is_flipped(operation, axes))
    gram = _within(Symbols.of(operation, *axes).points, columns, axes, sides)
    return math.sqrt(nu * nu + _largest(gram) * ROOM) + float(symbol_error(operation, *axes))


def _largest(gram: Floats) -> float:
    # The largest eigenvalue by Lanczos steps, each orthogonal to all before.
    vector = np.random.default_rng(0).standard_normal(len(gram))
    basis = np.zeros((min(LANCZOS_STEPS, len(gram)), len(gram)))
    for step in range(len(basis)):
        for _ in range(2):
            vector = vector - basis[:step].T @ (basis[:step] @ vector)
        length = float(np.linalg.norm(vector))
        basis[step] = vector / length if length > 0 else 0.0
        vector = gram @ basis[step]
    return float(np.linalg.eigvalsh(basis @ (gram @ basis.T))[-1])


@lru_cache(maxsize=1)
def _blocks(operation: Operation, processes: int) -> list[Block]:
    # Kept for the proof of what is estimated.
    axes = axes_of(operation)
    symbols, flipped = Symbols.of(operation, *axes), _is_flipped(operation, axes)
    numbers = range(len(symbols.points))
    return list(answers(partial(_block, symbols, flipped), numbers, processes))


def _lengths(squares: Floats, nu: float) -> Floats:
    # Upper bounds of the roots by which signals are scaled.
    return np.sqrt((squares * MORE - nu * nu / MORE).clip(0.0)) * MORE


def _columns(number: int, block: Block, lengths: Floats) -> list[tuple[int, Any]]:
    kept = block.vectors[:, len(block.values) - len(lengths) :] * lengths
    # Also i v, whose signal is another one, unless the sines of the frequency are zero.
    return [(number, kept)] if block.real else [(number, kept), (number, 1j * kept)]


def truncated_work(operation: Operation) -> float:
    """Number of operations of the proof, roughly."""
    rows, columns = axes_of(operation)
    out, inner = operation.tensors["weight"].shape[:2]
    inner *= math.prod(len({r for *_, r in axis.taps}) for axis in (rows, columns))
    points = rows.points * columns.points
    kept = min(MAX_VECTORS, int(KEPT_SHARE * points * min(out, inner)) + 1)
    # An eigenvalue problem takes about the time of a proof.
    return points * proof_work(2 * out, 2 * inner) + proof_work(kept, kept)


def truncated_bytes(operation: Operation) -> int:
    """Bytes that the proof takes at most."""
    if not is_tried(operation):
        return 0
    rows, columns = axes_of(operation)
    out, inner = operation.tensors["weight"].shape[:2]
    inner *= math.prod(len({r for *_, r in axis.taps}) for axis in (rows, columns))
    points, small = rows.points * columns.points, min(out, inner)
    kept = min(MAX_VECTORS, int(KEPT_SHARE * points * small) + 1)
    stored = points // 2 + 4
    return 8 * stored * (4 * out * inner + 2 * small**2) + proof_bytes(kept, kept) + 64 * kept**2


def _is_flipped(operation: Operation, axes: tuple[Axis, Axis]) -> bool:
    out, inner = operation.tensors["weight"].shape[:2]
    return out < inner * math.prod(len({r for *_, r in axis.taps}) for axis in axes)


def _sides(operation: Operation, axes: tuple[Axis, Axis], flipped: bool) -> tuple[int, int]:
    # Positions of the signals: of outputs, or of inputs that a stride subsamples.
    strides = operation.options["stride"]
    first, second = (
        axis.outputs if flipped else -(-axis.inputs // s)
        for axis, s in zip(axes, strides, strict=True)
    )
    return first, second


def _block(symbols: Symbols, flipped: bool, number: int) -> Block:
    matrix = symbols.at(symbols.points[number : number + 1]).batch(0)[0]
    out, inner = (n // 2 for n in matrix.shape)
    circles = [c.shape[1] for c in symbols.circles]
    real = all(
        2 * f % n == 0 for f, n in zip(symbols.points[number].tolist(), circles, strict=True)
    )
    x, y = matrix[:out, :inner], matrix[out:, :inner]
    matrix = x if real else matrix
    whole = x if real else x + 1j * y
    whole, matrix = (whole.conj().T, matrix.T) if flipped else (whole, matrix)
    values, vectors = np.linalg.eigh(whole.conj().T @ whole)
    return Block(matrix, vectors, values, real)


def _threshold(blocks: Iterable[Block]) -> float:
    # So many singular values are kept as are larger.
    every = np.concatenate([np.repeat(b.values, 1 if b.real else 2) for b in blocks])
    ordered = np.sort(every.clip(0.0))[::-1]
    return math.sqrt(
        float(ordered[min(MAX_VECTORS, int(KEPT_SHARE * len(ordered)), len(ordered) - 1)])
    )


def _rest(nu: float, block: Block) -> tuple[float, Floats] | None:
    # The number e, and the diagonal D of one of every two columns; None where nu is not proved.
    chosen = block.vectors[:, block.values > nu * nu]
    count, k = chosen.shape[1], block.matrix
    v = (
        chosen
        if block.real
        else np.block([[chosen.real, -chosen.imag], [chosen.imag, chosen.real]])
    )
    w = k @ v
    n = k - w @ v.T
    gamma = FLOAT64.gamma(4 * max(k.shape))
    size_k, size_v, size_w, size_n = (float(np.linalg.norm(m)) * MORE for m in (k, v, w, n))
    lost_w = gamma * size_k * size_v
    lost_n = gamma * (size_k + size_w * size_v) + lost_w * size_v
    if not proved(n[None], Fraction(nu), Fraction(lost_n)):
        return None
    inner = w.T @ w
    diagonal = np.diag(inner)[:count].copy()
    doubled = diagonal if block.real else np.concatenate([diagonal, diagonal])
    d = float(np.linalg.norm(v.T @ v - np.eye(v.shape[1]))) + gamma * size_v**2
    h = float(np.linalg.norm(inner - np.diag(doubled))) + gamma * size_w**2 + 2 * lost_w * size_w
    m = float(np.linalg.norm(n @ v)) + gamma * size_n * size_v + lost_n * size_v
    both = gamma * size_n * size_w + lost_n * size_w + (size_n + lost_n) * lost_w
    across = float(np.linalg.norm(n.T @ w)) + both
    h, lost = h + lost_w**2, (1 + d) ** 2
    e = nu * nu * d * (1 + d) + lost * (2 * nu * m + m * m + h) + 2 * (1 + d) * across
    return (e * MORE, diagonal) if d < 1 else None


def _within(
    points: NDArray[np.int64],
    columns: list[tuple[int, Any]],
    axes: tuple[Axis, Axis],
    sides: tuple[int, int],
) -> Floats:
    # B B': products of signals over the map.
    place = np.concatenate([np.full(part.shape[1], number) for number, part in columns])
    v = np.concatenate([part for _, part in columns], axis=1).astype(np.complex128)
    lengths = [axis.points for axis in axes]
    at = points[place]
    own = ((2 * at) % lengths == 0).all(1)
    factor = np.sqrt(np.where(own, 1.0, 2.0) / math.prod(lengths))
    total = np.zeros((len(place), len(place)))
    for sign, products in ((-1, v.T @ v.conj()), (1, v.T @ v)):
        sums = np.ones(total.shape, dtype=np.complex128)
        for d in (0, 1):
            turns = (at[:, d, None] + sign * at[:, d]) % lengths[d]
            sums *= _sum_of_waves(lengths[d], sides[d])[turns]
        total += (products * sums).real
    total *= factor[:, None] * factor / 2
    return (total + total.T) / 2


def _sum_of_waves(points: int, side: int) -> Any:
    # Sums of the powers of e^{2 pi i k / points}, k being the index, with exponents below a side.
    cosine, sine = circle(points)
    turns = np.outer(np.arange(points), np.arange(side)) % points
    return cosine[turns].sum(1) + 1j * sine[turns].sum(1)
