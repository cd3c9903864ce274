"""Nominal times of bounds, training steps and radii: operations counted, over a rate."""

import math

from robustcert.network.network import PlainNetwork
from robustcert.network.reflection import Reflection
from robustcert.network.shared_bounds import leaves

# Multiplications per entry of a product of matrices: its Gram matrix, a factor, and what is left.
PER_PRODUCT = 6
# Nominal numbers of operations in a second: of proofs and forward passes in float64 on the CPU, and
# of training steps there; of the same two on an accelerator; and the least that a step takes.
# Measured times would differ from run to run, and with them the epochs that are validated.
PROOF_RATE, CPU_RATE = 2.5e10, 5e10
ACCELERATOR_FLOAT64_RATE, ACCELERATOR_RATE = 1e12, 5e13
LEAST_STEP = 0.005


def proof_seconds(network: PlainNetwork, *, accelerated: bool) -> float:
    """Nominal time of the bounds of all operations."""
    rate = ACCELERATOR_FLOAT64_RATE if accelerated else PROOF_RATE
    work = 0.0
    for operation, shape in leaves(network.operations, network.input_shape):
        if isinstance(operation, Reflection):  # whose norm is known
            continue
        for weight in operation.tensors().values():
            if weight.dim() >= 2:
                small, large = sorted(weight.shape[:2])
                work += math.prod(shape[1:]) * small**2 * large
    return PER_PRODUCT * work / rate


def training_seconds(network: PlainNetwork, steps: int, batch: int, *, accelerated: bool) -> float:
    """Nominal time of so many training steps: a forward pass, and twice as much backwards."""
    rate = ACCELERATOR_RATE if accelerated else CPU_RATE
    return steps * max(6 * _products(network) * batch / rate, LEAST_STEP)


def radii_seconds(network: PlainNetwork, samples: int, *, accelerated: bool) -> float:
    """Nominal time of radii by norms of so many samples: a forward pass in float64 each."""
    rate = ACCELERATOR_FLOAT64_RATE if accelerated else PROOF_RATE
    return 2 * _products(network) * samples / rate


def _products(network: PlainNetwork) -> int:
    """Products of a weight and a value in a forward pass of a sample."""
    count = 0
    for operation, shape in leaves(network.operations, network.input_shape):
        positions = math.prod(operation.output_shape(shape)[1:])
        count += positions * sum(t.numel() for t in operation.tensors().values() if t.dim() >= 2)
    return count
