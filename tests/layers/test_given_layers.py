"""Layers for networks of others: the fold is the layer, and the bound is its norm."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustcert.activations import ReLU
from robustcert.layers import (
    BROConv2d,
    ScaledResidualConv2d,
    UnconstrainedCircularConv2d,
    ZeroPad2d,
)
from robustcert.layers.bro import block_reflector
from robustcert.lipschitz import fold_network, lipschitz_bound, lipschitz_estimate

SHAPE = (4, 6, 6)


def residual() -> nn.Module:
    layer = ScaledResidualConv2d(4, 4, 3, padding=1, input_size=(6, 6), activation=ReLU)
    nn.init.constant_(layer.root, 0.5)
    return layer


LAYERS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "padded": (lambda: ZeroPad2d(4, 2), 1.0),
    "circular": (
        lambda: UnconstrainedCircularConv2d(4, 3, (3, 3), padding=1, input_size=(6, 6), margin=2),
        1.5,
    ),
    "reflected": (
        lambda: BROConv2d(4, 4, 3, padding=1, input_size=(6, 6), columns=1, ridge=1e-3),
        1.0,
    ),
    "residual": (residual, 1.0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_fold_is_the_layer_and_no_pair_moves_further_apart_than_the_bound(name: str) -> None:
    torch.manual_seed(0)
    make, size = LAYERS[name]
    layer = make().double()
    if name == "circular":
        nn.init.normal_(layer.get_parameter("weight"), std=size / 6)
    network = fold_network(nn.Sequential(layer, nn.Flatten()), SHAPE)
    x, y = torch.randn(2, 50, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(network(x), layer(x).flatten(1))
    bound = lipschitz_bound(layer, SHAPE)
    moved = (layer(x) - layer(y)).flatten(1).norm(dim=1)
    assert (moved <= bound * (x - y).flatten(1).norm(dim=1) * (1 + 1e-9)).all()
    if name != "residual":
        estimate = float(torch.as_tensor(lipschitz_estimate(layer)).detach())
        assert estimate <= bound * (1 + 1e-6)
        assert bound <= estimate * (1 + 1e-4)


def test_a_ridge_is_what_the_formula_says_and_none_is_the_reflection() -> None:
    v = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rho = 0.1 * float((v.mT @ v).diagonal().mean())
    gram = v.mT @ v + rho * torch.eye(2, dtype=torch.float64)
    expected = torch.eye(5, dtype=torch.float64) - 2 * v @ torch.linalg.inv(gram) @ v.mT
    torch.testing.assert_close(block_reflector(v, 0.1), expected)
    torch.testing.assert_close(block_reflector(v, 1e-13), block_reflector(v))
    assert torch.linalg.matrix_norm(block_reflector(v, 0.1), 2) <= 1 + 1e-12


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ZeroPad2d(0, 1), "channels and size"),
        (lambda: UnconstrainedCircularConv2d(1, 1, (9, 9), input_size=(4, 4)), "kernel_size"),
        (lambda: BROConv2d(4, 4, 3, padding=1, input_size=(6, 6), ridge=-1.0), "ridge"),
    ],
)
def test_what_cannot_be_built_names_the_key(make: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
