"""What chooses best.ckpt is what is claimed: validation by the certifier that will certify."""

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configs import build
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import TINY, compose, run
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from robustcert.certifiers import (
    Certificates,
    Certifier,
    Claim,
    CROWNCertifier,
    LipschitzCertifier,
    LipSDPCertifier,
)
from robustcert.config.build import COMMAND_LINE_TARGETS, build_data, build_dataset, build_module
from robustcert.errors import ConfigError
from robustcert.network.fold import fold_network
from robustcert.network.linear import Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.norms import convolution
from robustcert.runs.certify import certify
from robustcert.training.checkpoint import read_checkpoint
from robustcert.training.validation import ValidationCertifier

# Norms of free layers are not attained together: the certifiers' radii differ.
FREE = ("layer=unconstrained", "activation=smooth", "optimizer.lr=0.02")
RADII = (0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("free") / "run"
    run(folder, *FREE, "certify=false")
    return folder


def validated(best: Path, *overrides: str) -> dict[str, float]:
    """Metrics of the validation split, by the module that ``overrides`` configure."""
    config = compose(*TINY, *FREE, *overrides)
    dataset = build_dataset(config, COMMAND_LINE_TARGETS)
    module = build_module(config, dataset, COMMAND_LINE_TARGETS)
    read_checkpoint(best).load_into(module.model)
    data = build_data(config, dataset, COMMAND_LINE_TARGETS)
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, **options)
    (metrics,) = trainer.validate(module, data, verbose=False)
    return dict(metrics)


@pytest.fixture(scope="module")
def by_lipschitz(free: Path) -> dict[str, float]:
    return validated(free / "checkpoints" / "best.ckpt", "certifier=lipschitz")


def certified(best: Path, folder: Path, *overrides: str, **options: Any) -> dict[str, float]:
    """Metrics of the same split in a certificate."""
    return certify(
        str(best),
        certifier=compose(*overrides)["certifier"],
        split="validation",
        output=str(folder),
        attack={"samples": 0},
        **options,
    )


@pytest.mark.parametrize(
    ("overrides", "samples"),
    [
        (("certifier=lipschitz",), None),
        (("certifier=lipschitz", "certifier.arithmetic=float32"), 50),
        (("certifier=lipsdp", "certifier.iterations=20"), None),
        pytest.param(("certifier=eclipse_fast",), None, marks=pytest.mark.slow),
        pytest.param(("certifier=quadratic",), None, marks=pytest.mark.slow),
        pytest.param(("certifier=second_order",), None, marks=pytest.mark.slow),
        # The batch that has the last of them goes on with samples that are not certified.
        (("certifier=second_order", "loader.eval_batch_size=30"), 50),
        (("certifier=crown",), 12),
        pytest.param(
            ("certifier=local_lipsdp", "certifier.rounds=3", "certifier.iterations=1"),
            12,
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_validated_accuracy_is_the_certified_one(
    overrides: tuple[str, ...],
    samples: int | None,
    free: Path,
    by_lipschitz: dict[str, float],
    tmp_path: Path,
) -> None:
    best = free / "checkpoints" / "best.ckpt"
    limit = "null" if samples is None else samples
    metrics = validated(best, *overrides, f"validation.samples={limit}")
    found = certified(best, tmp_path / "out", *overrides, samples=samples)
    for radius in RADII:
        assert metrics[f"val/vra_{radius:.4g}"] == pytest.approx(
            found[f"validation/vra_{radius:.4g}"], abs=1e-6
        )
    # Every sample counts here.
    assert metrics["val/accuracy"] == by_lipschitz["val/accuracy"]
    if "lipsdp" not in overrides[0] and "eclipse" not in overrides[0]:
        assert metrics["val/loss"] == pytest.approx(by_lipschitz["val/loss"], rel=1e-6)


def test_best_is_chosen_by_the_certifier_that_certifies(tmp_path: Path) -> None:
    lipsdp = ("certifier=lipsdp", "certifier.iterations=10")
    run(tmp_path / "run", *FREE, "certify=false", *lipsdp)
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    found = certified(best.path, tmp_path / "out", *lipsdp)
    claim = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert claim["claim"]["proof"] == "lipsdp"
    vra = found["validation/vra_0.5"]
    assert best.metrics["val/vra"] == pytest.approx(vra, abs=1e-6)
    assert vra > validated(best.path, "certifier=lipschitz")["val/vra"]
    largest = max(float.fromhex(k) for row in claim["pairwise"] for k in row)
    assert best.metrics["val/lipschitz"] == pytest.approx(largest, rel=1e-6)


class Remember(Certifier):
    """A user's own certifier, of which nothing else is known."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def claim(self, network: PlainNetwork, samples: Iterable[Tensor] = ()) -> Claim:
        return Claim("halves", ("R",))

    def certify(self, network: PlainNetwork, x: Tensor) -> Certificates:
        self.seen += x[:, 0].tolist()
        found = LipschitzCertifier().certify(network, x)
        return Certificates(found.prediction, 0.5 * found.radius, found.margin, found.error)


def small_network() -> PlainNetwork:
    torch.manual_seed(0)
    return fold_network(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), (2,))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 7, 20, None])
def test_ranks_certify_the_same_samples_together(ranks: int, samples: int | None) -> None:
    network, x = small_network(), torch.arange(20.0)[:, None].expand(-1, 2)
    seen: list[float] = []
    for rank in range(ranks):
        certifier = Remember()
        validation = ValidationCertifier(certifier, samples)
        for _ in range(2):
            certifier.seen = []
            validation.prepare(network, torch.device("cpu"), rank, ranks)
            found = [validation.certify(batch) for batch in x[rank::ranks].split(3)]
        seen += certifier.seen
        radius = torch.cat([part.radius for part in found])
        own = x[rank::ranks][: len(radius)]
        expected = 0.5 * LipschitzCertifier().certify(network, own).radius
        torch.testing.assert_close(radius, expected, rtol=1e-12, atol=0)
        prediction = torch.cat([part.prediction for part in found])
        assert torch.equal(prediction, network(x[rank::ranks]).argmax(1))
    assert sorted(seen) == list(range(samples or 20))


@pytest.mark.parametrize(
    ("name", "options", "remark"),
    [
        ("smoothing", {}, "has no cheap lower bound"),
        ("global_robustness", {}, "too expensive to validate"),
    ],
)
def test_what_is_not_validated_is_said(name: str, options: Any, remark: str) -> None:
    network = small_network()
    validation = ValidationCertifier(build("certifier", name, **options))
    assert validation.measure(network) == "LipschitzCertifier()"
    assert remark in validation.describe(network)
    plain = ValidationCertifier()
    for each in (validation, plain):
        each.check(network)
        each.prepare(network, torch.device("cpu"))
    x = torch.randn(5, 2)
    assert torch.equal(validation.certify(x).radius, plain.certify(x).radius)


def test_a_run_says_by_what_it_chooses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        combined = ("activation=smooth", "certifier=second_order")
        run(tmp_path / "run", *combined, "certify=false", "trainer.max_epochs=1")
    (said,) = [m for m in caplog.messages if m.startswith("best.ckpt is chosen by")]
    assert said.endswith("the radii of CombinedCertifier() of the first 128 samples")


def test_no_samples_stand_for_a_lower_bound_where_there_is_one(
    free: Path, by_lipschitz: dict[str, float]
) -> None:
    best = free / "checkpoints" / "best.ckpt"
    assert validated(best, "certifier=crown", "validation.samples=0") == by_lipschitz
    validation = ValidationCertifier(build("certifier", "crown"), 0)
    assert "a lower bound of CROWNCertifier" in validation.describe(small_network())
    for certifier in (build("certifier", "crown", alone=True), Remember()):
        with pytest.raises(ValueError, match=r"no cheap lower bound: set validation\.samples"):
            ValidationCertifier(certifier, 0).prepare(small_network(), torch.device("cpu"))


CONVNET = ("model=convnet", "certifier=lipsdp")


def test_a_certifier_that_does_not_cover_the_network_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"certifier: .*semidefinite bounds do not cover"):
        run(tmp_path / "run", *CONVNET)
    assert not (tmp_path / "run").exists()


def test_where_nothing_will_be_certified_another_one_validates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path / "run", *CONVNET, "certify=false", "trainer.max_epochs=1")
    assert any("LipschitzCertifier(), as certifier does not cover" in m for m in caplog.messages)


def test_an_impossible_number_of_samples_is_refused(tmp_path: Path) -> None:
    for value in ("-1", "0.5", "a"):
        with pytest.raises(ConfigError, match=r"validation\.samples"):
            run(tmp_path / "run", f"validation.samples={value}")


def test_a_run_validated_by_semidefinite_bounds_resumes_bit_for_bit(tmp_path: Path) -> None:
    overrides = (*FREE, "certifier=lipsdp", "certifier.iterations=5", "certify=false")
    run(tmp_path / "straight", *overrides)
    with pytest.raises(Killed):
        run(tmp_path / "resumed", *overrides, callbacks=[Kill(1)])
    resume(tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_scores_by_two_certifiers_are_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Spoil(Callback):
        """By score alone, best.ckpt would stay that of the first epochs."""

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            with torch.no_grad():
                pl_module.get_parameter("model.head.bias")[0] = 1e3

    tight = ("certifier=lipsdp", "certifier.iterations=5", "certify=false")
    run(tmp_path / "run", *FREE, *tight)
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    before = read_checkpoint(best)
    with caplog.at_level(logging.INFO):
        closed = ("+certifier.iterations=0", "trainer.max_epochs=3")
        resume(tmp_path / "run", *closed, callbacks=[Spoil()])
    assert any("best.ckpt is chosen anew" in m for m in caplog.messages)
    after = read_checkpoint(best)
    assert after.epoch == 3
    assert after.metrics["val/vra"] < before.metrics["val/vra"]


@pytest.mark.parametrize("data", ["digits", pytest.param("diabetes", marks=pytest.mark.slow)])
def test_a_trial_of_the_validation_data_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    task = () if data == "digits" else ("dataset=diabetes", "objective=squared", "model.width=8")
    config = compose(*TINY, *task)
    dataset = build_dataset(config, COMMAND_LINE_TARGETS)
    module = build_module(config, dataset, COMMAND_LINE_TARGETS)
    proved: list[bool] = []
    original = type(module).folded

    def counting(self: Any) -> PlainNetwork:
        proved.append(self.trainer.sanity_checking)
        return original(self)

    monkeypatch.setattr(type(module), "folded", counting)
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    options |= {"max_epochs": 1, "limit_train_batches": 1, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", logger=False, num_sanity_val_steps=2, **options)
    trainer.fit(module, build_data(config, dataset, COMMAND_LINE_TARGETS))
    assert proved == [False]


def test_semidefinite_bounds_are_proved_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[PlainNetwork] = []
    prove = LipSDPCertifier.pairwise_bound

    def counted(self: LipSDPCertifier, network: PlainNetwork) -> Tensor:
        calls.append(network)
        return prove(self, network)

    monkeypatch.setattr(LipSDPCertifier, "pairwise_bound", counted)
    validation = ValidationCertifier(LipSDPCertifier(5))
    validation.prepare(small_network(), torch.device("cpu"))
    for batch in torch.randn(9, 2).split(2):
        validation.certify(batch)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("certifier", "samples"),
    [(LipschitzCertifier(), 2), (LipschitzCertifier("float32"), 2), (CROWNCertifier(), 0)],
)
def test_validation_takes_no_bound_that_takes_long(
    certifier: Any, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("singular vectors")

    monkeypatch.setattr(convolution, "truncated_norm_bound", refused)
    torch.manual_seed(0)
    kernel, head = torch.randn(256, 1, 3, 3), Dense(torch.randn(2, 256 * 16))
    wide = Convolution(torch.randn(256, 256, 3, 3) / 50, padding=(1, 1))

    def network() -> PlainNetwork:
        first = Convolution(kernel, padding=(1, 1))
        return PlainNetwork((first, replace(wide), Flatten(), head), (1, 4, 4))

    validation = ValidationCertifier(certifier, samples)
    validation.check(network())
    validation.prepare(network(), torch.device("cpu"))
    assert (validation.certify(torch.rand(2, 1, 4, 4)).radius >= 0).all()
    with pytest.raises(AssertionError, match="singular vectors"):
        LipschitzCertifier().certify(network(), torch.rand(2, 1, 4, 4))
