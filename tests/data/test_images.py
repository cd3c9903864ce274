"""Images stay in their files until a batch needs them; what is damaged is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.miniatures import images, write_image_folder, write_images, write_tiny_imagenet
from PIL import Image
from torch import Tensor

from robustcert.data import DataModule, DatasetError, ImageFolder, ImageNet, TinyImageNet
from robustcert.data.dataset import Joined, Stream
from robustcert.data.image_files import ImageFiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "mine")


def pixels(path: Path) -> Tensor:
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)


class SmallTinyImageNet(TinyImageNet):
    num_classes = 3


class SmallImageNet(ImageNet):
    num_classes = 3


# --- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_folder_of_images_is_read_in_the_order_of_its_names(tmp_path: Path, test: str) -> None:
    root = write_image_folder(tmp_path / "mine", test=test)
    (root / "train" / "class1" / "notes.txt").write_text("not an image")
    (root / "train" / ".hidden").mkdir()
    dataset = ImageFolder(root, size=8, resize=None)
    assert (dataset.name, dataset.num_classes, dataset.input_shape) == ("mine", 3, (3, 8, 8))
    train = dataset.read("train")
    assert isinstance(train.inputs, Stream)
    assert train.inputs.shape == (21, 3, 8, 8)
    assert train.labels.tolist() == [0] * 6 + [1] * 7 + [2] * 8
    paths = [p for k in range(3) for p in sorted((root / "train" / f"class{k}").glob("*.png"))]
    assert torch.equal(train.inputs[:], torch.stack([pixels(p) for p in paths]))
    assert torch.equal(train.inputs[[20, 3]], torch.stack([pixels(paths[k]) for k in (20, 3)]))
    part = train.take(torch.tensor([5, 0, 9])).take(slice(1, 3))
    assert torch.equal(part.inputs[:], torch.stack([pixels(paths[k]) for k in (0, 9)]))
    assert part.indices.tolist() == [0, 9]
    assert dataset.read("test").labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_record_names_classes_and_changes_with_the_files(folder: Path) -> None:
    def record() -> dict[str, object]:
        dataset = ImageFolder(folder, size=8)
        dataset.read("train")
        (found,) = dataset.provenance()["files"]
        return found

    first = record()
    assert first["classes"] == ["class0", "class1", "class2"]
    assert (first["images"], first["official"]) == (21, "unknown")
    assert first["bytes"] == sum(p.stat().st_size for p in (folder / "train").rglob("*.png"))
    assert record() == first
    image = folder / "train" / "class1" / "class1_0.png"
    image.rename(image.with_name("class1_zero.png"))
    assert record()["manifest_sha256"] != first["manifest_sha256"]


@pytest.mark.parametrize(
    ("width", "height", "cut"), [(10, 20, (0, 5)), (30, 10, (10, 0)), (11, 10, (0, 0))]
)
def test_an_image_that_needs_no_scaling_is_cut_at_its_centre(
    tmp_path: Path, width: int, height: int, cut: tuple[int, int]
) -> None:
    (array,) = images(1, height, width, 3)
    Image.fromarray(array).save(tmp_path / "a.png")
    (found,) = ImageFiles(tmp_path, np.array([b"a.png"]), 10, 10)[:]
    left, top = cut
    expected = array[top : top + 10, left : left + 10].transpose(2, 0, 1)
    assert np.array_equal(found.numpy(), expected)


def test_the_shorter_side_is_scaled_and_the_longer_one_in_proportion(tmp_path: Path) -> None:
    # A ramp stays a ramp under a linear filter: half the pixels, and a cut of one on each side.
    ramp = np.repeat(np.arange(40, dtype=np.uint8)[None, :, None] * 4, 20, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    (found,) = ImageFiles(tmp_path, np.array([b"a.png"]), 8, 10)[:]
    # Pixel k of the smaller image covers the pixels 2k and 2k + 1; six are cut off on the left.
    expected = 2 + 8 * torch.arange(6, 14)
    assert (found.int() - expected).abs().max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    (array,) = images(1, 8, 8, 3)
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.fromarray(array).convert(mode).save(tmp_path / f"a.{suffix}")
    (found,) = ImageFiles(tmp_path, np.array([f"a.{suffix}".encode()]), 8, None)[:]
    assert torch.equal(found, pixels(tmp_path / f"a.{suffix}"))


def test_tiny_imagenet_reads_its_annotations(tmp_path: Path) -> None:
    root = write_tiny_imagenet(tmp_path)
    dataset = SmallTinyImageNet(root)
    train, test = dataset.read("train"), dataset.read("test")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert train.inputs.shape == (9, 3, 64, 64)
    first = root / "train" / "n01" / "images" / "images_0.JPEG"
    assert torch.equal(train.inputs[[3]][0], pixels(first))
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
    assert test.labels.tolist() == [int(line.split("\t")[1][1:]) for line in lines]
    names = [line.split("\t")[0] for line in lines]
    expected = [pixels(root / "val" / "images" / name) for name in names]
    assert torch.equal(test.inputs[:], torch.stack(expected))
    assert {file["official"] for file in dataset.provenance()["files"]} == {False}
    assert dataset.provenance()["files"][1]["classes"] == ["n00", "n01", "n02"]


def test_imagenet_tests_on_its_validation_split(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, test="val", side=20)
    dataset = SmallImageNet(root, size=14, resize=16)
    assert dataset.input_shape == (3, 14, 14)
    assert dataset.read("test").inputs[:].shape == (6, 3, 14, 14)
    assert ImageNet(root).input_shape == (3, 224, 224)


# --- what is refused ---------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def hollow(path: Path) -> None:
    path.write_bytes(b"")


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[30:] = np.random.RandomState(0).bytes(len(content) - 30)
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".png", ".JPEG", ".bmp", ".webp"])
@pytest.mark.parametrize("damage", [cut, hollow, garble, Path.unlink])
def test_a_damaged_image_is_an_error_that_names_the_file(
    tmp_path: Path, damage: Callable[[Path], None], suffix: str
) -> None:
    if (damage, suffix) == (garble, ".bmp"):
        pytest.skip("every content of a bitmap is an image")
    write_images(tmp_path / "a", 3, suffix=suffix)
    names = np.array([f"a/a_{k}{suffix}".encode() for k in range(3)])
    broken = tmp_path / "a" / f"a_1{suffix}"
    damage(broken)
    stream = ImageFiles(tmp_path, names, 8, 8)
    assert stream[[0, 2]].shape == (2, 3, 8, 8)
    with pytest.raises(DatasetError, match="expected a complete image") as error:
        stream[:]
    assert str(broken) in str(error.value)


@pytest.mark.slow
def test_a_damaged_image_is_named_by_worker_processes_too(folder: Path) -> None:
    (folder / "train" / "class2" / "class2_0.png").write_bytes(b"no image")
    data = DataModule(ImageFolder(folder, size=8), batch_size=4, num_workers=1)
    with pytest.raises(DatasetError, match=r"class2_0\.png: expected a complete image"):
        list(data.train_dataloader())


def test_an_image_of_another_size_is_refused_where_none_is_scaled(folder: Path) -> None:
    stream = ImageFolder(folder, size=9, resize=None).read("test").inputs
    with pytest.raises(DatasetError, match="9 x 9 pixels, but got 8 x 8"):
        stream[[0]]


def test_folders_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    write_images(folder / "test" / "class9", 1)
    with pytest.raises(DatasetError, match="'class9' is no class"):
        ImageFolder(folder, size=8).read("test")
    (folder / "test" / "class9").rename(folder / "train" / "class9")
    with pytest.raises(DatasetError, match="'class9' is missing"):
        ImageFolder(folder, size=8).read("test")
    (folder / "train" / "class9" / "class9_0.png").unlink()
    with pytest.raises(DatasetError, match="class9: expected at least one image"):
        ImageFolder(folder, size=8).read("train")
    with pytest.raises(DatasetError, match=r"expected the folder .*nowhere/train"):
        ImageFolder(tmp_path / "nowhere", size=8)
    with pytest.raises(DatasetError, match="expected 1000 class folders in train, but got 4"):
        ImageNet(folder).read("train")
    with pytest.raises(DatasetError, match="checksum=strict"):
        SmallTinyImageNet(write_tiny_imagenet(tmp_path / "tiny"), checksum="strict").read("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("n01", "n77"), "in line"),
        (lambda text: text + text.splitlines()[0], "in line 7"),
        (lambda text: "\n".join(text.splitlines()[1:]), "only in one of the two"),
        (lambda text: "../x.png\tn00\n" + text, "in line 1"),
        (lambda text: "", "expected one line for each image"),
        (lambda text: text + "gone.png\tn00\n", r"gone\.png is only in one"),
    ],
)
def test_wrong_annotations_are_an_error_that_names_the_file(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = write_tiny_imagenet(tmp_path) / "val" / "val_annotations.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(DatasetError, match=message) as error:
        SmallTinyImageNet(tmp_path).read("test")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("size", "resize"), [(0, 8), (8, 7)])
def test_impossible_sizes_are_refused(folder: Path, size: int, resize: int) -> None:
    with pytest.raises(ValueError, match=r"dataset\.size"):
        ImageFolder(folder, size, resize)


# --- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_those_of_the_same_data_in_memory(folder: Path, workers: int) -> None:
    dataset = ImageFolder(folder, size=8)
    streamed = DataModule(dataset, batch_size=4, num_workers=workers, seed=3)
    train = streamed.examples("train")
    loader = streamed.train_dataloader()
    row_of = {tuple(x.flatten().tolist()): k for k, x in enumerate(train.inputs.mul(255).round())}
    assert len(row_of) == len(train) == 19
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for (inputs, labels, _), rows in zip(loader, list(loader.sampler), strict=True):
            found = [row_of[tuple(x.flatten().float().tolist())] for x in inputs]
            assert found == rows
            assert torch.equal(labels, train.labels[rows])


def test_joined_inputs_are_read_from_where_they_are(folder: Path) -> None:
    stream = ImageFolder(folder, size=8).read("test").inputs
    tensor = torch.from_numpy(images(4, 3, 8, 8))
    joined = Joined([tensor, stream])
    whole = torch.cat([tensor, stream[:]])
    assert joined.shape == (10, 3, 8, 8)
    assert torch.equal(joined[:], whole)
    assert torch.equal(joined[[9, 0, 4, 3]], whole[[9, 0, 4, 3]])
    rows = torch.tensor([7, 1, 1])
    assert torch.equal(joined.select(rows)[:], whole[rows])
    assert torch.equal(joined.select(rows)[[0]], whole[[7]])
