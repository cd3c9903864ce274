"""How each task is trained: the LightningModule and what validation certifies by."""

from collections.abc import Mapping
from typing import Any

from robustcert.training.module import CertifiedClassifier
from robustcert.training.regression import CertifiedRegressor, ValidationBound
from robustcert.training.validation import ValidationCertifier

MODULES: Mapping[str, tuple[type[Any], type[Any]]] = {
    "classification": (CertifiedClassifier, ValidationCertifier),
    "regression": (CertifiedRegressor, ValidationBound),
}
