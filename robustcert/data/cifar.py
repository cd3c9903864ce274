"""CIFAR-10 and CIFAR-100 in their official binary versions, unpacked or as the archive."""

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from robustcert.data.dataset import DatasetError, Examples, Split, check_labels, check_split
from robustcert.data.files import FileDataset, digest

# Number of bytes of an image.
IMAGE_BYTES = 3 * 32 * 32


class CIFARDataset(FileDataset):
    """Colour images of 32 x 32 pixels in files of fixed-size records.

    A record is one byte for each of ``labels``, the last of which is the class, then 1,024 red,
    1,024 green and 1,024 blue bytes, each row by row.
    """

    input_shape = (3, 32, 32)
    folder: ClassVar[str]
    archive: ClassVar[str]
    archive_md5: ClassVar[str]
    mirrors: ClassVar[Sequence[str]]
    split_files: ClassVar[dict[str, Sequence[str]]]
    records_per_file: ClassVar[dict[str, int]]
    # How many values each label byte of a record can have.
    labels: ClassVar[Sequence[int]] = (10,)

    def prepare(self) -> None:
        """Fetch the archive unless it or its files are there."""
        if self._unpacked() is None:
            self._archive()

    def read(self, split: Split) -> Examples:
        """All images of the split, uint8, file after file."""
        check_split(split)
        contents = self._contents(split)
        records = [self._parse(content, source) for source, content in contents]
        stacked = np.concatenate(records)
        first = len(self.labels)
        labels = torch.from_numpy(stacked[:, first - 1].astype(np.int64))
        images = torch.from_numpy(stacked[:, first:].reshape(-1, *self.input_shape))
        return Examples(images, labels)

    def _contents(self, split: Split) -> list[tuple[str, bytes]]:
        names = self.split_files[split]
        folder = self._unpacked()
        if folder is None:
            path = self._archive()
            return [(f"{path} ({name})", content) for name, content in self._members(path, names)]
        contents = []
        for name in names:
            path = folder / name
            if not path.is_file():
                raise DatasetError(
                    f"{self.name}: expected the file {path} beside {self._marker()}, but there is "
                    f"none. Unpack {self.archive} again, or set dataset.root to another folder"
                )
            content = path.read_bytes()
            expected = self.records_per_file[split]
            count = len(content) // (len(self.labels) + IMAGE_BYTES)
            if count == expected:
                reason = (
                    "only the archive has an official checksum, so an unpacked file can be checked "
                    f"by its structure alone (put {self.archive} into {self.root} and move the "
                    "unpacked files away to have it checked)"
                )
                self._record(path, "unknown", reason)
            else:
                reason = f"it holds {count} images where the official file holds {expected}"
                self._record(path, False, reason)
            contents.append((str(path), content))
        return contents

    def _marker(self) -> str:
        return self.split_files["test"][0]

    def _unpacked(self) -> Path | None:
        for folder in (self.root / self.folder, self.root):
            if any((folder / n).is_file() for names in self.split_files.values() for n in names):
                return folder
        return None

    def _archive(self) -> Path:
        path = self.root / self.archive
        if path.is_file():
            return path

        def refuse(path: Path) -> str | None:
            got = digest(path, "md5")
            if got == self.archive_md5:
                return None
            return f"not the official file (expected the md5 {self.archive_md5}, but got {got})"

        return self._fetch(self.archive, [f"{m}{self.archive}" for m in self.mirrors], refuse)

    def _members(self, path: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
        """Files of the archive, read in one pass and never written to disk."""
        found: dict[str, bytes] = {}
        try:
            with tarfile.open(path, "r|gz") as archive:
                for member in archive:
                    name = Path(member.name)
                    if name.name in names and name.parent.name == self.folder and member.isfile():
                        file = archive.extractfile(member)
                        found[name.name] = b"" if file is None else file.read()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise DatasetError(
                f"{path}: expected a complete tar.gz archive, but got: {error}"
            ) from error
        missing = [name for name in names if name not in found]
        if missing:
            raise DatasetError(
                f"{path}: expected the member {self.folder}/{missing[0]}, but there is none"
            )
        got = digest(path, "md5")
        self._record(
            path,
            got == self.archive_md5,
            f"it is not the official archive: expected the md5 {self.archive_md5}, but got {got}",
        )
        return [(name, found[name]) for name in names]

    def _parse(self, content: bytes, source: str) -> np.ndarray:
        size = len(self.labels) + IMAGE_BYTES
        if not content or len(content) % size:
            raise DatasetError(
                f"{source}: expected records of {size} bytes each (at least one), but got "
                f"{len(content)} bytes, {len(content) % size} more than {len(content) // size} "
                "records: the file is damaged or not the binary version"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        for column, values in enumerate(self.labels):
            check_labels(torch.tensor(records[:, column]), values, source)
        return records


class CIFAR10(CIFARDataset):
    """Objects in colour: 50,000 train and 10,000 test images of 32 x 32 pixels, ten classes.

    Reads the official *binary version*, either unpacked (``cifar-10-batches-bin`` under ``root``,
    or ``root`` itself) or straight from ``cifar-10-binary.tar.gz`` under ``root``, which is what a
    download puts there. The archive takes two seconds more to read and is the only one of the two
    with an official checksum.

    Reference: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.

    Args:
        root: Folder of the archive or of the unpacked files.
        download: Fetch the archive (162 MiB) if neither is there.
        checksum: ``"warn"`` or ``"strict"``, see :class:`FileDataset`; ``"strict"`` accepts the
            archive only.
    """

    name = "cifar10"
    num_classes = 10
    class_names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    folder = "cifar-10-batches-bin"
    archive = "cifar-10-binary.tar.gz"
    archive_md5 = "c32a1d4ab5d03f1284b67883e8d87530"
    mirrors = ("https://www.cs.toronto.edu/~kriz/",)
    split_files: ClassVar = {
        "train": [f"data_batch_{k}.bin" for k in range(1, 6)],
        "test": ["test_batch.bin"],
    }
    records_per_file: ClassVar = {"train": 10_000, "test": 10_000}


class CIFAR100(CIFARDataset):
    """Objects in colour: 50,000 train and 10,000 test images of 32 x 32 pixels, 100 classes.

    Reads the official *binary version*, as :class:`CIFAR10` does: ``cifar-100-binary`` under
    ``root``, ``root`` itself, or ``cifar-100-binary.tar.gz``. A record begins with the coarse label
    (20 superclasses), which is checked and left out, and the fine label, which is the class.

    Reference: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.

    Args:
        root: Folder of the archive or of the unpacked files.
        download: Fetch the archive (161 MiB) if neither is there.
        checksum: ``"warn"`` or ``"strict"``, see :class:`FileDataset`; ``"strict"`` accepts the
            archive only.
    """

    name = "cifar100"
    num_classes = 100
    # fmt: off
    class_names = (
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
        "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle",
        "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch",
        "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox",
        "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
        "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom",
        "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
        "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
        "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake",
        "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
        "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle",
        "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
    )
    # fmt: on
    folder = "cifar-100-binary"
    archive = "cifar-100-binary.tar.gz"
    archive_md5 = "03b5dce01913d631647c71ecec9e9cb8"
    mirrors = ("https://www.cs.toronto.edu/~kriz/",)
    split_files: ClassVar = {"train": ["train.bin"], "test": ["test.bin"]}
    records_per_file: ClassVar = {"train": 50_000, "test": 10_000}
    labels = (20, 100)
