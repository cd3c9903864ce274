"""Random graphs of modules: what is captured is what runs, within its bound and its radii."""

import pytest
import torch

from benchmarks.soundness.random_graphs import TOLERANCE, attacked, difference, excess, network
from robustcert.network.fold import fold_network


def check(seed: int, attack: bool) -> None:
    net, shape = network(seed)
    folded = fold_network(net, shape)
    assert difference(net, folded, shape) <= TOLERANCE, f"seed {seed}"
    assert excess(net, folded, shape) <= 1 + 1e-6, f"seed {seed}"
    if attack:
        own, found, _ = attacked(net, folded, torch.randn(4, *shape, dtype=torch.float64))
        assert torch.equal(own, found), f"seed {seed}"


@pytest.mark.parametrize("start", [0, 10, 20])
def test_random_graphs(start: int) -> None:
    for seed in range(start, start + 10):
        check(seed, attack=seed % 10 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 2000, 100))
def test_many_random_graphs(start: int) -> None:
    for seed in range(start, start + 100):
        check(seed, attack=seed % 5 == 0)
