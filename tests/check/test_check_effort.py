"""What does not fit into the time of a check is not tried: never a mismatch, and never verified."""

import math
import multiprocessing
import pickle
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.soundness.forgeries import EVERYWHERE, Folder, build, certify
from robustcert.check import UnreadableError, check, expected_time, prove_network, share, supervisor
from robustcert.check.arithmetic import FLOAT32, FLOAT64
from robustcert.check.command import main, outcome
from robustcert.check.constants import _coarse
from robustcert.check.effort import Effort, NotTriedError, effort_of
from robustcert.check.margins import Network
from robustcert.check.network.operation import Operation
from robustcert.check.norms import cost, dense, operation, symbols
from robustcert.check.norms.operation import find, prove
from robustcert.check.report import Report
from robustcert.check.share import MAX_EXACT, MIN_EXACT, Batch, drawn_seed, in_turns

HOUR = 3600.0


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certify(tmp_path_factory.mktemp("honest") / "maxmin", build("maxmin"))


def slow_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every norm is expected to take years: a machine that is too slow, or a forger's network."""
    monkeypatch.setattr("robustcert.check.norms.cost.PROOF_SPEED", 1e-9)


def outside(report: Report) -> tuple[int, str]:
    """The exit status, and the first words of the last line."""
    status, line = outcome(report)
    return status, line.split(":")[0]


def lengthen(folder: Folder, factor: float) -> None:
    """Every radius times a factor, and all counts to it."""
    for k, row in enumerate(folder.rows):
        folder.set_radius(k, float.fromhex(row[6]) * factor)
    folder.recount()


# Verdicts


def test_norms_that_were_not_tried_leave_a_folder_partly_checked(
    honest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_proofs(monkeypatch)
    report = check(honest, exact=1, seed=0, effort=effort_of(HOUR))
    assert outside(report) == (3, "PARTLY CHECKED")
    bounds = [op for op in Folder(honest).operations if op["kind"] == "dense"]
    assert len(report.untried) == len(bounds)
    assert all(line.startswith("bound of operation") for line in report.untried)
    # Whatever else is claimed was compared.
    assert {"radii", "pairwise", "exact", "summary"} <= {topic for topic, _ in report.checked}


def test_the_command_lists_what_was_not_tried(
    honest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow_proofs(monkeypatch)
    assert main([str(honest), "--exact", "0"]) == 3
    *lines, last = capsys.readouterr().out.splitlines()
    assert any(line.startswith("not tried:   bound of operation") for line in lines)
    assert last.startswith("PARTLY CHECKED")
    # Its supervisor lets this answer pass.
    code = f"print({last!r}); raise SystemExit(3)"
    monkeypatch.setattr(supervisor, "command", lambda *_: [sys.executable, "-c", code])
    assert supervisor.main(["folder"]) == 3
    assert capsys.readouterr().out == f"{last}\n"


def test_a_larger_radius_is_refused_although_norms_were_not_tried(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_proofs(monkeypatch)
    folder = Folder(Path(shutil.copytree(honest, tmp_path / "forged")))
    lengthen(folder, 2)
    folder.save()
    assert outside(check(folder.path, exact=0, effort=effort_of(HOUR))) == (1, "REFUSED")


def test_a_forged_norm_that_everything_else_follows_from_is_never_verified(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(Path(shutil.copytree(honest, tmp_path / "forged")))
    entry = next(entry for entry in folder.claim["bounds"] if entry["kind"] == "dense")
    entry["bound"] = (float.fromhex(entry["bound"]) / 2).hex()
    table = folder.claim["pairwise"]
    folder.claim["pairwise"] = [[(float.fromhex(k) / 2).hex() for k in row] for row in table]
    lengthen(folder, 2 * (1 - 1e-4))
    folder.save()
    (line,) = check(folder.path, exact=4).mismatches
    assert "is not proved to be an upper bound" in line
    slow_proofs(monkeypatch)
    report = check(folder.path, exact=4, effort=effort_of(HOUR))
    # Nothing else gives it away.
    assert outside(report) == (3, "PARTLY CHECKED")


def test_nothing_is_begun_after_the_time(honest: Path) -> None:
    report = check(honest, effort=Effort(until=0.0))
    assert outside(report) == (3, "PARTLY CHECKED")
    assert any("radii.csv line 2 on" in line for line in report.untried)
    assert "radii" not in {topic for topic, _ in report.checked}


def test_a_network_whose_norms_were_not_tried_is_not_loaded(honest: Path) -> None:
    _, report = prove_network(honest, Effort(until=0.0))
    assert report.untried
    assert not report.mismatches
    assert not report.verified


def test_exact_samples_that_were_not_tried(honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustcert.check.radii.exact_seconds", lambda _: 1e9)
    effort = effort_of(HOUR)
    report = check(honest, exact=5, effort=effort)
    assert report.untried == ["5 more samples in exact arithmetic"]
    assert check(honest, effort=effort).untried == [f"{MIN_EXACT} more samples in exact arithmetic"]
    assert check(honest, exact=0, effort=effort).verified
    # Where float64 leaves a row open, it is the first to be tried.
    monkeypatch.setattr("robustcert.check.radii.in_turns", lambda *_: [])
    monkeypatch.setattr("robustcert.check.margins.MARGIN_ROUNDING", 1.0)
    report = check(honest, exact=0, effort=effort)
    assert outside(report) == (3, "PARTLY CHECKED")
    assert "rows that float64 leaves open" in report.untried[0]


# What is false in the folder itself, and takes no seconds to read.
FALSE = [n for n in EVERYWHERE if not any(w in n for w in ("data of", "a million", "30,000"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", FALSE)
def test_no_forgery_gains_from_norms_that_were_not_tried(
    name: str, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(Path(shutil.copytree(honest, tmp_path / "forged")))
    EVERYWHERE[name](folder)
    folder.save()
    slow_proofs(monkeypatch)
    try:
        status, _ = outcome(check(folder.path, exact=4, seed=0, effort=effort_of(HOUR)))
    except UnreadableError:
        return
    assert status == 1


# Norms


def convolution(channels: int = 8, side: int = 8) -> Operation:
    weight = np.random.RandomState(0).randn(channels, channels, 3, 3).astype(np.float32)
    options: dict[str, Any] = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    shape = (channels, side, side)
    return Operation("convolution", "", "0", options, {"weight": weight}, shape, shape)


def test_a_norm_takes_no_more_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    op = convolution()
    # Begun, and ended between two batches of frequencies.
    monkeypatch.setattr(symbols, "MAX_SYMBOL_VALUES", 1)
    now = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr("robustcert.check.effort.time.monotonic", lambda: next(now, 2.0))
    with pytest.raises(NotTriedError, match="work, of"):
        prove(op, 1e3, Effort(until=1.0))


def test_on_a_busy_machine_work_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("robustcert.check.effort.time.monotonic", lambda: now)
    monkeypatch.setattr("robustcert.check.effort._worked", lambda: now / 4)
    effort = effort_of(1000)
    assert effort.wait == 1
    now = 200.0
    assert 3.9 < effort.wait < 4
    effort.require(190)
    with pytest.raises(NotTriedError):
        effort.require(210)


def test_a_matrix_beyond_the_limits_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.eye(6, dtype=np.float32)
    op = Operation("dense", "", "0", {}, {"weight": weight}, (6,), (6,))
    monkeypatch.setattr("robustcert.check.norms.dense.MAX_FACTOR_SIDE", 5)
    with pytest.raises(NotTriedError, match="6x6"):
        prove(op, 1.0)
    assert prove(op, 2.5).method == "Frobenius norm"
    assert math.isinf(operation.work(op))


def test_symbols_beyond_the_limits_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbols, "MAX_TAPS", 8)
    for limit in ("MAX_MATRIX_SIDE", "MAX_MIXED_ENTRIES"):
        monkeypatch.setattr(f"robustcert.check.norms.convolution.{limit}", 1)
    for attempt in (lambda op: prove(op, 1e3), find):
        with pytest.raises(NotTriedError, match="3x3 taps"):
            attempt(convolution())


@pytest.mark.parametrize("kind", ["convnet", "residual"])
def test_what_takes_no_proof_is_above_the_norm(kind: str, tmp_path: Path) -> None:
    network, _ = prove_network(certify(tmp_path / kind, build(kind)))
    for op in network.operations:
        if op.kind in ("dense", "convolution"):
            assert _coarse(op) >= find(op) * (1 - 1e-9)


@pytest.mark.parametrize("shape", [(1, 300, 40), (1, 40, 300), (1, 120, 120), (500, 4, 2)])
@pytest.mark.parametrize("digits", [2, 3])
def test_a_proof_takes_the_memory_that_is_told(shape: tuple[int, int, int], digits: int) -> None:
    matrices = np.random.RandomState(0).randn(*shape)
    matrices /= 1.01 * np.linalg.norm(matrices, 2, axis=(1, 2)).max()
    tall = matrices if shape[1] >= shape[2] else matrices.swapaxes(1, 2)
    tracemalloc.start()
    try:
        gram = tall.swapaxes(1, 2) @ tall
        assert dense._residual_proof(tall, gram, Fraction(1), Fraction(0), digits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= dense.proof_bytes(shape[1], shape[2], shape[0]) <= 3 * peak


@pytest.mark.slow
def test_processes_prove_what_one_proves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbols, "MIN_SHARED_WORK", 0.0)
    monkeypatch.setattr(symbols, "MAX_SYMBOL_VALUES", 2**10)
    op, shared = convolution(), Effort(processes=2)
    bound = find(op)
    assert prove(op, bound, shared) == prove(op, bound)
    assert not prove(op, bound * (1 - 1e-6), shared).method
    # Nor are any left behind when time ends, here as soon as they have begun.
    clock = SimpleNamespace(monotonic=lambda: 2.0 if multiprocessing.active_children() else 0.0)
    monkeypatch.setattr("robustcert.check.effort.time", clock)
    with pytest.raises(NotTriedError):
        prove(op, bound, Effort(until=1.0, processes=2))
    assert not multiprocessing.active_children()


ENDED = """
import os, sys
from robustcert.check.processes import answers
list(answers(os.system, [f"touch {sys.argv[1]}/$PPID; exec sleep 20"] * 2, 2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="states of processes are in /proc")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-I", "-c", ENDED, str(tmp_path)]) as started:
        until = time.monotonic() + 60
        while len([*tmp_path.iterdir()]) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        started.kill()
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 2
    while any(map(runs, names)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(runs, names))


def runs(process: str) -> bool:
    """Whether a process, by its number, has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# The share


@pytest.mark.parametrize("count", [0, 1, 8, 31, MAX_EXACT])
def test_at_least_half_of_the_share_is_random_wherever_it_ends(count: int) -> None:
    rows = list(range(0, 1000, 3))
    slack = np.arange(1000.0)
    order = in_turns(slack, rows, count, seed=5)
    assert len(order) == len({*order}) == min(count, len(rows))
    assert {*order} <= {*rows}
    others = {*in_turns(slack, rows, count, seed=6)}
    tightest = [row for row in order[1::2] if row in others]
    assert tightest == sorted(tightest)
    for end in range(len(order) + 1):
        # The tight ones, on every second place, are about the first rows.
        tight = sum(row <= 3 * count for row in order[:end][1::2])
        assert tight == len(order[:end][1::2])
        assert 2 * (end - tight) >= end


def test_a_share_without_a_seed_is_the_operating_systems(honest: Path) -> None:
    """Nobody who knows the state of the program's own generators foresees which rows it takes."""

    def said(seed: int | None) -> str:
        random.seed(1)
        np.random.seed(1)
        return dict(check(honest, exact=2, seed=seed).checked)["exact"]

    assert said(5) == said(5)
    assert "(seed 5)" in said(5)
    drawn = {said(None) for _ in range(3)}
    assert len(drawn) == 3
    orders = [in_turns(np.arange(1000.0), [*range(1000)], 100, drawn_seed(None)) for _ in range(2)]
    assert orders[0] != orders[1]


def found_of(batch: Batch) -> Report:
    report = Report()
    for row in batch[0].tolist():
        report.expect(row % 3 > 0, f"row {row}")
    return report


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_are_checked_in_turn(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "MIN_SHARED_SECONDS", 0.0)
    order, report, effort = [4, 3, 8, 6, 2], Report(), Effort(processes=processes)
    values = np.arange(10.0)[:, None].__getitem__
    done = share.check_in_turn(order, values, 2**60, 1.0, effort, found_of, report)
    assert done == len(order)
    assert report.mismatches == ["row 3", "row 6"]
    # Of what there is no time for, nothing is begun.
    late = Effort(until=0.0, processes=processes)
    assert share.check_in_turn(order, values, 2**60, 1.0, late, found_of, report) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "another prediction", "a radius raised by 1 %"])
def test_processes_share_exact_samples(
    name: str | None, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "MIN_SHARED_SECONDS", 0.0)
    # Rows that float64 leaves open, and forged ones that it does not see, are for integers alone.
    monkeypatch.setattr("robustcert.check.margins.MARGIN_ROUNDING", 1.0)
    folder = Folder(Path(shutil.copytree(honest, tmp_path / "folder")))
    if name is not None:
        EVERYWHERE[name](folder)
        folder.save()
    alone, shared = (
        check(folder.path, exact=4, seed=0, effort=Effort(processes=n)) for n in (1, 2)
    )
    assert alone.mismatches == shared.mismatches
    notes = [[note for note in r.checked if note[0] != "memory"] for r in (alone, shared)]
    assert notes[0] == notes[1]
    assert alone.verified == shared.verified == (name is None)


def test_a_copy_of_a_network_has_its_arithmetics() -> None:
    network = Network((), {}, np.zeros((2, 2)), [FLOAT64, FLOAT32])
    copy = pickle.loads(pickle.dumps(network))
    assert copy.arithmetics == network.arithmetics == [FLOAT64, FLOAT32]


# What is told beforehand


def test_a_check_of_a_small_folder_takes_a_few_seconds(honest: Path) -> None:
    found = expected_time(honest)
    assert str(found) == "a few seconds"
    assert found.samples == len(Folder(honest).rows)


def test_what_does_not_fit_is_told_beforehand(
    honest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = expected_time(honest).norms
    monkeypatch.setattr(cost, "PROOF_SPEED", norms * cost.PROOF_SPEED / HOUR)
    found = expected_time(honest)
    assert found.norms == pytest.approx(HOUR)
    seconds = float(str(found).split("--seconds ")[1])
    # What it asks for suffices, by the same formula.
    assert effort_of(seconds).allows(found.total)
    monkeypatch.setattr("robustcert.check.norms.dense.MAX_FACTOR_SIDE", 1)
    assert "beyond its limits: operation" in str(expected_time(honest))
