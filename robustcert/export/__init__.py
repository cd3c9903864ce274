"""A certified network as an ONNX graph that computes what is certified of its inputs as well."""

from robustcert.export.model import to_onnx
from robustcert.export.runtime import check_runtime

__all__ = ["check_runtime", "to_onnx"]
