"""Subspaces as an experiment: trained, resumed, certified and checked like any other network."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import compose

from robustcert import load
from robustcert.certificate.restore import restore_network
from robustcert.certifiers import QuadricCertifier
from robustcert.check import check, prove_network
from robustcert.data import Digits
from robustcert.errors import ConfigError, UnsoundNetworkError
from robustcert.models import Subspaces
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.network.quadratics import quadratic_distance
from robustcert.report.claim import read_claim
from robustcert.runs.certify import certify
from robustcert.runs.train import train
from robustcert.training.checkpoint import read_checkpoint

COMMON = (
    "dataset=digits",
    "epsilon=0.5",
    "model.per_class=2",
    "model.rank=3",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "attack.samples=16",
    "attack.steps=3",
    "loader.augmentation=[{_target_: robustcert.data.Mixup, alpha: 0.2}]",
)
OVERRIDES = ("experiment=mnist_1.58_subspaces", *COMMON)
DEEP = (
    "experiment=mnist_1.58_deep_subspaces",
    *COMMON,
    "model.width=32",
    "trainer.precision=bf16-mixed",
    "trainer.check_val_every_n_epoch=1",
    "optimizer.lr=0.01",
)


@pytest.fixture(scope="module", params=[OVERRIDES, DEEP], ids=["one layer", "deep"])
def overrides(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return request.param


@pytest.fixture(scope="module")
def straight(overrides: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    train(compose(*overrides), folder)
    return folder


def test_the_certificate_is_verified(straight: Path) -> None:
    folder = straight / "certificate"
    report = check(folder, exact=20, seed=0)
    assert report.verified
    said = json.loads((folder / "certificate.json").read_text())
    assert said["claim"]["proof"] == "quadric"
    assert said["pairwise"] == []
    kinds = [operation["kind"] for operation in said["network"]["operations"]]
    assert [bound["kind"] for bound in said["bounds"]] == kinds[:-1]
    assert kinds[-1] == "quadratics"
    assert said["summary"]["certified"][1]["count"] > 150
    assert said["attack"]["inside"]["broken"] == 0


def test_the_validated_accuracy_is_the_certified_one(
    straight: Path, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    best = straight / "checkpoints" / "best.ckpt"
    metrics = read_checkpoint(best).metrics
    found = certify(
        str(best),
        certifier=compose(*overrides)["certifier"],
        split="validation",
        output=str(tmp_path / "folder"),
        attack={"samples": 0},
    )
    assert found["validation/vra_0.5"] == pytest.approx(metrics["val/vra"], abs=1e-6)
    assert found["validation/accuracy"] == pytest.approx(metrics["val/accuracy"], abs=1e-6)
    assert "val/lipschitz" not in metrics


def test_another_certifier_is_refused_before_training(tmp_path: Path) -> None:
    for name in ("lipschitz", "second_order", "crown", "lipsdp"):
        with pytest.raises(ConfigError, match="certifier: quadratics"):
            train(compose(*OVERRIDES, f"certifier={name}"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_tightness_of_constants_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no Lipschitz constant"):
        train(compose(*OVERRIDES, "trainer=tightness"), tmp_path / "run")


def test_resuming_continues_bit_for_bit(
    straight: Path, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train(compose(*overrides), folder, callbacks=[Kill(1)])
    resume(folder)
    assert_same_run(straight, folder)


def restored(folder: Path) -> PlainNetwork:
    proved, report = prove_network(folder)
    assert report.verified
    network = restore_network(proved.operations)
    assert network.digest() == proved.digest
    return network


def test_nothing_sampled_inside_a_radius_has_another_label(straight: Path) -> None:
    claim = read_claim(straight / "certificate")
    network = restored(straight / "certificate")
    x = torch.from_numpy(claim.unit_inputs(slice(0, 40)))
    radius, prediction = (torch.from_numpy(v[:40]) for v in (claim.radius, claim.prediction))
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        move = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        move = move / move.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        moved = x + radius.view(-1, 1, 1, 1) * (1 - 1e-9) * move
        assert (network(moved).argmax(1) == prediction).all()


def test_a_predictor_refuses_quadratics_in_one_line(straight: Path) -> None:
    with pytest.raises(UnsoundNetworkError, match="quadratics") as caught:
        load(straight)
    assert "\n" not in str(caught.value)


def test_starting_takes_the_seed_and_leaves_the_generator_alone() -> None:
    data = Digits().read("train")
    x, labels = data.inputs[:300].float() / 16, data.labels[:300]
    models = []
    for draws in (0, 3):
        torch.manual_seed(1)
        model = Subspaces(x.shape[1:], 10, per_class=2, rank=3)
        torch.rand(draws)
        state = torch.get_rng_state()
        model.start_at(x, labels)
        assert torch.equal(torch.get_rng_state(), state)
        models.append(model)
    assert torch.equal(models[0].point, models[1].point)
    before = models[0].point.clone()
    models[0].start_at(x.flip(0), labels.flip(0))
    assert torch.equal(models[0].point, before)


def test_the_dual_is_above_the_closed_form_and_differentiable() -> None:
    generator = torch.Generator().manual_seed(0)
    f = 0.2 + torch.rand(50, generator=generator, dtype=torch.float64)
    along = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    across = torch.rand(50, generator=generator, dtype=torch.float64)
    eigenvalues = 2 * torch.rand(50, 4, generator=generator, dtype=torch.float64) - 1
    g = (along.square().sum(1) + across).sqrt()
    closed = 2 * f / (g + (g.square() + 4 * f).sqrt())
    assert (quadratic_distance(f, along, across, eigenvalues) >= closed).all()
    inputs = [t[:5].requires_grad_() for t in (f, along, across, eigenvalues)]
    torch.autograd.gradcheck(quadratic_distance, inputs, eps=1e-5, atol=1e-3, rtol=1e-3)


def test_training_radii_are_below_the_proved_ones() -> None:
    data = Digits().read("train")
    x, labels = data.inputs[:300].float() / 16, data.labels[:300]
    torch.manual_seed(0)
    model = Subspaces(x.shape[1:], 10, per_class=2, rank=4)
    model.start_at(x, labels)
    with torch.no_grad():
        model.raw_length += torch.randn_like(model.raw_length)
        model.shift += 0.1 * torch.randn_like(model.shift)
    found = QuadricCertifier().certify(fold_network(model, x.shape[1:]), x)
    logits = model.distance_logits(x, found.prediction).detach().double()
    radius = -logits.scatter(1, found.prediction[:, None], -math.inf).amax(1)
    certified = found.radius > 0
    assert certified.sum() > 250
    assert (radius <= found.radius * (1 + 1e-3) + 1e-4)[certified].all()
    assert (radius / found.radius)[certified].median() > 0.8
