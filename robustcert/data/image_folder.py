"""Folders of images, one for each class."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.data.dataset import DatasetError, Examples, Split, check_split
from robustcert.data.files import Checksum, FileDataset
from robustcert.data.image_files import ImageFiles, import_pillow

# Endings of the names of image files.
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolders(FileDataset):
    """Images in folders, one for each class: what the layouts below share.

    Nothing is decoded before it is needed: a split's images are read batch by batch, in the
    processes of ``loader.num_workers``, so that a dataset may be larger than memory. Classes are
    numbered in the alphabetical order of their folders' names; that order, the number and total
    size of the files, a digest of all names, sizes and labels, and the decoder's version are the
    record in a certificate. The files' contents are not hashed.
    """

    # Names of each split's folder below root, in order of preference.
    split_folders: ClassVar[dict[str, Sequence[str]]] = {"train": ("train",), "test": ("val",)}
    # How many images each official split has, if there is one.
    official_images: ClassVar[dict[str, int]] = {}

    def __init__(
        self, root: str | os.PathLike[str], size: int, resize: int | None, checksum: Checksum
    ) -> None:
        super().__init__(root, download=False, checksum=checksum)
        if size < 1 or (resize is not None and resize < size):
            raise ValueError(
                "expected dataset.size to be at least 1 and dataset.resize at least dataset.size, "
                f"but got size={size} and resize={resize}"
            )
        self.size = size
        self.resize = resize
        self.input_shape = (3, size, size)

    def read(self, split: Split) -> Examples:
        """All images of the split, class by class and by name, none of them decoded."""
        check_split(split)
        import_pillow()
        folder = self._folder(split)
        classes = self._classes()
        found = self._files_of(folder, classes)
        names = np.array([os.fsencode(name) for name, _ in found])
        labels = torch.tensor([label for _, label in found])
        self._record_folder(split, folder, classes, names, labels)
        return Examples(ImageFiles(self.root, names, self.size, self.resize), labels)

    def _files_of(self, folder: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
        """Names, relative to root, and labels of a split."""
        return by_folder(self.root, folder, classes)

    def _folder(self, split: str) -> Path:
        choices = self.split_folders[split]
        for name in choices:
            if (self.root / name).is_dir():
                return self.root / name
        raise DatasetError(
            f"{self.name}: expected the folder {self.root / choices[0]}, but there is none: set "
            "dataset.root to the folder that holds it"
        )

    def _classes(self) -> list[str]:
        folder = self._folder("train")
        return sorted(entry.name for entry in os.scandir(folder) if _is_class(entry))

    def _record_folder(
        self,
        split: str,
        folder: Path,
        classes: Sequence[str],
        names: NDArray[np.bytes_],
        labels: Tensor,
    ) -> None:
        manifest, total = hashlib.sha256(), 0
        for name, label in zip(names, labels.tolist(), strict=True):
            size = (self.root / os.fsdecode(name)).stat().st_size
            total += size
            manifest.update(b"%s\t%d\t%d\n" % (name, size, label))
        expected = self.official_images.get(split)
        differs = expected is not None and expected != len(names)
        self._judge(
            folder,
            False if differs else "unknown",
            f"it holds {len(names)} images where the official one holds {expected}"
            if differs
            else "a folder of images has no official checksum",
        )
        self._files[folder.name] = {
            "name": folder.name,
            "images": len(names),
            "bytes": total,
            "manifest_sha256": manifest.hexdigest(),
            "official": False if differs else "unknown",
            "decoder": f"Pillow {_pillow_version()}",
            "classes": list(classes),
        }


class ImageFolder(ImageFolders):
    """Any images: ``<root>/train/<class>/*`` and ``<root>/test/<class>/*``, or ``val`` for test.

    Files are images if their suffix is one of ``.jpeg .jpg .png .bmp .ppm .pgm .tif .tiff .webp``;
    others are left out. Folders whose name begins with a dot are none. See :class:`ImageFiles` for
    how an image becomes a square and :class:`ImageFolders` for the rest.

    Args:
        root: The folder.
        size: Side of the square in pixels.
        resize: Length of the shorter side before the square is cut out; None for images that are
            squares of ``size`` pixels.
    """

    split_folders: ClassVar = {"train": ("train",), "test": ("test", "val")}

    def __init__(
        self, root: str | os.PathLike[str], size: int = 64, resize: int | None = 64
    ) -> None:
        super().__init__(root, size, resize, "warn")
        self.name = self.root.resolve().name
        classes = self._classes()
        if len(classes) < 2:
            raise DatasetError(
                f"{self._folder('train')}: expected at least two folders, one for each class, but "
                f"got {len(classes)}"
            )
        self.class_names = tuple(classes)
        self.num_classes = len(classes)


def by_folder(
    root: Path, folder: Path, classes: Sequence[str], below: str = ""
) -> list[tuple[str, int]]:
    """Names relative to root, and labels, of the images in a folder for each class.

    Args:
        root: What names are relative to.
        folder: Holds the classes' folders.
        classes: Names of these folders, by label.
        below: Folder of the images in each of them.

    Raises:
        DatasetError: a class has no folder or no image, or a folder is no class.
    """
    there = {entry.name for entry in os.scandir(folder) if _is_class(entry)}
    odd = sorted(there ^ set(classes))
    if odd:
        raise DatasetError(
            f"{folder}: expected a folder for each of the {len(classes)} classes of the train "
            f"folder and no other, but {odd[0]!r} is "
            + ("no class" if odd[0] in there else "missing")
        )
    found = []
    for label, name in enumerate(classes):
        place = folder / name / below
        images = sorted(filter(is_image, os.listdir(place))) if place.is_dir() else []
        if not images:
            raise DatasetError(f"{place}: expected at least one image, but there is none")
        prefix = place.relative_to(root)
        found += [(str(prefix / image), label) for image in images]
    return found


def _pillow_version() -> str:
    import PIL

    return PIL.__version__


def _is_class(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def is_image(name: str) -> bool:
    """Whether a file counts as an image, by its name."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
