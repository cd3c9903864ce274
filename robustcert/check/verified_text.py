"""The problem of the verified checker as plain text, whose grammar stands in proofs/README.md.

Everything that the program checks is written as integers over denominators, exactly; what it need
not trust, the factors that prove the norms of matrices, is computed here in floating point.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TextIO

import numpy as np

from robustcert.check.fixed_point import Floats, Integers, binary_places, to_integers
from robustcert.check.network.operation import Operation
from robustcert.check.norms.dense import estimate
from robustcert.check.reader import Row, UnreadableError

# Maximum side of a matrix.
MAX_VERIFIED_SIDE = 4096
# Maximum number of products: of samples and weights together, and of norms.
MAX_PRODUCTS = 2**37
# Binary places of the rounded matrices in proofs of norms; the first that suffice are used.
PLACES = (28, 40, 60)
# Maximum bound of an operation, so that its square is far from overflow.
MAX_BOUND = 2.0**400
# Grids of the evaluation, with the largest denominators of weights on them; 0: exact weights. The
# first that decides a sample is used: the coarse one where radii leave room for float32.
COARSE = (2**28, 2**26)
FINE = ((2**52, 2**50), (2**200, 0))
# Activations without constants, by their names in a folder.
PLAIN = {"relu": "relu", "absolute": "abs"}


def write_problem(
    file: TextIO,
    operations: Sequence[Operation],
    bounds: Sequence[float],
    pairwise: Floats,
    inputs: Floats,
    rows: Sequence[Row],
    *,
    coarse: bool,
) -> None:
    """Write a network, its bounds and the claims of rows; ``inputs`` has a row for each of these.

    ``coarse`` tries the coarse grid first.

    Raises:
        UnreadableError: the network or a radius is of a kind that the program does not know, or too
            large.
    """
    check_covered(operations, len(rows))
    kept = _kept(operations, bounds)
    file.write(f"robustcert-verified 1\ninputs {math.prod(operations[0].input_shape)}\n")
    file.write(f"steps {len(kept) - 1}\n")
    for operation, bound in kept[:-1]:
        _write_step(file, operation, bound)
    file.write("head\n")
    _write_step(file, *kept[-1])
    table, places = to_integers(pairwise)
    file.write(f"pairs {len(table)} {1 << places}\n")
    _write_rows(file, table)
    precisions = (COARSE, *FINE) if coarse else FINE
    file.write(f"precisions {len(precisions)}\n")
    file.writelines(f"{grid} {most}\n" for grid, most in precisions)
    file.write(f"rows {len(rows)}\n")
    for values, row in zip(inputs, rows, strict=True):
        whole, den = _dyadic(values.ravel())
        radius, radius_den = Fraction(row.radius).as_integer_ratio()
        file.write(f"{den} {_join(whole)} {row.prediction} {radius} {radius_den}\n")
    file.write("end\n")


def check_covered(operations: Sequence[Operation], samples: int) -> None:
    """Refuse a network that the program does not know, or that is too large for it.

    Raises:
        UnreadableError: naming the operation.
    """
    products = 0
    for operation in operations:
        reason = _outside(operation)
        if reason:
            raise UnreadableError(f"{operation.label}: {reason}; run it without --verified")
        if operation.kind == "dense":
            m, n = operation.tensors["weight"].shape
            if max(m, n) > MAX_VERIFIED_SIDE:
                raise UnreadableError(
                    f"{operation.label}: a matrix {m} by {n}, of which the verified checker takes "
                    f"at most {MAX_VERIFIED_SIDE} by {MAX_VERIFIED_SIDE}; run it without --verified"
                )
            products += m * n * samples + m * m * (m + n)
    last = operations[-1]
    if last.kind != "dense":
        raise UnreadableError(
            f"{last.label}: the verified checker expects a dense layer as the last operation; run "
            "it without --verified"
        )
    if products > MAX_PRODUCTS:
        raise UnreadableError(
            f"{last.label}: {samples} samples take {products} products up to here, more than "
            f"{MAX_PRODUCTS}; certify fewer samples, or run it without --verified"
        )


def _outside(operation: Operation) -> str:
    # Why the program does not know the operation; empty if it does.
    flat = len(operation.input_shape) == 1
    if operation.kind in ("flatten", "affine") or (operation.kind == "dense" and flat):
        return ""
    if operation.kind != "activation":
        return "not known to the verified checker"
    function = operation.options["function"]
    if function in (*PLAIN, "identity", "n_activation"):
        return ""
    if function in ("group_sort", "householder"):
        return "" if flat else f"{function} of maps is not known to the verified checker"
    return f"{function} is not known to the verified checker"


def _kept(
    operations: Sequence[Operation], bounds: Sequence[float]
) -> list[tuple[Operation, float]]:
    found = []
    for operation, bound in zip(operations, bounds, strict=True):
        if not bound <= MAX_BOUND:
            raise UnreadableError(
                f"{operation.label}: a bound of {bound!r}, of which the verified checker takes at "
                f"most {MAX_BOUND:g}"
            )
        if not changes_nothing(operation):
            found.append((operation, bound))
    return found


def changes_nothing(operation: Operation) -> bool:
    """Whether the operation is left out: values are written in the order of memory."""
    return operation.kind == "flatten" or operation.options.get("function") == "identity"


def _write_step(file: TextIO, operation: Operation, bound: float) -> None:
    over, under = Fraction(bound).as_integer_ratio()
    file.write(f"bound {over} {under}\n")
    if operation.kind == "dense":
        _write_dense(file, operation, Fraction(bound))
        return
    if operation.kind == "affine":
        scale, shift = (_per_entry(operation, key) for key in ("scale", "shift"))
        _write_pair(file, "scaling", scale, shift)
        return
    function = operation.options["function"]
    size = math.prod(operation.input_shape)
    if function in PLAIN:
        file.write(f"{PLAIN[function]}\n")
    elif function == "group_sort":
        group = operation.options["group_size"]
        file.write(f"sort {size // group} {group}\n")
    elif function == "n_activation":
        corners = operation.wide("corners")
        repeat = size // corners.shape[1]
        _write_pair(file, "n", corners[0].repeat(repeat), corners[1].repeat(repeat))
    else:
        # The length of a normal does not matter, nor a common factor.
        normals, _ = to_integers(operation.wide("normal").T)
        file.write(f"householder {size // 2} 2\n")
        _write_rows(file, normals)


def _per_entry(operation: Operation, key: str) -> Floats:
    values = operation.wide(key)
    shape = operation.input_shape
    if values.shape != shape:
        values = values.reshape(-1, *(1,) * (len(shape) - 1))
    return np.broadcast_to(values, shape).ravel()


def _write_pair(file: TextIO, name: str, first: Floats, second: Floats) -> None:
    both, places = to_integers(np.stack((first, second)))
    file.write(f"{name} {both.shape[1]} {1 << places}\n")
    _write_rows(file, both)


def _write_dense(file: TextIO, operation: Operation, bound: Fraction) -> None:
    weight = operation.wide("weight")
    bias = operation.wide("bias") if "bias" in operation.tensors else np.zeros(len(weight))
    both, places = to_integers(np.concatenate((weight, bias[:, None]), axis=1))
    found = _witness(weight, both[:, :-1], places, bound)
    both, places = both << found.more, places + found.more
    file.write(f"dense {weight.shape[1]} {len(weight)} {1 << places}\n")
    _write_rows(file, both[:, :-1])
    file.write(f"{_join(both[:, -1])}\n")
    # What is left of the square is what the residual may be.
    file.write(f"witness {found.divisor} {found.t} {found.limit**2 - found.t} {found.limit}\n")
    for i, row in enumerate(found.factor.tolist()):
        file.write(f"{i + 1} {_join(row[: i + 1])}\n")


@dataclass(frozen=True)
class _Witness:
    # Divisor, t, limit and F of the residual lemma, for the rows of an integer matrix that has
    # `more` binary places more than it needs.
    more: int
    divisor: int
    t: int
    limit: int
    factor: Integers


def _witness(weight: Floats, whole: Integers, places: int, bound: Fraction) -> _Witness:
    size = len(weight)
    norm, wide = estimate(weight[None]), float(bound)
    if 0 < norm <= wide:
        for kept in PLACES:
            more, divisor = max(0, kept - places), 1 << max(0, places - kept)
            exact = whole << more
            found = (exact + divisor // 2) // divisor
            rest = exact - found * divisor
            cut = math.isqrt(int((rest * rest).sum()) - 1) + 1 if rest.any() else 0
            limit = (math.floor(bound * (1 << (places + more))) - cut) // divisor
            # Half a unit in every entry of the factor, relative to the bound, and the rest.
            room = size * (1.2 * 2.0**-kept * wide + 2.0**-48 * wide**2)
            t = limit**2 - math.ceil(Fraction(room) * 4**kept)
            left = float(Fraction(t, 4**kept))
            if limit <= 0 or left <= (norm + cut / divisor * 2.0**-kept) ** 2:
                continue
            values = np.ldexp(found.astype(np.float64), -kept)
            try:
                factor = np.linalg.cholesky(np.eye(size) * left - values @ values.T)
            except np.linalg.LinAlgError:
                continue
            return _Witness(
                more, divisor, t, limit, to_integers(np.rint(np.ldexp(factor, kept)))[0]
            )
    # A matrix of zeros, or one without a proof: the program will say so.
    return _Witness(0, 1, 0, 0, np.zeros((size, size), dtype=object))


def _dyadic(values: Floats) -> tuple[list[int], int]:
    places = binary_places(values)
    if places <= 60 and float(abs(values).max(initial=0.0)) <= 1:
        return np.ldexp(values, places).astype(np.int64).tolist(), 1 << places
    whole, places = to_integers(values)
    return whole.tolist(), 1 << places


def _write_rows(file: TextIO, table: Integers) -> None:
    file.writelines(f"{_join(row)}\n" for row in table.tolist())


def _join(values: Iterator[int] | Sequence[int] | Integers) -> str:
    return " ".join(map(str, values))
