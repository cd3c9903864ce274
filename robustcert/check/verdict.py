"""Every claim of a certificate folder against what can be proved from its own files."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check import curvature, dataset, memory, norms, semidefinite
from robustcert.check.digits import digit_bits, gram_of_digits, split_floats
from robustcert.check.fixed import Floats, InexactError
from robustcert.check.forward import FLOAT32, FLOAT64, Arithmetic, absolute_norm, scaled, walk
from robustcert.check.network import Operation, digest, read_network
from robustcert.check.norms import round_up
from robustcert.check.quadric import QuadricNetwork, covers
from robustcert.check.radii import Network, Proving, check_radii
from robustcert.check.reader import (
    FILES,
    MULTIPLIERS,
    Array,
    Row,
    UnreadableError,
    fail,
    hex_float,
    items,
    keys,
    parse_json,
    parse_radii,
    parse_safetensors,
    read_bytes,
    sha256,
    show,
    whole,
)
from robustcert.check.report import Report

FORMAT = 2
# Top-level keys of certificate.json that nothing reads, all of which are listed.
MAX_UNREAD_KEYS = 64
MAX_KEY_LENGTH = 64
MAX_UNREAD_FILES = 64
NETWORK = "network.safetensors"
STATEMENT = {
    "statement": (
        "For every sample listed as certified with radius r, every input at l2 distance less than r"
        " from the sample gets the listed prediction, as the unique largest logit."
    ),
    "norm": "l2",
    "units": "input units: distances between inputs with values in [0, 1]",
    "domain": "all of R^d, no clipping",
    "inputs": "float32 values; a uint8 pixel p stands for float32(p / 255)",
}
FUNCTIONS = {
    "R": "the real-valued function that the float constants of the network define",
    "F64": "the network evaluated in IEEE float64, summed in any order",
    "F32": "the network evaluated in IEEE float32, summed in any order, without TF32",
}
# What is claimed without proof, of another function and with other words.
SMOOTHED = (
    "Not proved: for every sample listed with radius r, with the confidence stated beside it, "
    "every input at l2 distance less than r from the sample gets the listed prediction from the "
    "smoothed classifier."
)
SMOOTHED_FUNCTION = (
    "the classifier that returns the most probable class of the network under Gaussian noise of "
    "standard deviation sigma, in real arithmetic"
)
SMOOTHING = {"sigma", "n0", "n", "alpha", "confidence", "seed"}
PROOFS = ("lipschitz", "lipsdp", "second-order", "crown", "local-lipschitz", "quadric")
# Their radii rest on more than the pairwise bounds, and are not proved again here.
NOT_COVERED = ("crown", "local-lipschitz")
WEIGHTED = ("dense", "convolution", "sandwich", "residual_block", "circular_convolution")
# Claims of all pairs of near inputs: only its digest is checked.
GLOBAL = "global.json"
CLAIMS = {"format", "robustcert", "claim", "network", "bounds", "pairwise", "summary", "files"}


@dataclass(frozen=True)
class Samples:
    """The samples of the folder, as real numbers."""

    inputs: Array
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def values(self, rows: slice | NDArray[np.int64]) -> Floats:
        """Inputs as float64; a byte p stands for the float32 nearest to p / 255."""
        part = self.inputs[rows]
        if part.dtype == np.uint8:
            return (part.astype(np.float32) / np.float32(255)).astype(np.float64)
        return part.astype(np.float64)


def check(
    folder: str | Path,
    exact: int = 200,
    seed: int | None = None,
    data: Sequence[str | Path] = (),
) -> Report:
    """Check a certificate folder.

    Args:
        folder: The folder, which may hold anything.
        exact: Samples whose logits are always computed in exact arithmetic: half of them at random,
            half of them those with the smallest relative slack.
        seed: Of that choice; from the operating system by default, so that nobody can foresee it.
        data: Files of the dataset that the samples must be from; none: not checked.

    Raises:
        UnreadableError: the folder is malformed, or of a kind that this checker does not know.
        ImportError: the network needs python-flint, which is not there.
    """
    folder = _open(folder)
    content = {name: read_bytes(folder, name) for name in FILES}
    report = Report()
    claim = _read_claim(content)
    deployed, proof = _check_statement(claim["claim"])
    if proof == "lipsdp":
        content[MULTIPLIERS] = read_bytes(folder, MULTIPLIERS)
    names = {name for name in content if name != "certificate.json"}
    keys(claim["files"], "files", names, {GLOBAL})
    if GLOBAL in claim["files"]:
        content[GLOBAL] = read_bytes(folder, GLOBAL)
    _check_files(claim["files"], content, report)
    operations, tensors = _read_operations(claim, content, report)
    unread, beside = _unread_keys(claim), _unread_files(folder, content)
    samples = _read_samples(content["samples.safetensors"], operations, data)
    certified = _status(claim["claim"], proof)
    rows = parse_radii(content.pop("radii.csv"), len(samples.labels), certified)
    if FLOAT32 in deployed and any(array.dtype == np.float64 for array in tensors.values()):
        raise UnreadableError(
            "claim functions: F32 of a network with float64 constants is not known"
        )
    size = sum(map(len, content.values())) + os.path.getsize(folder / "radii.csv")
    report.note("memory", str(memory.need(size, operations, proof)))
    # What takes no proof comes first, so that a malformed folder is refused soon.
    _check_table(rows, samples, operations[-1].output_shape[0], report)
    _check_summary(claim["summary"], rows, report)
    proved, pairwise = _prove_constants(claim, content, operations, proof, report)
    smooth = proof == "second-order"
    outside = curvature.uncovered(operations) if smooth else None
    if outside is not None:
        report.uncovered.append(f"second-order radii through {outside.label}")
    if proof in NOT_COVERED:
        report.uncovered.append(f"{proof} radii are not re-proved by this checker")
    if proof == "smoothing":
        report.uncovered.append("probabilistic: not re-proved, and true with some confidence only")
    if not report.mismatches and proof != "smoothing":
        upper = {path: math.nextafter(float(value), math.inf) for path, value in proved.items()}
        network: Proving = Network(operations, upper, np.array(pairwise), deployed, smooth)
        if proof == "quadric":
            network = QuadricNetwork(operations, upper, deployed)
        if report.uncovered:
            # Without a proof of the radii, predictions still have one.
            rows = [replace(row, certified=False, radius=0.0) for row in rows]
        check_radii(rows, samples.values, network, exact, seed, report)
    if GLOBAL in claim["files"] or (folder / GLOBAL).exists():
        report.uncovered.append(f"{GLOBAL}: what it says of all pairs of inputs is not re-proved")
    if data:
        what, wrong = dataset.compare(data, samples.inputs, samples.labels, samples.indices)
        report.compared.append(("samples", what))
        report.mismatches += wrong
    else:
        report.said.append(
            "the samples, their labels and indices: that they are a dataset's (--data FILE... "
            "compares them)"
        )
    report.said += [
        "who wrote the folder, with which version, and how the network was trained",
        "names of operations, and metadata of the .safetensors files",
    ]
    if unread:
        report.said.append(f"not read in certificate.json: {', '.join(unread)}")
    if beside:
        report.said.append(f"files that are not read: {', '.join(beside)}")
    return report


@dataclass(frozen=True)
class ProvedNetwork:
    """The network of a folder, with what was proved of it.

    Attributes:
        operations: Applied in turn.
        digest: Of the network, recomputed.
        pairwise: Proved constants of logit i minus logit j, ``(C, C)``; none of quadratics.
        proof: What the folder says that its radii rest on.
    """

    operations: tuple[Operation, ...]
    digest: str
    pairwise: Floats
    proof: str


def prove_network(folder: str | Path) -> tuple[ProvedNetwork, Report]:
    """Prove a folder's constants without its samples and radii, which need not be there.

    Raises:
        UnreadableError: as for :func:`check`.
    """
    folder = _open(folder)
    content = {name: read_bytes(folder, name) for name in ("certificate.json", NETWORK)}
    report = Report()
    claim = _read_claim(content)
    _, proof = _check_statement(claim["claim"])
    if proof == "lipsdp":
        content[MULTIPLIERS] = read_bytes(folder, MULTIPLIERS)
    keys(claim["files"], "files", content.keys() - {"certificate.json"})
    _check_files(claim["files"], content, report)
    operations, _ = _read_operations(claim, content, report)
    _, pairwise = _prove_constants(claim, content, operations, proof, report)
    found = digest(operations[0].input_shape, operations)
    return ProvedNetwork(operations, found, np.array(pairwise), proof), report


def _open(folder: str | Path) -> Path:
    _check_arithmetic()
    folder = Path(folder)
    if not folder.is_dir():
        raise UnreadableError(f"{show(str(folder))}: no folder")
    return folder


def _read_claim(content: dict[str, bytes]) -> dict[str, Any]:
    claim = parse_json(content["certificate.json"], "certificate.json")
    keys(claim, "certificate.json", {"format"})
    if claim["format"] != FORMAT or type(claim["format"]) is not int:
        raise UnreadableError(
            f"certificate.json: expected format {FORMAT}, got {show(claim['format'])}: certify the "
            "network again with this version (an older format counts predictions as correct that "
            "are not proved)"
        )
    return keys(claim, "certificate.json", CLAIMS)


def _unread_keys(claim: dict[str, Any]) -> list[str]:
    # Whatever they hold is taken as said, and so is whatever is nested in them.
    unread = sorted(claim.keys() - CLAIMS)
    if len(unread) > MAX_UNREAD_KEYS or any(len(key) > MAX_KEY_LENGTH for key in unread):
        raise UnreadableError(
            f"certificate.json: expected at most {MAX_UNREAD_KEYS} keys beside the claims, of at "
            f"most {MAX_KEY_LENGTH} characters, got {len(unread)}, the longest of "
            f"{max(map(len, unread))}: remove them"
        )
    return [ascii(key)[1:-1] for key in unread]


def _unread_files(folder: Path, content: dict[str, bytes]) -> list[str]:
    most = MAX_UNREAD_FILES + len(content)
    with os.scandir(folder) as entries:
        names = {entry.name for entry in itertools.islice(entries, most + 1)}
    if len(names) > most:
        raise UnreadableError(
            f"expected at most {MAX_UNREAD_FILES} files in the folder beside the certificate's: "
            "remove the others"
        )
    return [ascii(name)[1:-1] for name in sorted(names - content.keys())]


def _read_operations(
    claim: dict[str, Any], content: dict[str, bytes], report: Report
) -> tuple[tuple[Operation, ...], dict[str, Array]]:
    tensors = parse_safetensors(content[NETWORK], NETWORK)
    operations = read_network(claim["network"], tensors)
    found = digest(operations[0].input_shape, operations)
    report.expect(claim["network"]["digest"] == found, f"network digest: it is {found}")
    if covers(operations) != (claim["claim"].get("proof") == "quadric"):
        raise UnreadableError("claim proof: quadric goes with networks that end in quadratics only")
    report.note("files", "sha256 and network digest recomputed")
    return operations, tensors


def _prove_constants(
    claim: dict[str, Any],
    content: dict[str, bytes],
    operations: tuple[Operation, ...],
    proof: str,
    report: Report,
) -> tuple[dict[str, Fraction], list[list[float]]]:
    if proof == "quadric":
        report.expect(claim["pairwise"] == [], "pairwise: quadratics have none")
        return _check_bounds(items(claim["bounds"], "bounds"), operations[:-1], report), []
    proved = _check_bounds(items(claim["bounds"], "bounds"), operations, report)
    multipliers = _read_multipliers(content, operations, report) if proof == "lipsdp" else []
    return proved, _check_pairwise(claim["pairwise"], operations, proved, multipliers, report)


def _check_arithmetic() -> None:
    tiny = np.array([2.0**-1022, 1.0, 1.0])
    with np.errstate(all="ignore"):
        sums = tiny * 0.5 + np.array([0.0, 0.5 + 2.0**-53, 0.5 + 2.0**-53 + 2.0**-54])
    if sums[0] == 0 or sums[1] != 1 or sums[2] != 1 + 2.0**-52:
        raise UnreadableError(
            "this process does not round float64 to nearest, or flushes denormals"
        )


def _check_files(claimed: Any, content: dict[str, bytes], report: Report) -> None:
    for name in sorted(content.keys() - {"certificate.json"}):
        found = sha256(content[name])
        report.expect(claimed[name] == found, f"{name}: its sha256 is {found}, not as claimed")


def _check_statement(claim: Any) -> tuple[list[Arithmetic], str]:
    smoothed = isinstance(claim, dict) and claim.get("proof") == "smoothing"
    own = {"smoothing"} if smoothed else set()
    keys(claim, "claim", {*STATEMENT, "functions", *own}, {"proof"})
    statement = STATEMENT | ({"statement": SMOOTHED} if smoothed else {})
    for key, known in statement.items():
        if claim[key] != known:
            raise fail(f"claim {key}", repr(known), claim[key])
    if smoothed:
        functions = keys(claim["functions"], "claim functions", {"smoothed"}, set())
        if functions["smoothed"] != SMOOTHED_FUNCTION:
            raise fail("claim functions", repr(SMOOTHED_FUNCTION), functions["smoothed"])
        return [], "smoothing"
    functions = keys(claim["functions"], "claim functions", {"R"}, {"F64", "F32"})
    for key, value in functions.items():
        if value != FUNCTIONS[key]:
            raise fail(f"claim functions {key}", repr(FUNCTIONS[key]), value)
    proof = claim.get("proof", "lipschitz")
    if not isinstance(proof, str) or proof not in PROOFS:
        raise fail("claim proof", f"one of {', '.join(PROOFS)}", proof)
    deployed = {"F64": FLOAT64, "F32": FLOAT32}
    return [arithmetic for key, arithmetic in deployed.items() if key in functions], proof


def _status(claim: dict[str, Any], proof: str) -> str:
    # What radii.csv has to call a sample with a radius.
    if proof != "smoothing":
        return "certified"
    said = keys(claim["smoothing"], "claim smoothing", SMOOTHING, set())
    for key in ("n0", "n", "seed"):
        whole(said[key], f"claim smoothing {key}")
    for key, most in (("sigma", math.inf), ("alpha", 1), ("confidence", 1)):
        if type(said[key]) not in (int, float) or not 0 < said[key] < most:
            raise fail(f"claim smoothing {key}", f"a number between 0 and {most}", said[key])
    if said["confidence"] != 1 - said["alpha"]:
        raise fail("claim smoothing confidence", f"{1 - said['alpha']}", said["confidence"])
    return f"confidence {said['confidence']}"


def _read_samples(
    content: bytes, operations: tuple[Operation, ...], data: Sequence[str | Path]
) -> Samples:
    tensors = parse_safetensors(content, "samples.safetensors")
    if "digests" in tensors:
        tensors["inputs"] = _look_up(tensors, operations[0].input_shape, data)
        del tensors["digests"]
    keys(tensors, "samples.safetensors", {"inputs", "labels", "indices"}, set())
    inputs, labels, indices = (tensors[key] for key in ("inputs", "labels", "indices"))
    count = inputs.shape[0] if inputs.ndim else 0
    shape = operations[0].input_shape
    if inputs.shape != (count, *shape) or count < 1 or inputs.dtype not in (np.uint8, np.float32):
        raise UnreadableError(
            f"samples.safetensors: expected uint8 or float32 inputs (N, {shape}), N at least 1, "
            f"got {inputs.dtype} {inputs.shape}"
        )
    for key, array in (("labels", labels), ("indices", indices)):
        if array.shape != (count,) or array.dtype != np.int64:
            raise UnreadableError(
                f"samples.safetensors: expected int64 {key} ({count},), got {array.dtype} "
                f"{array.shape}"
            )
    if inputs.dtype != np.uint8 and not ((inputs >= 0) & (inputs <= 1)).all():
        raise UnreadableError("samples.safetensors: an input is not in [0, 1]")
    return Samples(inputs, labels, indices)


def _look_up(
    tensors: dict[str, Array], shape: tuple[int, ...], data: Sequence[str | Path]
) -> Array:
    # Many large inputs are not copied into the folder, which then has their digests.
    digests, indices = tensors["digests"], tensors.get("indices", np.empty(0))
    count = len(indices)
    if digests.shape != (count, 32) or digests.dtype != np.uint8 or indices.dtype != np.int64:
        raise UnreadableError("samples.safetensors: expected 32 bytes of digest for each index")
    if not data or not count:
        raise UnreadableError(
            "samples.safetensors: it holds digests of the inputs, which --data FILE... must give"
        )
    return dataset.by_digest(data, digests, indices, shape)


def _check_bounds(
    bounds: list[Any], operations: tuple[Operation, ...], report: Report
) -> dict[str, Fraction]:
    if len(bounds) != len(operations):
        raise UnreadableError(f"bounds: {len(bounds)} for {len(operations)} operations")
    proved: dict[str, Fraction] = {}
    methods: dict[str, int] = {}
    for entry, operation in zip(bounds, operations, strict=True):
        where = f"bound of {operation.label}"
        keys(entry, where, {"name", "kind", "input_shape", "bound"}, set())
        bound = hex_float(entry["bound"], where)
        described = (operation.name, operation.kind, list(operation.input_shape))
        claimed = (entry["name"], entry["kind"], entry["input_shape"])
        report.expect(claimed == described, f"{where}: it is listed for {show(claimed)}")
        _add_parts(operation, proved)
        method = _prove(operation, bound, proved)
        report.expect(bool(method), f"{where}: {bound!r} is not proved to be an upper bound")
        proved[operation.path] = Fraction(bound)
        methods[method] = methods.get(method, 0) + 1
    listed = ", ".join(f"{count} by {method}" for method, count in methods.items() if method)
    report.note("norms", f"{len(operations)} operations: {listed}")
    return proved


def _prove(operation: Operation, bound: float, proved: dict[str, Fraction]) -> str:
    # The method that proves the bound, or nothing.
    if operation.kind in WEIGHTED:
        return norms.prove(operation, bound).method
    if operation.kind == "affine":
        least = Fraction(float(abs(operation.wide("scale")).max()))
        return "largest scale" if least <= bound else ""
    if operation.kind == "sum":
        return "sum of branches" if _sum_bound(operation, proved) <= bound else ""
    return "definition" if bound >= 1 else ""


def _add_parts(operation: Operation, proved: dict[str, Fraction]) -> None:
    # Roughly: these norms carry rounding errors only.
    for part in walk(operation.parts):
        proved[part.path] = Fraction(1)
        if part.kind in ("dense", "convolution"):
            proved[part.path] = Fraction(absolute_norm(part))
        elif part.kind == "affine":
            proved[part.path] = Fraction(float(abs(part.wide("scale")).max()))
        elif part.kind == "wrap":
            # An entry is read at most twice in each dimension.
            proved[part.path] = Fraction(2)


def _sum_bound(operation: Operation, proved: dict[str, Fraction]) -> Fraction:
    # Branches claim nothing themselves: their bounds are found here.
    total = Fraction(0)
    for branch in operation.branches:
        product = Fraction(1)
        for inner in branch:
            proved[inner.path] = _find(inner, proved)
            product = round_up(product * proved[inner.path])
        total = round_up(total + product)
    return total


def _find(operation: Operation, proved: dict[str, Fraction]) -> Fraction:
    if operation.kind == "sum":
        return _sum_bound(operation, proved)
    if operation.kind == "affine":
        return Fraction(float(abs(operation.wide("scale")).max()))
    if operation.kind not in WEIGHTED:
        return Fraction(1)
    _add_parts(operation, proved)
    value = norms.find(operation)
    if not math.isfinite(value):
        raise UnreadableError(f"{operation.label}: no bound can be proved here")
    return Fraction(value)


def _read_multipliers(
    content: dict[str, bytes], operations: tuple[Operation, ...], report: Report
) -> list[list[Floats]]:
    try:
        sizes = [count for _, count in semidefinite.layers(operations)]
    except semidefinite.NotCoveredError as error:
        report.uncovered.append(str(error))
        return []
    tensors = parse_safetensors(content[MULTIPLIERS], MULTIPLIERS)
    # Without such activations, the empty list is enough.
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
            if not ((array >= semidefinite.LEAST) & (array <= semidefinite.LARGEST)).all():
                raise UnreadableError(
                    f"{MULTIPLIERS} {name}: a value is not positive, or too large"
                )
    return [[tensors[name] for name in row] for row in names]


def _check_pairwise(
    claimed: Any,
    operations: tuple[Operation, ...],
    proved: dict[str, Fraction],
    multipliers: list[list[Floats]],
    report: Report,
) -> list[list[float]]:
    classes = operations[-1].output_shape[0]
    table = [
        [hex_float(value, "pairwise") for value in items(row, "pairwise")]
        for row in items(claimed, "pairwise")
    ]
    if len(table) != classes or any(len(row) != classes for row in table):
        raise UnreadableError(f"pairwise: expected a table of {classes} by {classes}")
    head = operations[-1] if operations[-1].kind == "dense" else None
    rest = Fraction(1)
    for op in operations[:-1] if head else operations:
        rest = round_up(rest * proved[op.path])
    squares = [[2 * (i != j) for j in range(classes)] for i in range(classes)]
    scale = rest**2
    if head is not None:
        try:
            rows, places = scaled(head.wide("weight"))
        except InexactError as error:
            raise UnreadableError(f"{head.label}: {error}") from None
        bits = digit_bits(rows.shape[1])
        lengths = gram_of_digits(split_floats(rows, bits), bits)
        own = lengths.diagonal()
        squares = (own[:, None] + own[None, :] - 2 * lengths).tolist()
        scale = rest**2 / 4**places
    enough = np.array(
        [
            [
                table[i][j] == 0
                if i == j
                else Fraction(table[i][j]) ** 2 >= scale * int(squares[i][j])
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


def _check_table(rows: list[Row], samples: Samples, classes: int, report: Report) -> None:
    for name, column in (("index", samples.indices), ("label", samples.labels)):
        listed = np.array([getattr(row, name) for row in rows], np.int64)
        wrong = np.flatnonzero(listed != column)
        for position in wrong[:5]:
            report.expect(
                False,
                f"radii.csv line {position + 2}: {name} {listed[position]} is not the sample's",
            )
    report.expect(len(np.unique(samples.indices)) == len(rows), "samples: an index appears twice")
    inside = (samples.labels >= 0) & (samples.labels < classes)
    report.expect(bool(inside.all()), f"samples: a label is not among 0 to {classes - 1}")
    report.expect(bool((samples.indices >= 0).all()), "samples: a negative index")
    for line, row in enumerate(rows, 2):
        where = f"radii.csv line {line}"
        report.expect(row.prediction < classes, f"{where}: prediction {row.prediction} is no class")
        report.expect(row.right or not row.correct, f"{where}: correct is {int(row.correct)}")
        report.expect(
            row.certified == (row.radius > 0), f"{where}: status does not fit radius {row.radius!r}"
        )
        report.expect(
            row.decimal == _decimal(row.radius), f"{where}: {show(row.decimal)} for {row.radius!r}"
        )


def _decimal(radius: float) -> str:
    # Six decimals, rounded down.
    if math.isinf(radius):
        return "inf"
    millionths = math.floor(Fraction(radius) * 10**6)
    return f"{millionths // 10**6}.{millionths % 10**6:06d}"


def _check_summary(summary: Any, rows: list[Row], report: Report) -> None:
    keys(summary, "summary", {"samples", "correct", "undecided", "certified"}, set())
    counts = {
        "samples": len(rows),
        "correct": sum(row.correct for row in rows),
        # The label is predicted, and not called correct.
        "undecided": sum(row.label == row.prediction and not row.correct for row in rows),
    }
    for key, count in counts.items():
        report.expect(
            whole(summary[key], f"summary {key}") == count, f"summary {key}: it is {count}"
        )
    beyond = np.sort(np.array([row.radius for row in rows if row.correct]))
    entries = items(summary["certified"], "summary certified")
    for entry in entries:
        where = "summary certified"
        keys(entry, where, {"radius", "decimal", "count"}, set())
        radius = hex_float(entry["radius"], where)
        if type(entry["decimal"]) not in (int, float):
            raise fail(f"{where} decimal", "a number", entry["decimal"])
        claimed = whole(entry["count"], f"{where} count")
        count = len(beyond) - int(np.searchsorted(beyond, radius, side="right"))
        report.expect(entry["decimal"] == radius, f"{where}: the decimal is not {radius!r}")
        report.expect(claimed == count, f"{where}: beyond {radius!r} it is {count}, not {claimed}")
    report.note("summary", f"accuracy and {len(entries)} counts recounted from radii.csv")
