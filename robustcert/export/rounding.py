"""What rounding may do to an exported network, as nodes of its graph, and where it is known."""

import math
from dataclasses import replace

import torch

from robustcert.certificate.known_error import KnownError
from robustcert.export.graph import Graph
from robustcert.network.forward_error import forward_steps
from robustcert.network.input_space import IMAGES
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Shape


def add_error(graph: Graph, error: KnownError, shape: Shape) -> tuple[str, str]:
    """Norm of the input ``x``, rounded up, and the error of its outputs: float64, ``(N, 1)``."""
    number, types = graph.number, graph.onnx.TensorProto
    flat = graph.reshape(graph.apply("Cast", "x", to=types.DOUBLE), -1)
    squares = graph.apply("ReduceSum", graph.mul(flat, flat), graph.integers(1), keepdims=1)
    distance = graph.mul(graph.apply("Sqrt", squares), number(1 + 2.0**-22))
    distance = graph.add(distance, number(math.prod(shape) * 2.0**-511))
    centre = graph.add(number(error.alpha), graph.mul(number(error.beta), distance))
    return distance, centre


def reach_of_squares(error: KnownError, network: PlainNetwork, dtype: torch.dtype) -> float:
    """Distance from the origin within which no square of a value overflows either.

    Args:
        error: That of the network.
        network: The network.
        dtype: Arithmetic of the model.
    """
    origin = torch.zeros(1, *network.input_shape, dtype=torch.float64, device="cpu")
    limit = 2.0**510 if dtype == torch.float64 else 2.0**62
    reach = error.reach
    network = replace(network.to(torch.device("cpu")), space=IMAGES)
    for state in forward_steps(network, origin):
        room = limit - 2 * float(state.output.norm()) - 2 * float(state.centre)
        reach = min(reach, room / (1 + 2 * (state.lipschitz + state.growth)))
    return reach
