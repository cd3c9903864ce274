"""A certified network as an ONNX graph that computes logits, label and certified radius."""

from robustcert.export.classifier import to_onnx
from robustcert.export.runtime import check_runtime

__all__ = ["check_runtime", "to_onnx"]
