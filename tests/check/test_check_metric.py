"""Folders of networks in a metric: verified where they are honest, refused where they are not."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import proof_folders

import robustcert
from benchmarks.soundness import forge_folders
from benchmarks.soundness.forgeries import (
    METRICS,
    Corruption,
    certify_kind,
    forge,
    measured,
    refused,
)
from benchmarks.soundness.metric_forgeries import OF_METRICS
from robustcert.certifiers import LipSDPCertifier
from robustcert.check import UnreadableError, check
from robustcert.network.network import pairwise_bound
from robustcert.report.claim import read_claim

FAST = ("scaled", "mahalanobis")
EACH = [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in METRICS]


class Honest(dict[str, Path]):
    """Folders by kind, made when they are asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, kind: str) -> Path:
        self[kind] = certify_kind(self.root, kind)
        return self[kind]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Honest(tmp_path_factory.mktemp("honest"))


@pytest.mark.parametrize("kind", EACH)
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


def test_semidefinite_constants_in_a_metric_are_proved_again(tmp_path: Path) -> None:
    network, certifier = measured("scaled-maxmin"), LipSDPCertifier(iterations=5)
    assert (certifier.pairwise_bound(network) <= pairwise_bound(network)).all()
    folder = proof_folders.certify(tmp_path / "lipsdp", network, certifier)
    report = check(folder, exact=2, seed=0)
    assert report.verified, report.mismatches
    assert any("semidefinite" in what for _, what in report.checked)


@pytest.mark.parametrize("kind", EACH)
def test_a_forged_metric_is_refused(honest: dict[str, Path], tmp_path: Path, kind: str) -> None:
    for k, (_, name, corruption) in enumerate(cases([kind])):
        assert refused(forge(honest, tmp_path / str(k), kind, corruption)), name


@pytest.mark.slow
def test_forged_folders_in_metrics_are_refused() -> None:
    assert forge_folders.main(["--folders", "150", "--metric", "--seed", "5"]) == 0


def test_the_verified_checker_says_that_it_knows_no_metric(honest: dict[str, Path]) -> None:
    with pytest.raises(UnreadableError, match="without --verified"):
        check(honest["scaled"], verified_until=1e9)
