"""Networks from ONNX files, as modules of torch whose forward is captured like any other."""

from robustcert.network.onnx.module import ONNXModule, fitted, read_onnx

__all__ = ["ONNXModule", "fitted", "read_onnx"]
