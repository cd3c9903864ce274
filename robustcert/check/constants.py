"""Proofs of the Lipschitz constants that a folder claims: of operations, and of pairs of logits."""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustcert.check import semidefinite
from robustcert.check.effort import Effort, NotTriedError
from robustcert.check.exact_products import digit_bits, gram_of_digits, split_floats
from robustcert.check.fixed_point import Floats, InexactError
from robustcert.check.forward.exact import scaled
from robustcert.check.forward.floating import activation_of
from robustcert.check.forward.linear import absolute_norm
from robustcert.check.network.operation import BRANCHED, Operation, walk
from robustcert.check.norms.centred import centred_norm
from robustcert.check.norms.metric import Metric, affine_head, prefixes
from robustcert.check.norms.operation import find, inner_norm, prove
from robustcert.check.norms.scalars import root_up, round_up
from robustcert.check.reader import (
    MULTIPLIERS,
    UnreadableError,
    fail,
    hex_float,
    items,
    keys,
    parse_safetensors,
    show,
)
from robustcert.check.report import Report
from robustcert.check.statement import Space

# Kinds of operations whose norm takes a proof by the module `norms`.
WEIGHTED = (
    *("dense", "convolution", "circular_convolution"),
    *("sandwich", "residual_block", "skew_series"),
)


class Constants(NamedTuple):
    """Proved constants: of operations by path, of pairs of logits, and in the metric, if any."""

    proved: dict[str, Fraction]
    pairwise: list[list[float]]
    metric: Metric | None


def prove_constants(
    claim: dict[str, Any],
    content: dict[str, bytes],
    operations: tuple[Operation, ...],
    proof: str,
    space: Space,
    effort: Effort,
    report: Report,
) -> Constants:
    """Prove the claimed constants of all operations and of all pairs of logits.

    What does not fit into ``effort`` is noted as not tried, and taken as claimed in what follows.
    """
    bounded = operations[:-1] if proof == "quadric" else operations
    proved = _check_bounds(items(claim["bounds"], "bounds"), bounded, effort, report)
    metric = space.metric
    before, measured = _measure(space, bounded, proved, effort, report)
    if proof == "quadric":
        report.expect(claim["pairwise"] == [], "pairwise: quadratics have none")
        return Constants(proved, [], measured)
    through = operations if metric is None else (metric, *operations)
    multipliers = _read_multipliers(content, through, report) if proof == "lipsdp" else []
    if metric is not None and before is not None:
        proved = {**proved, metric.path: before[0]}
    pairwise = _check_pairwise(claim["pairwise"], through, proved, multipliers, before, report)
    return Constants(proved, pairwise, measured)


def prove_output(
    claim: dict[str, Any],
    operations: tuple[Operation, ...],
    space: Space,
    effort: Effort,
    report: Report,
) -> tuple[Constants, Fraction]:
    """Prove the claimed constants of all operations and of a network's one output; returns both."""
    proved = _check_bounds(items(claim["bounds"], "bounds"), operations, effort, report)
    report.expect(claim["pairwise"] == [], "pairwise: one output has none")
    claimed = items(claim["lipschitz"], "lipschitz")
    if len(claimed) != 1 or operations[-1].output_shape != (1,):
        raise fail("lipschitz", "one constant of one output", claimed)
    constant = Fraction(hex_float(claimed[0], "lipschitz"))
    head = operations[-1] if operations[-1].kind == "dense" else None
    before, measured = _measure(space, operations, proved, effort, report)
    rest, lost = Fraction(1), Fraction(0)
    for op in operations[:-1] if head else operations:
        rest = round_up(rest * proved[op.path])
    row = None if head is None else head.wide("weight")
    if space.metric is not None and before is not None:
        rest = before[-2] if head else before[-1]
        affine = affine_head(space.metric, operations)
        if affine is not None:
            row, lost, rest = affine[0], affine[1], Fraction(1)
    square = rest**2
    if row is not None:
        # The constant of a row is its length.
        square *= sum(Fraction(float(w)) ** 2 for w in row.ravel())
    enough = constant >= lost and (constant - lost) ** 2 >= square
    report.expect(enough, f"lipschitz: {float(constant)!r} is not proved")
    what = "product of bounds times the exact length of the row" if head else "product of bounds"
    report.note("lipschitz", f"the output's constant by the {what}, in rationals")
    return Constants(proved, [], measured), constant


def _measure(
    space: Space,
    operations: tuple[Operation, ...],
    proved: dict[str, Fraction],
    effort: Effort,
    report: Report,
) -> tuple[list[Fraction] | None, Metric | None]:
    # The constants in the metric, and with it as floats that are not below them; None without one.
    if space.metric is None:
        return None, None
    before = prefixes(space.metric, operations, space.bounds, proved, effort, report)
    upper = tuple(math.nextafter(float(c), math.inf) for c in before)
    return before, Metric(space.metric, upper)


def _check_bounds(
    bounds: list[Any], operations: tuple[Operation, ...], effort: Effort, report: Report
) -> dict[str, Fraction]:
    proved: dict[str, Fraction] = {}
    methods: dict[str, int] = {}
    claimed = claimed_bounds(bounds, operations, report)
    for bound, operation in zip(claimed, operations, strict=True):
        _add_parts(operation, proved, Fraction(bound))
        proved[operation.path] = Fraction(bound)
        try:
            method = _prove(operation, bound, proved, effort)
        except NotTriedError as error:
            report.untried.append(f"bound of {operation.label}: {error}")
            continue
        expected = f"bound of {operation.label}: {bound!r} is not proved to be an upper bound"
        report.expect(bool(method), expected)
        methods[method] = methods.get(method, 0) + 1
    listed = ", ".join(f"{count} by {method}" for method, count in methods.items() if method)
    report.note("norms", f"{sum(methods.values())} of {len(operations)} operations: {listed}")
    return proved


def claimed_bounds(
    bounds: list[Any], operations: tuple[Operation, ...], report: Report
) -> list[float]:
    """The bounds that a folder claims, one for each operation; nothing is proved of them."""
    if len(bounds) != len(operations):
        raise UnreadableError(f"bounds: {len(bounds)} for {len(operations)} operations")
    found = []
    for entry, operation in zip(bounds, operations, strict=True):
        where = f"bound of {operation.label}"
        keys(entry, where, {"name", "kind", "input_shape", "bound"}, set())
        described = (operation.name, operation.kind, list(operation.input_shape))
        claimed = (entry["name"], entry["kind"], entry["input_shape"])
        report.expect(claimed == described, f"{where}: it is listed for {show(claimed)}")
        found.append(hex_float(entry["bound"], where))
    return found


def claimed_pairwise(claimed: Any, classes: int) -> list[list[float]]:
    """The claimed constants of logit i minus logit j; nothing is proved of them."""
    table = [
        [hex_float(value, "pairwise") for value in items(row, "pairwise")]
        for row in items(claimed, "pairwise")
    ]
    if len(table) != classes or any(len(row) != classes for row in table):
        raise UnreadableError(f"pairwise: expected a table of {classes} by {classes}")
    return table


def _prove(operation: Operation, bound: float, proved: dict[str, Fraction], effort: Effort) -> str:
    # Name of the method that proves the bound; empty if none does.
    if operation.kind in WEIGHTED:
        return prove(operation, bound, effort).method
    if operation.kind in BRANCHED:
        left: list[str] = []
        if _joined(operation, proved, effort, left) <= bound:
            return f"{operation.kind} of branches"
        if left:
            raise NotTriedError(left[0])
        return ""
    if operation.kind == "affine":
        return "largest scale" if _by_definition(operation) <= bound else ""
    if operation.kind == "gather":
        return "largest multiplicity" if _multiplicity(operation) <= Fraction(bound) ** 2 else ""
    return "definition" if _by_definition(operation) <= bound else ""


def _by_definition(operation: Operation) -> Fraction:
    # The constant of a kind that is known from its definition.
    if operation.kind == "affine":
        return Fraction(float(abs(operation.wide("scale")).max()))
    if operation.kind == "gather":
        return root_up(Fraction(_multiplicity(operation)))
    if operation.kind == "activation":
        kind, tensors, options = activation_of(operation)
        return Fraction(kind.lipschitz(**tensors, **options))
    # Maps of entries; and those on a torus: check/forward/reflection.py, orthogonal.py.
    return Fraction(1)


def _multiplicity(operation: Operation) -> int:
    # How often an entry of the input is read at most: the square of the norm of the map.
    index = operation.tensors["index"]
    return int(np.bincount(index[index >= 0]).max(initial=0))


def _add_parts(operation: Operation, proved: dict[str, Fraction], bound: Fraction) -> None:
    # Bounds that need not be close: they only multiply rounding errors. Those of the steps of a
    # series multiply each other, and are what its own bound is proved by.
    step = inner_norm(operation, bound) if operation.kind == "skew_series" else 0.0
    for part in walk(operation.parts):
        proved[part.path] = Fraction(1)
        if part.kind in ("dense", "convolution", "circular_convolution"):
            proved[part.path] = Fraction(step or absolute_norm(part))
        elif part.kind == "affine":
            proved[part.path] = _by_definition(part)
        elif part.kind == "wrap":
            # An entry is read twice at most along each dimension.
            proved[part.path] = Fraction(2)


def _joined(
    operation: Operation, proved: dict[str, Fraction], effort: Effort, left: list[str]
) -> Fraction:
    # The folder claims no bounds for operations in branches: they are found here. Constants of
    # branches add up; those of branches that stand side by side do so in squares. What there is no
    # time for is added to `left`, and has a bound that need not be close.
    power = 1 if operation.kind == "sum" else 2
    total = Fraction(0)
    for branch in operation.branches:
        product = Fraction(1)
        for inner in branch:
            proved[inner.path] = _find(inner, proved, effort, left)
            product = round_up(product * proved[inner.path])
        total = round_up(total + product**power)
    if power == 2:
        return root_up(total)
    norm = centred_norm(operation)
    return total if norm >= total else Fraction(norm)


def _find(
    operation: Operation, proved: dict[str, Fraction], effort: Effort, left: list[str]
) -> Fraction:
    if operation.kind in BRANCHED:
        return _joined(operation, proved, effort, left)
    if operation.kind not in WEIGHTED:
        return _by_definition(operation)
    try:
        value = find(operation, effort)
    except NotTriedError as error:
        left.append(f"{operation.label} in it: {error}")
        coarse = _coarse(operation)
        _add_parts(operation, proved, coarse)
        return coarse
    if not math.isfinite(value):
        raise UnreadableError(f"{operation.label}: no bound can be proved here")
    _add_parts(operation, proved, Fraction(value))
    return Fraction(value)


def _coarse(operation: Operation) -> Fraction:
    # An upper bound on the norm that takes no proof.
    if operation.kind in ("dense", "convolution", "circular_convolution"):
        return Fraction(absolute_norm(operation))
    if operation.parts:
        return round_up(math.prod(map(_coarse, operation.parts), start=Fraction(1)))
    if operation.kind in BRANCHED:
        # The root of a sum of squares is at most the sum.
        products = (math.prod(map(_coarse, b), start=Fraction(1)) for b in operation.branches)
        return sum(products, Fraction(0))
    return Fraction(2) if operation.kind == "wrap" else _by_definition(operation)


def _read_multipliers(
    content: dict[str, bytes], operations: tuple[Operation, ...], report: Report
) -> list[list[Floats]]:
    try:
        sizes = [count for _, count in semidefinite.layers(operations)]
    except semidefinite.NotCoveredError as error:
        report.uncovered.append(str(error))
        return []
    tensors = parse_safetensors(content[MULTIPLIERS], MULTIPLIERS)
    # Without activations that take multipliers, there is one list, which is empty.
    lists = len(tensors) // len(sizes) if sizes else 1
    pairs = operations[-1].output_shape[0] ** 2
    if lists > pairs + 2:
        raise UnreadableError(f"{MULTIPLIERS}: {lists} lists, more than {pairs + 2}")
    names = [[f"{i}.{k}" for k in range(len(sizes))] for i in range(lists)]
    keys(tensors, MULTIPLIERS, {name for row in names for name in row}, set())
    for row in names:
        for name, size in zip(row, sizes, strict=True):
            array = tensors[name]
            if array.shape != (size,) or array.dtype != np.float64:
                raise fail(f"{MULTIPLIERS} {name}", f"{size} float64 values", array.shape)
            if not (
                (array >= semidefinite.MIN_MULTIPLIER) & (array <= semidefinite.MAX_MULTIPLIER)
            ).all():
                raise UnreadableError(
                    f"{MULTIPLIERS} {name}: a value is not positive, or too large"
                )
    return [[tensors[name] for name in row] for row in names]


def _check_pairwise(
    claimed: Any,
    operations: tuple[Operation, ...],
    proved: dict[str, Fraction],
    multipliers: list[list[Floats]],
    measured: list[Fraction] | None,
    report: Report,
) -> list[list[float]]:
    # `operations` begin with the metric, if there is one, of which `measured` has the constants.
    classes = operations[-1].output_shape[0]
    table = claimed_pairwise(claimed, classes)
    head = operations[-1] if operations[-1].kind == "dense" else None
    rest, lost = Fraction(1), Fraction(0)
    for op in operations[:-1] if head else operations:
        rest = round_up(rest * proved[op.path])
    weight = None if head is None else head.wide("weight")
    if measured is not None:
        rest = measured[-2] if head else measured[-1]
        affine = affine_head(operations[0], operations[1:])
        if affine is not None:
            weight, lost, rest = affine[0], 2 * affine[1], Fraction(1)
    squares, scale = [[2 * (i != j) for j in range(classes)] for i in range(classes)], rest**2
    if head is not None and weight is not None:
        squares, places = _squared_distances(weight, head)
        scale = rest**2 / 4**places
    enough = np.array(
        [
            [
                table[i][j] == 0
                if i == j
                else table[i][j] >= lost
                and (Fraction(table[i][j]) - lost) ** 2 >= scale * int(squares[i][j])
                for j in range(classes)
            ]
            for i in range(classes)
        ]
    )
    what = "product of bounds times exact distances of rows" if head else "root 2 times the product"
    report.note("pairwise", f"{classes} classes, {enough.sum() - classes} by {what}, in rationals")
    if multipliers and not enough.all():
        before = int(enough.sum())
        enough |= _by_multipliers(np.array(table), enough, operations, proved, multipliers)
        report.note("", f"{enough.sum() - before} by semidefinite bounds, residual exact")
    if report.uncovered:
        return table
    for i, j in np.argwhere(~enough).tolist():
        report.expect(False, f"pairwise[{i}][{j}]: {table[i][j]!r} is not proved")
    return table


def _squared_distances(weight: Floats, head: Operation) -> tuple[list[list[int]], int]:
    # Squared distances of the rows, times 4 to the power of the second number.
    try:
        rows, places = scaled(weight)
    except InexactError as error:
        raise UnreadableError(f"{head.label}: {error}") from None
    bits = digit_bits(rows.shape[1])
    lengths = gram_of_digits(split_floats(rows, bits), bits)
    own = lengths.diagonal()
    return (own[:, None] + own[None, :] - 2 * lengths).tolist(), places


def _by_multipliers(
    table: Floats,
    enough: NDArray[np.bool_],
    operations: tuple[Operation, ...],
    proved: dict[str, Fraction],
    multipliers: list[list[Floats]],
) -> NDArray[np.bool_]:
    norms = {path: math.nextafter(float(value), math.inf) for path, value in proved.items()}
    enough = enough | np.eye(len(table), dtype=np.bool_) & (table == 0)
    for candidate in multipliers:
        for found in semidefinite.constants(operations, norms, candidate):
            off = ~np.eye(len(table), dtype=np.bool_)
            enough |= (found <= table) & off
            if enough.all():
                return enough
    return enough
