"""Small files in each on-disk format, for tests."""

import gzip
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random bytes of shape ``(count, *shape)``."""
    return np.random.RandomState(seed).randint(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, classes: int = 10) -> np.ndarray:
    """0, 1, ..., classes - 1, 0, 1, ... as bytes."""
    return (np.arange(count) % classes).astype(np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes, uncompressed."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(root: Path, train: int = 40, test: int = 20, compress: bool = True) -> Path:
    """The four files of a small MNIST."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, (prefix, count) in enumerate((("train", train), ("t10k", test))):
        for name, array in (
            (f"{prefix}-images-idx3-ubyte", images(count, 28, 28, seed=seed)),
            (f"{prefix}-labels-idx1-ubyte", labels(count)),
        ):
            content = idx_bytes(array)
            if compress:
                (root / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
            else:
                (root / name).write_bytes(content)
    return root


def write_cifar10(root: Path, records: int = 4) -> Path:
    """A small unpacked CIFAR-10, binary version, ``records`` in each file."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    for k, name in enumerate(names):
        pixels = images(records, 3072, seed=k)
        content = np.concatenate([labels(records)[:, None], pixels], axis=1)
        (folder / name).write_bytes(content.tobytes())
    return root


def write_cifar100(root: Path, records: int = 20) -> Path:
    """A small unpacked CIFAR-100, binary version, ``records`` in each file."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("train.bin", "test.bin")):
        fine = labels(records, 100)[:, None]
        pixels = images(records, 3072, seed=seed)
        (folder / name).write_bytes(np.concatenate([fine // 5, fine, pixels], axis=1).tobytes())
    return root


def write_images(folder: Path, count: int, *, side: int = 8, suffix: str = ".png") -> Path:
    """Images of random bytes, ``side`` pixels high and wide, numbered from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    seed = sum(folder.as_posix().encode())
    for k, array in enumerate(images(count, side, side, 3, seed=seed)):
        Image.fromarray(array).save(folder / f"{folder.name}_{k}{suffix}")
    return folder


def write_image_folder(root: Path, classes: int = 3, *, test: str = "test", side: int = 8) -> Path:
    """``train`` and ``test`` folders: k + 6 train and two test images of class k."""
    for k in range(classes):
        write_images(root / "train" / f"class{k}", k + 6, side=side)
        write_images(root / test / f"class{k}", 2, side=side)
    return root


def write_tiny_imagenet(root: Path, classes: int = 3) -> Path:
    """The layout of Tiny-ImageNet, with three images a class and its annotations."""
    for k in range(classes):
        write_images(root / "train" / f"n0{k}" / "images", 3, side=64, suffix=".JPEG")
    names = sorted(
        p.name for p in write_images(root / "val" / "images", 2 * classes, side=64).iterdir()
    )
    lines = [f"{name}\tn0{(7 * k + 2) % classes}\t0\t0\t62\t62" for k, name in enumerate(names)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def pack_cifar10(root: Path) -> Path:
    """The archive of an unpacked CIFAR-10, in ``root`` instead of its folder."""
    folder = root / "cifar-10-batches-bin"
    archive = root / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname=folder.name)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return archive


def write_npz(path: Path, **replaced: np.ndarray) -> Path:
    """A small ``.npz`` dataset of 30 + 12 RGB images and three classes."""
    arrays = {
        "x_train": images(30, 3, 6, 5),
        "y_train": labels(30, 3).astype(np.int64),
        "x_test": images(12, 3, 6, 5, seed=1),
        "y_test": labels(12, 3).astype(np.int64),
        **replaced,
    }
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


def write_generated(path: Path, count: int = 50, *shape: int, compress: bool = False) -> Path:
    """Generated images, channels last, of three classes; by default for ``write_npz``."""
    save = np.savez_compressed if compress else np.savez
    array = images(count, *(shape or (6, 5, 3)), seed=9)
    save(path, image=array, label=labels(count, 3).astype(np.int64))
    return path
