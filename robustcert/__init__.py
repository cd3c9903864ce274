"""Train neural networks whose robustness is proved, and certify them soundly."""

__version__ = "0.1.0"

# For editors and type checkers, which take it as true. Not from typing: importing it here would let
# a file of the current folder stand in for a module that it needs, before the checker is isolated.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from robustcert import activations as activations
    from robustcert import certifiers as certifiers
    from robustcert import layers as layers
    from robustcert import lipschitz as lipschitz
    from robustcert import models as models
    from robustcert import objectives as objectives
    from robustcert.certificate.predictor import Prediction as Prediction
    from robustcert.certificate.predictor import Predictor as Predictor
    from robustcert.certificate.regressor import Regressor as Regressor
    from robustcert.certifiers import Certificates as Certificates
    from robustcert.certifiers import certify as certify
    from robustcert.lipschitz import freeze as freeze
    from robustcert.network.onnx import read_onnx as read_onnx
    from robustcert.runs.loading import load as load
    from robustcert.runs.loading import load_regressor as load_regressor
    from robustcert.runs.module import load_module as load_module

# Resolved on first use: `python -m robustcert.check` must not import torch.
_PUBLIC = {
    "certify": "robustcert.certifiers",
    "freeze": "robustcert.lipschitz",
    "Certificates": "robustcert.certifiers",
    "load": "robustcert.runs.loading",
    "Prediction": "robustcert.certificate.predictor",
    "Predictor": "robustcert.certificate.predictor",
    "Regressor": "robustcert.certificate.regressor",
    "load_regressor": "robustcert.runs.loading",
    "load_module": "robustcert.runs.module",
    "read_onnx": "robustcert.network.onnx",
}
_MODULES = ("activations", "certifiers", "layers", "lipschitz", "models", "objectives")


def __getattr__(name: str) -> object:
    if name not in _PUBLIC and name not in _MODULES:
        raise AttributeError(f"module 'robustcert' has no attribute {name!r}")
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"robustcert.{name}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_MODULES} - {"TYPE_CHECKING"})
