"""Randomised smoothing: radii against a classifier whose smoothing is known, and the wording."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.deployed import write_folder
from scipy.stats import binom

import robustcert
from benchmarks.soundness.forgeries import Folder
from robustcert.certifiers import SmoothingCertifier
from robustcert.certifiers.quantiles import clopper_pearson_low
from robustcert.check import UnreadableError, check
from robustcert.check.command import main
from robustcert.data import RandomNoise
from robustcert.errors import ReportError, UnsoundNetworkError
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork
from robustcert.report.claim import read_claim
from robustcert.runs.certify import certify


def halves(size: int = 4) -> PlainNetwork:
    """Class 0 where the first entry is above 1/2: its smoothing is itself."""
    weight = torch.zeros(2, size)
    weight[0, 0] = 1.0
    return PlainNetwork((Dense(weight, torch.tensor([-0.5, 0.0])),), (size,))


@pytest.mark.parametrize(("hits", "trials"), [(1, 10), (60, 100), (999, 1000), (1000, 1000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_bound_on_a_probability_is_where_the_tail_has_weight_alpha(
    hits: int, trials: int, alpha: float
) -> None:
    low = clopper_pearson_low(hits, trials, alpha)
    assert binom.sf(hits - 1, trials, low) == pytest.approx(alpha, rel=1e-6)
    assert clopper_pearson_low(0, trials, alpha) == 0


def test_radii_exceed_the_true_ones_no_more_often_than_alpha() -> None:
    torch.manual_seed(0)
    x = torch.rand(1000, 4)
    alpha = 0.05
    found = SmoothingCertifier(sigma=0.2, n0=20, n=200, alpha=alpha).certify(halves(), x)
    distance = (x[:, 0].double() - 0.5).abs()
    wrong = (found.radius > distance) | ((found.radius > 0) & (found.prediction != (x[:, 0] < 0.5)))
    # Three standard deviations above alpha; and the bound is not far below what is allowed.
    assert wrong.sum() <= 1000 * alpha + 3 * math.sqrt(1000 * alpha)
    assert wrong.sum() >= 10
    clear = distance > 0.15
    assert (found.radius[clear] > 0.5 * distance[clear]).double().mean() > 0.95


def test_a_radius_depends_on_the_sample_and_the_seed_alone() -> None:
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    first = SmoothingCertifier(n0=10, n=300).certify(halves(), x)
    turned = SmoothingCertifier(n0=10, n=300).certify(halves(), x.flip(0))
    assert torch.equal(first.radius, turned.radius.flip(0))
    again = SmoothingCertifier(n0=10, n=300, seed=1).certify(halves(), x)
    assert not torch.equal(first.radius, again.radius)


def test_a_toss_up_and_values_that_are_no_numbers_are_abstained_from() -> None:
    x = torch.tensor([[0.5, 0, 0, 0], [torch.nan, 0, 0, 0]])
    found = SmoothingCertifier(n0=10, n=200).certify(halves(), x)
    assert (found.radius == 0).all()
    assert found.margin.isnan().all()


@pytest.mark.parametrize(
    ("options", "key"),
    [({"sigma": 0.0}, "sigma"), ({"alpha": 1.0}, "alpha"), ({"n": 0}, "n"), ({"n0": 0}, "n0")],
)
def test_impossible_options_are_refused_by_their_key(options: Any, key: str) -> None:
    with pytest.raises(ValueError, match=rf"certifier\.{key}$"):
        SmoothingCertifier(**options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "smoothed", halves(), SmoothingCertifier(n0=10, n=400))


def test_every_output_states_the_confidence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = json.loads((folder / "certificate.json").read_text())["claim"]
    assert claim["statement"].startswith("Not proved")
    assert claim["proof"] == "smoothing"
    assert claim["smoothing"]["confidence"] == 0.999
    statuses = {line.split(",")[4] for line in (folder / "radii.csv").read_text().splitlines()[1:]}
    assert "confidence 0.999" in statuses
    assert statuses <= {"confidence 0.999", "abstain"}
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "not covered: probabilistic: not re-proved" in said
    assert "VERIFIED" not in said
    with pytest.raises(UnsoundNetworkError, match="smoothed classifier"):
        robustcert.load(folder)


Forgery = Callable[[Folder], Any]
FORGERIES: dict[str, Forgery] = {
    "called a proof": lambda f: f.claim["claim"].update(proof="lipschitz"),
    "the words of a proof": lambda f: f.claim["claim"].update(
        statement="For every sample listed as certified with radius r, every input at l2 distance "
        "less than r from the sample gets the listed prediction, as the unique largest logit."
    ),
    "of the network": lambda f: f.claim["claim"].update(functions={"R": "the network"}),
    "no word of the noise": lambda f: f.claim["claim"].pop("smoothing"),
    "more confidence": lambda f: f.claim["claim"]["smoothing"].update(confidence=0.9999),
    "certainty": lambda f: f.claim["claim"]["smoothing"].update(alpha=0, confidence=1),
    "certified in the table": lambda f: [
        row.__setitem__(4, "certified") for row in f.rows if row[4] != "abstain"
    ],
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_smoothed_claim_cannot_pass_for_a_proof(folder: Path, what: str) -> None:
    forged = Folder(folder)
    FORGERIES[what](forged)
    forged.save()
    with pytest.raises(UnreadableError):
        check(folder)


def test_a_deterministic_claim_cannot_be_made_of_smoothed_radii(folder: Path) -> None:
    # Everything is rewritten as a proof: the radii do not follow from the margins.
    forged, honest = Folder(folder), Folder(write_folder(folder.parent / "honest", halves()))
    forged.claim["claim"] = honest.claim["claim"]
    for row in forged.rows:
        row[4] = "certified" if row[4] != "abstain" else "abstain"
    forged.save()
    assert not check(folder).verified


def test_a_run_is_certified_by_smoothing(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = certify(
        str(tiny_run / "checkpoints" / "best.ckpt"),
        certifier={"_target_": "robustcert.certifiers.SmoothingCertifier", "n0": 10, "n": 100},
        samples=40,
        radii=[0.01],
        output=str(tmp_path / "folder"),
    )
    assert not any("vra" in key for key in metrics)
    assert 0 < metrics["test/smoothed_0.01"] <= metrics["test/accuracy"]
    said = capsys.readouterr().out
    assert "with confidence 0.999 each" in said
    assert "not proved: each radius is true with probability 0.999 or more" in said
    assert "verified" not in said
    with pytest.raises(ReportError, match="smoothed classifier"):
        read_claim(tmp_path / "folder")


def test_noise_comes_from_its_generator_alone() -> None:
    augment, x = RandomNoise(0.3), torch.zeros(4, 1, 50, 50)
    one, again, other = (augment(x, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert abs(float(one.std()) - 0.3) < 0.01
    with pytest.raises(ValueError, match="at least 0"):
        RandomNoise(-1.0)
