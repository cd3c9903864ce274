"""Train neural networks whose robustness is proved, and certify them soundly."""

__version__ = "0.1.0"

# Resolved on first use: `python -m robustcert.check` must not import torch.
_PUBLIC = {
    "certify": "robustcert.certifiers",
    "Certificates": "robustcert.certifiers",
    "load": "robustcert.certificate.predictor",
}


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'robustcert' has no attribute {name!r}")
