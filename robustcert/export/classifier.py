"""The whole classifier as one ONNX model: input to logits, label and certified radius."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustcert.atomic import complete_file
from robustcert.certificate.claim import FUNCTIONS
from robustcert.certificate.predictor import Predictor
from robustcert.certificate.space import space_record
from robustcert.errors import UnsoundNetworkError
from robustcert.export.graph import IR_VERSION, OPSET, Graph
from robustcert.export.operations import add_operations
from robustcert.network.forward_error import forward_steps
from robustcert.network.input_space import IMAGES

# A model is one protobuf message, which holds at most 2 GiB.
MAX_BYTES = 2**31 - 2**24


def to_onnx(predictor: Predictor, path: str | Path) -> dict[str, str]:
    """Write a predictor as an ONNX model with a dynamic batch dimension.

    Input ``x`` ``(N, *input_shape)`` in the predictor's arithmetic, the numbers that samples stand
    for (:func:`robustcert.network.units.in_units`); outputs ``logits`` ``(N, C)``
    in that arithmetic, ``label`` ``(N,)`` int64 and ``radius`` ``(N,)`` float64, in input units, 0
    where nothing is certified; in a metric, in units of u. The radius is computed in the model, as
    :class:`robustcert.certificate.predictor.Predictor` does, and speaks of the same functions.

    Args:
        predictor: What to write.
        path: The file.

    Returns:
        The metadata in the model: which functions the radius speaks of, norm, units, digest.

    Raises:
        ConfigError: the package onnx is not installed.
        UnsoundNetworkError: an operation cannot be exported, or the model would be too large.
    """
    graph = Graph(np.float64 if predictor.dtype == torch.float64 else np.float32)
    network = predictor.network
    logits = add_operations(graph, "x", network.operations, network.input_shape)
    label, radius = _add_radius(graph, logits, predictor)
    for value, name in ((logits, "logits"), (label, "label"), (radius, "radius")):
        graph.nodes.append(graph.onnx.helper.make_node("Identity", [value], [name]))
    record = space_record(network)
    metadata = {
        "robustcert.functions": "; ".join(FUNCTIONS[key] for key in predictor.functions),
        "robustcert.norm": record["norm"],
        "robustcert.network.units": (
            "input units: distances between inputs as x holds them"
            if predictor.change is None
            else predictor.units
        ),
        "robustcert.inputs": record["inputs"],
        "robustcert.domain": json.dumps(record["domain"]),
        **({} if predictor.change is None else {"robustcert.change": predictor.change}),
        "robustcert.radius": "on the open ball of this radius the label does not change; 0: "
        "not certified",
        "robustcert.digest": predictor.digest,
    }
    model = _model(graph, predictor, metadata)
    if model.ByteSize() > MAX_BYTES:
        raise UnsoundNetworkError(f"the model has {model.ByteSize()} bytes: ONNX holds 2 GiB")
    graph.onnx.checker.check_model(model, full_check=True)
    with complete_file(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return metadata


def _model(graph: Graph, predictor: Predictor, metadata: dict[str, str]) -> Any:
    helper, types = graph.onnx.helper, graph.onnx.TensorProto
    kind = types.DOUBLE if graph.dtype is np.float64 else types.FLOAT
    classes = len(predictor.pairwise)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "robustcert",
            [helper.make_tensor_value_info("x", kind, ["N", *predictor.input_shape])],
            [
                helper.make_tensor_value_info("logits", kind, ["N", classes]),
                helper.make_tensor_value_info("label", types.INT64, ["N"]),
                helper.make_tensor_value_info("radius", types.DOUBLE, ["N"]),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="robustcert",
    )
    helper.set_model_props(model, metadata)
    return model


def _add_radius(network: Graph, logits: str, predictor: Predictor) -> tuple[str, str]:
    """Label and radius: the lines of ``certificates`` and of ``Predictor.evaluate``, in float64."""
    graph, double = network, np.float64
    types = graph.onnx.TensorProto

    def number(value: float) -> str:
        return graph.constant(value, double)

    wide = graph.apply("Cast", logits, to=types.DOUBLE)
    top = graph.apply("ArgMax", wide, axis=1, keepdims=1)
    label = graph.apply("Squeeze", top, graph.integers(1))
    margin = graph.sub(graph.apply("GatherElements", wide, top, axis=1), wide)

    flat = graph.reshape(graph.apply("Cast", "x", to=types.DOUBLE), -1)
    squares = graph.apply("ReduceSum", graph.mul(flat, flat), graph.integers(1), keepdims=1)
    size = math.prod(predictor.input_shape)
    distance = graph.mul(graph.apply("Sqrt", squares), number(1 + 2.0**-22))
    distance = graph.add(distance, number(size * 2.0**-511))
    centre = graph.add(number(predictor.alpha), graph.mul(number(predictor.beta), distance))
    allowance = graph.add(
        graph.mul(centre, number(2 * math.sqrt(2) * (1 + 1e-8))),
        graph.mul(graph.apply("Abs", margin), number(2.0**-52)),
    )
    fall = np.nextafter(predictor.pairwise.cpu().numpy() + predictor.drift, math.inf)
    slope = graph.apply("Gather", graph.constant(fall, double), label, axis=0)
    ratio = graph.div(graph.sub(margin, allowance), slope)
    classes = graph.constant(np.arange(len(fall))[None], np.int64)
    own = graph.apply("Equal", classes, top)
    ratio = graph.where(own, number(math.inf), ratio)

    least = graph.apply("ReduceMin", ratio, graph.integers(1), keepdims=0)
    room = graph.sub(number(_reach(predictor)), graph.apply("Squeeze", distance, graph.integers(1)))
    if predictor.stretch != 1.0:
        room = graph.mul(number((1 - 2.0**-40) / predictor.stretch), room)
    radius = graph.mul(graph.apply("Min", least, room), number(1 - 2.0**-50))
    # NaN and infinity differ from themselves less themselves; a NaN might get lost in a minimum.
    number_like = graph.apply("Equal", graph.sub(wide, wide), number(0.0))
    numbers = graph.apply("Cast", number_like, to=types.INT32)
    all_numbers = graph.apply("ReduceMin", numbers, graph.integers(1), keepdims=0)
    finite = graph.apply("Equal", all_numbers, graph.constant(1, np.int32))
    proved = graph.apply("And", finite, graph.apply("Greater", radius, number(0.0)))
    # An operation may lose the NaN of an input.
    inside = graph.apply("Equal", graph.sub(distance, distance), number(0.0))
    proved = graph.apply("And", proved, graph.apply("Squeeze", inside, graph.integers(1)))
    return label, graph.where(proved, radius, number(0.0))


def _reach(predictor: Predictor) -> float:
    """Distance from the origin within which no square of a value overflows either."""
    origin = torch.zeros(1, *predictor.input_shape, dtype=torch.float64, device="cpu")
    limit = 2.0**510 if predictor.dtype == torch.float64 else 2.0**62
    reach = predictor.reach
    network = replace(predictor.network.to(torch.device("cpu")), space=IMAGES)
    for state in forward_steps(network, origin):
        room = limit - 2 * float(state.output.norm()) - 2 * float(state.centre)
        reach = min(reach, room / (1 + 2 * (state.lipschitz + state.growth)))
    return reach
