"""Networks of two inputs taken apart: pieces, boundary and distance against brute force."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustcert.activations import Abs, GroupSort, NActivation, ReLU, Tanh
from robustcert.attacks import ddn
from robustcert.ground_truth.plane import (
    area,
    boundary_segments,
    distance_to_segments,
    linear_pieces,
)
from robustcert.layers import CholeskyLinear
from robustcert.models import MLP, LayerFamily
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork


def network(activation: Callable[[int], nn.Module]) -> PlainNetwork:
    torch.manual_seed(0)
    family = LayerFamily(dense=CholeskyLinear, conv=nn.Conv2d)
    model = MLP((2,), 2, width=6, depth=2, layer=family, activation=activation, mean=[0.5])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.head.bias -= model(torch.rand(500, 2)).mean(0)
    return fold_network(model.eval(), (2,))


@pytest.mark.parametrize("activation", [ReLU, Abs, GroupSort, NActivation])
def test_pieces_cover_the_square_and_agree_with_the_network(
    activation: Callable[[int], nn.Module],
) -> None:
    net = network(activation)
    pieces = linear_pieces(net, -0.5, 1.5)
    assert len(pieces) > 5
    assert sum(area(piece.corners) for piece in pieces) == pytest.approx(4, abs=1e-9)
    generator = torch.Generator().manual_seed(0)
    for piece in pieces:
        weight = torch.rand(8, len(piece.corners), generator=generator, dtype=torch.float64)
        x = (weight / weight.sum(1, keepdim=True)) @ piece.corners
        logits = net(x)
        linear = x @ piece.gradient + piece.offset
        torch.testing.assert_close(linear, logits[:, 0] - logits[:, 1], rtol=0, atol=1e-9)
    segments = boundary_segments(pieces)
    ties = net(segments.flatten(0, 1))
    assert (ties[:, 0] - ties[:, 1]).abs().max() < 1e-12
    # No attack comes nearer than the exact distance, and a good one comes as near.
    x = 0.3 + 0.4 * torch.rand(40, 2, generator=generator, dtype=torch.float64)
    distance, nearest = distance_to_segments(x, segments)
    found, _ = ddn(net, x, net(x).argmax(1), steps=60, restarts=6, initial_norm=0.2)
    assert (found >= distance - 1e-9).all()
    assert (found / distance).median() < 1.01
    torch.testing.assert_close((x - nearest).norm(dim=1), distance)


def test_smooth_networks_have_no_pieces() -> None:
    with pytest.raises(ValueError, match="pieces"):
        linear_pieces(network(Tanh))


def test_the_distance_to_a_segment_ends_at_its_ends() -> None:
    segment = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    x = torch.tensor([[0.5, 2.0], [2.0, 1.0], [-3.0, -4.0]], dtype=torch.float64)
    distance, _ = distance_to_segments(x, segment)
    assert distance.tolist() == pytest.approx([2.0, math.sqrt(2), 5.0])
