"""A predictor or a regressor as one ONNX model: from inputs to what is certified of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustcert.atomic import complete_file
from robustcert.certificate.claim import FUNCTIONS
from robustcert.certificate.predictor import Predictor
from robustcert.certificate.regressor import Regressor
from robustcert.certificate.space import space_record
from robustcert.errors import UnsoundNetworkError
from robustcert.export.classifier import add_radius
from robustcert.export.graph import IR_VERSION, OPSET, Graph
from robustcert.export.operations import add_operations
from robustcert.export.regressor import add_interval

# A model is one protobuf message, which holds at most 2 GiB.
MAX_BYTES = 2**31 - 2**24

# Type and shape of an input or output.
Value = tuple[int, list[Any]]
RADIUS = "on the open ball of this radius the label does not change; 0: not certified"
INTERVAL = (
    "at every input at distance of at most radius the output is between lower and upper; infinite: "
    "not certified"
)


def to_onnx(certified: Predictor | Regressor, path: str | Path) -> dict[str, str]:
    """Write a predictor or a regressor as an ONNX model with a dynamic batch dimension.

    Input ``x`` ``(N, *input_shape)`` in the arithmetic of what is written, the numbers that samples
    stand for (:func:`robustcert.network.units.in_units`). Radii are in input units; in a metric, in
    units of u.

    * A predictor's outputs are ``logits`` ``(N, C)`` in that arithmetic, ``label`` ``(N,)`` int64
      and ``radius`` ``(N,)`` float64, 0 where nothing is certified. The radius is computed in the
      model, as :class:`robustcert.certificate.predictor.Predictor` does.
    * A regressor has another input, ``radius``, one float64 for all samples, and the outputs
      ``prediction``, ``lower`` and ``upper`` ``(N,)`` float64: see
      :func:`robustcert.export.regressor.add_interval`.

    Both speak of the functions that the metadata names.

    Args:
        certified: What to write.
        path: The file.

    Returns:
        The metadata in the model: which functions it speaks of, norm, units, digest.

    Raises:
        ConfigError: the package onnx is not installed.
        UnsoundNetworkError: an operation cannot be exported, or the model would be too large.
    """
    graph = Graph(np.float64 if certified.dtype == torch.float64 else np.float32)
    network, types = certified.network, graph.onnx.TensorProto
    kind = types.DOUBLE if graph.dtype is np.float64 else types.FLOAT
    found = add_operations(graph, "x", network.operations, network.input_shape)
    inputs: dict[str, Value] = {"x": (kind, ["N", *network.input_shape])}
    if isinstance(certified, Regressor):
        inputs["radius"] = (types.DOUBLE, [])
        names = ("prediction", "lower", "upper")
        values: tuple[str, ...] = add_interval(graph, found, certified)
        outputs: dict[str, Value] = {name: (types.DOUBLE, ["N"]) for name in names}
        said = {"robustcert.interval": INTERVAL}
    else:
        values = (found, *add_radius(graph, found, certified))
        outputs = {
            "logits": (kind, ["N", certified.num_classes]),
            "label": (types.INT64, ["N"]),
            "radius": (types.DOUBLE, ["N"]),
        }
        said = {"robustcert.radius": RADIUS}
    for value, name in zip(values, outputs, strict=True):
        graph.nodes.append(graph.onnx.helper.make_node("Identity", [value], [name]))
    metadata = _metadata(certified, said)
    model = _model(graph, inputs, outputs, metadata)
    if model.ByteSize() > MAX_BYTES:
        raise UnsoundNetworkError(f"the model has {model.ByteSize()} bytes: ONNX holds 2 GiB")
    graph.onnx.checker.check_model(model, full_check=True)
    with complete_file(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return metadata


def _metadata(certified: Predictor | Regressor, said: Mapping[str, str]) -> dict[str, str]:
    network = certified.network
    record = space_record(network)
    return {
        "robustcert.functions": "; ".join(FUNCTIONS[key] for key in certified.functions),
        "robustcert.norm": record["norm"],
        "robustcert.network.units": (
            "input units: distances between inputs as x holds them"
            if certified.change is None
            else certified.units
        ),
        "robustcert.inputs": record["inputs"],
        "robustcert.domain": json.dumps(record["domain"]),
        **({} if certified.change is None else {"robustcert.change": certified.change}),
        **said,
        "robustcert.digest": certified.digest,
    }


def _model(
    graph: Graph,
    inputs: Mapping[str, Value],
    outputs: Mapping[str, Value],
    metadata: dict[str, str],
) -> Any:
    helper = graph.onnx.helper
    given, found = (
        [helper.make_tensor_value_info(name, *value) for name, value in values.items()]
        for values in (inputs, outputs)
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, "robustcert", given, found, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="robustcert",
    )
    helper.set_model_props(model, metadata)
    return model
