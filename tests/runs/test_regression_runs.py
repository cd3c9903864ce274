"""Runs of a regression: from a file to a folder that the checker verifies, and back to use."""

import html
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.regression import write_npz
from helpers.runs import TINY, compose, run
from lightning.pytorch import Callback, LightningModule, Trainer

import robustcert
import robustcert.data
from benchmarks.publish import regressions
from robustcert.check import check
from robustcert.config.build import build_dataset, build_module, build_parts
from robustcert.errors import ConfigError, ReportError, UnsoundNetworkError
from robustcert.models.head import Head
from robustcert.report.__main__ import main as report
from robustcert.report.regression import read_intervals, rows_of
from robustcert.runs.certify import certify
from robustcert.runs.results import read_row, write_row
from robustcert.training.checkpoint import read_checkpoint
from robustcert.training.regression import start_at_mean

OPTIONS = (
    "dataset=npz",
    "model.normalize_head=false",
    "layer=unconstrained",
    "objective=squared",
    "epsilon=0.05",
    "radii=[0.05,0.2]",
    "normalization={mean: [0.5], std: [0.3]}",
    "loader.batch_size=32",
    "loader.calibration=0.3",
    "trainer.max_epochs=2",
    "attack.samples=8",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a regression with a direction and a calibration part."""
    root = tmp_path_factory.mktemp("regression")
    data = write_npz(root / "columns.npz")
    run(root / "run", *OPTIONS, f"dataset.root={data}", "model.monotone=[1,-1,0]")
    return root / "run"


def test_a_run_is_certified_and_verified(folder: Path) -> None:
    report = check(folder / "certificate", exact=5, seed=0, data=[folder.parent / "columns.npz"])
    assert report.verified, report.mismatches
    assert any(topic == "monotone" for topic, _ in report.checked)
    claim = json.loads((folder / "certificate" / "certificate.json").read_text())
    assert claim["claim"]["task"] == "regression"
    assert claim["claim"]["monotone"]["directions"] == [1, -1, 0]
    costs = claim["directions"]
    assert costs["without"] < costs["constant"] < costs["without"] * 2.4143
    # What an attack finds is within what is certified, and the sets hold what they should.
    certified = claim["summary"]["certified"]
    for row, seen, width in zip(
        certified, claim["attack"]["mean_absolute_error"], claim["attack"]["width"], strict=True
    ):
        assert 0 < width <= row["width"]
        assert seen <= row["mean_absolute_error"] * 1.5
    sets = claim["conformal"]
    assert sets["calibration"] == {"samples": 60, "index": 55}
    assert [row["radius"] for row in sets["radii"]] == [0.0, 0.05, 0.2]
    for row in sets["radii"]:
        assert row["coverage"] > 0.7
        assert row["attacked"]["coverage"] > 0.6


def test_the_table_of_what_was_not_attacked_has_no_column_of_attacks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certify(str(folder), output=str(tmp_path / "c"), samples=8, attack={"samples": 0})
    said = capsys.readouterr().out
    assert "mean absolute error, certified" in said
    assert "holds the target" in said
    assert "attack" not in said


def test_best_is_the_least_certified_error(folder: Path) -> None:
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert best.metrics["val/certified_mae"] <= last.metrics["val/certified_mae"]
    results = json.loads((folder / "results.json").read_text())
    known = {"test/mae", "test/certified_mae_0.05", "test/width_0.2", "test/coverage_0.2"}
    assert known <= {*results["metrics"]}
    assert results["metrics"]["test/mae"] < results["metrics"]["test/certified_mae_0.05"]


@pytest.mark.slow
def test_a_table_counts_errors_anew_and_leaves_classes_to_the_other(
    folder: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "regression.md"
    page.write_text("<!-- columns -->\n<!-- end of columns -->\n")
    row = read_row(folder)
    assert row is not None
    typed = tmp_path / "run"
    shutil.copytree(folder, typed)
    write_row(typed, {**row, "command": {"overrides": ["experiment=mine", "seed=0"]}})
    model = {"words": "a line", "error": [2.0], "within": {"0.05": [2.5]}}
    beside = tmp_path / "beside" / "regressions.json"
    beside.parent.mkdir()
    beside.write_text(json.dumps({"columns": [model]}))
    options = ["--docs", str(tmp_path), "--beside", str(beside.parent)]
    assert regressions.main([str(typed), *options]) == 0
    (found,) = json.loads((tmp_path / "regressions.json").read_text())["runs"]
    (own,) = found["runs"]
    summary = json.loads((folder / "certificate" / "certificate.json").read_text())["summary"]
    assert own["certified"] == [row["mean_absolute_error"] for row in summary["certified"]]
    assert all(0 < share <= 1 for share in own["coverage"])
    text = page.read_text()
    assert f"{own['error']:.1f} | 0.05 | {own['certified'][0]:.1f}" in text
    assert "| a line | 1 | 2.0 | 0.05 | 2.5 |" in text
    assert regressions.main([str(tiny_run), "--docs", str(tmp_path)]) == 1
    assert "benchmarks.publish.results reads it" in capsys.readouterr().err


def test_a_regressor_answers_with_intervals(folder: Path) -> None:
    regressor = robustcert.load_regressor(folder)
    x = np.random.RandomState(1).rand(20, 3)
    found = regressor(x, radius=0.1)
    module = robustcert.load_module(folder)
    torch.testing.assert_close(
        found.prediction.float(), module(torch.from_numpy(x).float())[:, 0].detach()
    )
    half = 0.1 * regressor.lipschitz
    torch.testing.assert_close(found.upper - found.prediction, torch.full((20,), half).double())
    one = regressor(x[0], radius=0.1)
    assert one.lower == found.lower[0]
    with pytest.raises(UnsoundNetworkError, match=r"robustcert\.load_regressor"):
        robustcert.load(folder)
    with pytest.raises(ValueError, match="radius"):
        regressor(x, radius=-1.0)


@pytest.mark.slow
def test_a_report_shows_intervals_and_sets(folder: Path, tmp_path: Path) -> None:
    claim = json.loads((folder / "certificate" / "certificate.json").read_text())
    read = read_intervals(folder / "certificate")
    for row, entry in zip(rows_of(read), claim["summary"]["certified"], strict=True):
        assert row.error == entry["mean_absolute_error"]
        assert row.width == entry["width"]
    assert report([str(folder), "--out", str(tmp_path), "--figures", "svg"]) == 0
    assert {"report.html", "bracket.svg", "outputs.svg"} == {p.name for p in tmp_path.iterdir()}
    text = (tmp_path / "report.html").read_text()
    for value in (read.found.worst[1], read.found.widths[1], read.found.error):
        assert f"{value:.4g}" in text
    for entry in claim["conformal"]["radii"]:
        assert f"<td>{100 * entry['coverage']:.1f}\N{NO-BREAK SPACE}%</td>" in text
    assert claim["claim"]["statement"] in html.unescape(text)
    changed = shutil.copytree(folder / "certificate", tmp_path / "changed")
    table = changed / "intervals.csv"
    table.write_text(table.read_text().replace("e-", "e+", 1) + "\n")
    with pytest.raises(ReportError, match=r"intervals\.csv: not the file"):
        read_intervals(changed)


def test_calibration_samples_are_seen_by_nothing_else(folder: Path) -> None:
    config = read_checkpoint(folder / "checkpoints" / "best.ckpt").config
    parts = build_parts(config, build_dataset(config, ("robustcert",)))
    rows = [set(parts.stored(p).indices.tolist()) for p in ("train", "validation", "calibration")]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 200
    assert len(rows[2]) == 60


def test_other_settings_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    data = f"dataset.root={folder.parent / 'columns.npz'}"
    for changed, said in (
        ("objective=emma", "set objective=squared"),
        ("model.monotone=[1,0]", "model.monotone"),
        ("certifier=lipsdp", "certifier=lipschitz"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(tmp_path / changed, *OPTIONS, data, changed)
    config = compose("dataset=digits", "objective=squared", "capacity=tiny")
    with pytest.raises(ConfigError, match="set objective=emma"):
        build_module(config, build_dataset(config, ("robustcert",)), ("robustcert", "torch"))
    with pytest.raises(ConfigError, match="coverage"):
        certify(str(folder), coverage=1.5)


@pytest.mark.slow
def test_two_classes_have_directions_and_sets_of_labels(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "columns.npz")
    arrays = dict(np.load(data))
    for split in ("train", "test"):
        arrays[f"y_{split}"] = (arrays[f"y_{split}"] > 1).astype(np.int64)
    np.savez(data, **arrays)
    options = [o for o in OPTIONS if not o.startswith(("objective", "model.normalize"))]
    run(tmp_path / "run", *options, f"dataset.root={data}", "model.monotone=[1,-1,0]")
    folder = tmp_path / "run" / "certificate"
    report = check(folder, exact=5, seed=0, data=[data])
    assert report.verified, report.mismatches
    assert any(topic == "monotone" for topic, _ in report.checked)
    claim = json.loads((folder / "certificate.json").read_text())
    assert "task" not in claim["claim"]
    assert claim["conformal"]["unit"] == "labels"
    sizes = [row["size"] for row in claim["conformal"]["radii"]]
    assert sizes == sorted(sizes)
    assert 0.5 < sizes[0] <= sizes[-1] <= 2
    # Another coverage, of a certificate beside it.
    certify(str(tmp_path / "run"), coverage=0.5, output=str(tmp_path / "half"))
    half = json.loads((tmp_path / "half" / "certificate.json").read_text())["conformal"]
    assert half["coverage"] == 0.5
    assert half["radii"][0]["size"] <= sizes[0]


@pytest.mark.slow
def test_a_table_of_real_targets_is_certified_in_its_units(tmp_path: Path) -> None:
    run(
        tmp_path / "run",
        *("dataset=diabetes", "objective=squared", "layer=unconstrained", "epsilon=0.1"),
        *("norm.scale=training", "norm.frozen=[age,sex]", "radii=[0.1]", "trainer.max_epochs=2"),
        *("loader.calibration=0.3", "model.monotone=[0,0,1,0,0,0,0,0,0,0]", "attack.samples=8"),
    )
    folder = tmp_path / "run" / "certificate"
    report = check(folder, exact=5, seed=0)
    assert report.verified, report.mismatches
    claim = json.loads((folder / "certificate.json").read_text())
    assert "age and sex do not change" in claim["claim"]["metric"]["change"]
    assert claim["claim"]["norm"] == "l2 norm of u"
    assert claim["config"]["norm"]["scale"][2] == pytest.approx(4.307, abs=1e-3)
    plain, moved = claim["conformal"]["radii"]
    assert plain["size"] < moved["size"]
    regressor = robustcert.load_regressor(folder)
    assert regressor.change == claim["claim"]["metric"]["change"]
    x = robustcert.data.Diabetes().read("test").inputs[:5]
    found = regressor(x, radius=0.1)
    changed = x.clone()
    changed[:, 2] += 0.099 * claim["config"]["norm"]["scale"][2]
    assert (found.lower <= regressor(changed).prediction).all()
    assert (regressor(changed).prediction <= found.upper).all()
    # The body mass index is the direction in which progression never falls.
    assert (regressor(changed).prediction >= found.prediction).all()


@pytest.mark.slow
def test_the_output_starts_at_the_mean_of_the_training_targets_and_only_once(
    tmp_path: Path,
) -> None:
    found: list[float] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            found.append(float(pl_module.model.head.bias.detach()))

    options = ("dataset=diabetes", "objective=squared", "certify=false", "loader.batch_size=32")
    run(tmp_path / "straight", *options, callbacks=[Watch()])
    config = compose(*TINY, *options)
    source = build_dataset(config, ("robustcert",))
    assert found == [
        pytest.approx(float(build_parts(config, source).stored("train").labels.mean()))
    ]
    with pytest.raises(Killed):
        run(tmp_path / "resumed", *options, callbacks=[Kill(1)])
    resume(tmp_path / "resumed", callbacks=[Watch()])
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    assert found[1] != found[0]


def test_a_trained_bias_stays() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), Head(3, 1))
    for targets, expected in ((torch.full((5,), 150.0), 150.0), (torch.ones(5), 150.0)):
        start_at_mean(model, targets)
        assert float(model[1].bias.detach()) == expected
