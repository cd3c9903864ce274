"""A self-test of onnxruntime: whether it evaluates the products of a model in IEEE arithmetic."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcert.arithmetic.known_products import Geometry, first_fault
from robustcert.arithmetic.settings import UnsoundArithmeticError, variables
from robustcert.errors import ConfigError
from robustcert.export.graph import IR_VERSION, OPSET, require_onnx


def check_runtime(
    path: str | Path,
    *,
    batch_size: int = 1,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    options: Any = None,
) -> int:
    """Test onnxruntime with products whose results are known, at the shapes of an exported model.

    Of every matrix product of the model one of the same shape is made, with other constants, and
    run with the same providers and options; see :mod:`robustcert.arithmetic.known_products`. It
    says nothing about other batch sizes, machines or options, and elementwise operations are not
    tested.

    Args:
        path: A model that :func:`robustcert.export.to_onnx` wrote.
        batch_size: Number of samples that the model will be given at once.
        providers: Execution providers of the session, as onnxruntime takes them.
        options: ``onnxruntime.SessionOptions`` of the session; onnxruntime's own by default.

    Returns:
        Number of shapes tested.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
        UnsoundArithmeticError: a product is not evaluated as IEEE 754 asks for: the radius does not
            hold there.
        ValueError: ``batch_size`` is no number above 0.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a number above 0, got {batch_size}")
    onnx, onnxruntime = require_onnx(), _require_onnxruntime()
    found = dict.fromkeys(_products(onnx, onnx.load(path)))
    for rows, inputs, outputs, kind in found:

        def evaluate(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int = rows) -> Tensor:
            x = x.flatten(1)
            shaped = x if rows == 1 else x.view(batch_size, rows, -1)
            model = _model(onnx, shaped, weight.flatten(1), bias)
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, list(providers)
            )
            y = torch.from_numpy(session.run(None, {"x": shaped.numpy()})[0])
            return y.reshape(len(x), -1, 1, 1)

        dtype = torch.float64 if kind == onnx.TensorProto.DOUBLE else torch.float32
        for bias in (False, True):
            geometry = Geometry.dense(batch_size * rows, inputs, outputs, bias)
            fault = first_fault(evaluate, geometry, dtype, torch.device("cpu"))
            if fault is not None:
                said = ", ".join(f"{key}={value}" for key, value in variables().items())
                raise UnsoundArithmeticError(
                    f"{path}: onnxruntime {onnxruntime.__version__} with "
                    f"{', '.join(map(str, providers))}: the product of {inputs} inputs and "
                    f"{outputs} outputs for {batch_size} samples is expected in "
                    f"{str(dtype).removeprefix('torch.')} as IEEE 754 asks for, but {fault}: its "
                    "radius does not hold there. Use another provider or other options; variables "
                    f"that are set: {said or 'none of those known'}"
                )
    return len(found)


def _require_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "the self-test needs the package onnxruntime: pip install 'robustcert[export]'"
        ) from error
    return onnxruntime


def _products(onnx: Any, model: Any) -> Iterator[tuple[int, int, int, int]]:
    """Rows of a sample, inputs, outputs and type of every product with constants."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            weight = constants[node.input[1]]
            middle = [d.dim_value for d in values[node.input[0]].shape.dim][1:-1]
            yield math.prod(middle), weight.dims[0], weight.dims[1], weight.data_type


def _model(onnx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    """``x W' + b`` as :mod:`robustcert.export.operations` writes it."""
    helper, types = onnx.helper, onnx.TensorProto
    kind = types.DOUBLE if x.dtype == torch.float64 else types.FLOAT
    constants = [onnx.numpy_helper.from_array(weight.mT.contiguous().numpy(), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y" if bias is None else "xw"])]
    if bias is not None:
        constants.append(onnx.numpy_helper.from_array(bias.numpy(), "b"))
        nodes.append(helper.make_node("Add", ["xw", "b"], ["y"]))
    shape = ["N", *x.shape[1:]]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [*shape[:-1], len(weight)])],
        constants,
    )
    imports = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
