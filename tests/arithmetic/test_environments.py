"""No environment changes a radius: cells of environments.py, and what they rest on."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import robustcert
from benchmarks.soundness.dyadic import logits, truth
from benchmarks.soundness.environment_cells import (
    INEXACT,
    NETWORKS,
    ReducedProducts,
    applied,
    build,
    is_refusal,
    state,
)
from benchmarks.soundness.environments import PROCESS, SETTINGS, Runner, plan, sweep
from robustcert.arithmetic.settings import UnsoundArithmeticError
from robustcert.certificate.samples import read_radii
from robustcert.errors import UnsoundNetworkError
from robustcert.network.fold import fold_network
from robustcert.runs.certify import certify

PROCESSES, CELLS = 24, 520


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.slow
def test_every_cell_has_the_same_radii_or_refuses(open_folder: Path) -> None:
    tally = sweep(Runner(open_folder), plan(0, PROCESSES, CELLS))
    assert not tally.failures, json.dumps(tally.failures[:5], indent=1)
    assert tally.false == 0
    assert tally.processes == PROCESSES <= 40
    # What is not installed here, and nothing else, is left out.
    assert all("locale" in why or "other user" in why for why in tally.skips)
    assert tally.cells - sum(tally.skips.values()) > 0.8 * CELLS
    assert tally.certificates > 100 * tally.outcomes["same"]
    # What ended is not run again.
    again = sweep(Runner(open_folder, python="no interpreter"), plan(0, PROCESSES, CELLS))
    assert again.outcomes == tally.outcomes


def test_a_plan_has_every_setting_and_is_drawn_by_its_seed() -> None:
    jobs = plan(0, 40, 800)
    assert jobs == plan(0, 40, 800) != plan(1, 40, 800)
    assert {key for job in jobs for key in job["process"]} == {*PROCESS, "processor"}
    cells = [cell for job in jobs for cell in job.get("cells", [])]
    assert {key for cell in cells for key in cell["settings"]} == {*SETTINGS, "threads"}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in INEXACT])
def test_exact_logits_are_those_of_the_network(name: str) -> None:
    module, x = build(name, 0)
    network, x = fold_network(module, tuple(x.shape[1:])), x[:8]
    exact = logits(network, x)
    rounded = [[value / 2**exact.places for value in row] for row in exact.integers.tolist()]
    expected = network(x.double())
    difference = torch.tensor(rounded, dtype=torch.float64) - expected
    assert difference.abs().max() <= 1e-12 * expected.abs().max()


def test_a_radius_above_the_distance_of_a_linear_network_is_false() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    x = torch.rand(20, 5)
    true = truth(fold_network(layer, (5,)), x)
    label = layer(x).argmax(1)
    assert true.labels == label.tolist()
    weight, values = layer.weight.double(), layer.double()(x.double())
    slope = (weight[label][:, None] - weight).norm(dim=2)
    gap = values.gather(1, label[:, None]) - values
    distance = (gap / slope).nan_to_num(torch.inf).scatter(1, label[:, None], torch.inf).amin(1)
    assert true.false(true.labels, (distance * (1 - 1e-9)).tolist()) == 0
    assert true.false(true.labels, (distance * (1 + 1e-8)).tolist()) == len(x)
    wrong = [(c + 1) % 3 for c in true.labels]
    assert true.false(wrong, [1e-9] * len(x)) == len(x)
    # The distance of an input of another class is not below that of the boundary.
    assert all(
        Fraction(d) >= Fraction(r) * (1 - Fraction(1, 10**12))
        for d, r in zip(true.breaks_at, distance.tolist(), strict=True)
    )


@pytest.mark.parametrize("name", ["near_tie_convolution", "near_tie_dense"])
def test_reduced_products_decide_near_ties_otherwise(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without this, no product of low precision would make a cell fail.
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    module, x = build(name, 0)
    with torch.no_grad(), applied({"threads": 1, "precision": "medium"}):
        expected = module(x.clone()).argmax(1)
        with ReducedProducts():
            found = module(x)
    certified = robustcert.certify(module, x).radius > 0
    assert int((found.argmax(1) != expected)[certified].sum()) > 10


def test_only_an_error_of_the_package_that_names_the_setting_is_a_refusal() -> None:
    message = "float32 products are not evaluated at the precision of IEEE 754"
    assert is_refusal(UnsoundArithmeticError(message), {"precision", "threads"})
    assert not is_refusal(UnsoundArithmeticError(message), {"deterministic"})
    assert not is_refusal(UnsoundNetworkError("a weight is NaN"), {"precision"})
    assert not is_refusal(RuntimeError(message), {"precision"})


def test_settings_of_a_cell_end_with_it() -> None:
    torch.set_float32_matmul_precision("highest")
    before = state()
    settings: dict[str, Any] = {key: values[-1] for key, values in SETTINGS.items()}
    with applied({**settings, "threads": before["threads"]}):
        assert state() != before
    assert state() == before


@pytest.mark.parametrize(
    ("dtype", "device"),
    [("float64", "cpu"), ("bfloat16", "cpu"), ("float16", "cpu"), ("float32", "meta")],
)
def test_a_checkpoint_is_certified_as_it_is_stored(
    dtype: str, device: str, tiny_run: Path, tmp_path: Path
) -> None:
    checkpoint = str(tiny_run / "checkpoints" / "best.ckpt")
    for name in ("usual", "other"):
        usual = name == "usual"
        default = torch.float32 if usual else getattr(torch, dtype)
        with defaults(default, "cpu" if usual else device):
            output = str(tmp_path / name)
            certify(checkpoint, samples=32, output=output, attack={"samples": 0})
    usual, other = (read_radii(tmp_path / name / "radii.csv") for name in ("usual", "other"))
    assert torch.equal(usual.radius, other.radius)
    assert usual.radius.max() > 0
