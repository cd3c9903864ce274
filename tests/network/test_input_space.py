"""Constants in a metric: those of u -> f(x + S u), S being composed with what is linear."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustcert.models.normalize import Normalize
from robustcert.network.bounds import run
from robustcert.network.fold import fold_network
from robustcert.network.input_space import IMAGES, InputSpace, Metric, factor, scaling
from robustcert.network.network import PlainNetwork, pairwise_bound, prefix_bounds

SCALE = torch.tensor([2.0, 0.0, 0.25, 1.0, 8.0], dtype=torch.float64)


def table(*layers: nn.Module) -> PlainNetwork:
    first = Normalize([0.0], [0.5, 3.0, 0.1, 1.0, 6.0], channels=5)
    return fold_network(nn.Sequential(first, *layers), (5,))


def images() -> PlainNetwork:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    first = Normalize([0.1], [1.0, 2.0, 0.5, 1.0], channels=4)
    return fold_network(nn.Sequential(first, conv, nn.Flatten(), nn.Linear(54, 3)), (4, 5, 5))


def matrix_of(network: PlainNetwork, count: int) -> Tensor:
    """The Jacobian of the first ``count`` operations after S, at u = 0."""
    x = torch.zeros(1, *network.input_shape, dtype=torch.float64)
    metric = network.space.metric
    assert metric is not None
    zeros = network.around(x)[1]

    def first(u: Tensor) -> Tensor:
        return run(network.operations[:count], x + metric(u)).flatten()

    return torch.autograd.functional.jacobian(first, zeros).flatten(1)


def metrics() -> Sequence[tuple[PlainNetwork, Metric]]:
    torch.manual_seed(0)
    dense = table(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    matrix = SCALE[:, None] * torch.randn(5, 3, dtype=torch.float64)
    channels = torch.tensor([3.0, 0.0, 0.5, 1.0])
    return [(dense, scaling(SCALE)), (dense, factor(matrix)), (images(), scaling(channels))]


@pytest.mark.parametrize("case", range(3))
def test_the_constant_is_that_of_the_composed_map(case: int) -> None:
    network, metric = metrics()[case]
    network = replace(network, space=InputSpace("columns", None, metric))
    found, plain = prefix_bounds(network), prefix_bounds(replace(network, space=IMAGES))
    assert len(found) == len(plain) == len(network.operations) + 1
    for count in range(3):
        norm = float(torch.linalg.matrix_norm(matrix_of(network, count), 2))
        assert norm <= found[count] <= norm * (1.05 if case == 2 else 1 + 1e-4)
    assert found[2] < 0.9 * found[0] * plain[2]
    quotient = found[-1] / found[2]
    assert quotient == pytest.approx(plain[-1] / plain[2], rel=1e-9)


def test_a_network_of_one_layer_has_the_exact_constants_of_its_rows() -> None:
    torch.manual_seed(1)
    network = table(nn.Linear(5, 3))
    network = replace(network, space=InputSpace("columns", None, scaling(SCALE)))
    rows = matrix_of(network, 2)
    exact = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    found = pairwise_bound(network)
    assert (found >= exact).all()
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)


def test_a_metric_is_no_part_of_the_function_nor_of_its_digest() -> None:
    network, metric = metrics()[0]
    measured = replace(network, space=InputSpace("columns", None, metric))
    x = torch.randn(4, 5, dtype=torch.float64)
    assert measured.digest() == network.digest()
    assert torch.equal(measured(x), network(x))
    function, same = network.around(x)
    assert function is network
    assert same is x


def test_a_metric_that_is_changed_in_place_gets_its_own_constants() -> None:
    network, metric = metrics()[0]
    network = replace(network, space=InputSpace("columns", None, metric))
    before = prefix_bounds(network)
    assert metric is network.space.metric
    metric.scale.mul_(4)  # type: ignore[union-attr]
    assert prefix_bounds(network) == pytest.approx([4 * bound for bound in before], rel=1e-4)
