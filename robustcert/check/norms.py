r"""Upper bounds on norms of dense and convolutional maps, proved.

Dense. For any matrices A and R with n columns and any t, let E = t I - A'A - R'R. Every unit vector
x has :math:`|A x|^2 = t - |R x|^2 - x' E x \le t + \lVert E \rVert_F`. So a guess R, a Cholesky
factor rounded to integers, proves :math:`\lVert A \rVert \le B` as soon as :math:`t + \lVert E
\rVert_F \le B^2`. A is rounded to integers too, and the Frobenius norm of what is cut off is taken
from B. Everything in E is then an integer, and computed exactly (``exact_products.py``).

Convolution. Write the position that output i reads by tap k as :math:`s i + d k - p = s (i + a) +
\rho` with :math:`0 \le \rho < s`: on the s subsampled signals :math:`x_\rho[q] = x[s q + \rho]`,
taps are shifts by a. Taps that see only padding are dropped. Put signals, :math:`\lceil n / s
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

The other dimension need not be transformed: with its positions as channels, of signals and of
outputs, a convolution is one along a single dimension, whose taps are matrices of the same weights
and zeros. Its blocks are larger, their norms at most those above.

A convolution on a circle whose length the stride divides has those blocks with the circle's length
over the stride for M. Layers with an activation inside are bounded as a whole, by the norm of a
linear map that their weights make up.

Small maps may be claimed a lower norm than their symbols have: then the whole matrix is tried.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from robustcert.check.exact_products import digit_bits, residual_norm, split_floats
from robustcert.check.fixed_point import Floats, flint
from robustcert.check.network import Operation, Window
from robustcert.check.reader import UnreadableError

Indices = NDArray[np.int64]

UNIT = Fraction(1, 2**53)
UNDERFLOW = Fraction(1, 2**900)
MAX_FACTOR_SIDE = 4096
MAX_MATRIX = 2**26
# Of a map as one matrix: its entries, its shorter side, and how many groups have one.
MAX_OPERATOR, MAX_SIDE, MAX_GROUPS = 2**22, 1024, 8
FULL_GRID = 256
MAX_WORK = 2.0**42
MAX_MIXED_WORK = 2.0**39
MAX_MIXED = 2**25
MAX_MIXED_LENGTH = 8
MAX_POINTS, MAX_TAPS = 2**20, 2**14
CHUNK = 2**19
# Arrays as large as the matrices, at most, that a proof keeps at the same time.
ARRAYS = 32


def round_up(value: Fraction, bits: int = 4096) -> Fraction:
    """At least a positive number, of ``bits`` binary digits; the number itself where it has these.

    Products of thousands of numbers would have millions of digits. None is below 2^(-2 bits).

    Raises:
        UnreadableError: the number is not below 2^(2 bits).
    """
    over, under = value.numerator, value.denominator
    if max(over.bit_length(), under.bit_length()) <= bits:
        return value
    exponent = over.bit_length() - under.bit_length() + 1
    if exponent > 2 * bits:
        raise UnreadableError(f"bounds: a product of them passes 2^{2 * bits}")
    last = max(exponent - bits, -2 * bits)
    whole = -(-(over << max(0, -last)) // (under << max(0, last)))
    return Fraction(whole) * Fraction(2) ** last


def root_up(value: Fraction) -> Fraction:
    """At least the square root, and above it by 2^-60 of it at most."""
    places = max(0, 130 - value.numerator.bit_length() + value.denominator.bit_length())
    places += places % 2
    scaled = -(-(value.numerator << places) // value.denominator)
    return Fraction(math.isqrt(scaled) + 1, 1 << (places // 2))


def root_down(value: Fraction) -> Fraction:
    """At most the square root of a number between 2^-100 and 2^100, closely."""
    return Fraction(math.isqrt((value.numerator << 240) // value.denominator), 1 << 120)


def frobenius(values: Floats) -> Fraction:
    """Upper bound of the root of the sum of squares."""
    peak = float(abs(values).max(initial=0.0))
    if peak == 0:
        return Fraction(0)
    scaled = np.ldexp(values, -math.frexp(peak)[1])
    # Squares lost to underflow, and all rounding, are far within the factor.
    total = float(np.sqrt(np.sum(scaled * scaled))) * (1 + 2.0**-20)
    return Fraction(total) * Fraction(2) ** math.frexp(peak)[1]


def proved(matrices: Floats, bound: Fraction, loss: Fraction = Fraction(0)) -> bool:
    """Whether every matrix of a batch ``(b, m, n)``, changed by at most ``loss``, obeys ``bound``.

    ``loss`` and ``bound`` are norms. False says that no proof was found.
    """
    if not np.isfinite(matrices).all():
        return False
    if not matrices.any():
        return loss <= bound
    if bound <= loss or float(abs(matrices).max()) > bound:
        return False
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.swapaxes(1, 2)
    exponent = _ceil_log2(bound)
    scale = Fraction(2) ** -exponent
    if abs(exponent) > 900:
        return False
    scaled = np.ldexp(matrices, -exponent)
    gram = scaled.swapaxes(1, 2) @ scaled
    return any(_residual_proof(scaled, gram, bound * scale, loss * scale, n) for n in (2, 3))


def _ceil_log2(value: Fraction) -> int:
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    while Fraction(2) ** exponent < value:
        exponent += 1
    return exponent


def _residual_proof(
    matrices: Floats, gram: Floats, bound: Fraction, loss: Fraction, count: int
) -> bool:
    # Entries are at most 1, and so are those of the factor.
    rows, size = matrices.shape[1:]
    bits = digit_bits(max(rows, size))
    places = bits * count - 2
    whole = np.rint(matrices * 2.0**places)
    cut = frobenius_each(matrices * 2.0**places - whole)
    # One unit more than is cut off pays for what scaling may have lost to underflow.
    limit = math.floor((bound - loss) * 2**places) - math.ceil(cut) - 1
    if limit <= 0:
        return False
    # Room for rounding: half a unit in every entry of the factor, and that of the factorisation.
    room = size * (0.6 * 2.0**-places + 2.0**-48)
    t = limit**2 - math.ceil(room * 4**places)
    shifted = -gram
    diagonal = np.arange(size)
    shifted[:, diagonal, diagonal] += t / 4**places
    try:
        factor = np.linalg.cholesky(shifted).swapaxes(1, 2)
        digits = split_floats(whole, bits, count)
        guess = split_floats(np.rint(factor * 2.0**places), bits, count)
    except (np.linalg.LinAlgError, ValueError):
        return False
    error = residual_norm(t, digits, guess, bits)
    return math.isfinite(error) and t + math.ceil(error) <= limit**2


def frobenius_each(values: Floats) -> Fraction:
    """Upper bound of the largest Frobenius norm in a batch, for entries of at most 1/2."""
    return Fraction(float(np.sqrt((values * values).sum(axis=(1, 2)).max())) * (1 + 2.0**-10))


def estimate(matrices: Floats) -> float:
    """Largest norm in a batch, as float64 sees it."""
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.swapaxes(1, 2)
    peak = float(abs(matrices).max(initial=0.0))
    if peak == 0:
        return 0.0
    scaled = np.ldexp(matrices, -math.frexp(peak)[1])
    values = np.linalg.eigvalsh(scaled.swapaxes(1, 2) @ scaled)
    return math.ldexp(math.sqrt(max(0.0, float(values.max()))), math.frexp(peak)[1])


@dataclass(frozen=True)
class Proof:
    """How a bound was proved, or that it was not: ``method`` is then empty."""

    method: str = ""
    value: float = math.nan


def prove(operation: Operation, bound: float) -> Proof:
    """Prove the claimed bound of an operation with weights."""
    if operation.kind in ("sandwich", "residual_block"):
        return _prove_sloped(operation, bound)
    if operation.kind == "circular_convolution":
        return _prove_symbols(operation, Fraction(bound), *_circles(operation))
    if operation.kind == "dense":
        return _prove_dense(operation.wide("weight"), Fraction(bound))
    return _prove_convolution(operation, Fraction(bound))


def find(operation: Operation) -> float:
    """A bound of our own where the folder claims none, as close as one can be proved; or NaN."""
    if operation.kind in ("sandwich", "residual_block"):
        inside, _ = _between_activations(operation)
        square = _estimate_linear(inside) ** 2 / (2 if operation.kind == "sandwich" else 1)
        if square < 1 and prove(operation, 1.0).method:
            return 1.0
        return _first_proved(max(1.0, 2 * square - 1), lambda b: prove(operation, float(b)))
    if operation.kind == "circular_convolution":
        guess = _estimate_symbols(operation, *_circles(operation))
        return _first_proved(guess, lambda b: prove(operation, float(b)))
    if operation.kind == "dense":
        weight = operation.wide("weight")
        return _first_proved(_estimate_linear(operation), lambda b: _prove_dense(weight, b))
    guess = _estimate_linear(operation)
    return _first_proved(guess, lambda b: _prove_convolution(operation, b))


def _first_proved(guess: float, attempt: Callable[[Fraction], Proof]) -> float:
    if not math.isfinite(guess):
        return math.nan
    for slack in (2e-10, 1e-8, 1e-6, 1e-4, 1e-2):
        value = guess * (1 + slack)
        if attempt(Fraction(value)).method:
            return value
    return math.nan


def _prove_dense(weight: Floats, bound: Fraction) -> Proof:
    if min(weight.shape) > MAX_FACTOR_SIDE or weight.size > MAX_MATRIX:
        # Too large for a factorisation here: only a bound that is obviously high is proved.
        return Proof("Frobenius norm" if frobenius(weight) <= bound else "")
    return Proof("exact residual" if proved(weight[None], bound) else "")


def _prove_sloped(operation: Operation, bound: float) -> Proof:
    # Slopes in [0, 1] make f'f <= f'v for the differences v and f before and after the activation.
    # For x -> x - 2 A'f with v = A x, |x - 2 A'f|^2 <= |x|^2 + 4 h |f|^2 with h >= |A|^2 - 1, and
    # |f| <= |A| |x|: the square of the constant is at most 1 + 4 h (1 + h) = (1 + 2 h)^2, so that
    # |A|^2 <= (1 + bound) / 2 suffices. For x -> G'f it is the same with [G / psi, psi V] and twice
    # the square: with g = psi f, |G'f|^2 <= (2 + 2 h) |g|^2 - |V' psi g|^2 <= 2 f' psi^2 V x -
    # |V' psi g|^2 + 2 h |g|^2, whose first two terms are at most |x|^2, and |g| <= |psi V| |x|.
    if not 1 <= bound <= 2.0**60:
        return Proof()
    square = (1 + Fraction(bound)) / (1 if operation.kind == "sandwich" else 2)
    inside, loss = _between_activations(operation)
    below = math.nextafter(float(root_down(square) - loss), 0.0)
    return prove(inside, below) if below > 0 else Proof()


def _between_activations(operation: Operation) -> tuple[Operation, Fraction]:
    # [G / psi, psi V] or A as a linear map, rounded, and a bound on what that changes.
    if operation.kind == "sandwich":
        psi = operation.wide("multiplier")[:, None]
        both = [operation.wide("outer") / psi, operation.wide("inner") * psi]
        product = np.concatenate(both, axis=1)
        inside = Operation("dense", "", operation.path, {}, {"weight": product}, (), ())
        return inside, frobenius(product) * UNIT + UNDERFLOW
    first = operation.parts[0].branches[1][0]
    weight = first.wide("weight")
    product = weight * operation.wide("scale").reshape(-1, *(1,) * (weight.ndim - 1))
    # No input is read by a tap twice, and every tap is wrong by a unit of itself.
    taps = math.isqrt(math.prod(weight.shape[2:])) + 1
    inside = replace(first, tensors={"weight": product})
    return inside, frobenius(product) * UNIT * taps + UNDERFLOW


def _estimate_linear(operation: Operation) -> float:
    if operation.kind == "dense":
        return estimate(operation.wide("weight")[None])
    whole = max(map(estimate, _whole_matrices(operation)), default=math.inf)
    mixed = [_estimate_symbols(*parts) for parts in _mixed(operation)]
    return min(symbol_estimate(operation), whole, *mixed)


# Convolutions.


@dataclass(frozen=True)
class Axis:
    """One dimension: live taps as (kernel index, shift, residue), outputs, grid points, D."""

    taps: list[tuple[int, int, int]]
    inputs: int
    outputs: int
    points: int
    inverse_loss: Fraction  # lower bound of cos^2 for the coarse grid, else 1

    @staticmethod
    def of(
        kernel: int, size: int, outputs: int, stride: int, padding: int, dilation: int
    ) -> "Axis":
        """Lay out one dimension."""
        taps = []
        for k in range(kernel):
            offset = dilation * k - padding
            first = max(0, -(offset // stride))  # least i with stride i + offset >= 0
            if first < outputs and stride * first + offset < size:
                taps.append((k, offset // stride, offset % stride))
        shifts = [a for _, a, _ in taps] or [0]
        signal = -(-size // stride)
        circle = max(signal - min([*shifts, 0]), outputs + max([*shifts, 0]))
        degree = max(shifts) - min(shifts)
        if degree == 0:
            return Axis(taps, size, outputs, 1, Fraction(1))
        coarse = 32 * degree
        if circle <= max(FULL_GRID, coarse):
            return Axis(taps, size, outputs, circle, Fraction(1))
        angle = Fraction(355, 113) / 64  # above pi D / 2 N
        return Axis(taps, size, outputs, coarse, (1 - angle**2 / 2) ** 2)


SINGLE = Axis([(0, 0, 0)], 1, 1, 1, Fraction(1))


def _axes(operation: Operation) -> tuple[Axis, Axis]:
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


def _prove_convolution(operation: Operation, bound: Fraction) -> Proof:
    rows, columns = _axes(operation)
    weight = operation.wide("weight")
    live = weight[:, :, [k for k, *_ in rows.taps]][..., [k for k, *_ in columns.taps]]
    if not live.any():
        return Proof("no weight that reads the input")
    found = _prove_symbols(operation, bound, rows, columns)
    if found.method:
        return found
    for mixed in _mixed(operation):
        found = _prove_symbols(mixed[0], bound, *mixed[1:])
        if found.method:
            return found
    # No matrix at all says that the map is too large, not that it is proved.
    wholes = 0
    for matrix in _whole_matrices(operation):
        if not proved(matrix, bound):
            return Proof()
        wholes += 1
    if wholes:
        return Proof("whole matrix, exact residual")
    return Proof()


def _circles(operation: Operation) -> tuple[Axis, Axis]:
    # Of a convolution on a circle whose length the stride divides: every output reads as it says.
    options, (height, width) = operation.options, operation.tensors["weight"].shape[2:]

    def axis(period: int, d: int) -> Axis:
        stride, padding = options["stride"][d], options["padding"][d]
        offsets = [(k, k - padding) for k in range(period)]
        taps = [(k, offset // stride, offset % stride) for k, offset in offsets]
        outputs = operation.output_shape[1 + d]
        return Axis(taps, operation.input_shape[1 + d], outputs, period // stride, Fraction(1))

    return axis(height, 0), axis(width, 1)


def _prove_symbols(operation: Operation, bound: Fraction, rows: Axis, columns: Axis) -> Proof:
    weight = operation.wide("weight")
    if symbol_work(operation, rows, columns) <= MAX_WORK:
        loss = symbol_error(operation, rows, columns)
        # The norm of symbols on the grid that proves the bound everywhere.
        limit = bound * root_down(rows.inverse_loss * columns.inverse_loss)
        batches = symbols(weight, operation, rows, columns)
        if all(proved(batch, limit, loss) for batch in batches):
            return Proof(f"symbols on a {rows.points}x{columns.points} grid, exact residual")
    return Proof()


def symbol_estimate(operation: Operation) -> float:
    """Norm of a convolution by its symbols, as float64 sees it."""
    return _estimate_symbols(operation, *_axes(operation))


def _estimate_symbols(operation: Operation, rows: Axis, columns: Axis) -> float:
    if symbol_work(operation, rows, columns) > MAX_WORK:
        return math.inf
    batches = symbols(operation.wide("weight"), operation, rows, columns)
    return max(estimate(batch) for batch in batches) / math.sqrt(
        rows.inverse_loss * columns.inverse_loss
    )


def symbol_work(operation: Operation, rows: Axis, columns: Axis) -> float:
    """Roughly how many operations the proof by symbols takes; infinite if it is out of reach."""
    if rows.points * columns.points > MAX_POINTS or len(rows.taps) * len(columns.taps) > MAX_TAPS:
        return math.inf
    out, inner = operation.tensors["weight"].shape[:2]
    groups = operation.options.get("groups", 1)
    inner *= _residues(rows) * _residues(columns)
    small, large = sorted((2 * out // groups, 2 * inner))
    return 12.0 * rows.points * columns.points * groups * small**2 * (small + large)


def _residues(axis: Axis) -> int:
    return len({residue for *_, residue in axis.taps}) or 1


def symbol_error(operation: Operation, rows: Axis, columns: Axis) -> Fraction:
    """How far computed symbols may be from true ones, in norm."""
    out, inner = operation.tensors["weight"].shape[:2]
    taps = max(1, len(rows.taps) * len(columns.taps))
    weight = abs(operation.wide("weight"))
    sums: dict[tuple[int, int], Floats] = {}
    for i, _, r in rows.taps:
        for j, _, s in columns.taps:
            sums[r, s] = sums.get((r, s), np.zeros((out, inner))) + weight[:, :, i, j]
    energy = sum((frobenius(part) ** 2 for part in sums.values()), Fraction(0))
    # The last term is for products that underflow.
    return root_up(2 * energy) * (11 + taps) * UNIT * (1 + Fraction(1, 2**10)) + UNDERFLOW


def symbols(weight: Floats, operation: Operation, rows: Axis, columns: Axis) -> Iterator[Floats]:
    """Batches of symbols as real matrices [[X, -Y], [Y, X]]."""
    groups = operation.options.get("groups", 1)
    out, inner = weight.shape[0] // groups, weight.shape[1]
    residues: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for i, a, r in rows.taps:
        for j, b, s in columns.taps:
            residues.setdefault((r, s), []).append((i, j, a, b))
    if not residues:
        yield np.zeros((1, 1, 1))
        return
    height, width = rows.points, columns.points
    row_circle, column_circle = circle(height), circle(width)
    # Blocks at opposite frequencies are conjugate: one of each pair suffices.
    points = [
        (f, g)
        for f in range(height // 2 + 1)
        for g in range(width)
        if (f, g) <= (-f % height, -g % width)
    ]
    taps_at_most = max(map(len, residues.values()))
    step = max(1, CHUNK // (taps_at_most + groups * 4 * out * inner * len(residues)))
    for start in range(0, len(points), step):
        f, g = np.array(points[start : start + step]).T
        real, imag = [], []
        for taps in residues.values():
            kernels = np.stack([weight[:, :, i, j].ravel() for i, j, _, _ in taps])
            shifts = np.array([(a, b) for _, _, a, b in taps])
            c1, s1 = row_circle[:, np.outer(f, shifts[:, 0]) % height]
            c2, s2 = column_circle[:, np.outer(g, shifts[:, 1]) % width]
            shape = (len(f) * groups, out, inner)
            real.append(((c1 * c2 - s1 * s2) @ kernels).reshape(shape))
            imag.append(((s1 * c2 + c1 * s2) @ kernels).reshape(shape))
        x, y = np.concatenate(real, axis=2), np.concatenate(imag, axis=2)
        yield np.concatenate((np.concatenate((x, -y), 2), np.concatenate((y, x), 2)), 1)


def circle(points: int) -> Floats:
    """Cosines and sines of ``2 pi k / points``, shape ``(2, points)``, within 2^-52."""
    if points == 1:
        return np.array([[1.0], [0.0]])
    module = flint()
    with module.ctx.workprec(128):
        angles = [module.fmpq(2 * k, points) for k in range(points)]
        pairs = [module.arb.sin_cos_pi_fmpq(angle) for angle in angles]
        return np.array([[float(c) for _, c in pairs], [float(s) for s, _ in pairs]])


def workspace(operation: Operation) -> int:
    """Bytes that :func:`prove` and :func:`find` take at most."""
    size = sum(array.size for array in operation.tensors.values())
    if operation.kind in ("sandwich", "residual_block"):
        # Of the linear map inside, which is made here.
        inside, _ = _between_activations(operation)
        return workspace(inside) + 16 * size
    copies = 8 * 8 * size
    if operation.kind == "dense":
        large = min(operation.tensors["weight"].shape) > MAX_FACTOR_SIDE or size > MAX_MATRIX
        return copies if large else copies + ARRAYS * 8 * size
    if operation.kind == "circular_convolution":
        return copies + _symbol_bytes(operation.tensors["weight"].shape, *_circles(operation))
    if operation.kind != "convolution":
        return 0
    axes, shape = _axes(operation), operation.tensors["weight"].shape
    found = _symbol_bytes(shape, *axes)
    for d in (0, 1):
        mixed = _mixed_shape(shape, axes[d], d)
        if math.prod(mixed) <= MAX_MIXED:
            rest = (SINGLE, axes[1]) if d == 0 else (axes[0], SINGLE)
            found = max(found, 8 * 8 * math.prod(mixed) + _symbol_bytes(mixed, *rest))
    outputs = shape[0] * axes[0].outputs * axes[1].outputs
    whole = outputs * shape[1] * axes[0].inputs * axes[1].inputs
    return copies + max(found, ARRAYS * 8 * whole if whole <= MAX_OPERATOR else 0)


def _symbol_bytes(shape: tuple[int, ...], rows: Axis, columns: Axis) -> int:
    # Of a batch of symbols, or of those at one point.
    at_one = len(rows.taps) * len(columns.taps) + 4 * shape[0] * shape[1] * _residues(
        rows
    ) * _residues(columns)
    return ARRAYS * 8 * max(CHUNK, at_one)


def _mixed(operation: Operation) -> Iterator[tuple[Operation, Axis, Axis]]:
    # The map with one dimension among its channels and the axes of what is left, where it may pay.
    axes, weight = _axes(operation), operation.wide("weight")
    for d in (0, 1):
        axis = axes[d]
        shifts = [a for _, a, _ in axis.taps] or [0]
        if axis.points > MAX_MIXED_LENGTH * (max(shifts) - min(shifts)):
            continue
        if math.prod(_mixed_shape(weight.shape, axis, d)) > MAX_MIXED:
            continue
        mixed = replace(operation, tensors={"weight": _as_channels(operation, weight, axis, d)})
        rows, columns = (SINGLE, axes[1]) if d == 0 else (axes[0], SINGLE)
        if symbol_work(mixed, rows, columns) <= MAX_MIXED_WORK:
            yield mixed, rows, columns


def _mixed_shape(shape: tuple[int, ...], axis: Axis, d: int) -> tuple[int, ...]:
    # Of the weight of a map whose channels are those of all positions of dimension d.
    kernel = (1, shape[3]) if d == 0 else (shape[2], 1)
    return (shape[0] * axis.outputs, shape[1] * axis.inputs, *kernel)


def _as_channels(operation: Operation, weight: Floats, axis: Axis, d: int) -> Floats:
    # The weight of a map whose channels are those of all positions of dimension d.
    window = Window.of(operation)
    stride, padding, dilation = window.stride[d], window.padding[d], window.dilation[d]
    out, inner = weight.shape[:2]
    length = weight.shape[3 - d]
    taps = np.zeros((out, axis.outputs, inner, axis.inputs, length))
    outputs = np.arange(axis.outputs)
    for k, *_ in axis.taps:
        positions = stride * outputs + dilation * k - padding
        read = (positions >= 0) & (positions < axis.inputs)
        # Positions come first, where indices are apart.
        taps[:, outputs[read], :, positions[read]] = weight.take(k, axis=2 + d)
    return taps.reshape(_mixed_shape(weight.shape, axis, d))


def _whole_matrices(operation: Operation) -> Iterator[Floats]:
    # The padded convolution as one matrix (1, outputs, inputs) for each group, if it is small.
    rows, columns = _axes(operation)
    weight, groups = operation.wide("weight"), operation.options.get("groups", 1)
    out, inner = weight.shape[0] // groups, weight.shape[1]
    shape = (out, rows.outputs, columns.outputs, inner, rows.inputs, columns.inputs)
    outputs, inputs = math.prod(shape[:3]), math.prod(shape[3:])
    if outputs * inputs > MAX_OPERATOR or min(outputs, inputs) > MAX_SIDE or groups > MAX_GROUPS:
        return
    (y, v, i), (x, h, j) = _pairs(operation, rows, 0), _pairs(operation, columns, 1)
    for part in weight.reshape(groups, out, *weight.shape[1:]):
        matrix = np.zeros(shape)
        # Pairs of both dimensions come first, where indices are apart.
        entries = part.transpose(2, 3, 0, 1)[i[:, None], j]
        matrix[:, y[:, None], x, :, v[:, None], h] = entries
        yield matrix.reshape(1, outputs, inputs)


def _pairs(operation: Operation, axis: Axis, d: int) -> tuple[Indices, Indices, Indices]:
    # Outputs and inputs of dimension d that a tap connects, and that tap.
    window = Window.of(operation)
    taps = np.array([k for k, *_ in axis.taps], np.int64)
    read = window.stride[d] * np.arange(axis.outputs)[:, None] + window.dilation[d] * taps
    read = read - window.padding[d]
    outputs, which = np.nonzero((read >= 0) & (read < axis.inputs))
    return outputs, read[outputs, which], taps[which]
