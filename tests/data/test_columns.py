"""Tables and signals keep their units; what is no number is refused by the name of its column."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.miniatures import labels
from helpers.runs import compose, run
from omegaconf import OmegaConf

import robustcert.data
from robustcert.config.build import (
    COMMAND_LINE_TARGETS,
    build_dataset,
    build_module,
    build_parts,
    standardised,
)
from robustcert.data import NPZ, DataModule, Dataset, DatasetError, standardisation
from robustcert.data.tables import BreastCancer, Diabetes, Phishing, Table, Wine
from robustcert.data.time_series import GunPoint, ItalyPowerDemand, TimeSeries
from robustcert.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
NAMES = ["age", "pressure", "weight"]
AEON = importlib.util.find_spec("aeon") is not None


def patients(count: int, seed: int = 0) -> np.ndarray:
    """Rows of three columns whose units differ by a factor of a thousand."""
    draw = np.random.RandomState(seed).standard_normal((count, 3))
    return draw * [10, 0.02, 9000] + [50, -1, 70_000]


def write(path: Path, **replaced: Any) -> Path:
    """A small table of 30 + 12 patients and three classes."""
    arrays = {
        "x_train": patients(30),
        "y_train": labels(30, 3).astype(np.int64),
        "x_test": patients(12, seed=1),
        "y_test": labels(12, 3).astype(np.int64),
        "columns": np.array(NAMES),
        **replaced,
    }
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


def typed(path: Path, *more: str) -> dict[str, Any]:
    """The configuration of a user's table."""
    table = ("dataset=npz", f"dataset.root={path}", "dataset.domain=columns")
    return compose(*table, "normalization={mean: training, std: training}", *more)


def test_a_table_keeps_its_units_from_the_file_to_the_batch(tmp_path: Path) -> None:
    dataset = NPZ(write(tmp_path / "t.npz"), domain="columns")
    assert dataset.columns == tuple(NAMES)
    assert dataset.input_shape == (3,)
    data = DataModule(dataset, batch_size=12)
    expected = torch.from_numpy(patients(12, seed=1)).float()
    for inputs in (data.examples("test").inputs, next(iter(data.test_dataloader()))[0]):
        assert torch.equal(inputs, expected)
    batch = data.on_after_batch_transfer((expected, torch.zeros(12)), 0)
    assert torch.equal(batch[0], expected)
    assert len(data.first_of_each_class(2)) == 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
def test_signals_have_channels_and_numbers_of_any_real_type(tmp_path: Path, dtype: Any) -> None:
    x = np.random.RandomState(0).randint(0, 2, (30, 3, 5)).astype(dtype)
    arrays = {"x_train": x, "x_test": x[:12], "columns": None}
    dataset = NPZ(write(tmp_path / "s.npz", **arrays), domain="columns")
    assert (dataset.input_shape, dataset.columns) == ((3, 5), None)
    inputs = dataset.read("train").inputs
    assert isinstance(inputs, torch.Tensor)
    assert inputs.dtype == torch.float32
    assert (inputs.numpy() == x).all()


def changed(value: float, row: int = 7, column: int = 1) -> np.ndarray:
    rows = patients(30)
    rows[row, column] = value
    return rows


def texts(value: str) -> np.ndarray:
    rows = patients(30).astype("U30")
    rows[7, 1] = value
    return rows


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"x_train": changed(np.nan)}, r"column 'pressure' has nan in row 7 \(1 of 30.*median"),
        ({"x_train": changed(np.inf)}, "column 'pressure' has inf in row 7"),
        ({"x_train": changed(1e39)}, r"column 'pressure' has 1e\+39"),
        ({"x_train": changed(np.nan), "columns": None}, "column 1 has nan"),
        ({"x_train": texts("high")}, "column 'pressure' holds texts such as 'high'.*0 and 1"),
        ({"x_train": texts(" ")}, "column 'pressure' has a missing value"),
        ({"x_train": texts("2")}, r"x\.astype\(float\)"),
        ({"x_train": patients(30).astype(object)}, "texts and missing values"),
        ({"x_train": patients(30).astype(complex)}, "real numbers"),
        ({"x_train": patients(30)[:, 0]}, r"\(N, D\), or signals"),
        ({"columns": np.array(["age", "weight"])}, "expected 2 columns or channels"),
        ({"columns": np.array(["age", "age", "weight"])}, "all different"),
        ({"columns": np.array([1, 2, 3])}, "names of the columns"),
        ({"y_train": np.arange(30)}, r"no more classes than the 3.*dataset\.num_classes=30"),
        ({"y_train": np.array(["ill"] * 30)}, r"numpy\.unique\(y, return_inverse=True\)\[1\]"),
        ({"x_train": np.tile(patients(1), (30, 1))}, "column 'age' has one value"),
    ],
)
def test_what_is_no_table_is_refused_by_the_name_of_the_column(
    tmp_path: Path, replaced: dict[str, Any], message: str
) -> None:
    config = typed(write(tmp_path / "t.npz", **replaced))
    with pytest.raises((ConfigError, DatasetError), match=message):
        standardised(config, build_dataset(config, COMMAND_LINE_TARGETS))


def test_classes_may_outnumber_the_columns_if_they_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.npz", y_train=labels(30, 5).astype(np.int64))
    with pytest.raises(DatasetError, match=r"set dataset\.num_classes=5"):
        NPZ(path, domain="columns")
    assert NPZ(path, num_classes=5, domain="columns").num_classes == 5


def test_images_beyond_1_are_told_of_columns(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.domain=columns"):
        NPZ(write(tmp_path / "t.npz"))


def test_a_dataset_of_columns_holds_numbers_not_pixels() -> None:
    class Pixels(Wine):
        def read(self, split: Any) -> Any:
            examples = super().read(split)
            return robustcert.data.Examples(examples.inputs.to(torch.uint8), examples.labels)

    with pytest.raises(DatasetError, match="stands for pixels"):
        DataModule(Pixels()).examples("test")


def test_the_network_standardises_by_the_training_split(tmp_path: Path) -> None:
    config = typed(write(tmp_path / "t.npz"), "model.width=8", "model.depth=1")
    dataset = build_dataset(config, COMMAND_LINE_TARGETS)
    config = standardised(config, dataset)
    first = build_module(config, dataset, COMMAND_LINE_TARGETS).model.backbone[0]
    z = first(torch.from_numpy(patients(30)).float())
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert standardised(config, dataset) is config
    assert config["normalization"]["mean"] == config["model"]["mean"]
    assert len(build_parts(config, dataset).examples("train")) == 27


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3,), (3, 24)])
def test_columns_are_trained_on(tmp_path: Path, shape: tuple[int, ...]) -> None:
    draw = np.random.RandomState(0)
    arrays = {f"x_{s}": 50 * draw.randn(n, *shape) for s, n in (("train", 30), ("test", 12))}
    model = "model=convnet1d" if len(shape) == 2 else "model=mlp"
    path = write(tmp_path / "t.npz", **arrays)
    table = ("dataset=npz", f"dataset.root={path}", "dataset.domain=columns")
    score = run(
        tmp_path / "run",
        *(*table, model, "normalization={mean: training, std: training}", "certify=false"),
    )
    assert 0 <= score <= 1


# Data that packages ship


def columns_of(path: Path) -> bool:
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    cls = getattr(robustcert.data, config["dataset"]["_target_"].rpartition(".")[2])
    return issubclass(cls, Dataset) and getattr(cls, "domain", "images") == "columns"


@pytest.mark.parametrize(
    "path", [p for p in sorted(CONF.glob("*.yaml")) if columns_of(p)], ids=lambda p: p.stem
)
def test_the_normalisation_of_columns_is_that_of_the_training_split(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    dataset = getattr(robustcert.data, config["dataset"]["_target_"].rpartition(".")[2])()
    if isinstance(dataset, TimeSeries) and not AEON:
        pytest.skip("the package aeon is not installed")
    for key, numbers in zip(("mean", "std"), standardisation(dataset), strict=True):
        assert config["normalization"][key] == pytest.approx(numbers, rel=1e-5, abs=1e-7)
    examples = [dataset.read(split) for split in ("train", "test")]
    assert all(e.inputs.shape[1:] == dataset.input_shape for e in examples)
    assert len(dataset.columns) == dataset.input_shape[0]
    assert len(dataset.provenance()["files"]) == (2 if isinstance(dataset, TimeSeries) else 1)


@pytest.mark.parametrize(
    ("cls", "counts"),
    [
        (BreastCancer, [64, 107]),
        (Wine, [18, 21, 14]),
        (Phishing, [211, 164]),
        (Diabetes, [133]),
    ],
)
def test_tables_have_a_fixed_test_split(cls: type[Table], counts: list[int]) -> None:
    dataset = cls()
    test = dataset.read("test")
    found = test.labels.bincount() if cls is not Diabetes else torch.tensor([len(test)])
    assert found.tolist() == counts
    assert abs(len(test) - 0.3 * (len(test) + len(dataset.read("train")))) < 1
    assert dataset.provenance()["files"][0]["official"] is True


SERIES = "#A comment\n@problemName X\n@univariate true\n@DATA\n"
LINE = ",".join(str(k / 8) for k in range(24))


def write_ts(folder: Path, text: str) -> ItalyPowerDemand:
    (folder / "ItalyPowerDemand_TRAIN.ts").write_text(SERIES + text)
    return ItalyPowerDemand(folder)


def test_series_are_read_as_they_were_written(tmp_path: Path) -> None:
    examples = write_ts(tmp_path, f"{LINE}:2\n\n# 3\n{LINE}:1\n").read("train")
    assert examples.labels.tolist() == [1, 0]
    assert isinstance(examples.inputs, torch.Tensor)
    assert examples.inputs[0, 0].tolist() == [k / 8 for k in range(24)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "but got none"),
        (f"{LINE}:3", "line 5: expected a class of 1, 2 at the end, but got '3'"),
        (f"{LINE},x:1", "line 5: expected channels of equally many numbers.*'x'"),
        (f"{LINE}:{LINE},1:1", "line 5: expected channels of equally many numbers"),
        (f"{LINE},1:1", r"1 channels and 24 steps, but got \(1, 25\)"),
        (f"{LINE}:1\n{LINE},2:1", "series of one length"),
        (f"{LINE.replace('0.125', '?')}:1", "column 'demand' has nan in row 0"),
    ],
)
def test_a_damaged_series_is_an_error_that_names_file_and_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        write_ts(tmp_path, text).read("train")
    assert str(tmp_path / "ItalyPowerDemand_TRAIN.ts") in str(error.value)


def test_missing_series_are_an_error_that_says_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.root.*pip install --no-deps aeon"):
        GunPoint(tmp_path).read("train")
