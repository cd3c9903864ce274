"""Folders of networks in a metric: verified where they are honest, refused where they are not."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import robustcert
from benchmarks.soundness import forge_folders
from benchmarks.soundness.forgeries import METRICS, Corruption, certify_kind, forge, refused
from benchmarks.soundness.metric_forgeries import OF_METRICS
from robustcert.check import UnreadableError, check
from robustcert.report.claim import read_claim

FAST = ("scaled", "mahalanobis")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("honest")
    return {kind: certify_kind(root, kind) for kind in METRICS}


@pytest.mark.parametrize("kind", METRICS)
def test_an_honest_folder_is_verified(honest: dict[str, Path], kind: str) -> None:
    report = check(honest[kind], exact=4, seed=0)
    assert report.verified, report.mismatches
    assert any(name == "metric" for name, _ in report.checked)
    claim = json.loads((honest[kind] / "certificate.json").read_text())["claim"]
    assert "c1 does not change" in claim["metric"]["change"] or kind != "scaled"
    assert read_claim(honest[kind]).units == "units of u"
    if "quadric" not in kind:
        assert robustcert.load(honest[kind]).change == claim["metric"]["change"]


def cases(kinds: Sequence[str]) -> list[tuple[str, str, Corruption]]:
    return [(kind, name, c) for (kind, name), c in OF_METRICS.items() if kind in kinds]


@pytest.mark.parametrize(("kind", "name", "corruption"), cases(FAST))
def test_a_forged_metric_is_refused(
    honest: dict[str, Path], tmp_path: Path, kind: str, name: str, corruption: Corruption
) -> None:
    assert refused(forge(honest, tmp_path, kind, corruption)), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in METRICS if kind not in FAST])
def test_a_forged_metric_of_any_kind_is_refused(
    honest: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    for k, (_, name, corruption) in enumerate(cases([kind])):
        assert refused(forge(honest, tmp_path / str(k), kind, corruption)), name


@pytest.mark.slow
def test_forged_folders_in_metrics_are_refused() -> None:
    assert forge_folders.main(["--folders", "150", "--metric", "--seed", "5"]) == 0


def test_the_verified_checker_says_that_it_knows_no_metric(honest: dict[str, Path]) -> None:
    with pytest.raises(UnreadableError, match="without --verified"):
        check(honest["scaled"], verified_until=1e9)
