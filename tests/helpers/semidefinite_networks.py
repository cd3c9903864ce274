"""Networks for semidefinite bounds."""

import itertools
import math

import torch
from torch import Tensor

from robustcert.network.activation import Activation
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation


def network(activation: Operation, *sizes: int, seed: int = 0, scale: float = 1.0) -> PlainNetwork:
    """Dense layers with Gaussian weights and an activation between every two."""
    generator = torch.Generator().manual_seed(seed)
    operations: list[Operation] = []
    for columns, rows in itertools.pairwise(sizes):
        weight = torch.randn(rows, columns, generator=generator) * scale / columns**0.5
        operations += [Dense(weight, torch.randn(rows, generator=generator)), activation]
    return PlainNetwork(tuple(operations[:-1]), sizes[:1])


def steepest(network: PlainNetwork) -> Tensor:
    """Largest slopes of logit differences over all ways in which every unit may behave."""
    jacobians = [torch.eye(network.input_shape[0], dtype=torch.float64)]
    for operation in network.operations:
        if isinstance(operation, Dense):
            jacobians = [operation.weight.double() @ j for j in jacobians]
            continue
        assert isinstance(operation, Activation)
        assert operation.slopes is not None
        slopes = operation.slopes
        size = len(jacobians[0])
        basis = torch.eye(size, dtype=torch.float64)
        if slopes.pairs:
            pair = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
            basis = torch.block_diag(*[pair] * (size // 2))
        step = 2 if slopes.pairs else 1
        patterns = []
        for corners in itertools.product((slopes.low, slopes.high), repeat=size // step):
            diagonal = torch.ones(size, dtype=torch.float64)
            diagonal[step - 1 :: step] = torch.tensor(corners, dtype=torch.float64)
            patterns.append(basis.mT @ (diagonal[:, None] * basis))
        jacobians = [pattern @ j for pattern in patterns for j in jacobians]
    stacked = torch.stack(jacobians)
    return torch.cdist(stacked, stacked).amax(0)
