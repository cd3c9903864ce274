"""The verdict on a certificate folder: each claim is proved from its own files, or refused."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check import curvature, dataset, intervals, memory, monotone
from robustcert.check.arithmetic import FLOAT32, Arithmetic
from robustcert.check.constants import (
    Constants,
    claimed_bounds,
    claimed_pairwise,
    prove_constants,
    prove_output,
)
from robustcert.check.effort import SECONDS, UNLIMITED, Effort, effort_of
from robustcert.check.expected import Expected
from robustcert.check.fixed_point import Floats
from robustcert.check.folder import (
    NETWORK,
    check_files,
    open_folder,
    read_claim,
    read_operations,
    read_space,
)
from robustcert.check.margins import Network
from robustcert.check.network.digest import digest
from robustcert.check.network.operation import Operation
from robustcert.check.quadratic.network import QuadraticNetwork
from robustcert.check.radii import Proving, verify_radii
from robustcert.check.reader import (
    FILES,
    Array,
    Row,
    UnreadableError,
    items,
    keys,
    parse_json,
    parse_radii,
    read_bytes,
)
from robustcert.check.report import Report
from robustcert.check.samples import Samples, check_summary, check_table, read_samples
from robustcert.check.statement import (
    CLAIMS,
    NOT_COVERED,
    Space,
    status,
    task_of,
)
from robustcert.check.unread import name_unchecked, unread_files, unread_keys
from robustcert.check.verified import prove_verified

# File of the claims about all pairs of near inputs, of which only the digest is checked.
GLOBAL = "global.json"


def check(
    folder: str | Path,
    exact: int | None = None,
    seed: int | None = None,
    data: Sequence[str | Path] = (),
    verified_until: float | None = None,
    effort: Effort = UNLIMITED,
) -> Report:
    """Check every claim of a certificate folder.

    Args:
        folder: The folder, which may hold anything.
        exact: Number of samples that are checked in exact arithmetic in any case: half of them at
            random, half of them those with the smallest relative slack. None for up to 200, as many
            as time allows, and at least 8.
        seed: Seed of that choice; from the operating system by default, so that nobody can foresee
            it.
        data: Files of the dataset that the samples have to be from; not checked if there are none.
        verified_until: With a time, by ``time.monotonic``, bounds, constants and rows are proved by
            the verified checker, of function R alone, and ended then.
        effort: How long, and on how many processes, to work: what does not fit is not tried, and
            the folder not verified. Whatever it takes, in this process, by default.

    Raises:
        UnreadableError: the folder is malformed, or of a kind that this checker does not know.
        ImportError: the network needs python-flint, which is not there.
    """
    path = open_folder(folder)
    claim = parse_json(read_bytes(path, "certificate.json"), "certificate.json")
    task = task_of(claim.get("claim") if isinstance(claim, dict) else None)
    asked = _Asked(exact, seed, data, verified_until, effort)
    return _CHECKS[task](path, asked)


@dataclass(frozen=True)
class _Asked:
    """The arguments of :func:`check` but the folder."""

    exact: int | None
    seed: int | None
    data: Sequence[str | Path]
    verified_until: float | None
    effort: Effort


def _check_classes(folder: Path, asked: _Asked) -> Report:
    report = Report()
    read = _read_folder(folder, asked.data, report)
    operations, proof, metric = read.operations, read.proof, read.space.metric
    need = memory.need(read.size, operations, proof, metric, asked.effort.processes)
    report.note("memory", str(need))
    # What needs no proof comes first, so that a mistyped file or a malformed folder is told early.
    samples = read.samples
    compared = _compared(asked.data, samples.inputs, samples.labels, samples.indices)
    check_table(read.rows, read.samples, operations[-1].output_shape[0], report)
    check_summary(read.claim["summary"], read.rows, report)
    if asked.verified_until is not None:
        _prove_by_program(read, asked, report)
        monotone.leave_uncovered(read.claim, report)
    else:
        effort = _before_rows(asked.effort, operations, len(read.rows))
        constants = prove_constants(
            read.claim, read.content, operations, proof, read.space, effort, report
        )
        monotone.check_directions(read.claim, operations, constants.proved, report)
        _name_uncovered_radii(operations, proof, report)
        if not report.mismatches and proof != "smoothing":
            _verify_rows(read, constants, asked, report)
    if GLOBAL in read.claim["files"] or (read.path / GLOBAL).exists():
        report.uncovered.append(f"{GLOBAL}: what it says of all pairs of inputs is not re-proved")
    _name_compared(compared, report)
    name_unchecked(read.space, read.unread_keys, read.unread_files, report)
    return report


def _check_outputs(folder: Path, asked: _Asked) -> Report:
    # Like `_check_classes`, of a network with one real output.
    report = Report()
    content, claim, deployed, proof = read_claim(folder, intervals.INTERVAL_FILES)
    if proof != "lipschitz" or asked.verified_until is not None:
        raise UnreadableError(
            f"claim task regression by {proof}: expected the proof lipschitz, and no --verified"
        )
    keys(claim, "certificate.json", CLAIMS | {"lipschitz"})
    keys(claim["files"], "files", content.keys() - {"certificate.json"}, set())
    check_files(claim["files"], content, report)
    operations, tensors = read_operations(claim, content, report)
    _require_known_functions(deployed, tensors)
    ignored = [key for key in unread_keys(claim) if key != "lipschitz"]
    space = read_space(claim, content, operations)
    samples = intervals.read_targets(content["samples.safetensors"], operations, space.kind)
    radii = intervals.read_radii(claim["summary"])
    rows = intervals.parse_intervals(content["intervals.csv"], len(samples.targets), radii)
    size = sum(map(len, content.values()))
    need = memory.need(size, operations, proof, space.metric, asked.effort.processes)
    report.note("memory", str(need))
    targets = samples.targets.astype(np.float32)
    compared = _compared(asked.data, samples.inputs, targets, samples.indices)
    intervals.check_table(rows, samples, report)
    intervals.check_summary(claim["summary"], rows, radii, report)
    effort = _before_rows(asked.effort, operations, len(rows))
    constants, constant = prove_output(claim, operations, space, effort, report)
    monotone.check_directions(claim, operations, constants.proved, report)
    if not report.mismatches:
        upper = {p: math.nextafter(float(v), math.inf) for p, v in constants.proved.items()}
        network = intervals.Bounded(operations, upper, constant, deployed, radii, constants.metric)
        intervals.verify(
            rows, samples.values, network, asked.exact, asked.seed, asked.effort, report
        )
    _name_compared(compared, report)
    name_unchecked(space, ignored, unread_files(folder, content), report)
    return report


def _before_rows(effort: Effort, operations: Sequence[Operation], rows: int) -> Effort:
    # The effort for constants, which leaves time for rows.
    return effort.keeping(Expected.of(operations, rows).rows)


# What is checked of the folders of each task.
_CHECKS = {"classification": _check_classes, "regression": _check_outputs}


@dataclass(frozen=True)
class _Folder:
    """A certificate folder that has been read; nothing of it is proved yet.

    Attributes:
        path: The folder.
        size: Bytes of the files that were read.
        content: These files but radii.csv, by name.
        claim: certificate.json.
        deployed: Arithmetics of the deployed networks that the claim is about.
        proof: Name of the proof in the claim.
        operations: Operations of the network, applied in turn.
        space: What inputs are, and how their distance is measured.
        samples: Inputs, labels and indices.
        rows: The lines of radii.csv.
        unread_keys: Keys of certificate.json that nothing reads.
        unread_files: Files of the folder that nothing reads.
    """

    path: Path
    size: int
    content: dict[str, bytes]
    claim: dict[str, Any]
    deployed: list[Arithmetic]
    proof: str
    operations: tuple[Operation, ...]
    space: Space
    samples: Samples
    rows: list[Row]
    unread_keys: list[str]
    unread_files: list[str]


def _read_folder(folder: Path, data: Sequence[str | Path], report: Report) -> _Folder:
    content, claim, deployed, proof = read_claim(folder, FILES)
    names = {name for name in content if name != "certificate.json"}
    keys(claim["files"], "files", names, {GLOBAL})
    if GLOBAL in claim["files"]:
        content[GLOBAL] = read_bytes(folder, GLOBAL)
    check_files(claim["files"], content, report)
    operations, tensors = read_operations(claim, content, report)
    space = read_space(claim, content, operations)
    ignored = unread_keys(claim), unread_files(folder, content)
    samples = read_samples(content["samples.safetensors"], operations, data, space.kind)
    certified = status(claim["claim"], proof)
    rows = parse_radii(content.pop("radii.csv"), len(samples.labels), certified)
    _require_known_functions(deployed, tensors)
    size = sum(map(len, content.values())) + os.path.getsize(folder / "radii.csv")
    return _Folder(
        folder,
        size,
        content,
        claim,
        deployed,
        proof,
        operations,
        space,
        samples,
        rows,
        *ignored,
    )


def _require_known_functions(deployed: Sequence[Arithmetic], tensors: Mapping[str, Array]) -> None:
    if FLOAT32 in deployed and any(array.dtype == np.float64 for array in tensors.values()):
        raise UnreadableError(
            "claim functions: F32 of a network with float64 constants is not known"
        )


def _name_uncovered_radii(operations: tuple[Operation, ...], proof: str, report: Report) -> None:
    outside = curvature.uncovered(operations) if proof == "second-order" else None
    if outside is not None:
        report.uncovered.append(f"second-order radii through {outside.label}")
    if proof in NOT_COVERED:
        report.uncovered.append(f"{proof} radii are not re-proved by this checker")
    if proof == "smoothing":
        report.uncovered.append("probabilistic: not re-proved, and true with some confidence only")


def _prove_by_program(read: _Folder, asked: _Asked, report: Report) -> None:
    if read.proof != "lipschitz":
        raise UnreadableError(
            f"claim proof {read.proof}: the verified checker knows lipschitz; run it without "
            "--verified"
        )
    if read.space.metric is not None:
        raise UnreadableError(
            "claim metric: the verified checker knows the l2 distance of inputs alone; run it "
            "without --verified"
        )
    report.program = True
    bounds = claimed_bounds(items(read.claim["bounds"], "bounds"), read.operations, report)
    classes = read.operations[-1].output_shape[0]
    pairwise = np.array(claimed_pairwise(read.claim["pairwise"], classes))
    if not report.mismatches and asked.verified_until is not None:
        coarse = FLOAT32 in read.deployed
        prove_verified(
            read.operations,
            bounds,
            pairwise,
            read.samples,
            read.rows,
            coarse=coarse,
            deadline=asked.verified_until,
            report=report,
        )
    if not report.mismatches:
        _compare_the_rest(read, bounds, pairwise, asked.effort, report)
    if read.deployed:
        report.said.append(
            "function F64 or F32, of which the folder claims the same: the verified checker is "
            "about function R"
        )


def _compare_the_rest(
    read: _Folder, bounds: Sequence[float], pairwise: Floats, effort: Effort, report: Report
) -> None:
    # Margins, and predictions of rows that claim nothing: no theorem needs them.
    rows = [replace(row, certified=False, correct=False, radius=0.0) for row in read.rows]
    paths = [operation.path for operation in read.operations]
    upper = {p: math.nextafter(b, math.inf) for p, b in zip(paths, bounds, strict=True)}
    network = Network(read.operations, upper, pairwise, read.deployed, False)
    apart = Report()
    verify_radii(rows, read.samples.values, network, 0, 0, effort, apart)
    report.mismatches += apart.mismatches
    report.untried += apart.untried
    report.more += apart.more
    report.said.append(
        "margins, and predictions that are neither correct nor certified: compared with those "
        "found here up to rounding, not by the verified checker"
    )


def _verify_rows(read: _Folder, constants: Constants, asked: _Asked, report: Report) -> None:
    operations, deployed, rows = read.operations, read.deployed, read.rows
    metric = constants.metric
    upper = {p: math.nextafter(float(v), math.inf) for p, v in constants.proved.items()}
    pairwise, smooth = np.array(constants.pairwise), read.proof == "second-order"
    network: Proving = Network(operations, upper, pairwise, deployed, smooth, metric)
    if read.proof == "quadric":
        network = QuadraticNetwork(operations, upper, deployed, metric=metric)
    if report.uncovered:
        # The radii have no proof here, but predictions that are called correct need one.
        rows = [replace(row, certified=False, radius=0.0) for row in rows]
    verify_radii(rows, read.samples.values, network, asked.exact, asked.seed, asked.effort, report)


def _compared(
    data: Sequence[str | Path], inputs: Array, targets: Array, indices: NDArray[np.int64]
) -> tuple[str, list[str]] | None:
    """What samples were compared with, and the mismatches; None where no data are given."""
    return dataset.compare(data, inputs, targets, indices) if data else None


def _name_compared(compared: tuple[str, list[str]] | None, report: Report) -> None:
    if compared is not None:
        what, wrong = compared
        report.compared.append(("samples", what))
        report.mismatches += wrong
    else:
        report.said.append(
            "the samples, their labels and indices: that they are a dataset's (--data FILE... "
            "compares them)"
        )


@dataclass(frozen=True)
class ProvedNetwork:
    """The network of a folder, with what was proved of it.

    Attributes:
        operations: Operations, applied in turn.
        digest: Digest of the network, recomputed.
        pairwise: Proved constants of logit i minus logit j, ``(C, C)``; empty for quadratics and
            for one real output.
        proof: Name of the proof in the claim.
        space: What inputs are, and how their distance is measured.
        task: Name of the task in the claim.
        lipschitz: Proved constants of the outputs, ``(C,)``; empty where none is claimed.
    """

    operations: tuple[Operation, ...]
    digest: str
    pairwise: Floats
    proof: str
    space: Space
    task: str
    lipschitz: Floats


def prove_network(folder: str | Path, effort: Effort | None = None) -> tuple[ProvedNetwork, Report]:
    """Prove a folder's constants without its samples and radii, which need not be there.

    Args:
        folder: The folder, which may hold anything.
        effort: How long, and on how many processes, to work; an hour in this process by default.

    Raises:
        UnreadableError: as for :func:`check`.
    """
    folder = open_folder(folder)
    report = Report()
    content, claim, _, proof = read_claim(folder, ("certificate.json", NETWORK))
    keys(claim["files"], "files", content.keys() - {"certificate.json"})
    check_files(claim["files"], content, report)
    operations, _ = read_operations(claim, content, report)
    space = read_space(claim, content, operations)
    found = digest(operations[0].input_shape, operations)
    task = task_of(claim["claim"])
    effort = effort_of(SECONDS) if effort is None else effort
    pairwise, lipschitz = _PROVE[task](claim, content, operations, space, effort, report)
    return ProvedNetwork(operations, found, pairwise, proof, space, task, lipschitz), report


def _prove_pairs(
    claim: dict[str, Any],
    content: dict[str, bytes],
    read: tuple[Operation, ...],
    space: Space,
    effort: Effort,
    report: Report,
) -> tuple[Floats, Floats]:
    proof = claim["claim"].get("proof", "lipschitz")
    constants = prove_constants(claim, content, read, proof, space, effort, report)
    return np.array(constants.pairwise), np.empty(0)


def _prove_one_output(
    claim: dict[str, Any],
    _content: dict[str, bytes],
    read: tuple[Operation, ...],
    space: Space,
    effort: Effort,
    report: Report,
) -> tuple[Floats, Floats]:
    keys(claim, "certificate.json", {"lipschitz"})
    _, constant = prove_output(claim, read, space, effort, report)
    return np.empty((0, 0)), np.array([float(constant)])


# How the constants of each task are proved: of pairs of logits, and of outputs.
_PROVE = {"classification": _prove_pairs, "regression": _prove_one_output}
