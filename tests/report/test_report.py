"""Reports: the numbers are right, half-finished sweeps are told as such, browsers agree."""

import csv
import fcntl
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.configs import names
from torchmetrics.classification import MulticlassCalibrationError

from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certificate.style import ACTIVATIONS, drawing, in_percent, look, share_axis
from robustcert.certifiers import LipschitzCertifier
from robustcert.errors import ReportError
from robustcert.network.fold import fold_network
from robustcert.report.__main__ import main
from robustcert.report.calibration import calibrate
from robustcert.report.claim import read_claim
from robustcert.report.measures import acceptance, at_radius, curve, wilson
from robustcert.report.page import number
from robustcert.report.run_figures import draw_bracket, draw_tradeoff
from robustcert.report.runs import find_runs
from robustcert.report.separation import half_distances, largest_overlap
from robustcert.report.summary import Estimate, estimate, group_runs, searched
from robustcert.report.sweep_figures import MAX_SERIES, _interval, _legend, series_of
from robustcert.report.sweep_page import compare
from robustcert.runs.results import new_row, write_row


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
    (task,) = compare(list(groups.values()))
    assert task.tightness is None
    runs[0].metrics["val/tightness"] = 0.8
    assert task.tightness == "val/tightness"


def test_regressions_are_compared_by_their_certified_errors(tmp_path: Path) -> None:
    for name, error in (("relu", 50.0), ("smooth", 40.0)):
        folder = write_run(tmp_path / name, activation=name)
        results = json.loads((folder / "results.json").read_text())
        results["metrics"] = {
            "test/mae": error,
            "test/certified_mae_0.5": error + 5,
            "test/width_0.5": 10.0,
            "test/coverage_0.5": 0.875,
        }
        (folder / "results.json").write_text(json.dumps(results))
    (task,) = compare(group_runs(find_runs([tmp_path])))
    assert [group.values["activation"] for group in task.front] == ["smooth"]
    heads = ["mean absolute error", "certified error at 0.5", "width at 0.5", "coverage at 0.5 (%)"]
    assert [head for head, _, _ in task.measured] == heads
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert all(f">{head}</th>" in page for head in heads)
    assert "<td>45.0</td>" in page
    assert "<td>87.5</td>" in page
    assert "\N{EN DASH}" not in page.partition("</table>")[0].partition("<table")[2]
    assert "test/certified_mae_0.5" in (tmp_path / "out" / "groups.csv").read_text()


def test_a_half_finished_sweep_tells_what_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    (tmp_path / "1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "2" / ".hydra").mkdir(parents=True)
    (tmp_path / "2" / ".hydra" / "overrides.yaml").write_text("- seed=2\n- epsilon=1\n")
    (tmp_path / "2" / "train.log").write_text("[ERROR] error: training diverged\n")
    (tmp_path / "multirun.yaml").write_text(
        "hydra:\n  sweeper: {_target_: x.BasicSweeper, params: null}\n"
        "  overrides: {task: [epsilon=1, 'seed=2,3']}\n"
    )
    found = {run.name: (run.state, run.detail) for run in find_runs([tmp_path])}
    assert found == {
        "0": ("finished", ""),
        "1": ("unfinished", "no epoch finished"),
        "2": ("failed", "training diverged"),
        "(job 1)": ("missing", "not started"),
    }


def test_every_status_of_a_sweep_is_told_with_its_reason_and_log(tmp_path: Path) -> None:
    sweep = tmp_path / "multirun"
    command = {"overrides": ["seed=0"]}
    for name, status in (("aa", "complete"), ("bb", "failed"), ("cc", "interrupted")):
        folder = write_run(sweep / name, activation=name)
        row = {**json.loads((folder / "results.json").read_text()), "status": status}
        if status != "complete":
            row |= {"metrics": {}, "error": f"{status}: model: 33 features", "seconds": {}}
        (folder / "results.json").write_text(json.dumps(row))
    (sweep / "bb" / "train.log").write_text("[ERROR] error: model: 33 features")
    for name in ("dd", "ee"):
        (sweep / name / "checkpoints").mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_JOB_ID", "7")
            row = new_row({"epsilon": 0.5, "seed": 0}, sweep / name, command)
        row["slurm"]["log"] = "/logs/7_0_log.out"
        write_row(sweep / name, row)
    with (sweep / "dd" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {run.name: (run.state, run.detail) for run in find_runs([sweep])}
        assert main([str(sweep)]) == 0
    assert found == {
        "aa": ("finished", ""),
        "bb": ("failed", "model: 33 features"),
        "cc": ("interrupted", "model: 33 features"),
        "dd": ("running", "no epoch finished"),
        "ee": ("unfinished", "no epoch finished"),
    }
    assert not (sweep / "ee" / ".lock").exists()
    page = (sweep / "report" / "index.html").read_text()
    assert "1 finished, 1 running, 1 unfinished, 1 interrupted, 1 failed" in page
    assert '<a href="../bb/train.log">bb/train.log</a>' in page
    assert page.count("<code>/logs/7_0_log.out</code>") == 2


def test_runs_named_by_a_hash_stand_in_the_order_of_what_was_typed(tmp_path: Path) -> None:
    for name, width in (("c0", 8), ("a1", 16), ("b2", 128)):
        (write_run(tmp_path / name) / ".hydra").mkdir()
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(f"- model.width={width}\n")
    assert [run.name for run in find_runs([tmp_path])] == ["c0", "a1", "b2"]


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("relu", "smooth"):
        write_run(tmp_path / "runs" / name, activation=name)
    for out in ("a", "b"):
        assert main([str(tmp_path / "runs"), "--out", str(tmp_path / out)]) == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["groups.csv", "index.html", "pareto.png", "runs.csv", "vra_radii.png"]
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
    found = at_radius(correct, radius, 0.5, 0.75, np.array([0, 1, 3]))
    assert (found.verified, found.rejected) == (0.25, 0.5)
    assert found.false_rejection == pytest.approx(2 / 3)
    assert found.accepted_accuracy == 0.5
    # Of the attacked samples, or it might exceed what is predicted correctly of all.
    assert found.verified_of_attacked == pytest.approx(1 / 3)
    assert found.unknown == pytest.approx(0.75 - 1 / 3)
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


def test_neighbours_in_many_dimensions_are_those_of_brute_force() -> None:
    # Clusters, near duplicates and equal points, in more dimensions than a sketch has.
    generator = torch.Generator().manual_seed(1)
    centres = 0.2 + 0.6 * torch.rand(6, 200, generator=generator)
    y, label = torch.arange(60) % 3, torch.arange(200) % 3
    x = centres[torch.arange(60) % 6] + 0.02 * torch.randn(60, 200, generator=generator)
    other = centres[torch.arange(200) % 6] + 0.02 * torch.randn(200, 200, generator=generator)
    other[:5], label[:5], y[:5] = x[:5], 0, torch.tensor([0, 1, 2, 0, 1])
    distance = (x.double()[:, None] - other.double()).norm(dim=2)
    expected = distance.masked_fill(y[:, None] == label, torch.inf).amin(1) / 2
    assert (expected == 0).sum() == 3
    found = half_distances(x, y, other, label)
    assert np.allclose(found, expected, rtol=1e-12, atol=0)
    assert np.isinf(half_distances(x, torch.zeros(60), other, torch.zeros(200))).all()
    radius = 0.3 * torch.rand(200, generator=generator, dtype=torch.float64)
    pairs = (other.double()[:, None] - other.double()).norm(dim=2)
    ratio = (radius[:, None] + radius) / pairs
    ratio = ratio[label[:, None] != label]
    assert largest_overlap(other, label, radius) == pytest.approx(float(ratio.max()), rel=1e-12)
    assert largest_overlap(other, label, 0 * radius) == 0
    # A network that never changes its mind has no radius, and no pair of two predictions.
    assert largest_overlap(other[:70], 0 * label[:70], radius[:70] / 0) == 0
    assert largest_overlap(other[:70], label[:70], radius[:70] / 0) == np.inf


def search(folder: Path, count: int) -> None:
    """Runs as a search leaves them: numbers that are all different, and options."""
    generator = np.random.default_rng(0)
    for i in range(count):
        rate, depth = 10 ** generator.uniform(-4, -1), int(generator.integers(1, 4))
        path = write_run(folder / f"{i}", activation=("relu", "maxmin")[i % 2], vra=0.5 + rate)
        results = json.loads((path / "results.json").read_text())
        results["config"] |= {
            "optimizer": {"lr": rate, "weight_decay": None if i % 3 else rate / 10},
            "model": {"depth": depth, "act": ("relu", "maxmin")[i % 2]},
        }
        results["parameters"] = 1000 * depth
        (path / "results.json").write_text(json.dumps(results))


@pytest.mark.slow
def test_a_search_is_shown_by_slices(tmp_path: Path) -> None:
    search(tmp_path / "search", 24)
    groups = group_runs(find_runs([tmp_path / "search"]))
    assert searched(groups) == ["optimizer.lr", "optimizer.weight_decay"]
    series = series_of(groups, "test/vra_0.5", searched(groups))
    assert [one.label for one in series] == ["maxmin", "relu"]
    assert series[0].style["color"] == look("maxmin")["color"]
    arguments = [
        str(tmp_path / "search"),
        "--out",
        str(tmp_path / "out"),
        "--figures",
        "pdf",
        "svg",
    ]
    assert main(arguments) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{n}.{k}" for n in ("slices", "pareto") for k in ("png", "pdf", "svg")} <= written
    # Text of a figure for papers is text.
    assert "verified at 0.5" in (tmp_path / "out" / "slices.svg").read_text()


def test_many_series_are_the_best_by_name_and_the_rest(tmp_path: Path) -> None:
    for i in range(12):
        write_run(tmp_path / f"{i}", activation=f"mine{i}", vra=0.4 + i / 100)
    series = series_of(group_runs(find_runs([tmp_path])), "test/vra_0.5")
    assert [one.label for one in series][:2] == ["5 others", "mine10"]
    assert len(series) == MAX_SERIES
    assert sum(len(one.groups) for one in series) == 12


def test_an_interval_of_two_runs_is_not_drawn_and_none_leaves_the_axis() -> None:
    assert all(map(math.isnan, _interval(Estimate(0.5, 2.47, 2))))
    assert _interval(Estimate(0.98, 0.05, 3)) == pytest.approx((0.93, 1.0))


def test_shares_near_one_are_drawn_by_what_is_missing() -> None:
    with drawing((3, 3)) as figure:
        axes = figure.add_subplot()
        assert share_axis(axes, [0.95, 0.998], "verified", "y")
        assert axes.get_ylabel() == "not verified (%)"
        low, high = (in_percent(share, True) for share in (0.95, 0.998))
        axes.plot([0, 1], [low, high])
        # Better is further up.
        assert axes.transData.transform((0, low))[1] < axes.transData.transform((0, high))[1]
        assert not share_axis(axes, [0.5, 0.998], "verified", "y")
        assert not share_axis(axes, [], "verified", "y")


def test_shares_that_are_one_number_have_an_axis_of_all_shares() -> None:
    with drawing((3, 3)) as figure:
        axes = figure.add_subplot()
        # Two runs that verify nothing: not from -0.05 to 0.05 %.
        assert not share_axis(axes, [0.0, 0.0], "verified", "y")
        axes.plot([0, 1], [0, 0])
        assert axes.get_ylim() == (0, 100)


def test_a_legend_names_what_it_tells_apart() -> None:
    with drawing((3, 3)) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], label="all")
        _legend(figure, axes)
        assert not figure.legends
        axes.plot([0, 1], [1, 0], label="relu")
        _legend(figure, axes)
        assert [text.get_text() for text in figure.legends[0].texts] == ["all", "relu"]


def test_every_activation_has_a_look_of_its_own() -> None:
    assert set(ACTIVATIONS) == set(names("activation"))
    looks = [look(name) for name in ACTIVATIONS]
    assert len({(one["color"], one["marker"]) for one in looks}) == len(ACTIVATIONS)


def test_the_calibration_error_is_what_a_hand_computes() -> None:
    # Confidences 0.9 (one right, one wrong) and 0.6 (both right).
    logits = np.log([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]])
    labels = np.array([0, 0, 0, 1])
    found = calibrate(logits, labels)
    assert found.error == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1 - 0.6))
    assert (found.count, found.accuracy) == ([2, 2], [1.0, 0.5])
    assert found.confidence == pytest.approx([0.6, 0.9])
    # Halved logits: square roots of the probabilities, made to add up to 1.
    low = 0.6**0.5 / (0.6**0.5 + 0.4**0.5)
    warm = calibrate(logits, labels, 2.0)
    assert warm.error == pytest.approx(0.5 * abs(0.5 - 0.75) + 0.5 * abs(1 - low))
    assert warm.confidence == pytest.approx([low, 0.75])


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (500,), generator=generator)
    metric = MulticlassCalibrationError(4, n_bins=15, norm="l1")
    expected = float(metric(logits.softmax(1), labels))
    assert calibrate(logits.numpy(), labels.numpy()).error == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate folder of six samples; read it, don't write to it."""
    folder = tmp_path_factory.mktemp("claim")
    torch.manual_seed(0)
    network = fold_network(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), (3,))
    x, label = torch.rand(6, 3), torch.arange(6) % 4
    certifier = LipschitzCertifier()
    split = CertifiedSplit(x, label, torch.arange(6) + 10, certifier.certify(network, x))
    write_certificate(folder, network, certifier.claim(network), split, [0.1])
    return folder


def test_numbers_on_pages_have_no_exponent_where_they_are_whole() -> None:
    assert [number(v, 2) for v in (130.4, 99.7, 99.0, 0.084)] == ["130", "100", "99", "0.084"]


@pytest.mark.slow
def test_without_a_finished_attack_no_band_is_spoken_of(certificate: Path) -> None:
    drawn = draw_bracket(read_claim(certificate), np.arange(0), None)
    assert drawn.alt == "Verified accuracy against radius"
    assert drawn.caption.startswith("The truth lies above the curve")


def test_a_claim_is_read_as_it_was_written(certificate: Path) -> None:
    claim = read_claim(certificate)
    rows = list(csv.DictReader((certificate / "radii.csv").read_text().splitlines()))
    assert claim.indices.tolist() == list(range(10, 16))
    assert claim.radius.tolist() == [float.fromhex(row["radius_hex"]) for row in rows]
    # What the network is said to predict is what its logits, computed again, say.
    assert claim.logits.argmax(1).tolist() == [int(row["prediction"]) for row in rows]
    assert claim.correct.tolist() == [row["correct"] == "1" for row in rows]
    # Of the others that are predicted as labelled, two logits are 0.
    undecided = (claim.prediction == claim.labels) & ~claim.correct
    assert (np.sort(claim.logits[undecided])[:, -1] == 0).all()
    assert claim.radii == [0.1]


def test_without_metrics_by_epoch_a_sentence_says_so(certificate: Path) -> None:
    claim = read_claim(certificate)
    without, beside = draw_tradeoff(claim, []), draw_tradeoff(claim, [(0, 0.5, 0.1)])
    assert "metrics.csv" in without.caption
    assert not without.wide
    assert beside.wide
    assert "metrics.csv" not in beside.caption


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "damage", "answer"),
    [
        ("certificate.json", cut, "certificate.json"),
        ("certificate.json", lambda c: c.replace(b'"format": 3', b'"format": 9'), "format 9"),
        ("certificate.json", lambda c: c.replace(b'"files"', b'"filed"'), "not complete: .*files"),
        ("certificate.json", lambda c: c.replace(b'"network"', b'"net"', 1), "not complete"),
        ("radii.csv", lambda c: c.replace(b"abstain", b"certain"), "not the file that"),
        ("samples.safetensors", cut, "not the file that"),
        ("network.safetensors", None, "network.safetensors"),
    ],
)
def test_a_damaged_certificate_is_refused_by_the_name_of_its_file(
    certificate: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[bytes], bytes] | None,
    answer: str,
) -> None:
    folder = shutil.copytree(certificate, tmp_path / "claim")
    before = (folder / name).read_bytes()
    if damage is None:
        (folder / name).unlink()
    else:
        assert damage(before) != before
        (folder / name).write_bytes(damage(before))
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(folder) in message
    assert re.search(answer, message)
    assert not (tmp_path / "out").exists()


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


def test_a_released_certificate_without_samples_is_refused_by_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(__file__).parents[2] / "docs" / "pretrained" / "mnist_1.58"
    assert main([str(folder)]) == 2
    assert "holds digests in place of its samples, which a report" in capsys.readouterr().err
