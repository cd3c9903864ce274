"""Only verified runs are counted, from their radii; a table can be written again without them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.publish import results
from benchmarks.soundness import verdicts
from benchmarks.studies.claims import KEYS, read_tables, row_of
from robustcert.report.runs import read_run
from robustcert.runs.results import processor, read_row, write_row

LIMITS = Path(__file__).parents[2] / "docs" / "limits.md"
PAGE = "before\n<!-- digits -->\nold\n<!-- end of digits -->\nafter\n"


@pytest.fixture(scope="module")
def folder(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checked certificate; read it, don't write to it."""
    copy = tmp_path_factory.mktemp("results") / "run"
    shutil.copytree(tiny_run, copy)
    row = read_row(copy)
    assert row is not None
    typed = ["seed=0", "model.width=32", "experiment=a", "dataset.root=/somewhere"]
    write_row(copy, {**row, "command": {"overrides": typed}})
    results.read(read_run(copy, "run"))
    return copy


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


def test_a_row_has_the_counts_of_the_certificate_and_says_where_it_was_trained(
    folder: Path,
) -> None:
    record = json.loads((folder / "certificate" / "certificate.json").read_text())
    common, own = results.read(read_run(folder, "run"))
    assert own["correct"] == record["summary"]["correct"]
    assert common["command"] == "python train.py experiment=a model.width=32"
    assert own["verified"] == [row["count"] for row in record["summary"]["certified"]]
    assert common["radii"] == [row["decimal"] for row in record["summary"]["certified"]]
    assert own["processor"] == processor() != ""
    assert own["attacked"] == record["attack"]["inside"]["samples"] > 0


def test_a_verdict_is_kept_for_the_same_bytes_and_for_no_others(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the checker was run again")

    certificate = copied / "certificate"
    with monkeypatch.context() as patch:
        patch.setattr(verdicts.subprocess, "run", refuse)
        assert verdicts.verdict(certificate).verified
        with pytest.raises(AssertionError, match="run again"):
            verdicts.verdict(certificate, [Path("compared-with-this.npz")])
        patch.setattr(verdicts, "checker_digest", lambda: "another checker")
        with pytest.raises(AssertionError, match="run again"):
            verdicts.verdict(certificate)
    # One radius more than was proved.
    lines = (certificate / "radii.csv").read_text().splitlines()
    cells = lines[1].split(",")
    lines[1] = ",".join([*cells[:5], "9.000000", float(9).hex(), cells[7]])
    (certificate / "radii.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(results.Refused, match="did not verify"):
        results.read(read_run(copied, "run"))


def test_a_run_that_is_unfinished_broken_or_of_another_split_is_refused(copied: Path) -> None:
    path = copied / "certificate" / "certificate.json"
    record = json.loads(path.read_text())

    def refused(match: str, **changes: Any) -> None:
        path.write_text(json.dumps({**record, **changes}))
        with pytest.raises(results.Refused, match=match):
            results.read(read_run(copied, "run"))

    refused("1 certificates were broken", attack={"inside": {"samples": 9, "broken": 1}})
    refused("validation split", dataset={**record["dataset"], "split": "validation"})
    row = read_row(copied)
    assert row is not None
    write_row(copied, {**row, "status": "failed", "error": "out of memory"})
    refused("out of memory")
    write_row(copied, {**row, "command": {}})
    refused("no command")


def test_seeds_are_one_row_with_mean_spread_and_least_and_a_run_replaces_its_older_self(
    folder: Path,
) -> None:
    common, own = results.read(read_run(folder, "run"))
    rows: list[Any] = []
    for seed, correct in ((1, 200), (0, 300), (1, 100)):
        rows = results.merge(rows, common, {**own, "seed": seed, "correct": correct})
    assert [[run["seed"], run["correct"]] for run in rows[0]["runs"]] == [[0, 300], [1, 100]]
    assert len(rows) == 1
    assert results.share([300, 100], 400) == "0.5000 ± 0.3536 (least 0.2500)"
    # The same command with other settings behind it is another experiment.
    (row,) = results.merge(rows, {**common, "config": "edited"}, own)
    assert len(row["runs"]) == 1


def test_an_interval_is_that_of_clopper_and_pearson() -> None:
    assert results.binomial_interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))
    assert results.binomial_interval(10, 10) == pytest.approx((0.025**0.1, 1))
    assert results.binomial_interval(160, 171) == pytest.approx((0.888, 0.967), abs=1e-3)


def test_the_tables_can_be_written_again_without_the_runs(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    assert results.main([str(folder), "--docs", str(tmp_path)]) == 0
    first = page.read_text()
    assert first.startswith("before\n")
    assert first.endswith("\nafter\n")
    assert "old" not in first
    assert "`python train.py" in first
    page.write_text(PAGE)
    assert results.main(["--docs", str(tmp_path)]) == 0
    assert page.read_text() == first


def test_the_page_in_the_repository_is_what_its_numbers_give(tmp_path: Path) -> None:
    for name in ("results.md", "results.json"):
        shutil.copy(results.DOCS / name, tmp_path / name)
    assert results.main(["--docs", str(tmp_path)]) == 0
    assert (tmp_path / "results.md").read_text() == (results.DOCS / "results.md").read_text()


def test_an_ablation_trains_only_what_is_missing_and_no_change_under_anothers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.studies import ablation

    page = tmp_path / "page.md"
    page.write_text("<!-- ablation -->\n<!-- end of ablation -->\n")
    command = ["--epochs", "1", "--seeds", "1", "--kinds", "head", "--out", str(tmp_path / "runs")]
    command += ["--page", str(page), "capacity=tiny"]
    ablation.main(command)
    (head,) = [line for line in page.read_text().splitlines() if line.startswith("| head ")]
    measured = [
        read_row(tmp_path / "runs" / n / "0")["metrics"]
        for n in ("base", "model.normalize_head=false")
    ]  # type: ignore[index]
    difference = measured[1]["val/vra"] - measured[0]["val/vra"]
    assert f"| {difference:+.4f} |" in head
    assert not any(key.startswith("test/") for metrics in measured for key in metrics)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(ablation, "train", refuse)
    before = page.read_text()
    ablation.main(command)
    assert page.read_text() == before
    with pytest.raises(ValueError, match="other settings"):
        ablation.main([*command, "optimizer.lr=0.5"])


def test_changed_shapes_have_as_many_weights_as_the_base() -> None:
    from benchmarks.studies import ablation

    def weights(width: int, depth: int) -> int:
        return 784 * width + (depth - 1) * width**2

    config = ablation.compose("dataset=mnist", "model.width=256", "model.depth=4")
    found = [
        [int(part.partition("=")[2]) for part in typed.split()] for typed in ablation.shapes(config)
    ]
    assert [depth for depth, _ in found] == [2, 8]
    for depth, width in found:
        assert weights(width, depth) == pytest.approx(weights(256, 4), rel=0.05)


def test_the_pictures_of_the_claims_are_those_of_the_tables_above_them() -> None:
    tables = read_tables(LIMITS.read_text())
    assert {dataset: len(rows) for dataset, rows in tables.items()} == {
        "digits": 12,
        "fashion_mnist": 8,
        "mnist": 8,
        "cifar10": 6,
    }
    name, found = tables["cifar10"][0]
    assert (name, found["vra"], found["parameters"][0]) == ("maxmin", (0.437, 0.004), 920842)
    # What the study prints is read back.
    printed = row_of(name, 256, {key: found[key] for key in ("parameters", *KEYS)})
    assert printed in LIMITS.read_text()
