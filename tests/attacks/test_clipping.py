"""Attacks on columns stay within the ranges that the data state; certificates do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.regression import network as regression_network

from robustcert.attacks import pgd_survivors
from robustcert.attacks.clipping import around_clipped, limits
from robustcert.certifiers import LipschitzCertifier
from robustcert.data import NPZ, DatasetError, input_space
from robustcert.network.input_space import InputSpace, factor, scaling
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork
from robustcert.runs.regression import largest_changes

RANGES = ((0.0, 1.0), (-torch.inf, torch.inf))
# The boundary is where the first column is above 1.
LINE = PlainNetwork((Dense(torch.tensor([[1.0, 0.1], [0, 0]]), torch.tensor([-1.2, 0])),), (2,))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [None, torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.0])])
def test_what_cannot_occur_breaks_nothing(scale: torch.Tensor | None) -> None:
    pytest.importorskip("foolbox")
    space = InputSpace("columns", ("a", "b"), None if scale is None else scaling(scale))
    free = replace(LINE, space=space)
    bound = replace(LINE, space=replace(space, ranges=RANGES))
    x = torch.tensor([[0.9, 0.0], [0.99, 0.0]]).double().repeat(8, 1)
    label = torch.ones(16, dtype=torch.int64)
    # Not every random start gets out of the range in the attack's steps.
    assert pgd_survivors(free, x, label, [0.9]).sum() < 8
    assert pgd_survivors(bound, x, label, [0.9]).all()
    assert "stated ranges" in limits(bound)
    found = [LipschitzCertifier().certify(n, x.float()).radius for n in (free, bound)]
    assert torch.equal(*found)
    assert free.digest() == bound.digest()


def test_clipped_points_are_in_the_ball_and_matrices_are_not_clipped() -> None:
    metric = scaling(torch.tensor([2.0, 0.5]))
    network = replace(LINE, space=InputSpace("columns", None, metric, RANGES))
    f, centre = around_clipped(network, torch.tensor([[0.9, 0.0]]).double())
    u = torch.tensor([[0.3, 0.4]]).double()
    torch.testing.assert_close(f(centre + u), LINE(torch.tensor([[1.0, 0.2]]).double()))
    matrix = replace(network, space=replace(network.space, metric=factor(torch.eye(2).double())))
    assert limits(matrix) == "of u in x + S u, not clipped"


@pytest.mark.slow
def test_outputs_of_a_regression_are_those_within_the_ranges() -> None:
    torch.manual_seed(0)
    ranges = ((0.0, 1.0),) * 3
    free = regression_network(space=InputSpace("columns"))
    bound = replace(free, space=InputSpace("columns", ranges=ranges))
    x = torch.rand(8, 3).double()
    low, high = largest_changes(bound, x, 1.0, steps=10)
    wide_low, wide_high = largest_changes(free, x, 1.0, steps=10)
    assert (high - low).mean() < (wide_high - wide_low).mean()
    grid = (1.4 * torch.rand(3000, 3).double() - 0.2).clamp(0, 1)
    values = free(grid)[:, 0]
    # Nothing is found beyond what the box has, up to the sampling of the box.
    assert (high <= values.max() + 0.05).all()
    assert (low >= values.min() - 0.05).all()


def test_ranges_are_read_by_name_and_hold_the_data(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    x, y = np.array([[0.5, 3.0], [0.2, -1.0]]), np.array([0, 1])
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, columns=["a", "b"])
    data = NPZ(path, domain="columns", ranges={"a": [0, 1]})
    assert input_space(data).ranges == RANGES
    assert input_space(data, scale=2).ranges == RANGES
    assert input_space(NPZ(path, domain="columns")).ranges is None
    for ranges, said in (
        ({"c": [0, 1]}, "no column 'c'"),
        ([[0, 1]], "expected 2 ranges"),
        ({"b": [1, 1]}, "least and a greatest value of column 'b'"),
        ({"b": [0, 5]}, "column 'b' has -1, outside"),
    ):
        with pytest.raises(DatasetError, match=said):
            NPZ(path, domain="columns", ranges=ranges)
    np.savez(path, x_train=x / 9 + 0.5, y_train=y, x_test=x / 9 + 0.5, y_test=y)
    with pytest.raises(DatasetError, match=r"dataset\.ranges is of columns"):
        NPZ(path, ranges=[[0, 1], [0, 1]])
