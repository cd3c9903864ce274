"""Output and interval of a regression as nodes of a graph."""

import math

from robustcert.certificate.regressor import Regressor
from robustcert.export.graph import Graph
from robustcert.export.rounding import add_error, reach_of_squares

# Relative allowance for the roundings of a half width, and room for their underflow.
ROUNDING, UNDERFLOW = 2.0**-47, 2.0**-1000


def add_interval(graph: Graph, output: str, regressor: Regressor) -> tuple[str, str, str]:
    r"""Prediction, lower and upper end for the input ``radius``, float64, shape ``(N,)`` each.

    With :math:`c = \alpha + \beta \lVert x \rVert` in place of the error that the certificate
    measured at x, the half width is that of :mod:`robustcert.certifiers.intervals`,
    :math:`(K + \beta) r + 4 c`. No node rounds outwards: what an end loses by its last subtraction
    is added beforehand. Ends are infinite where a value may overflow, and where the radius is no
    number of at least 0.
    """
    number, types = graph.number, graph.onnx.TensorProto
    error = regressor.known_error()
    first = graph.integers(1)
    prediction = graph.apply("Squeeze", graph.apply("Cast", output, to=types.DOUBLE), first)
    distance, centre = (
        graph.apply("Squeeze", value, first)
        for value in add_error(graph, error, regressor.input_shape)
    )
    slope = math.nextafter(regressor.lipschitz + error.growth, math.inf)
    half = graph.mul(number(slope), "radius")
    half = graph.add(half, graph.mul(number(4 * (1 + 1e-8)), centre))
    half = graph.add(half, graph.mul(graph.apply("Abs", prediction), number(2.0**-52)))
    half = graph.add(graph.mul(half, number(1 + ROUNDING)), number(UNDERFLOW))
    reach = reach_of_squares(error, regressor.network, regressor.dtype)
    moved = graph.mul(number(error.stretch * (1 + ROUNDING)), "radius")
    room = graph.sub(number(reach * (1 - ROUNDING)), distance)
    # A comparison with a NaN is false; infinity differs from itself less itself.
    sound = graph.apply("And", graph.apply("Less", moved, room), _is_number(graph, prediction))
    sound = graph.apply("And", sound, _is_number(graph, half))
    asked = graph.apply("GreaterOrEqual", "radius", number(0.0))
    sound = graph.apply("And", sound, asked)
    lower = graph.where(sound, graph.sub(prediction, half), number(-math.inf))
    upper = graph.where(sound, graph.add(prediction, half), number(math.inf))
    return prediction, lower, upper


def _is_number(graph: Graph, value: str) -> str:
    return graph.apply("Equal", graph.sub(value, value), graph.number(0.0))
