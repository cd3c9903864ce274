"""ONNX models of random weights, written node by node."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 20


class Writer:
    """A model with one input; values are named by the nodes that make them."""

    def __init__(self, shape: Sequence[int], *, batch: int | str = "N", seed: int = 0) -> None:
        self.shape, self.batch = tuple(shape), batch
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any) -> str:
        """A constant, float32 unless it is of integers."""
        array = np.asarray(value)
        array = array if array.dtype in (np.int64, np.bool_) else array.astype(np.float32)
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        """A constant of normal numbers."""
        return self.constant(scale * self.random.standard_normal(shape))

    def apply(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; returns its first output."""
        place = len(self.nodes)
        names = [f"{operator}_{place}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, f"n{place}", **attributes))
        return names[0]

    def model(self, output: str, *, opset: int = OPSET) -> Any:
        """The model, whose output is named y and has one row for each input."""
        kind = onnx.TensorProto.FLOAT
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        x = helper.make_tensor_value_info("x", kind, [self.batch, *self.shape])
        y = helper.make_tensor_value_info("y", kind, ["rows", "outputs"])
        graph = helper.make_graph(self.nodes, "network", [x], [y], self.constants)
        imports = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=9)


def saved(model: Any, path: Path) -> Path:
    """A model as a file."""
    path.write_bytes(model.SerializeToString())
    return path


def dense(sizes: Sequence[int], *, batch: int | str = "N", seed: int = 0) -> Writer:
    """VNN-COMP's mnist_fc: a flattened input and products, sums and ReLU in turn."""
    writer = Writer((1, *sizes[:1], 1) if batch == 1 else sizes[:1], batch=batch, seed=seed)
    x = writer.apply("Flatten", "x", axis=1)
    for place, (n, m) in enumerate(pairwise(sizes)):
        x = writer.apply("MatMul", x, writer.normal(n, m, scale=n**-0.5))
        x = writer.apply("Add", x, writer.normal(m, scale=0.1))
        x = writer.apply("Relu", x) if place < len(sizes) - 2 else x
    return writer


def resnet(
    shape: tuple[int, int, int], channels: int, blocks: Sequence[int], *, seed: int = 0
) -> Writer:
    """VNN-COMP's cifar10_resnet: residual blocks of convolutions with strides, then Gemm.

    Args:
        shape: Of one input.
        channels: Of the first map.
        blocks: Stride of every block; a strided one doubles the channels and has a convolution in
            its short cut.
        seed: Of the weights.
    """
    writer = Writer(shape, batch=1, seed=seed)

    def convolve(x: str, n: int, m: int, kernel: int, stride: int) -> str:
        weight = writer.normal(m, n, kernel, kernel, scale=(kernel * kernel * n) ** -0.5)
        pads, size = [kernel // 2] * 4, [kernel, kernel]
        more = {"kernel_shape": size, "pads": pads, "strides": [stride, stride], "group": 1}
        bias = writer.normal(m, scale=0.1)
        return writer.apply("Conv", x, weight, bias, dilations=[1, 1], **more)

    x = writer.apply("Relu", convolve("x", shape[0], channels, 3, 1))
    height, width = shape[1:]
    for stride in blocks:
        more = channels * stride
        inner = writer.apply("Relu", convolve(x, channels, more, 3, stride))
        branch = convolve(inner, more, more, 3, 1)
        short = x if stride == 1 else convolve(x, channels, more, 1, stride)
        x = writer.apply("Relu", writer.apply("Add", branch, short))
        channels, height, width = more, -(-height // stride), -(-width // stride)
    x = writer.apply("Reshape", x, writer.constant([1, -1]))
    features = channels * height * width
    x = writer.apply("Gemm", x, writer.normal(32, features, scale=features**-0.5), transB=1)
    x = writer.apply("Relu", writer.apply("Add", x, writer.normal(32, scale=0.1)))
    writer.apply("Gemm", x, writer.normal(10, 32, scale=0.2), writer.normal(10), transB=1)
    return writer
