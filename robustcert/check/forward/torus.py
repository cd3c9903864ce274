"""Maps on a torus, evaluated by a matrix at every frequency, and what is kept of them."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import Arithmetic
from robustcert.check.fixed_point import Floats
from robustcert.check.network.operation import Operation
from robustcert.check.norms.symbols import circle

# Kinds that are evaluated so.
ON_TORUS = ("reflection", "orthogonal_convolution")
# Error of cosines and sines of a deployed network, and units of those here.
DEPLOYED_PHASES, OWN_PHASES = 2.0**-48, 10
# Largest error of blocks or inverses that is taken, and largest sum of all errors.
MAX_ERROR, MAX_TOTAL = 2.0**-20, 2.0**-6
# Largest norm of a kernel or an inverse: what is computed on the way stays in range.
MAX_NORM = 2.0**30
# Maximum number of bytes of the matrices that are kept.
MAX_MATRIX_BYTES = 3 * 2**30

Complexes = NDArray[np.complex128]


class Kept(Protocol):
    """What is kept of an operation."""

    @property
    def values(self) -> Complexes:
        """Matrices of all frequencies."""


Found = TypeVar("Found", bound=Kept)


def kept(operation: Operation, compute: Callable[[Operation], Found]) -> Found:
    """What was computed of an operation; what was used last is kept."""
    if operation not in _KEPT:
        _KEPT[operation] = compute(operation)
    _KEPT.move_to_end(operation)
    while len(_KEPT) > 1 and sum(each.values.nbytes for each in _KEPT.values()) > MAX_MATRIX_BYTES:
        _KEPT.popitem(last=False)
    return cast("Found", _KEPT[operation])


# Operations that were read do not change.
_KEPT: OrderedDict[Operation, Kept] = OrderedDict()


def frequency_count(operation: Operation) -> int:
    """Number of frequencies with a matrix, known from shapes."""
    return len(points_of(circle_of(operation)))


def matrix_bytes(operation: Operation) -> int:
    """Bytes of the matrices of all frequencies, known from shapes."""
    rows, columns = operation.tensors["weight"].shape[:2]
    size = columns if operation.kind == "reflection" else rows
    return 16 * frequency_count(operation) * size * columns


def circle_of(operation: Operation) -> tuple[int, int]:
    """Height and width of the torus of output positions."""
    (high, wide), stride = operation.options["period"], operation.options["stride"]
    return high // stride[0], wide // stride[1]


def on_circle(operation: Operation, x: Floats) -> Floats:
    """Inputs with zeros around them, positions modulo the stride as channels."""
    (height, width), stride = circle_of(operation), operation.options["stride"]
    padded = np.zeros((*x.shape[:2], height * stride[0], width * stride[1]))
    padded[:, :, : x.shape[2], : x.shape[3]] = x
    signal = padded.reshape(*x.shape[:2], height, stride[0], width, stride[1])
    return signal.transpose(0, 1, 3, 5, 2, 4).reshape(len(x), -1, height, width)


def within_map(operation: Operation, values: Floats) -> Floats:
    """The outputs that an operation has of values on the whole torus, with its bias."""
    height, width = operation.options["output_size"]
    found = values[:, :, :height, :width]
    return found + operation.wide("bias")[:, None, None] if "bias" in operation.tensors else found


def phase_error(operation: Operation, arithmetic: Arithmetic, points: int) -> float:
    """Relative error of a transform or of its inverse, of sums of so many products."""
    deployed = DEPLOYED_PHASES * math.sqrt(2 * math.prod(circle_of(operation)))
    return arithmetic.gamma(points) * math.sqrt(points) + deployed


def bias_error(operation: Operation, arithmetic: Arithmetic) -> float:
    """Twice the rounding of a bias in one step, over all positions."""
    if "bias" not in operation.tensors:
        return 0.0
    bias, places = operation.wide("bias"), math.prod(operation.output_shape[1:])
    return 2 * arithmetic.unit * float(np.sqrt((bias * bias).sum())) * math.sqrt(places)


def points_of(size: tuple[int, int]) -> NDArray[np.int64]:
    """Frequencies, one of every conjugate pair, shape ``(F, 2)``."""
    height, width = size
    every = [
        (f, g) for f in range(height) for g in range(width) if (f, g) <= (-f % height, -g % width)
    ]
    return np.array(every, dtype=np.int64)


def phases_at(size: tuple[int, int], shifts: NDArray[np.int64]) -> Complexes:
    """``e^{i w k}`` of all frequencies and some shifts ``(K, 2)``, within 10 units."""
    points, found = points_of(size), np.ones((1, 1), dtype=np.complex128)
    for d in (0, 1):
        cosine, sine = circle(size[d])
        turns = np.outer(points[:, d], shifts[:, d]) % size[d]
        found = found * (cosine[turns] + 1j * sine[turns])
    return found


def by_frequency(x: Floats, matrices: Complexes) -> Floats:
    """Matrices ``(F, m, n)`` at the frequencies of maps ``(N, n, height, width)``."""
    size = x.shape[2], x.shape[3]
    places = np.stack(np.divmod(np.arange(math.prod(size)), size[1]), axis=1)
    waves = phases_at(size, places)
    alone = ((2 * points_of(size)) % np.array(size) == 0).all(axis=1)
    length = np.where(alone, 1.0, math.sqrt(2.0)) / math.sqrt(math.prod(size))
    cosine, sine = length[:, None] * waves.real, length[:, None] * waves.imag
    sine[alone] = 0.0
    flat = x.reshape(-1, math.prod(size))
    # Real and imaginary parts of frequencies first, then channels and samples.
    re, im = (
        (flat @ part.T).reshape(*x.shape[:2], -1).transpose(2, 1, 0) for part in (cosine, -sine)
    )
    shape = (len(matrices), matrices.shape[1], len(x))
    a, b = np.empty(shape), np.empty(shape)
    for k, matrix in enumerate(matrices):
        real, imaginary = np.ascontiguousarray(matrix.real), np.ascontiguousarray(matrix.imag)
        a[k], b[k] = real @ re[k] - imaginary @ im[k], real @ im[k] + imaginary @ re[k]
    outputs: list[Any] = [part.transpose(2, 1, 0).reshape(-1, len(matrices)) for part in (a, b)]
    return (outputs[0] @ cosine - outputs[1] @ sine).reshape(len(x), matrices.shape[1], *size)
