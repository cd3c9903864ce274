"""Scales and frozen features in words: what they make of S, and what is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.miniatures import write_npz

from robustcert.data import NPZ, Dataset, DatasetError, Digits, input_space
from robustcert.data.parts import Parts
from robustcert.network.linear import Affine, Dense

NAMES = ["age", "pressure", "sex"]


def write_table(path: Path, **replaced: Any) -> Path:
    generator = np.random.default_rng(0)
    spread = np.array([10.0, 1000.0, 0.5])
    arrays = {
        f"x_{split}": generator.normal(size=(count, 3)) * spread + 50
        for split, count in (("train", 30), ("test", 12))
    }
    return write_npz(path, **{"columns": np.array(NAMES), **arrays, **replaced})


@pytest.fixture
def table(tmp_path: Path) -> Dataset:
    return NPZ(write_table(tmp_path / "table.npz"), domain="columns")


def diagonal(dataset: Dataset, **options: Any) -> list[float]:
    metric = input_space(dataset, **options).metric
    assert isinstance(metric, Affine)
    assert not metric.shift.any()
    return metric.scale.tolist()


def test_scales_are_given_by_number_list_name_or_file(table: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.array([5.0, 20.0, 1.0]))
    matrix = np.random.default_rng(1).normal(size=(3, 2))
    np.save(tmp_path / "m.npy", matrix)
    assert diagonal(table, scale=2) == [2, 2, 2]
    assert diagonal(table, scale=[5, 20, 1]) == [5, 20, 1]
    assert diagonal(table, scale={"pressure": 20, "age": 5}, frozen=["sex"]) == [5, 20, 0]
    assert diagonal(table, scale=str(tmp_path / "s.npy"), frozen=[0]) == [0, 20, 1]
    assert diagonal(table, frozen=[1]) == [1, 0, 1]
    metric = input_space(table, str(tmp_path / "m.npy"), ["age"]).metric
    assert isinstance(metric, Dense)
    matrix[0] = 0
    np.testing.assert_array_equal(metric.weight.numpy(), matrix)
    assert input_space(table, 1.0).metric is None
    assert input_space(table).kind == "columns"
    assert input_space(table).names == tuple(NAMES)
    assert diagonal(Digits(), scale=3.0) == [3.0]


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"scale": [5, 0, 1]}, "norm.scale: pressure: .* above 0, got 0.*norm.frozen"),
        ({"scale": {"age": -1, "pressure": 2, "sex": 1}}, "norm.scale: age: .* got -1"),
        ({"scale": [float("nan"), 1, 1]}, "norm.scale: age: .* got nan"),
        ({"scale": float("inf")}, "norm.scale: age: .* got inf"),
        ({"scale": [1, 2]}, "expected 3 numbers, one for each column, got 2"),
        ({"scale": {"age": 1, "height": 2}}, "no column 'height'; the names are age, pressure"),
        ({"scale": {"age": 1, "sex": 1}}, "no scale for pressure: set norm.scale.pressure"),
        ({"frozen": ["height"]}, "norm.frozen: no column 'height'; the names are age"),
        ({"frozen": [3]}, "norm.frozen: expected columns 0 to 2, got 3"),
        ({"frozen": [0, 1, 2]}, "all 3 columns are frozen"),
        ({"scale": "nothing.npy"}, "or a .npy file, got 'nothing.npy', and there is no such file"),
        ({"scale": {"age": "x", "pressure": 2, "sex": 1}}, "norm.scale: age: .* got 'x'"),
    ],
)
def test_a_wrong_metric_names_the_column(
    table: Dataset, options: dict[str, Any], answer: str
) -> None:
    with pytest.raises(ValueError, match=answer):
        input_space(table, **options)


@pytest.mark.parametrize(
    ("array", "answer"),
    [
        (np.ones((4, 2)), "a matrix of 3 rows"),
        (np.array([[1.0], [0.0], [1.0]]), "the row of pressure is 0"),
        (np.array([[1.0], [np.nan], [1.0]]), "the row of pressure is not finite"),
        (np.array([1.0, -1.0, 1.0]), "pressure: .* got -1"),
        (np.array(["a", "b", "c"]), "one array of numbers"),
    ],
)
def test_a_wrong_file_of_scales_is_named(
    table: Dataset, tmp_path: Path, array: np.ndarray, answer: str
) -> None:
    np.save(tmp_path / "s.npy", array)
    with pytest.raises(ValueError, match=answer):
        input_space(table, str(tmp_path / "s.npy"))


def test_pixels_have_no_scales_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.ones((1, 8, 8)))
    with pytest.raises(ValueError, match="whole channels have"):
        input_space(Digits(), str(tmp_path / "pixels.npy"))
    with pytest.raises(ValueError, match="single pixels cannot be frozen, a channel can"):
        input_space(Digits(), frozen=[17])


def test_columns_keep_their_units(table: Dataset) -> None:
    inputs = Parts(table).examples("test").inputs
    assert inputs.dtype == torch.float32
    assert float(inputs.max()) > 100
    assert float(inputs.min()) < 0


@pytest.mark.parametrize(
    ("replaced", "answer"),
    [
        ({"x_test": np.full((12, 3), np.nan)}, "x_test.*column 'age' has nan in row 0 .*fill"),
        ({"x_train": np.full((30, 3), 1e39)}, "column 'age' has 1e.39 in row 0"),
        ({"x_train": np.full((30, 3), "red")}, "0 and 1 for each of its values"),
        ({"columns": np.array(["a", "a", "b"])}, "all different"),
        ({"columns": np.array(["a", "b"])}, "expected 2 columns or channels"),
    ],
)
def test_a_table_that_is_none_is_refused(
    tmp_path: Path, replaced: dict[str, Any], answer: str
) -> None:
    with pytest.raises(DatasetError, match=answer):
        NPZ(write_table(tmp_path / "wrong.npz", **replaced), domain="columns")
