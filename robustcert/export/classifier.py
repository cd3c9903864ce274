"""Label and certified radius of a classifier as nodes of a graph."""

import math

import numpy as np

from robustcert.certificate.predictor import Predictor
from robustcert.export.graph import Graph
from robustcert.export.rounding import add_error, reach_of_squares


def add_radius(graph: Graph, logits: str, predictor: Predictor) -> tuple[str, str]:
    """Label and radius: the lines of ``certificates`` and of ``Predictor.evaluate``, in float64."""
    number, types = graph.number, graph.onnx.TensorProto
    wide = graph.apply("Cast", logits, to=types.DOUBLE)
    top = graph.apply("ArgMax", wide, axis=1, keepdims=1)
    label = graph.apply("Squeeze", top, graph.integers(1))
    margin = graph.sub(graph.apply("GatherElements", wide, top, axis=1), wide)

    distance, centre = add_error(graph, predictor.error, predictor.input_shape)
    allowance = graph.add(
        graph.mul(centre, number(2 * math.sqrt(2) * (1 + 1e-8))),
        graph.mul(graph.apply("Abs", margin), number(2.0**-52)),
    )
    fall = np.nextafter(predictor.pairwise.cpu().numpy() + predictor.drift, math.inf)
    slope = graph.apply("Gather", graph.constant(fall, np.float64), label, axis=0)
    ratio = graph.div(graph.sub(margin, allowance), slope)
    classes = graph.constant(np.arange(len(fall))[None], np.int64)
    own = graph.apply("Equal", classes, top)
    ratio = graph.where(own, number(math.inf), ratio)

    least = graph.apply("ReduceMin", ratio, graph.integers(1), keepdims=0)
    reach = reach_of_squares(predictor.error, predictor.network, predictor.dtype)
    room = graph.sub(number(reach), graph.apply("Squeeze", distance, graph.integers(1)))
    if predictor.error.stretch != 1.0:
        room = graph.mul(number((1 - 2.0**-40) / predictor.error.stretch), room)
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
