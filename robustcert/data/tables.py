"""Small tables that scikit-learn and river ship: columns in units of their own, no download."""

import hashlib
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from robustcert.data.dataset import Dataset, DatasetError, Examples, Split, check_split
from robustcert.data.split import stratified_split
from robustcert.data.targets import Reals, Targets

# Share of the test split, and the seed of its draw.
TEST_FRACTION = 0.3
TEST_KEY = 1936

Rows = NDArray[np.float64]


class Table(Dataset):
    """Rows of named columns, with a fixed split: 30 % are the test split, stratified by class.

    The packages give one set without a split. ``stratified_split`` with key 1936 draws the same
    rows on every machine; both splits keep the package's order.
    """

    domain = "columns"
    columns: tuple[str, ...]
    source: ClassVar[str]
    content_sha256: ClassVar[str]

    def __init__(self) -> None:
        self.input_shape = (len(self.columns),)
        self._files: list[dict[str, Any]] = []

    @abstractmethod
    def load(self) -> tuple[Rows, NDArray[Any]]:
        """All rows, in the order of :attr:`columns`, and their labels or targets."""

    def read(self, split: Split) -> Examples:
        """All rows of the split, float32."""
        check_split(split)
        rows, target = self.load()
        if rows.shape[1:] != self.input_shape or len(rows) != len(target):
            raise DatasetError(
                f"{self.source}: expected rows of {len(self.columns)} columns and a label each, "
                f"but got the shapes {rows.shape} and {target.shape}"
            )
        content = rows.tobytes() + target.tobytes()
        sha256 = hashlib.sha256(content).hexdigest()
        self._files = [
            {
                "name": self.source,
                "bytes": len(content),
                "sha256": sha256,
                "official": sha256 == self.content_sha256,
            }
        ]
        labels = torch.from_numpy(target)
        train, test = stratified_split(self.targets.strata(labels), TEST_FRACTION, TEST_KEY)
        chosen = train if split == "train" else test
        return Examples(torch.from_numpy(rows).to(torch.float32)[chosen], labels[chosen])

    def provenance(self) -> dict[str, Any]:
        """Record of the arrays that the package gave, rows before labels."""
        return {"name": self.name, "files": [dict(record) for record in self._files]}


class BreastCancer(Table):
    """Wisconsin breast cancer: 569 tumours, 30 measurements of cell nuclei, malignant or benign.

    Reference: Street, Wolberg and Mangasarian, *Nuclear feature extraction for breast tumor
    diagnosis*, 1993.
    """

    name = "breast_cancer"
    source = "sklearn.datasets.load_breast_cancer"
    content_sha256 = "25e2eb7b7a8745b1bde5ba18bc4969983d2e2f403291ecd5bde4a29ef30c3859"
    num_classes = 2
    class_names = ("malignant", "benign")
    columns = tuple(
        f"{kind} {feature}" if kind != "error" else f"{feature} error"
        for kind in ("mean", "error", "worst")
        for feature in (
            *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity"),
            *("concave points", "symmetry", "fractal dimension"),
        )
    )

    def load(self) -> tuple[Rows, NDArray[Any]]:
        """The arrays of scikit-learn."""
        # scikit-learn takes a second to import: only those who read pay.
        from sklearn.datasets import load_breast_cancer

        rows, target = load_breast_cancer(return_X_y=True)
        return rows, target.astype(np.int64)


class Wine(Table):
    """Wines of three growers: 178 bottles, 13 results of a chemical analysis.

    Reference: Forina et al., *PARVUS, an extendible package for data exploration, classification
    and correlation*, 1988.
    """

    name = "wine"
    source = "sklearn.datasets.load_wine"
    content_sha256 = "3a28849ef2366c4b9d4e382b3fa5624a66f693c04d7fdcf43c529bbb0bb338d7"
    num_classes = 3
    class_names = ("class_0", "class_1", "class_2")
    columns = (
        *("alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols"),
        *("flavanoids", "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue"),
        *("od280/od315_of_diluted_wines", "proline"),
    )

    def load(self) -> tuple[Rows, NDArray[Any]]:
        """The arrays of scikit-learn."""
        from sklearn.datasets import load_wine

        rows, target = load_wine(return_X_y=True)
        return rows, target.astype(np.int64)


class Phishing(Table):
    """Web sites: 1,250 of them, nine signs in {0, 0.5, 1}, honest or phishing.

    Many rows are equal: the test split repeats rows of the training split.

    Reference: Abdelhamid, Ayesh and Thabtah, *Phishing detection based associative classification
    data mining*, 2014.
    """

    name = "phishing"
    source = "river.datasets.Phishing"
    content_sha256 = "ef238814f5980c048ec976ba14fc571466c4dbfcd3dee40eeda542126e54c674"
    num_classes = 2
    class_names = ("honest", "phishing")
    columns = (
        *("empty_server_form_handler", "popup_window", "https", "request_from_other_domain"),
        *("anchor_from_other_domain", "is_popular", "long_url", "age_of_domain", "ip_in_url"),
    )

    def load(self) -> tuple[Rows, NDArray[Any]]:
        """The rows of river's own reader."""
        try:
            from river.datasets import Phishing as Source
        except ImportError as error:
            raise DatasetError(
                "dataset=phishing needs river: pip install 'robustcert[tables]'"
            ) from error
        examples = list(Source())
        rows = [[float(row[name]) for name in self.columns] for row, _ in examples]
        return np.array(rows), np.array([int(label) for _, label in examples], dtype=np.int64)


class Diabetes(Table):
    """Diabetes: 442 patients, ten measurements; the target is the disease's progression in a year.

    The targets are real numbers, for regression. The columns are as measured, not rescaled.

    Reference: Efron, Hastie, Johnstone and Tibshirani, *Least angle regression*, 2004.
    """

    name = "diabetes"
    source = "sklearn.datasets.load_diabetes"
    content_sha256 = "f034109d08a1c93078b7235f8e3aae030983cf84ec3f1bf56c73952ad0152029"
    num_classes = 1
    columns = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")

    @property
    def targets(self) -> Targets:
        """Real numbers."""
        return Reals()

    def load(self) -> tuple[Rows, NDArray[Any]]:
        """The arrays of scikit-learn, with float32 targets."""
        from sklearn.datasets import load_diabetes

        rows, target = load_diabetes(return_X_y=True, scaled=False)
        return rows, target.astype(np.float32)
