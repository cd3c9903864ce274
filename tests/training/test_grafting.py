"""Grafted units: lines of slope at most 1, chosen by folds and significance, kept by a resume."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers.deployed import write_folder
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import run
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.soundness.forgeries import Folder
from robustcert.activations import Grafted
from robustcert.check import UnreadableError, check
from robustcert.errors import ConfigError
from robustcert.metrics.kinks import kinks_within, unit_scores
from robustcert.network.fold import fold, fold_network
from robustcert.network.network import PlainNetwork
from robustcert.training.callbacks import LinearityGrafting
from robustcert.training.callbacks.grafting import choose

Base = Literal["maxmin", "relu"]
GRAFT = (
    "+trainer.callbacks=[{_target_: robustcert.training.callbacks.LinearityGrafting, epoch: %d}]"
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def some_grafts(base: Base) -> Grafted:
    """Eight features, of which half the units are lines with slopes that are not 0 or 1."""
    module = Grafted(8, base=base)
    units = torch.arange(len(module.graft)) % 2 == 0
    module.graft_units(units, torch.randn(50, 8, 3))
    with torch.no_grad():
        module.raw_slope += 0.7 * torch.randn(8)
        module.shift += torch.randn(8)
    return module


def network(base: Base, *units: int) -> PlainNetwork:
    """Inputs (8,), a random layer, an activation of which some units are grafted, two logits."""
    torch.manual_seed(1)
    dense = nn.Linear(8, 8)
    nn.init.orthogonal_(dense.weight)
    module = Grafted(8, base=base)
    chosen = torch.zeros(len(module.graft), dtype=torch.bool)
    chosen[list(units)] = True
    module.graft_units(chosen, dense(torch.rand(50, 8)))
    return fold_network(nn.Sequential(dense, module, nn.Linear(8, 2)), (8,))


@pytest.mark.parametrize("base", ["maxmin", "relu"])
def test_the_graft_is_1_lipschitz_and_a_line_where_it_says_so(base: Base) -> None:
    module = some_grafts(base)
    x, y = 2 * torch.randn(2, 2000, 8, 1, dtype=torch.float64)
    ratio = (module(x) - module(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert ratio.max() <= 1 + 1e-7
    size = 8 // len(module.graft)
    bend = (module(x) + module(y) - 2 * module((x + y) / 2)).abs().amax((0, 2))
    straight = (module.graft != 0).repeat_interleave(size)
    assert (bend[straight] < 1e-6).all()
    assert (bend[~straight] > 0.1).all()
    (folded,) = fold(module)
    assert torch.equal(folded(x.float()), module(x.float()))


@pytest.mark.parametrize("base", ["maxmin", "relu"])
def test_a_graft_changes_nothing_for_the_samples_on_the_main_side(base: Base) -> None:
    module, plain = Grafted(8, base=base), Grafted(8, base=base)
    x = torch.rand(40, 8)
    x[:, 1::2] -= 3  # the first of each pair is larger; ReLU has one open and one closed unit
    module.graft_units(torch.ones(len(module.graft), dtype=torch.bool), x)
    assert torch.equal(module(x), plain(x))
    with torch.no_grad():
        module.raw_slope.fill_(1.7)
    assert module.slope().tolist() == pytest.approx([0.3] * 8)


def test_folds_of_grafted_units_are_gone_and_the_others_stay() -> None:
    x = torch.rand(30, 8)
    before = kinks_within(network("relu"), x, 0.2)
    after = kinks_within(network("relu", 0, 5), x, 0.2)
    (score,) = unit_scores(network("relu"), x, 0.2)
    assert score.density[[0, 5]].sum() > 0
    assert (before - after).mean() == pytest.approx(float(score.density[[0, 5]].sum() / 8))


@pytest.mark.parametrize("base", ["maxmin", "relu"])
def test_units_near_their_folds_that_matter_little_are_chosen(base: Base) -> None:
    size = 2 if base == "maxmin" else 1
    module = Grafted(4 * size, base=base)
    head = nn.Linear(4 * size, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0] = torch.tensor([1.0, 0.1, 1.0, 0.1]).repeat_interleave(size)
    # Units 0 and 1 are at their folds, 2 and 3 far away; 1 and 3 hardly matter.
    x = torch.tensor([0.01, 0.01, 5.0, 5.0]).repeat_interleave(size).expand(6, -1).clone()
    if size == 2:
        x[:, 4::2] += 9
    (score,) = unit_scores(fold_network(nn.Sequential(module, head), (4 * size,)), x, 0.1)
    assert score.density.tolist() == [1, 1, 0, 0]
    weight = head.weight[0].double().reshape(4, size).norm(dim=1)
    torch.testing.assert_close(score.significance, weight)
    assert choose([score], 0.25)[0].tolist() == [False, True, False, False]
    assert choose([score, score], 0.5)[0].tolist() == [True, True, False, False]


def test_densities_of_maps_are_means_over_positions() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Grafted(4), nn.Flatten(), nn.Linear(64, 3))
    plain = fold_network(model, (1, 6, 6))
    x = torch.rand(5, 1, 6, 6)
    (score,) = unit_scores(plain, x, 0.3)
    assert score.density.shape == score.significance.shape == (2,)
    assert score.density.mean() == pytest.approx(float(kinks_within(plain, x, 0.3).mean()))
    model[1].graft_units(torch.tensor([True, False]), score.inputs)
    assert torch.equal(fold_network(model, (1, 6, 6))(x).argmax(1), model(x).argmax(1))


@pytest.mark.parametrize("base", ["maxmin", "relu"])
def test_the_checker_proves_grafted_networks(base: Base, tmp_path: Path) -> None:
    pytest.importorskip("flint")
    folder = write_folder(tmp_path / "folder", network(base, 1, 2))
    report = check(folder)
    assert report.verified, report.mismatches
    forged = Folder(folder)
    tensors = load_file(folder / "network.safetensors")
    name = next(key for key in tensors if key.endswith("slope"))
    tensors[name][0] = 1.01
    save_file(tensors, folder / "network.safetensors")
    forged.claim["files"] = json.loads((folder / "certificate.json").read_text())["files"]
    with pytest.raises(UnreadableError, match="slope"):
        check(folder)


@pytest.mark.slow
def test_a_run_that_grafts_resumes_bit_for_bit(tmp_path: Path) -> None:
    overrides = ("activation=grafted", "trainer.max_epochs=4", GRAFT % 1, "optimizer.lr=0.02")
    run(tmp_path / "straight", *overrides, "certify=false")
    # Once before the epoch that begins with grafting is over, and once after it.
    for epoch in (1, 2):
        folder = tmp_path / f"killed{epoch}"
        with pytest.raises(Killed):
            run(folder, *overrides, "certify=false", callbacks=[Kill(epoch)])
        resume(folder)
        assert_same_run(tmp_path / "straight", folder)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    grafts = torch.cat([value for key, value in state.items() if key.endswith(".graft")])
    assert int((grafts != 0).sum()) == round(0.3 * len(grafts))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("activation=maxmin", GRAFT % 1), "set activation=grafted"),
        (("activation=grafted", GRAFT % 2), "raise trainer.max_epochs"),
    ],
)
def test_what_cannot_be_grafted_is_refused_with_the_remedy(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", *overrides)


@pytest.mark.parametrize("options", [{"share": 1.5}, {"epoch": -1}, {"samples": 0}])
def test_impossible_options_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(options))}"):
        LinearityGrafting(**options)


def test_unknown_bases_and_odd_pairs_are_refused() -> None:
    wrong: Any = "tanh"
    with pytest.raises(ValueError, match=r"model\.activation\.base"):
        Grafted(8, base=wrong)
    with pytest.raises(ValueError, match="split"):
        Grafted(7)
