"""Generated images that are trained on beside the real ones."""

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.data.dataset import (
    Dataset,
    DatasetError,
    Examples,
    Rows,
    Stream,
    check_labels,
)
from robustcert.data.files import digest

# Number of bytes before the name of a file within a zip archive.
LOCAL_HEADER = 30


class ChannelsLast(Stream):
    """Images of an array ``(N, H, W, C)``, often a mapped file, as ``(C, H, W)``."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array
        count, height, width, channels = array.shape
        self.shape = (count, channels, height, width)

    def __getitem__(self, rows: Rows) -> Tensor:
        chosen = self.array[rows.numpy() if isinstance(rows, Tensor) else rows]
        return torch.from_numpy(np.array(chosen.transpose(0, 3, 1, 2), order="C"))

    def select(self, rows: Rows) -> "ChannelsLast":
        """The images at the given rows; of a mapped file they are read."""
        return ChannelsLast(self.array[rows.numpy() if isinstance(rows, Tensor) else rows])


def read_generated(
    root: str | os.PathLike[str], dataset: Dataset, sha256: str | None = None
) -> tuple[Examples, str]:
    """Images and labels of an ``.npz`` file, in the layout in which such sets are published.

    The file holds ``image``, uint8 of shape ``(N, H, W, C)``, and ``label``, integers of shape
    ``(N,)``. If it is not compressed (``numpy.savez``), images stay in it until a batch needs them.

    Args:
        root: The file.
        dataset: What they are generated for.
        sha256: That the file must have, as recorded when training began; None for any.

    Returns:
        The examples and the file's SHA-256.

    Raises:
        DatasetError: the file is missing, damaged, another one or for another dataset.
    """
    path = Path(root).expanduser()
    if not path.is_file():
        raise DatasetError(
            f"expected loader.generated to name an .npz file, but there is no file {path}"
        )
    try:
        image, label = (_read(path, key) for key in ("image", "label"))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(
            f"{path}: expected an .npz archive with the arrays image and label, but got: {error}"
        ) from error
    channels, *side = dataset.input_shape
    shape = (len(label), *side, channels)
    if image.dtype != np.uint8 or image.shape != shape or len(label) == 0:
        raise DatasetError(
            f"{path} (image): expected uint8 of shape {shape} for {dataset.name}, channels last, "
            f"but got {image.dtype} of shape {image.shape}"
        )
    if label.dtype.kind not in "iu" or label.ndim != 1:
        raise DatasetError(
            f"{path} (label): expected integers of shape (N,), but got {label.dtype} of shape "
            f"{label.shape}"
        )
    labels = torch.from_numpy(label.astype(np.int64))
    check_labels(labels, dataset.num_classes, f"{path} (label)")
    found = digest(path)
    if sha256 not in (None, found):
        raise DatasetError(
            f"{path}: expected the file that training began with, of sha256 {sha256}, but got "
            f"{found}: set loader.generated to that file"
        )
    return Examples(ChannelsLast(image), labels), found


def _read(path: Path, key: str) -> NDArray[Any]:
    """An array of an archive, mapped into memory if it is stored as it is."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read_header(member)
            begin = member.tell()
    if dtype.hasobject:
        raise ValueError(f"{key} holds objects")
    if info.compress_type != zipfile.ZIP_STORED:
        with np.load(path, allow_pickle=False) as arrays:
            loaded: NDArray[Any] = arrays[key]
            return loaded
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<26x2H", file.read(LOCAL_HEADER))
    begin += info.header_offset + LOCAL_HEADER + name + extra
    return np.memmap(path, dtype, "r", begin, shape, "F" if fortran else "C")
