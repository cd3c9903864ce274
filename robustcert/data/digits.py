"""The handwritten digits that scikit-learn ships: real images without a download."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustcert.data.dataset import Dataset, DatasetError, Examples, Split, check_split
from robustcert.data.split import stratified_split

# Digest of the images and labels, whatever file they come from.
CONTENT_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
# Share of the test split, and the seed of its draw.
TEST_FRACTION = 0.2
TEST_KEY = 1797
# Where scikit-learn keeps them: lines of 64 pixels and a label.
FILE = Path("datasets", "data", "digits.csv.gz")


class Digits(Dataset):
    """Handwritten digits: 1,797 images of 8 x 8 grey pixels, values 0..16 divided by 16.

    scikit-learn gives one set without a split. Here 359 images, stratified by class, are the test
    split and 1,438 the train split: always the same ones (``stratified_split`` with key 1797),
    both in scikit-learn's order.

    Reference: Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI 1998.
    """

    name = "digits"
    input_shape = (1, 8, 8)
    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(self) -> None:
        self._files: list[dict[str, Any]] = []

    def read(self, split: Split) -> Examples:
        """All images of the split, float32."""
        check_split(split)
        images, target = _images_and_labels()
        content = images.tobytes() + target.astype(np.uint8).tobytes()
        sha256 = hashlib.sha256(content).hexdigest()
        self._files = [
            {
                "name": "sklearn.datasets.load_digits",
                "bytes": len(content),
                "sha256": sha256,
                "official": sha256 == CONTENT_SHA256,
            }
        ]
        labels = torch.from_numpy(target)
        train, test = stratified_split(labels, TEST_FRACTION, TEST_KEY)
        rows = train if split == "train" else test
        inputs = torch.from_numpy(images)[:, None].to(torch.float32) / 16
        return Examples(inputs[rows], labels[rows])

    def provenance(self) -> dict[str, Any]:
        """Record of the arrays that scikit-learn gave, pixels before labels."""
        return {"name": self.name, "files": [dict(record) for record in self._files]}


def _images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """What ``sklearn.datasets.load_digits`` gives: uint8, shape ``(n, 8, 8)``, and int64."""
    # scikit-learn takes a second to import, and its file is read without it.
    spec = importlib.util.find_spec("sklearn")
    folders = (spec.submodule_search_locations or []) if spec else []
    path = next((Path(f, FILE) for f in folders if Path(f, FILE).is_file()), None)
    if path is None:
        from sklearn.datasets import load_digits

        source = load_digits()
        rows = np.column_stack([source.data, source.target])
    else:
        rows = np.loadtxt(path, delimiter=",", dtype=np.float64)
    values = rows.astype(np.uint8)
    if values.shape[1:] != (65,) or (values != rows).any():
        raise DatasetError(
            "sklearn.datasets.load_digits: expected lines of 64 pixels from 0 to 16 and a label, "
            f"but got the shape {rows.shape} and values up to {rows.max():g}"
        )
    return values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)
