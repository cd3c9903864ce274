"""Distances to quadrics: never above what is found by search, and equal to it."""

import math

import pytest
import torch
from torch import Tensor

from robustcert.quadric import quadric_distance


def found(f: Tensor, g: Tensor, eigenvalues: Tensor) -> Tensor:
    """Least distance at which the quadratic vanishes along any of many directions."""
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(200_000, len(eigenvalues), generator=generator, dtype=torch.float64)
    u = u / u.norm(dim=1, keepdim=True)
    best = []
    for value, gradient in zip(f, g, strict=True):
        a, b = (u.square() * eigenvalues).sum(1), u @ gradient
        root = (b.square() - 4 * a * value).clamp(min=0).sqrt()
        distance = 2 * value / (-b + root)
        real = (b.square() >= 4 * a * value) & (distance > 0)
        best.append(torch.where(real, distance, math.inf).min())
    return torch.stack(best)


@pytest.mark.parametrize("eigenvalues", [[-1.0, 0.5, 0.0], [0.2, 0.8, 1.0], [-0.3, -0.7, -1.0]])
def test_it_is_the_distance(eigenvalues: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    f = 0.2 + torch.rand(20, generator=generator, dtype=torch.float64)
    g = 3 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    a = torch.tensor(eigenvalues, dtype=torch.float64)
    bound = quadric_distance(f, g, torch.zeros_like(f), a)
    search = found(f, g, a)
    reached = search.isfinite()
    assert reached.any()
    assert (bound <= search * (1 + 1e-9))[reached].all()
    assert (search / bound)[reached].max() < 1.01


def test_a_linear_function_vanishes_at_value_over_slope() -> None:
    f, g = torch.tensor([2.0, -1.0]).double(), torch.tensor([[3.0], [3.0]]).double()
    rest, zero = torch.tensor([16.0, 16.0]).double(), torch.zeros(1).double()
    distance = quadric_distance(f, g, rest, zero)
    assert distance.tolist() == pytest.approx([0.4, 0.0], rel=1e-6)
