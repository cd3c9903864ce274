"""A certified network as an ONNX graph that computes logits, label and certified radius."""

from robustcert.export.classifier import to_onnx

__all__ = ["to_onnx"]
