"""The checker on regressions: honest folders verify, and no forged one does."""

import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.regression import RADII, SAMPLES, Folder, certify, network
from safetensors.numpy import load_file, save_file

from robustcert.check import (
    STATEMENTS,
    UNITS,
    UnreadableError,
    change_in_words,
    check,
    parse_safetensors,
    read_network,
)
from robustcert.check.command import main
from robustcert.check.intervals import mean_up
from robustcert.check.network.digest import digest
from robustcert.network.input_space import InputSpace, scaling

DIRECTIONS = (1, 0, -1)
SCALE = torch.tensor([0.5, 0.0, 0.25], dtype=torch.float64)
SPACE = InputSpace("columns", ("age", "sex", "dose"), scaling(SCALE))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a plain network, of a monotone one and of one in a metric, and their data."""
    root = tmp_path_factory.mktemp("regression")
    torch.manual_seed(0)
    draw = np.random.RandomState(0)
    inputs, targets = draw.rand(SAMPLES, 3), draw.randn(SAMPLES)
    parts = {f"x_{s}": inputs for s in ("train", "test")}
    parts |= {f"y_{s}": targets for s in ("train", "test")}
    np.savez(root / "data.npz", **parts)
    return {
        "plain": certify(root / "plain", network(), inputs, targets),
        "monotone": certify(root / "monotone", network(DIRECTIONS, "tanh"), inputs, targets),
        "metric": certify(root / "metric", network(space=SPACE), inputs, targets),
        "data": root / "data.npz",
    }


def copy(source: Path, to: Path) -> Folder:
    return Folder(Path(shutil.copytree(source, to)))


def verified(path: Path, data: Sequence[Path] = ()) -> bool:
    try:
        return check(path, exact=4, seed=0, data=data).verified
    except UnreadableError:
        return False


@pytest.mark.parametrize("kind", ["plain", "monotone", "metric"])
def test_honest_folders_verify(
    honest: dict[str, Path], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = check(honest[kind], exact=SAMPLES, seed=0, data=[honest["data"]])
    assert report.mismatches == []
    assert report.verified
    # The forger's own way of saving changes nothing that matters.
    folder = copy(honest[kind], tmp_path / "copy")
    folder.recount()
    assert main([str(folder.save()), "--exact", "3"]) == 0
    said = capsys.readouterr().out
    for word in ("intervals", "lipschitz", "12 of 12 samples at 2 radii, functions R, F64"):
        assert word in said
    assert ("2 of 3 features, for function R" in said) == (kind == "monotone")


# Forgeries: each changes a folder in a way that makes its claim false, or not the folder's own.


def narrow(folder: Folder, draw: random.Random) -> None:
    row, k, upper = draw.randrange(SAMPLES), draw.randrange(len(RADII)), draw.random() < 0.5
    column = 3 + 2 * k + upper
    distance = folder.get(row, 4 + 2 * k) - folder.get(row, 3 + 2 * k)
    share = 10 ** draw.uniform(-9, -0.5)
    folder.set(row, column, folder.get(row, column) - (1 if upper else -1) * share * distance)
    folder.recount()


def shift(folder: Folder, draw: random.Random) -> None:
    row, k = draw.randrange(SAMPLES), draw.randrange(len(RADII))
    moved = draw.choice([-1, 1]) * 10 ** draw.uniform(-7, 1)
    for column in (3 + 2 * k, 4 + 2 * k):
        folder.set(row, column, folder.get(row, column) + moved)
    folder.recount()


def swap_intervals(folder: Folder, draw: random.Random) -> None:
    first, second = draw.sample(range(SAMPLES), 2)
    rows = folder.rows
    rows[first][3:], rows[second][3:] = rows[second][3:], rows[first][3:]
    folder.recount()


def exchange_ends(folder: Folder, draw: random.Random) -> None:
    row, k = draw.randrange(SAMPLES), 3 + 2 * draw.randrange(len(RADII))
    folder.rows[row][k : k + 2] = folder.rows[row][k : k + 2][::-1]
    folder.recount()


def infinite_on_one_side(folder: Folder, draw: random.Random) -> None:
    row, k = draw.randrange(SAMPLES), 3 + 2 * draw.randrange(len(RADII))
    folder.rows[row][k : k + 2] = draw.choice([["inf", "inf"], ["-inf", "-inf"], ["nan", "nan"]])
    for entry in folder.claim["summary"]["certified"]:
        entry.update(mean_absolute_error="inf", width="inf")


def other_prediction(folder: Folder, draw: random.Random) -> None:
    row = draw.randrange(SAMPLES)
    folder.set(row, 2, folder.get(row, 2) + draw.choice([-1, 1]) * 10 ** draw.uniform(-9, 1))
    folder.recount()


def swap_targets(folder: Folder, draw: random.Random) -> None:
    first, second = draw.sample(range(SAMPLES), 2)
    rows = folder.rows
    rows[first][1], rows[second][1] = rows[second][1], rows[first][1]
    folder.recount()


def swap_targets_everywhere(folder: Folder, draw: random.Random) -> None:
    state = draw.getstate()
    swap_targets(folder, draw)
    draw.setstate(state)
    first, second = draw.sample(range(SAMPLES), 2)
    tensors = load_file(folder.path / "samples.safetensors")
    tensors["targets"][[first, second]] = tensors["targets"][[second, first]]
    save_file(tensors, folder.path / "samples.safetensors")


def smaller_constant(folder: Folder, draw: random.Random) -> None:
    constant = float.fromhex(folder.claim["lipschitz"][0])
    folder.claim["lipschitz"] = [(constant * (1 - 10 ** draw.uniform(-12, -0.5))).hex()]


def smaller_bound(folder: Folder, draw: random.Random) -> None:
    entries = [e for e in folder.claim["bounds"] if e["kind"] in ("dense", "affine", "sum")]
    entry = draw.choice(entries)
    entry["bound"] = (float.fromhex(entry["bound"]) * (1 - 10 ** draw.uniform(-2, -0.5))).hex()


def larger_radius(folder: Folder, draw: random.Random) -> None:
    entry = draw.choice(folder.claim["summary"]["certified"])
    radius = entry["decimal"] * (1 + 10 ** draw.uniform(-9, 1))
    folder.head = folder.head.replace(repr(entry["decimal"]), repr(radius))
    entry.update(radius=radius.hex(), decimal=radius)


def other_mean(folder: Folder, draw: random.Random) -> None:
    entry = draw.choice([folder.claim["summary"], *folder.claim["summary"]["certified"]])
    key = draw.choice([k for k in entry if k in ("mean_absolute_error", "width")])
    entry[key] *= 1 - 10 ** draw.uniform(-12, -1)


def other_weights(folder: Folder, draw: random.Random) -> None:
    path = folder.path / "network.safetensors"
    tensors = load_file(path)
    key = draw.choice([k for k in tensors if k.endswith("weight")])
    changed = tensors[key].copy()
    changed.ravel()[draw.randrange(changed.size)] += np.float32(draw.choice([-2, 2]))
    save_file({**tensors, key: changed}, path)
    operations = read_network(
        folder.claim["network"], parse_safetensors(path.read_bytes(), "network"), 1
    )
    folder.claim["network"]["digest"] = digest(operations[0].input_shape, operations)


def other_words(folder: Folder, draw: random.Random) -> None:
    claim = folder.claim["claim"]
    key = draw.choice(["statement", "norm", "domain", "inputs", "task", "proof", "units"])
    said, key = (claim["domain"], "values") if key == "domain" else (claim, key)
    said[key] = said[key] + draw.choice([" ", ".", "x"])


def without_a_key(folder: Folder, draw: random.Random) -> None:
    inside = draw.choice([folder.claim, folder.claim["claim"], folder.claim["summary"]])
    # A claim without a proof is by norms, which this one is; "files" is what saving fills in.
    del inside[draw.choice([key for key in inside if key not in ("proof", "monotone", "files")])]


def another_direction(folder: Folder, draw: random.Random) -> None:
    claimed = draw.choice([[1, 1, -1], [1, -1, -1], [-1, 0, -1], [1, 0, 1], [1, 0], [2, 0, -1]])
    folder.claim["claim"]["monotone"]["directions"] = claimed


def flatter_line(folder: Folder, draw: random.Random) -> None:
    """A slope below the constant, with intervals that are as wide as before and so still hold."""
    path = folder.path / "network.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if ".branch1." in k)
    tensors[key] = tensors[key] * np.float32(1 - 10 ** draw.uniform(-6, -4))
    save_file(tensors, path)
    operations = read_network(
        folder.claim["network"], parse_safetensors(path.read_bytes(), "network"), 1
    )
    folder.claim["network"]["digest"] = digest(operations[0].input_shape, operations)


def larger_scale(folder: Folder, draw: random.Random) -> None:
    """Balls that are larger along one column, or that let the frozen one change."""
    scale = load_file(folder.path / "metric.safetensors")["scale"].copy()
    column = draw.randrange(len(scale))
    # By so much that no other column hides it: the claim would be true otherwise.
    scale[column] = scale[column] * 10 ** draw.uniform(0.5, 2) or 10 ** draw.uniform(0, 1)
    save_file({"scale": scale}, folder.path / "metric.safetensors")
    said = folder.claim["claim"]["metric"]
    said["change"] = change_in_words(SPACE.names, "scale", scale, (3,))
    if draw.random() < 0.5:  # the bound of S and what follows fit the new scale
        said["bounds"] = [(float.fromhex(b) * 100).hex() for b in said["bounds"]]


def without_a_metric(folder: Folder, draw: random.Random) -> None:
    """The same intervals, said of plain balls."""
    del draw
    claim = folder.claim["claim"]
    claim |= {"metric": None, "norm": "l2", "units": UNITS["columns"]}
    claim["statement"] = STATEMENTS["regression"]["l2"]
    (folder.path / "metric.safetensors").unlink()
    del folder.claim["files"]["metric.safetensors"]


FORGERIES: list[Callable[[Folder, random.Random], None]] = [
    narrow,
    shift,
    swap_intervals,
    exchange_ends,
    infinite_on_one_side,
    other_prediction,
    swap_targets,
    swap_targets_everywhere,
    smaller_constant,
    smaller_bound,
    larger_radius,
    other_mean,
    other_weights,
    other_words,
    without_a_key,
    another_direction,
    flatter_line,
    larger_scale,
    without_a_metric,
]
KINDS = {
    another_direction: "monotone",
    flatter_line: "monotone",
    larger_scale: "metric",
    without_a_metric: "metric",
}


def forge(honest: dict[str, Path], to: Path, forgery: Callable, seed: int) -> bool:
    """Whether a forged folder is verified against the data that it is said to be of."""
    kind = KINDS.get(forgery, ("metric", "plain", "monotone")[seed % 3])
    folder = copy(honest[kind], to)
    forgery(folder, random.Random(seed))
    return verified(folder.save(), [honest["data"]])


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f.__name__)
def test_forged_folders_are_refused(
    honest: dict[str, Path], tmp_path: Path, forgery: Callable
) -> None:
    for seed in range(2):
        assert not forge(honest, tmp_path / str(seed), forgery, seed)


@pytest.mark.slow
@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f.__name__)
def test_many_forged_folders_are_refused(
    honest: dict[str, Path], tmp_path: Path, forgery: Callable
) -> None:
    for seed in range(2, 32):
        assert not forge(honest, tmp_path / str(seed), forgery, seed)


def test_only_exact_arithmetic_knows_that_an_interval_is_too_narrow(
    honest: dict[str, Path], tmp_path: Path
) -> None:
    """An end inside of what R reaches, by less than the error bounds of float64, is refused."""
    folder = copy(honest["plain"], tmp_path / "copy")
    # At a radius this small the interval is the value at the sample with its error.
    for k, entry in enumerate(folder.claim["summary"]["certified"]):
        radius = 1e-300 * (k + 1)
        folder.head = folder.head.replace(repr(entry["decimal"]), repr(radius))
        entry.update(radius=radius.hex(), decimal=radius)
    for row in range(SAMPLES):
        for column in range(3, 7):
            folder.set(row, column, folder.get(row, 2))
    folder.recount()
    report = check(folder.save(), exact=0, seed=0)
    assert any("not proved to hold every output" in line for line in report.mismatches)


def test_means_are_rounded_up() -> None:
    third = mean_up([Fraction(1), Fraction(0), Fraction(0)])
    assert Fraction(third) >= Fraction(1, 3) > Fraction(math.nextafter(third, 0))
    assert mean_up([Fraction(1), None]) == math.inf
    assert mean_up([Fraction(10) ** 400]) == math.inf


def test_an_interval_that_claims_nothing_is_true(honest: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(honest["plain"], tmp_path / "copy")
    folder.rows[0][3:] = ["-inf", "inf"] * len(RADII)
    for entry in folder.claim["summary"]["certified"]:
        entry.update(mean_absolute_error="inf", width="inf")
    assert verified(folder.save())


def test_the_verified_checker_says_that_it_does_not_know_regressions(
    honest: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(honest["plain"]), "--verified"]) == 2
    assert "no --verified" in capsys.readouterr().out
    claim = json.loads((honest["plain"] / "certificate.json").read_text())
    assert claim["claim"]["task"] == "regression"
