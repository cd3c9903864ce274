"""Readers refuse what is damaged, batches are functions of seed and epoch, splits never meet."""

import gzip
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.miniatures import (
    idx_bytes,
    images,
    labels,
    pack_cifar10,
    write_cifar10,
    write_cifar100,
    write_idx,
    write_npz,
)
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import OmegaConf
from torch import Tensor, nn

import robustcert.data
from robustcert.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    NPZ,
    DataModule,
    Dataset,
    DatasetError,
    Digits,
    EpochSampler,
    EvaluationSampler,
    Examples,
    FashionMNIST,
    Moons,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    to_unit,
)
from robustcert.data.dataset import Split
from robustcert.data.files import fetch
from robustcert.data.split import stratified_split

CONF = Path(__file__).parents[2] / "conf" / "dataset"


@pytest.fixture
def data_root() -> Path:
    """The folder of real data sets."""
    folder = os.environ.get("ROBUSTCERT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ROBUSTCERT_DATA does not name a folder with real data")
    return Path(folder)


@pytest.fixture
def mnist(tmp_path: Path) -> MNIST:
    return MNIST(write_idx(tmp_path), download=False)


class Numbered(Dataset):
    """Every example is told apart by its only feature, and every class is of another size."""

    name = "numbered"
    input_shape = (1,)
    num_classes = 3

    def __init__(self, train: int = 101, test: int = 37) -> None:
        self.sizes = {"train": train, "test": test}
        self.reads: list[str] = []

    def read(self, split: Split) -> Examples:
        self.reads.append(split)
        size = self.sizes[split]
        offset = 0.0 if split == "train" else 0.5
        inputs = offset + torch.arange(size)[:, None] / 1024
        return Examples(inputs, (torch.arange(size).double().sqrt() % 3).long())


# --- readers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
def test_idx_reads_what_was_written(tmp_path: Path, compress: bool) -> None:
    examples = MNIST(write_idx(tmp_path, compress=compress), download=False).read("test")
    assert examples.inputs.dtype == torch.uint8
    assert np.array_equal(examples.inputs[:, 0].numpy(), images(20, 28, 28, seed=1))
    assert examples.labels.tolist() == labels(20).tolist()
    assert examples.labels.dtype == torch.int64
    assert examples.indices.tolist() == list(range(20))


IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "truncated": (IMAGES, lambda b: b[:-1], "truncated"),
    "too long": (IMAGES, lambda b: b + b"\0", "too long"),
    "empty": (IMAGES, lambda _: b"", "an empty file"),
    "header cut": (IMAGES, lambda b: b[:10], "ends after 10"),
    "labels for images": (IMAGES, lambda _: idx_bytes(labels(40)), "magic number 00000803"),
    "other element type": (LABELS, lambda b: b"\0\0\x0d\x01" + b[4:], "00000d01"),
    "other image size": (IMAGES, lambda _: idx_bytes(images(40, 27, 28)), "27 x 28"),
    "fewer labels": (LABELS, lambda _: idx_bytes(labels(39)), "40 images .* got 39"),
    "label out of range": (LABELS, lambda b: b[:-1] + b"\x0a", "got 10 at position 39"),
}


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_idx_is_an_error_that_names_the_file(
    tmp_path: Path, damage: str, compress: bool
) -> None:
    name, change, message = DAMAGES[damage]
    write_idx(tmp_path, compress=compress)
    path = tmp_path / (f"{name}.gz" if compress else name)
    content = change(gzip.decompress(path.read_bytes()) if compress else path.read_bytes())
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(DatasetError, match=message) as error:
        MNIST(tmp_path, download=False).read("train")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_damaged_gzip_is_an_error_that_names_the_file(tmp_path: Path, keep: int) -> None:
    path = write_idx(tmp_path) / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError) as error:
        MNIST(tmp_path, download=False).read("train")
    assert str(path) in str(error.value)


def test_not_a_gzip_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = write_idx(tmp_path) / f"{IMAGES}.gz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DatasetError, match="complete gzip file") as error:
        MNIST(tmp_path, download=False).read("train")
    assert str(path) in str(error.value)


def test_unofficial_file_is_logged_and_recorded(
    mnist: MNIST, caplog: pytest.LogCaptureFixture
) -> None:
    assert mnist.provenance() == {"name": "mnist", "files": []}
    with caplog.at_level(logging.WARNING):
        mnist.read("test")
    assert "not the official file" in caplog.text
    record = mnist.provenance()
    assert [file["name"] for file in record["files"]] == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ]
    for file in record["files"]:
        assert file["official"] is False
        assert file["bytes"] == (mnist.root / file["name"]).stat().st_size
        assert len(file["sha256"]) == 64
    assert json.loads(json.dumps(record)) == record


def test_strict_refuses_an_unofficial_file(tmp_path: Path) -> None:
    dataset = MNIST(write_idx(tmp_path), download=False, checksum="strict")
    with pytest.raises(DatasetError, match=r"dataset\.checksum=strict"):
        dataset.read("train")


def test_missing_file_is_an_error_that_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.root.*dataset\.download=true") as error:
        FashionMNIST(tmp_path, download=False).read("train")
    assert str(tmp_path / f"{IMAGES}.gz") in str(error.value)
    assert FashionMNIST.mirrors[0] in str(error.value)


def test_download_is_atomic_and_verified(tmp_path: Path) -> None:
    served = write_idx(tmp_path / "served")

    class Served(MNIST):
        mirrors = ((tmp_path / "nowhere").as_uri() + "/", served.as_uri() + "/")

    root = tmp_path / "root"
    with pytest.raises(DatasetError, match="not the official file"):
        Served(root).prepare()
    assert list(root.iterdir()) == []

    class Official(Served):
        official_sha256 = {  # noqa: RUF012
            path.stem: hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
            for path in served.iterdir()
        }

    dataset = Official(root, checksum="strict")
    dataset.prepare()
    assert len(list(root.iterdir())) == 4
    assert len(dataset.read("train")) == 40
    assert all(file["official"] is True for file in dataset.provenance()["files"])
    (served / f"{IMAGES}.gz").write_bytes(b"garbage")
    (root / f"{IMAGES}.gz").unlink()
    with pytest.raises(DatasetError, match="expected a complete gzip file"):
        dataset.prepare()
    assert len(list(root.iterdir())) == 3


def test_fetch_reports_every_mirror(tmp_path: Path) -> None:
    urls = [(tmp_path / name).as_uri() for name in ("a", "b")]
    with pytest.raises(OSError, match=r"/a: .*; .*/b: "):
        fetch(urls, tmp_path / "root" / "c", lambda path: None)
    assert list((tmp_path / "root").iterdir()) == []


def test_unknown_checksum_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset\.checksum"):
        MNIST(tmp_path, checksum="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("inner", [False, True])
def test_cifar10_reads_what_was_written(tmp_path: Path, inner: bool) -> None:
    root = write_cifar10(tmp_path)
    dataset = CIFAR10(root / "cifar-10-batches-bin" if inner else root, download=False)
    train, test = dataset.read("train"), dataset.read("test")
    assert train.inputs.shape == (20, 3, 32, 32)
    assert np.array_equal(train.inputs[8:12].flatten(1).numpy(), images(4, 3072, seed=2))
    assert train.labels.tolist() == [0, 1, 2, 3] * 5
    assert np.array_equal(test.inputs.flatten(1).numpy(), images(4, 3072, seed=5))
    # Four images a file is surely not the official set; ten thousand might be.
    assert {file["official"] for file in dataset.provenance()["files"]} == {False}


def test_cifar10_reads_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = CIFAR10(write_cifar10(tmp_path), download=False).read("train")
    archive = pack_cifar10(tmp_path)
    dataset = CIFAR10(tmp_path, download=False)
    examples = dataset.read("train")
    assert torch.equal(examples.inputs, expected.inputs)
    assert torch.equal(examples.labels, expected.labels)
    assert [file["name"] for file in dataset.provenance()["files"]] == [archive.name]
    strict = CIFAR10(tmp_path, download=False, checksum="strict")
    with pytest.raises(DatasetError, match="md5"):
        strict.read("train")
    monkeypatch.setattr(CIFAR10, "archive_md5", robustcert.data.files.digest(archive, "md5"))
    strict.read("train")
    assert strict.provenance()["files"][0]["official"] is True
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"complete tar\.gz") as error:
        CIFAR10(tmp_path, download=False).read("train")
    assert str(archive) in str(error.value)


def test_cifar10_of_official_size_is_neither_official_nor_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "records_per_file", {"train": 4, "test": 4})
    dataset = CIFAR10(write_cifar10(tmp_path), download=False)
    dataset.read("test")
    assert dataset.provenance()["files"][0]["official"] == "unknown"
    with pytest.raises(DatasetError, match="only the archive has an official checksum"):
        CIFAR10(tmp_path, download=False, checksum="strict").read("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], "records of 3073 bytes"),
        (lambda b: b + b"\0", "records of 3073 bytes"),
        (lambda _: b"", "at least one"),
        (lambda b: b"\x0a" + b[1:], "got 10 at position 0"),
    ],
)
def test_damaged_cifar10_is_an_error_that_names_the_file(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = write_cifar10(tmp_path) / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DatasetError, match=message) as error:
        CIFAR10(tmp_path, download=False).read("train")
    assert str(path) in str(error.value)


def test_missing_cifar10_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cifar-10-binary\.tar\.gz.*dataset\.root"):
        CIFAR10(tmp_path, download=False).prepare()
    (write_cifar10(tmp_path) / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DatasetError, match=r"data_batch_3\.bin.*dataset\.root"):
        CIFAR10(tmp_path, download=False).read("train")


def test_cifar100_reads_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar100(tmp_path)
    dataset = CIFAR100(root, download=False)
    train, test = dataset.read("train"), dataset.read("test")
    assert np.array_equal(train.inputs.flatten(1).numpy(), images(20, 3072, seed=0))
    assert np.array_equal(test.inputs.flatten(1).numpy(), images(20, 3072, seed=1))
    assert test.labels.tolist() == list(range(20))
    assert [file["official"] for file in dataset.provenance()["files"]] == [False, False]
    assert len(set(CIFAR100.class_names)) == 100
    assert list(CIFAR100.class_names) == sorted(CIFAR100.class_names)
    monkeypatch.setattr(CIFAR100, "records_per_file", {"train": 20, "test": 20})
    with pytest.raises(DatasetError, match="only the archive has an official checksum"):
        CIFAR100(root, download=False, checksum="strict").read("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], "records of 3074 bytes"),
        (lambda b: b"\x14" + b[1:], "from 0 to 19, but got 20 at position 0"),
        (lambda b: b[:1] + b"\x64" + b[2:], "from 0 to 99, but got 100 at position 0"),
    ],
)
def test_damaged_cifar100_is_an_error_that_names_the_file(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = write_cifar100(tmp_path) / "cifar-100-binary" / "test.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DatasetError, match=message) as error:
        CIFAR100(tmp_path, download=False).read("test")
    assert str(path) in str(error.value)


def test_missing_cifar100_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cifar-100-binary\.tar\.gz.*dataset\.root"):
        CIFAR100(tmp_path, download=False).prepare()


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 6, 5), (3, 6, 5)), ((6, 5), (1, 6, 5)), ((7,), (7,))]
)
def test_npz_reads_images_and_vectors(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    arrays = {"x_train": images(30, *shape), "x_test": images(12, *shape, seed=1)}
    dataset = NPZ(write_npz(tmp_path / "mine.npz", **arrays))
    assert dataset.name == "mine"
    assert dataset.input_shape == expected
    assert dataset.num_classes == 3
    test = dataset.read("test")
    assert test.inputs.dtype == torch.uint8
    assert np.array_equal(test.inputs.numpy().reshape(12, *shape), arrays["x_test"])
    floats = {key: (array / 255).astype(np.float64) for key, array in arrays.items()}
    floating = NPZ(write_npz(tmp_path / "floats.npz", **floats)).read("test").inputs
    assert floating.dtype == torch.float32
    torch.testing.assert_close(floating, to_unit(test.inputs))
    record = dataset.provenance()["files"]
    assert [(r["name"], r["official"]) for r in record] == [("mine.npz", "unknown")]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"y_test": None}, "x_train, y_train, x_test, y_test, but got"),
        ({"x_train": images(30, 6, 5, 3)}, "looks like"),
        ({"x_train": images(30, 3, 6, 4)}, "one shape"),
        ({"x_train": images(30)}, r"\(30,\)"),
        ({"x_train": images(30, 3, 6, 5).astype(np.int32)}, "int32"),
        ({"x_train": images(30, 3, 6, 5).astype(np.float32)}, r"\[0, 1\]"),
        ({"x_train": np.full((30, 3, 6, 5), np.nan)}, "nan"),
        ({"y_train": labels(29, 3)}, r"\(30,\)"),
        ({"y_train": labels(30, 3)[:, None]}, r"\(30, 1\)"),
        ({"y_train": labels(30, 3).astype(float)}, "integer labels"),
        ({"y_train": labels(30, 3).astype(np.int64) - 1}, "got -1"),
        ({"y_train": labels(30, 1), "y_test": labels(12, 1)}, "two classes"),
        ({"y_train": np.array([None] * 30)}, "pickle"),
    ],
)
def test_wrong_npz_is_an_error_that_names_the_file(
    tmp_path: Path, replaced: dict[str, Any], message: str
) -> None:
    path = write_npz(tmp_path / "wrong.npz", **replaced)
    with pytest.raises(DatasetError, match=message) as error:
        NPZ(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_none_is_not_advised_to_be_executed(tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    path.write_text("hello")
    with pytest.raises(DatasetError, match=r"expected an .npz archive of plain arrays") as error:
        NPZ(path)
    assert "allow_pickle" not in str(error.value)


def test_labels_with_gaps_are_refused_unless_the_classes_are_counted(tmp_path: Path) -> None:
    gaps = {"y_train": 40 * labels(30, 2), "y_test": 40 * labels(12, 2)}
    path = write_npz(tmp_path / "gaps.npz", **gaps)
    with pytest.raises(DatasetError, match=r"2 different ones \(0, 40\) up to 40: number") as error:
        NPZ(path)
    # What the message says to write works.
    for key in gaps:
        gaps[key] = np.unique(gaps[key], return_inverse=True)[1].astype(np.int64)
    assert "numpy.unique(y, return_inverse=True)[1]" in str(error.value)
    assert NPZ(write_npz(tmp_path / "numbered.npz", **gaps)).num_classes == 2
    assert "dataset.num_classes=41" in str(error.value)
    assert NPZ(path, num_classes=41).num_classes == 41
    with pytest.raises(DatasetError, match=r"below dataset\.num_classes=40"):
        NPZ(path, num_classes=40)
    # A class that only one of the splits has is no gap.
    ones = write_npz(tmp_path / "ones.npz", y_test=np.ones(12, dtype=np.int64))
    assert NPZ(ones).num_classes == 3


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 damaged", b"text", "array", "cut"])
def test_file_that_is_no_npz_is_an_error_that_names_it(
    tmp_path: Path, content: bytes | str | None
) -> None:
    path = tmp_path / "no.npz"
    if content == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif content == "cut":
        write_npz(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(DatasetError) as error:
        NPZ(path)
    assert str(path) in str(error.value)


def test_digits_split_is_fixed_and_stratified() -> None:
    digits = Digits()
    train, test = digits.read("train"), digits.read("test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.inputs.shape[1:] == digits.input_shape
    assert train.inputs.min() == 0
    assert train.inputs.max() == 1
    assert test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    # These very ones, on every machine.
    assert test.labels[:12].tolist() == DIGITS_TEST_START
    rows = {tuple(row.tolist()) for row in train.inputs.flatten(1)}
    assert not rows & {tuple(row.tolist()) for row in test.inputs.flatten(1)}
    assert digits.provenance()["files"][0]["official"] is True


DIGITS_TEST_START = [0, 3, 4, 8, 9, 9, 0, 5, 0, 4, 6, 1]


def test_digits_are_those_of_the_function_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Digits().read("test")
    monkeypatch.setattr("robustcert.data.digits.FILE", Path("absent"))
    called = Digits().read("test")
    assert torch.equal(read.inputs, called.inputs)
    assert torch.equal(read.labels, called.labels)


def test_to_unit_maps_bytes_exactly_and_refuses_other_ranges() -> None:
    assert to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == [
        0.0,
        pytest.approx(0.2),
        1.0,
    ]
    assert to_unit(torch.tensor([0.25], dtype=torch.float64)).dtype == torch.float32
    for wrong in (-0.01, 1.01, float("nan")):
        with pytest.raises(DatasetError, match=r"photo\.png"):
            to_unit(torch.tensor([0.5, wrong]), "photo.png")
    with pytest.raises(DatasetError, match="int64"):
        to_unit(torch.tensor([1]))


@pytest.mark.parametrize("split", ["validation", "Train"])
def test_unknown_split_is_refused(mnist: MNIST, split: str) -> None:
    for dataset in (mnist, Digits(), Moons()):
        with pytest.raises(DatasetError, match=split):
            dataset.read(split)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (Examples(torch.zeros(5, 2), torch.zeros(5, dtype=torch.long)), r"\(2,\)"),
        (Examples(torch.zeros(5, 1), torch.zeros(5)), "int64"),
        (Examples(torch.zeros(5, 1), torch.full((5,), 3)), "got 3"),
        (Examples(torch.full((5, 1), 2.0), torch.zeros(5, dtype=torch.long)), r"\[0, 1\]"),
        (Examples(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long)), "at least one"),
    ],
)
def test_a_users_dataset_is_held_to_its_promises(examples: Examples, message: str) -> None:
    class Wrong(Numbered):
        def read(self, split: Split) -> Examples:
            return examples

    with pytest.raises(DatasetError, match=message):
        DataModule(Wrong()).setup("fit")


def test_examples_must_be_equally_many() -> None:
    with pytest.raises(DatasetError, match="equally many"):
        Examples(torch.zeros(3, 1), torch.zeros(2, dtype=torch.long))


# --- splits and samplers -----------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("size", [2, 3, 11, 500])
def test_stratified_split_partitions_and_keeps_shares(size: int, fraction: float) -> None:
    target = (torch.arange(size).double().sqrt() % 4).long()
    rest, part = stratified_split(target, fraction, key=0)
    assert sorted(rest.tolist() + part.tolist()) == list(range(size))
    assert len(part) == min(max(round(size * fraction), 1), size - 1)
    for label in range(4):
        share = fraction * int((target == label).sum())
        assert abs(int((target[part] == label).sum()) - share) <= 1 + 1 / size


def test_stratified_split_is_the_same_everywhere() -> None:
    _, part = stratified_split(torch.arange(50) % 5, 0.1, key=0)
    assert part.tolist() == STRATIFIED_PART


STRATIFIED_PART = [2, 4, 10, 11, 28]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 64, 101])
def test_epoch_sampler_gives_every_index_and_equal_ranks(
    size: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    ranks = [
        EpochSampler(size, batch_size, rank=r, world_size=world_size, drop_last=drop_last)
        for r in range(world_size)
    ]
    batches = [list(sampler) for sampler in ranks]
    shapes = [[len(batch) for batch in rank] for rank in batches]
    assert all(shape == shapes[0] for shape in shapes)
    assert all(len(sampler) == len(rank) for sampler, rank in zip(ranks, batches, strict=True))
    visited = sorted(i for rank in batches for batch in rank for i in batch)
    if drop_last and size >= batch_size * world_size:
        assert {len(batch) for rank in batches for batch in rank} == {batch_size}
        assert len(set(visited)) == len(visited)
        assert size - len(visited) < batch_size * world_size
    else:
        assert set(visited) == set(range(size))
        assert 0 <= len(visited) - size < world_size


def test_epoch_sampler_is_a_pure_function_of_seed_and_epoch() -> None:
    sampler = EpochSampler(50, 8, seed=3)
    first = list(sampler)
    sampler.set_epoch(4)
    fourth = list(sampler)
    assert first != fourth
    assert fourth == list(sampler) == list(EpochSampler(50, 8, seed=3, epoch=4))
    assert first == list(EpochSampler(50, 8, seed=3))
    assert first != list(EpochSampler(50, 8, seed=4))
    plain = EpochSampler(5, 2, shuffle=False)
    assert list(plain) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 25, 1000])
@pytest.mark.parametrize("size", [1, 2, 64, 101, 221])
def test_evaluation_sampler_never_pads(size: int, batch_size: int, world_size: int) -> None:
    ranks = [EvaluationSampler(size, batch_size, r, world_size) for r in range(world_size)]
    visited = [i for sampler in ranks for batch in sampler for i in batch]
    assert sorted(visited) == list(range(size))
    for rank, sampler in enumerate(ranks):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert [i for b in batches for i in b] == list(range(rank, size, world_size))
        assert all(1 <= len(batch) <= batch_size for batch in batches)
    if batch_size > 1 and size >= batch_size * world_size:
        assert len({len(sampler) for sampler in ranks}) == 1


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0), (1, 1, 0, True, 0, 2, 2)])
def test_impossible_samplers_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        EpochSampler(*arguments)


# --- augmentation ------------------------------------------------------------------------------

AUGMENTATIONS = [
    RandomCrop(3),
    RandomHorizontalFlip(),
    RandomAffine(degrees=20, translate=0.1, scale=0.1),
]


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 9, 14)])
def test_augmentation_draws_per_example_and_from_its_generator_alone(
    augment: nn.Module, shape: tuple[int, ...]
) -> None:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    x = image.expand(64, *shape).contiguous()

    def draw(seed: int) -> Tensor:
        return augment(x, torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    first = draw(1)
    torch.manual_seed(1)
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))
    assert first.shape == x.shape
    assert first.dtype == x.dtype
    assert 0 <= first.min() <= first.max() <= 1
    assert len({tuple(row.tolist()) for row in first.flatten(1)}) > 1


@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_crop_shifts_by_whole_pixels(fill: str, mode: str) -> None:
    x = torch.rand(500, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    y = RandomCrop(1, fill)(x, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode)
    shifts = {(i, j): padded[:, :, i : i + 5, j : j + 7] for i in range(3) for j in range(3)}
    found = torch.stack([(y == s).flatten(1).all(1) for s in shifts.values()])
    assert (found.sum(0) == 1).all()
    assert found.any(1).all()
    assert torch.equal(RandomCrop(0)(x, torch.Generator()), x)


def test_flip_mirrors_about_half() -> None:
    x = torch.rand(1000, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    y = RandomHorizontalFlip()(x, torch.Generator().manual_seed(0))
    same = (y == x).flatten(1).all(1)
    assert torch.equal(y[~same], x[~same].flip(-1))
    assert 400 < same.sum() < 600


def test_affine_without_ranges_is_the_identity_and_keeps_a_centred_disc() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 2, 6, 9, generator=generator)
    torch.testing.assert_close(RandomAffine()(x, generator), x, atol=1e-5, rtol=0)
    # On a non-square image, a rotation that ignored the aspect ratio would make an ellipse.
    rows, columns = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(60) - 29.5, indexing="ij")
    disc = (1 - (rows**2 + columns**2) / 10**2).clamp(min=0).expand(16, 1, 40, 60)
    torch.testing.assert_close(RandomAffine(180)(disc, generator), disc, atol=0.05, rtol=0)
    moved = RandomAffine(translate=0.2)(disc, generator)
    torch.testing.assert_close(moved.sum((1, 2, 3)), disc.sum((1, 2, 3)), rtol=1e-3, atol=0)
    centre = (moved * columns).sum((1, 2, 3)) / moved.sum((1, 2, 3))
    assert centre.abs().max() <= 12.1
    assert centre.abs().max() > 3
    sizes = RandomAffine(scale=0.2)(disc, generator).sum((1, 2, 3)) / disc.sum((1, 2, 3))
    assert 0.8**2 - 0.01 <= sizes.min() < 1 < sizes.max() <= 1.2**2 + 0.01


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomCrop(-1),
        lambda: RandomCrop(1, "mirror"),
        lambda: RandomAffine(degrees=-1),
        lambda: RandomAffine(translate=1.5),
        lambda: RandomAffine(scale=1.0),
    ],
)
def test_impossible_augmentations_are_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="expected Random"):
        make()


# --- the data module ---------------------------------------------------------------------------


class Recorder(LightningModule):
    """Keeps the batches it sees; its single weight depends on all of them in order."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[tuple[int, Tensor, Tensor]]] = {
            "train": [],
            "validation": [],
            "test": [],
        }

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, target = batch
        self.seen["train"].append((self.current_epoch, inputs, target))
        return (self.weight - inputs.mean()).square() * (1 + target.float().mean())

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.seen["validation"].append((self.current_epoch, *batch))

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.seen["test"].append((self.current_epoch, *batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(root: Path, epochs: int, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **{
            "max_epochs": epochs,
            "accelerator": "cpu",
            "default_root_dir": root,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": bool(callbacks),
            "callbacks": list(callbacks),
            "reload_dataloaders_every_n_epochs": 1,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            **options,
        }
    )


def test_validation_is_cut_from_train_and_test_is_left_alone() -> None:
    dataset = Numbered()
    data = DataModule(dataset, seed=1)
    train, validation = data.examples("train"), data.examples("validation")
    assert dataset.reads == ["train"]
    assert len(validation) == 10
    assert sorted(torch.cat([train.indices, validation.indices]).tolist()) == list(range(101))
    assert torch.equal(train.inputs[:, 0], train.indices / 1024)
    assert validation.labels.bincount().min() >= 1
    other = DataModule(Numbered(), seed=2, batch_size=7)
    assert torch.equal(other.examples("validation").indices, validation.indices)
    test = data.examples("test")
    assert test.indices.tolist() == list(range(37))
    assert test.inputs.min() >= 0.5


def test_examples_are_in_the_unit_interval(mnist: MNIST) -> None:
    validation = DataModule(mnist).examples("validation")
    stored = mnist.read("train")
    assert validation.inputs.dtype == torch.float32
    assert torch.equal(validation.inputs * 255, stored.inputs[validation.indices].float())
    assert torch.equal(validation.labels, stored.labels[validation.indices])


def test_fit_and_test_visit_every_example_once_an_epoch(tmp_path: Path) -> None:
    module, dataset = Recorder(), Numbered()
    data = DataModule(dataset, batch_size=16, eval_batch_size=4, validation=0.2)
    runner = trainer(tmp_path, 2)
    runner.fit(module, data)
    assert dataset.reads == ["train"]
    order = []
    for epoch in range(2):
        batches = [inputs for e, inputs, _ in module.seen["train"] if e == epoch]
        order.append(torch.cat(batches)[:, 0])
        assert torch.equal(order[-1].sort().values, data.examples("train").inputs[:, 0])
    assert not torch.equal(*order)
    seen = torch.cat([inputs for e, inputs, _ in module.seen["validation"] if e == 1])
    assert torch.equal(seen, data.examples("validation").inputs)
    runner.test(module, data, verbose=False)
    assert sum(len(target) for _, _, target in module.seen["test"]) == 37


def test_only_training_batches_are_augmented(mnist: MNIST, tmp_path: Path) -> None:
    module = Recorder()
    data = DataModule(mnist, batch_size=64, augmentation=[RandomCrop(2), RandomHorizontalFlip()])
    trainer(tmp_path, 2).fit(module, data)
    plain = data.examples("train").inputs
    batches = [inputs for _, inputs, _ in module.seen["train"]]
    assert [tuple(b.shape) for b in batches] == [(36, 1, 28, 28)] * 2
    known = {tuple(row.tolist()) for row in plain.flatten(1)}
    assert sum(tuple(row.tolist()) in known for row in batches[0].flatten(1)) < 12
    assert 0 <= batches[0].min() <= batches[0].max() <= 1
    assert torch.equal(module.seen["validation"][0][1], data.examples("validation").inputs)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("reload_every", [0, 1])
@pytest.mark.parametrize("save", ["validation", "train epoch", "within an epoch"])
def test_resumed_run_sees_the_batches_of_an_uninterrupted_one(
    tmp_path: Path, save: str, reload_every: int
) -> None:
    write_idx(tmp_path / "mnist", train=60)

    def data() -> DataModule:
        return DataModule(
            MNIST(tmp_path / "mnist", download=False),
            batch_size=16,
            augmentation=[RandomCrop(2), RandomAffine(degrees=10)],
            seed=5,
        )

    options: dict[str, Any] = {
        "validation": {"every_n_epochs": 2, "save_on_train_epoch_end": False},
        "train epoch": {"every_n_epochs": 2, "save_on_train_epoch_end": True},
        "within an epoch": {"every_n_train_steps": 6},
    }[save]
    whole = Recorder()
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", "{step}", save_top_k=-1, **options)
    trainer(tmp_path, 4, checkpoint, reload_dataloaders_every_n_epochs=reload_every).fit(
        whole, data()
    )
    assert len(whole.seen["train"]) == 16
    step = 6 if save == "within an epoch" else 8
    resumed = Recorder()
    trainer(tmp_path, 4, reload_dataloaders_every_n_epochs=reload_every).fit(
        resumed, data(), ckpt_path=tmp_path / "checkpoints" / f"step={step}.ckpt", weights_only=True
    )
    expected = whole.seen["train"][step:]
    assert len(resumed.seen["train"]) == len(expected)
    for got, wanted in zip(resumed.seen["train"], expected, strict=True):
        assert got[0] == wanted[0]
        assert torch.equal(got[1], wanted[1])
        assert torch.equal(got[2], wanted[2])
    assert torch.equal(resumed.weight, whole.weight)


def test_workers_give_the_same_batches() -> None:
    plain, parallel = (DataModule(Numbered(), batch_size=16, num_workers=n) for n in (0, 2))
    for ours, theirs in zip(plain.train_dataloader(), parallel.train_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert ours[2] == theirs[2]


def test_train_split_smaller_than_a_batch(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, 1).fit(module, DataModule(Numbered(train=5), drop_last=True))
    assert [len(target) for _, _, target in module.seen["train"]] == [4]
    with pytest.raises(DatasetError, match="at least two"):
        DataModule(Numbered(train=1)).examples("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"loader\.batch_size"),
        ({"eval_batch_size": 0}, r"loader\.eval_batch_size"),
        ({"num_workers": -1}, r"loader\.num_workers"),
        ({"validation": 0.0}, r"loader\.validation"),
        ({"validation": 1.0}, r"loader\.validation"),
        ({"augmentation": [RandomCrop(4)]}, r"loader\.augmentation"),
    ],
)
def test_impossible_options_name_the_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataModule(Numbered(), **options)


def test_lightnings_own_sampler_is_refused_on_several_devices(tmp_path: Path) -> None:
    data = DataModule(Numbered())
    data.trainer = trainer(
        tmp_path, 1, devices=2, strategy="ddp_fork", use_distributed_sampler=True
    )
    with pytest.raises(ValueError, match="use_distributed_sampler"):
        data.val_dataloader()


def test_overfit_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit_train_batches"):
        trainer(tmp_path, 1, overfit_batches=2).fit(Recorder(), DataModule(Numbered()))


@pytest.mark.slow
def test_two_processes_share_every_evaluation_example(tmp_path: Path) -> None:
    class Counter(Recorder):
        def on_validation_epoch_end(self) -> None:
            own = torch.cat([inputs for _, inputs, _ in self.seen["validation"]])[:, 0]
            torch.save(own, tmp_path / f"{self.global_rank}.pt")

    data = DataModule(Numbered(), validation=0.5, eval_batch_size=7, batch_size=10)
    trainer(tmp_path, 1, devices=2, strategy="ddp_fork").fit(Counter(), data)
    seen = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)])
    assert torch.equal(seen.sort().values, data.examples("validation").inputs[:, 0])


# --- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_configuration_binds_to_its_class(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTCERT_DATA", "/data")
    assert path.read_text().startswith("# @package _global_\n")
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(config, dict)
    assert set(config) == {"dataset", "normalization", "epsilon", "radii"}
    options = dict(config["dataset"])
    module, _, name = options.pop("_target_").rpartition(".")
    assert module == "robustcert.data"
    cls = getattr(robustcert.data, name)
    # Every option of the class is in its file, so that it can be set and is recorded.
    assert set(options) == set(inspect.signature(cls).parameters)
    assert config["epsilon"] in config["radii"]
    assert config["radii"] == sorted(config["radii"])
    if options.get("root") == "???":
        return
    dataset = cls(**options)
    assert dataset.name == path.stem
    channels = dataset.input_shape[0]
    # Where the dimension is an option, one value serves any number of channels.
    values = 1 if "dimension" in options else channels
    assert len(config["normalization"]["mean"]) == len(config["normalization"]["std"]) == values
    # Columns are standardised: test_columns.py compares them.
    assert dataset.domain == "columns" or config["normalization"]["std"] == [1.0] * values


# --- real data ---------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("cls", "folder"), [(MNIST, "mnist"), (FashionMNIST, "fashion-mnist")], ids=["mnist", "fashion"]
)
def test_real_idx_files_are_official(data_root: Path, cls: type[MNIST], folder: str) -> None:
    if not (data_root / folder).is_dir():
        pytest.skip(f"{data_root} holds no {folder}")
    dataset = cls(data_root / folder, download=False, checksum="strict")
    train, test = dataset.read("train"), dataset.read("test")
    assert train.inputs.shape == (60_000, 1, 28, 28)
    assert test.inputs.shape == (10_000, 1, 28, 28)
    assert test.labels.bincount().min() >= 892
    assert all(file["official"] is True for file in dataset.provenance()["files"])
    assert len(DataModule(dataset).examples("validation")) == 6000


@pytest.mark.data
def test_real_cifar10(data_root: Path) -> None:
    if not (data_root / "cifar10").is_dir():
        pytest.skip(f"{data_root} holds no cifar10")
    dataset = CIFAR10(data_root / "cifar10", download=False)
    train, test = dataset.read("train"), dataset.read("test")
    assert train.inputs.shape == (50_000, 3, 32, 32)
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    # Channels first: the published channel means.
    means = torch.tensor([0.4914, 0.4822, 0.4465])
    torch.testing.assert_close(
        train.inputs.double().mean((0, 2, 3)).float() / 255, means, atol=1e-4, rtol=0
    )
