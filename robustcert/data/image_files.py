"""Images decoded from files by Pillow, batch by batch."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.data.dataset import DatasetError, Rows, Stream


class ImageFiles(Stream):
    """Images decoded from files when they are indexed, as uint8 of shape ``(3, size, size)``.

    Every image is converted to RGB. With ``resize``, its shorter side is brought to that many
    pixels by Pillow's bilinear filter (which averages over all source pixels when it shrinks), the
    longer side in proportion, rounded to the nearest pixel; then the central square of ``size``
    pixels is cut out, at offsets rounded down. Without, an image must have ``size`` pixels a side.
    An orientation in the EXIF data and an alpha channel are ignored.

    Args:
        root: Folder that the names are relative to.
        names: File names as bytes, in an array: unlike a list of strings it is shared with worker
            processes and never copied by them.
        size: Side of the square that is kept.
        resize: Length of the shorter side before it is cut, at least ``size``; None for files that
            have the size already.
    """

    def __init__(
        self, root: Path, names: NDArray[np.bytes_], size: int, resize: int | None
    ) -> None:
        self.root = root
        self.names = names
        self.size = size
        self.resize = resize
        self.shape = (len(names), 3, size, size)

    def __getitem__(self, rows: Rows) -> Tensor:
        names = self.names[rows.numpy() if isinstance(rows, Tensor) else rows]
        images = torch.empty(len(names), *self.shape[1:], dtype=self.dtype)
        for image, name in zip(images, names, strict=True):
            image.copy_(self._decode(self.root / os.fsdecode(name)))
        return images

    def select(self, rows: Rows) -> "ImageFiles":
        """The images at the given rows, undecoded."""
        names = self.names[rows.numpy() if isinstance(rows, Tensor) else rows]
        return ImageFiles(self.root, names, self.size, self.resize)

    def _decode(self, path: Path) -> Tensor:
        image = import_pillow()
        try:
            with image.open(path) as file:
                picture = self._fit(file.convert("RGB"), path)
        except DatasetError:
            raise
        # Whatever a damaged file makes a decoder raise.
        except (
            OSError,
            EOFError,
            SyntaxError,
            ValueError,
            IndexError,
            struct.error,
            image.DecompressionBombError,
        ) as error:
            raise DatasetError(
                f"{path}: expected a complete image, but got: {error}. Replace the file or remove "
                "it from its folder"
            ) from error
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def _fit(self, picture: Any, path: Path) -> Any:
        width, height = picture.size
        if self.resize is None:
            if (width, height) != (self.size, self.size):
                raise DatasetError(
                    f"{path}: expected an image of {self.size} x {self.size} pixels, but got "
                    f"{width} x {height}"
                )
            return picture
        shorter = min(width, height)
        width, height = (round(n * self.resize / shorter) for n in (width, height))
        if (width, height) != picture.size:
            picture = picture.resize((width, height), import_pillow().Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return picture.crop((left, top, left + self.size, top + self.size))


def import_pillow() -> Any:
    """The module ``PIL.Image``; ``DatasetError`` if Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DatasetError(
            "folders of images need Pillow: pip install 'robustcert[images]'"
        ) from error
    return Image
