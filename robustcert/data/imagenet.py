"""ImageNet and Tiny-ImageNet in their published layouts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from robustcert.data.dataset import DatasetError
from robustcert.data.files import Checksum
from robustcert.data.image_folder import ImageFolders, by_folder, is_image


class ImageNet(ImageFolders):
    """ImageNet (ILSVRC 2012): 1,281,167 train and 50,000 validation images of 1,000 classes.

    Expects ``<root>/train/<wnid>/*.JPEG`` and ``<root>/val/<wnid>/*.JPEG``; the official
    validation split is the test split here. The usual evaluation: shorter side to 256 pixels, the
    central 224. For a part of the classes use :class:`ImageFolder`.

    Reference: Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge*, IJCV 2015.

    Args:
        root: The folder.
        size: Side of the square in pixels.
        resize: Length of the shorter side before the square is cut out.
        checksum: ``"warn"`` or ``"strict"``; ``"strict"`` refuses, for the folder has no official
            checksum.
    """

    name = "imagenet"
    num_classes = 1000
    official_images: ClassVar = {"train": 1_281_167, "test": 50_000}

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int = 224,
        resize: int = 256,
        checksum: Checksum = "warn",
    ) -> None:
        super().__init__(root, size, resize, checksum)

    def _classes(self) -> list[str]:
        return _expect_classes(self, super()._classes())


class TinyImageNet(ImageFolders):
    """Tiny-ImageNet: 100,000 train and 10,000 validation images of 64 x 64 pixels, 200 classes.

    Expects the published layout, ``<root>/train/<wnid>/images/*.JPEG``, and
    ``<root>/val/images/*.JPEG`` with ``<root>/val/val_annotations.txt``, whose lines begin with
    file name and wnid. The official validation split is the test split here, because the official
    test images have no labels. An image of another size is an error.

    Reference: Le and Yang, *Tiny ImageNet Visual Recognition Challenge*, Stanford CS 231N, 2015.

    Args:
        root: The folder ``tiny-imagenet-200``.
        checksum: ``"warn"`` or ``"strict"``; ``"strict"`` refuses, for the folder has no official
            checksum.
    """

    name = "tiny_imagenet"
    num_classes = 200
    official_images: ClassVar = {"train": 100_000, "test": 10_000}

    def __init__(self, root: str | os.PathLike[str], checksum: Checksum = "warn") -> None:
        super().__init__(root, 64, None, checksum)

    def _classes(self) -> list[str]:
        return _expect_classes(self, super()._classes())

    def _files_of(self, folder: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
        if folder.name == "train":
            return by_folder(self.root, folder, classes, "images")
        return self._annotated(folder, {name: label for label, name in enumerate(classes)})

    def _annotated(self, folder: Path, label_of: dict[str, int]) -> list[tuple[str, int]]:
        path = folder / "val_annotations.txt"
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{path}: expected a text file with lines of file name and wnid, but got: {error}"
            ) from error
        found: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            name, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            if wnid not in label_of or name in found or Path(name).name != name:
                raise DatasetError(
                    f"{path}: expected a new file name, a tab and one of the {len(label_of)} "
                    f"wnids of the train folder in line {number}, but got {line!r}"
                )
            found[name] = label_of[wnid]
        there = {entry.name for entry in os.scandir(folder / "images") if is_image(entry.name)}
        odd = sorted(there ^ found.keys())
        if odd or not found:
            raise DatasetError(
                f"{path}: expected one line for each image of {folder / 'images'}, but "
                + (f"{odd[0]} is only in one of the two" if odd else "there are none")
            )
        return [
            (str(Path(folder.name, "images", name)), label) for name, label in sorted(found.items())
        ]


def _expect_classes(dataset: ImageFolders, classes: list[str]) -> list[str]:
    if len(classes) != dataset.num_classes:
        raise DatasetError(
            f"{dataset.root}: expected {dataset.num_classes} class folders in train, but got "
            f"{len(classes)}: dataset=image_folder takes any number"
        )
    return classes
