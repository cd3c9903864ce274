"""What bounds, radii and the check take is said before the first sample is certified."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.soundness import forgeries
from robustcert.certificate.checking import check_beforehand
from robustcert.certifiers import LipschitzCertifier
from robustcert.check import expected_time
from robustcert.network.linear import Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.runs import duration
from robustcert.runs.attack import MIN_SECONDS
from robustcert.runs.certify import certify
from robustcert.runs.duration import MIN_SAMPLES, foretold, tell_beforehand, unremarkable
from robustcert.training import nominal
from robustcert.training.nominal import proof_seconds, radii_seconds

COUNT, PATH = 50_000, Path("run/checkpoints/best.ckpt")


def linear(side: int = 64) -> PlainNetwork:
    return PlainNetwork((Flatten(), Dense(torch.eye(10, side))), (1, 1, side))


def slow_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of any network takes years."""
    monkeypatch.setattr("robustcert.check.norms.cost.PROOF_SPEED", 1e-6)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("hours", [0.2, 3.0, 500.0])
def test_long_certifications_are_told_with_what_fits_into_a_tenth_of_training(
    hours: float,
    accelerated: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    network, trained = linear(), 6000.0
    rate = 2 * 640 * COUNT / (3600 * hours)
    monkeypatch.setattr(nominal, "PROOF_RATE", rate)
    monkeypatch.setattr(nominal, "ACCELERATOR_FLOAT64_RATE", rate)
    with caplog.at_level(logging.INFO):
        tell_beforehand(network, PATH, COUNT, trained, accelerated=accelerated)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"{duration.in_words(3600 * hours)} for the radii of {COUNT} samples" in said
    found = re.search(rf"{re.escape(str(PATH))} samples=(\d+) certifies the first \1 alone", said)
    assert found
    fewer = int(found[1])
    spent = proof_seconds(network, accelerated=accelerated)
    spent += radii_seconds(network, fewer, accelerated=accelerated)
    assert fewer == MIN_SAMPLES or spent <= unremarkable(trained)
    assert MIN_SAMPLES <= fewer < COUNT


def test_nothing_is_said_of_what_takes_a_minute_or_a_tenth_of_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert unremarkable(0.0) == MIN_SECONDS
    monkeypatch.setattr(nominal, "PROOF_RATE", 2 * 640 * COUNT / 300)
    with caplog.at_level(logging.INFO):
        tell_beforehand(linear(), PATH, 1000, 0.0, accelerated=False)
        tell_beforehand(linear(), PATH, COUNT, 10_000.0, accelerated=False)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("seconds", "trained", "said"),
    [(40.0, 0.0, "other 30 samples takes about 2 min"), (40.0, 1201.0, ""), (19.0, 0.0, "")],
)
def test_the_first_batch_tells_how_long_the_others_take(
    seconds: float,
    trained: float,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(duration.time, "perf_counter", lambda: clock[0])
    batches = [(torch.full((10,), i), torch.zeros(10)) for i in range(4)]
    found = []
    with caplog.at_level(logging.INFO):
        for inputs, _ in foretold(batches, 40, trained):
            # Whatever batches after the first take.
            clock[0] += seconds if not found else 1e6
            found.append(int(inputs[0]))
    assert found == [0, 1, 2, 3]
    assert said in caplog.text
    assert len(caplog.records) == bool(said)


@pytest.mark.parametrize("kind", forgeries.KINDS)
def test_what_is_told_of_the_check_is_the_same_before_and_after(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = forgeries.build(kind)
    folder = forgeries.certify(tmp_path / kind, network)
    samples = expected_time(folder).samples
    assert check_beforehand(network, samples) is None
    slow_proofs(monkeypatch)
    said, told = check_beforehand(network, samples), str(expected_time(folder))
    if kind == "quadric":  # without a norm to prove
        assert (said, told) == (None, "a few seconds")
    else:
        assert said == told
        assert "more than its default, use --seconds" in told


def test_a_network_that_the_checker_does_not_read_is_told() -> None:
    # Longer than what any operation may read of one sample.
    side = 2**24 + 1
    network = PlainNetwork((Flatten(), Dense(torch.zeros(1, 1).expand(2, side))), (1, 1, side))
    assert "will not check it" in str(check_beforehand(network, 10))


def test_it_is_said_before_the_first_sample(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow_proofs(monkeypatch)
    monkeypatch.setattr(nominal, "PROOF_RATE", 1.0)
    said: list[str] = []
    original = LipschitzCertifier.certify

    def certifying(self: LipschitzCertifier, *arguments: Any) -> Any:
        said.append(caplog.text)
        return original(self, *arguments)

    monkeypatch.setattr(LipschitzCertifier, "certify", certifying)
    few: dict[str, Any] = {"samples": 8, "attack": {"samples": 0}}
    with caplog.at_level(logging.INFO):
        certify(str(tiny_run), output=str(tmp_path / "certificate"), **few)
    assert "robustcert-check, of what is certified here: about" in said[0]
    assert "certifying takes about" in said[0]
