"""MNIST and Fashion-MNIST in their official idx files, gzip-compressed or not."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustcert.data.dataset import DatasetError, Examples, Split, check_labels, check_split
from robustcert.data.files import FileDataset

# Code of the element type in an idx file.
UNSIGNED_BYTE = 0x08
# Beginnings of file names.
PREFIX = {"train": "train", "test": "t10k"}


def parse_idx(content: bytes, ndim: int, source: str) -> Tensor:
    """Array in an idx file of unsigned bytes.

    The format: two zero bytes, the element type, the number of dimensions, the dimensions as
    big-endian 32-bit integers, then the elements, the last dimension running fastest.

    Args:
        content: The uncompressed file.
        ndim: Number of dimensions that the file must have.
        source: Named in errors.
    """
    magic = bytes([0, 0, UNSIGNED_BYTE, ndim])
    if content[:4] != magic:
        raise DatasetError(
            f"{source}: expected an idx file of unsigned bytes with {ndim} dimensions (magic "
            f"number {magic.hex()}), but got {content[:4].hex() or 'an empty file'}"
        )
    start = 4 + 4 * ndim
    if len(content) < start:
        raise DatasetError(
            f"{source}: expected a header of {start} bytes, but the file ends after {len(content)}"
        )
    shape = [int.from_bytes(content[k : k + 4], "big") for k in range(4, start, 4)]
    size = start + math.prod(shape)
    if len(content) != size:
        state = "truncated" if len(content) < size else "too long"
        raise DatasetError(
            f"{source}: expected {size} uncompressed bytes for the shape {tuple(shape)} in its "
            f"header, but got {len(content)}: the file is {state}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


class IDXDataset(FileDataset):
    """Grey images of 28 x 28 pixels and ten classes, in four idx files.

    Whether a file is official is judged by its uncompressed content: unpacking or compressing it
    again changes nothing.
    """

    input_shape = (1, 28, 28)
    num_classes = 10
    mirrors: ClassVar[Sequence[str]]
    official_sha256: ClassVar[Mapping[str, str]]

    def prepare(self) -> None:
        """Fetch the files that are missing."""
        for split in PREFIX:
            for name in self._names(split):
                self._find(name)

    def read(self, split: Split) -> Examples:
        """All images of the split, uint8."""
        check_split(split)
        image_name, label_name = self._names(split)
        images, image_path = self._load(image_name, ndim=3)
        labels, label_path = self._load(label_name, ndim=1)
        if tuple(images.shape[1:]) != self.input_shape[1:]:
            raise DatasetError(
                f"{image_path}: expected images of {self.input_shape[1]} x {self.input_shape[2]} "
                f"pixels, but got {images.shape[1]} x {images.shape[2]}: is dataset.root the "
                f"folder of {self.name}?"
            )
        if len(images) != len(labels) or len(images) == 0:
            raise DatasetError(
                f"{label_path}: expected one label for each of the {len(images)} images in "
                f"{image_path.name} (at least one), but got {len(labels)}"
            )
        check_labels(labels, self.num_classes, str(label_path))
        return Examples(images[:, None], labels.to(torch.int64))

    @staticmethod
    def _names(split: str) -> tuple[str, str]:
        return f"{PREFIX[split]}-images-idx3-ubyte", f"{PREFIX[split]}-labels-idx1-ubyte"

    def _find(self, name: str) -> Path:
        for path in (self.root / f"{name}.gz", self.root / name):
            if path.is_file():
                return path
        urls = [f"{mirror}{name}.gz" for mirror in self.mirrors]

        def refuse(path: Path) -> str | None:
            try:
                got = hashlib.sha256(_uncompressed(path, compressed=True)).hexdigest()
            except DatasetError as error:
                return f"not the official file ({error})"
            return None if got == self.official_sha256[name] else "not the official file"

        return self._fetch(f"{name}.gz", urls, refuse)

    def _load(self, name: str, ndim: int) -> tuple[Tensor, Path]:
        path = self._find(name)
        content = _uncompressed(path, compressed=path.suffix == ".gz")
        array = parse_idx(content, ndim, str(path))
        expected, got = self.official_sha256[name], hashlib.sha256(content).hexdigest()
        self._record(
            path,
            got == expected,
            f"it is not the official file: expected the sha256 {expected} of the uncompressed "
            f"content, but got {got}",
        )
        return array, path


def _uncompressed(path: Path, compressed: bool) -> bytes:
    if not compressed:
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path}: expected a complete gzip file, but got: {error}") from error


class MNIST(IDXDataset):
    """Handwritten digits: 60,000 train and 10,000 test images of 28 x 28 grey pixels.

    Reference: LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document
    recognition*, Proceedings of the IEEE 1998.

    Args:
        root: Folder of the four idx files, compressed (``.gz``) or not.
        download: Fetch missing files from the official mirrors.
        checksum: ``"warn"`` or ``"strict"``, see :class:`FileDataset`.
    """

    name = "mnist"
    mirrors = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    official_sha256: ClassVar = {
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    }
    class_names = tuple("0123456789")


class FashionMNIST(IDXDataset):
    """Articles of clothing: 60,000 train and 10,000 test images of 28 x 28 grey pixels.

    Reference: Xiao, Rasul and Vollgraf, `Fashion-MNIST <https://arxiv.org/abs/1708.07747>`_, 2017.

    Args:
        root: Folder of the four idx files, compressed (``.gz``) or not.
        download: Fetch missing files from the official mirrors.
        checksum: ``"warn"`` or ``"strict"``, see :class:`FileDataset`.
    """

    name = "fashion_mnist"
    mirrors = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    )
    official_sha256: ClassVar = {
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    }
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
