"""Reports: the numbers are right, half-finished sweeps are told as such, browsers agree."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcert.report import ReportError
from robustcert.report.__main__ import main
from robustcert.report.measures import acceptance, at_radius, curve, wilson
from robustcert.report.runs import find_runs
from robustcert.report.separation import half_distances, largest_overlap
from robustcert.report.summary import estimate, group_runs


def write_run(folder: Path, *, activation: str = "relu", seed: int = 0, vra: float = 0.5) -> Path:
    folder.mkdir(parents=True)
    results = {
        "format": 1,
        "command": {"choices": {"activation": activation, "dataset": "digits"}},
        "config": {"seed": seed, "epsilon": 0.5, "certify": True, "model": {"act": activation}},
        "parameters": 1000,
        "seconds": {"train": 1.0, "certify": 0.1},
        "metrics": {"test/accuracy": 0.9, "test/vra_0.5": vra, "test/vra_0.25": 0.7},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_the_interval_is_students() -> None:
    found = estimate([1.0, 2.0, 4.0])
    assert found is not None
    assert found.half is not None
    # t(0.975, 2) = 4.302653, s = 1.527525
    assert found.half == pytest.approx(4.302653 * 1.527525 / math.sqrt(3), rel=1e-6)
    alone = estimate([1.0])
    assert alone is not None
    assert alone.half is None
    assert estimate([]) is None


def test_runs_that_differ_by_their_seed_are_one_row_and_none_counts_twice(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"relu{seed}", seed=seed, vra=0.4 + 0.2 * seed)
    write_run(tmp_path / "again", seed=0, vra=0.4)
    write_run(tmp_path / "smooth", activation="smooth")
    runs = find_runs([tmp_path, tmp_path])
    assert sorted(run.state for run in runs) == ["duplicate"] + ["finished"] * 3
    groups = {group.values["activation"]: group for group in group_runs(runs)}
    found = groups["relu"].estimate("test/vra_0.5")
    assert found is not None
    assert found.count == 2
    assert found.mean == pytest.approx(0.5)
    assert list(groups["relu"].values) == ["activation"]


def test_a_half_finished_sweep_tells_what_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    (tmp_path / "1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "2" / ".hydra").mkdir(parents=True)
    (tmp_path / "2" / ".hydra" / "overrides.yaml").write_text("- seed=2\n")
    (tmp_path / "2" / "train.log").write_text("[ERROR] error: training diverged\n")
    (tmp_path / "multirun.yaml").write_text(
        "hydra:\n  sweeper: {_target_: x.BasicSweeper, params: null}\n"
        "  overrides: {task: ['seed=2,3']}\n"
    )
    found = {run.name: (run.state, run.detail) for run in find_runs([tmp_path])}
    assert found == {
        "0": ("finished", ""),
        "1": ("unfinished", "no epoch finished"),
        "2": ("failed", "training diverged"),
        "(job 1)": ("missing", "not started"),
    }


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("relu", "smooth"):
        write_run(tmp_path / "runs" / name, activation=name)
    for out in ("a", "b"):
        assert main([str(tmp_path / "runs"), "--out", str(tmp_path / out)]) == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["groups.csv", "index.html", "pareto.png", "runs.csv", "vra_capacity.png"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "://" not in (tmp_path / "a" / "index.html").read_text()


@pytest.mark.parametrize(
    ("content", "answer"),
    [("{", "cannot be read as JSON"), ('{"format": 9}', "results format 9"), ("[]", "format None")],
)
def test_a_bad_file_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, answer: str
) -> None:
    path = write_run(tmp_path / "runs" / "a") / "results.json"
    path.write_text(content)
    assert main([str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(path) in message
    assert answer in message


def test_no_runs_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no runs"):
        find_runs([tmp_path])
    with pytest.raises(ReportError, match="no such folder"):
        find_runs([tmp_path / "nothing"])


def test_measures_count_what_they_say() -> None:
    correct = np.array([True, True, False, True])
    radius = np.array([0.2, 0.6, 0.9, 0.5])
    found = at_radius(correct, radius, 0.5, 0.75)
    assert (found.verified, found.rejected) == (0.25, 0.5)
    assert found.false_rejection == pytest.approx(2 / 3)
    assert found.accepted_accuracy == 0.5
    assert found.unknown == 0.5
    grid, vra = curve(correct, radius)
    for r, share in zip(grid, vra, strict=True):
        assert share == (correct & (radius > r)).mean()
    accepted, accuracy = acceptance(correct, radius)
    assert (accepted[-1], accuracy[-1]) == (1.0, 0.75)
    low, high = wilson(1, 4)
    assert low < 0.25 < high


def test_neighbours_are_those_of_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.rand(n, 3, generator=generator) for n in (20, 50))
    y, label = torch.arange(20) % 3, torch.arange(50) % 3
    distance = (x.double()[:, None] - other.double()).norm(dim=2)
    expected = distance.masked_fill(y[:, None] == label, torch.inf).amin(1) / 2
    assert np.allclose(half_distances(x, y, other, label), expected, rtol=1e-14)
    # Half of the distance to the nearest of another class never lets two balls meet.
    own = torch.from_numpy(half_distances(x, y, x, y))
    assert largest_overlap(x, y, own) == pytest.approx(1.0)
    assert largest_overlap(x, y, own * 1.1) > 1.0


@pytest.mark.slow
def test_the_page_of_a_run_loads_in_a_browser(tiny_run: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    assert main([str(tiny_run), "--out", str(tmp_path)]) == 0
    assert main([str(tiny_run.parent), "--out", str(tmp_path / "sweep")]) == 0
    for path, expected in (
        (tmp_path / "report.html", ("Is certifying worthwhile", "Not covered", "Calibration")),
        (tmp_path / "sweep" / "index.html", ("Runs compared", "Every run")),
    ):
        done = subprocess.run(
            [
                chromium,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                *("--disable-component-update", "--enable-logging=stderr", "--dump-dom"),
                f"--user-data-dir={tmp_path / 'profile'}",
                path.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "CONSOLE" not in done.stderr
        for text in expected:
            assert text in done.stdout
