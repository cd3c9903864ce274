"""Real targets, and the part of a dataset that only conformal prediction sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.regression import write_npz

from robustcert.data import NPZ, DataModule, DatasetError, Examples, Parts
from robustcert.data.dataset import check_examples
from robustcert.data.split import random_split
from robustcert.data.targets import Reals


def test_floating_point_targets_are_a_regression(tmp_path: Path) -> None:
    data = NPZ(write_npz(tmp_path / "columns.npz"))
    assert data.targets == Reals()
    assert (data.targets.task, data.num_classes) == ("regression", 1)
    for split, count in (("train", 200), ("test", 60)):
        examples = data.read(split)
        check_examples(data, split, examples)
        assert examples.labels.dtype == torch.float32
        assert examples.labels.shape == (count,)
    module = DataModule(data, batch_size=16)
    assert len(module.first_of_each_class(7)) == 7
    inputs, targets, _ = next(iter(module.train_dataloader()))
    assert inputs.shape == (16, 3)
    assert targets.dtype == torch.float32


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y_test": np.zeros(60, np.int64)}, "both floating point"),
        ({"y_test": np.full(60, np.nan)}, r"y_test.*missing or infinite"),
        ({"y_train": np.full(200, 1e300)}, r"y_train.*missing or infinite"),
        ({"y_train": np.zeros((200, 1))}, "of shape"),
    ],
)
def test_other_targets_are_refused(tmp_path: Path, changed: dict, said: str) -> None:
    path = write_npz(tmp_path / "columns.npz")
    np.savez(path, **{**np.load(path), **changed})
    with pytest.raises(DatasetError, match=said), np.errstate(over="ignore"):
        NPZ(path)


def test_a_number_of_classes_goes_with_labels(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.num_classes=3"):
        NPZ(write_npz(tmp_path / "columns.npz"), num_classes=3)
    data = NPZ(write_npz(tmp_path / "columns.npz"))
    integers = Examples(torch.rand(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DatasetError, match="expected float32 labels"):
        check_examples(data, "train", integers)


def test_a_calibration_part_changes_no_other_split(tmp_path: Path) -> None:
    data = NPZ(write_npz(tmp_path / "columns.npz"))
    without, with_some = Parts(data, 0.2), Parts(data, 0.2, calibration=0.25)
    assert torch.equal(without.stored("test").indices, with_some.stored("test").indices)
    rows = [with_some.stored(p).indices for p in ("train", "validation", "calibration")]
    together = torch.cat(rows).sort().values
    everything = torch.cat([without.stored(p).indices for p in ("train", "validation")])
    assert torch.equal(together, everything.sort().values)
    assert len(rows[2]) == round(0.25 * len(together))
    with pytest.raises(ValueError, match=r"loader\.calibration above 0"):
        without.stored("calibration")
    with pytest.raises(ValueError, match=r"loader\.calibration"):
        Parts(data, calibration=1.0)


def test_every_example_is_as_likely_in_a_random_part() -> None:
    """Of 100 permutations each row is in a part of 30 % as often as a fair draw would be."""
    counts = np.zeros(20)
    for key in range(100):
        rest, part = random_split(20, 0.3, key)
        assert sorted([*rest.tolist(), *part.tolist()]) == list(range(20))
        counts[part.numpy()] += 1
    assert counts.sum() == 100 * 6
    # Five standard deviations of a binomial count.
    assert (abs(counts - 30) < 5 * np.sqrt(100 * 0.3 * 0.7)).all()
