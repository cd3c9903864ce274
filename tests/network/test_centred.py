"""A sum that subtracts a mean has the norm of its matrix, and so do ReLUs of both signs."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from helpers.deployed import write_folder
from torch import Tensor, nn

from benchmarks.soundness.forgeries import Folder
from robustcert.check import check
from robustcert.check.network.reading import read_network
from robustcert.check.norms.centred import Group, centred_norm
from robustcert.lipschitz import fold_network, lipschitz_bound
from robustcert.network.bounds import operation_bound
from robustcert.network.branches import Sum
from robustcert.network.centred import centred_bound
from robustcert.network.linear import Affine, Dense, Flatten, Gather, Reshape
from robustcert.network.network import PlainNetwork

GROUPS, SIZE = 3, 4
SHAPE = (2, 6)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def order(seed: int = 0) -> Tensor:
    return torch.randperm(GROUPS * SIZE, generator=torch.Generator().manual_seed(seed))


def weighted(a: float, c: float, row: Tensor, places: Tensor, factors: Tensor) -> Sum:
    """``a x + c f (row . x)`` on every group, which reads the entries at some places."""
    back = torch.empty_like(places)
    back[places] = torch.arange(len(places)) // SIZE
    scale = torch.full((2,), c) * factors
    return Sum(
        (
            (Affine(torch.full((2,), a), torch.ones(2)),),
            (
                Gather(places.view(GROUPS, SIZE)),
                Dense(row[None]),
                Flatten(),
                Gather(back.view(SHAPE)),
                Affine(scale, randn(*SHAPE)),
            ),
        )
    )


def matrix_norm(operation: Sum) -> float:
    size = math.prod(SHAPE)
    rest = operation(torch.zeros(1, *SHAPE, dtype=torch.float64))
    images = operation(torch.eye(size, dtype=torch.float64).view(size, *SHAPE)) - rest
    return float(torch.linalg.matrix_norm(images.flatten(1), 2))


def checked_norm(operation: Sum, tmp_path: Path) -> float:
    """The norm that the checker finds."""
    network = PlainNetwork((operation, Flatten(), Dense(torch.eye(2, 12))), SHAPE)
    folder = Folder(write_folder(tmp_path, network, samples=2))
    (found, *_) = read_network(folder.claim["network"], folder.tensors)
    return centred_norm(found)


@pytest.mark.parametrize("seed", range(6))
def test_a_weighted_sum_added_to_its_group_has_the_norm_of_the_matrix(
    seed: int, tmp_path: Path
) -> None:
    a, c = (float(v) for v in randn(2, seed=seed))
    row = randn(SIZE, seed=seed) if seed % 2 else torch.full((SIZE,), 1 / SIZE)
    operation = weighted(a, c, row, order(seed), torch.ones(2))
    bound, norm = operation_bound(operation, SHAPE), matrix_norm(operation)
    assert norm * (1 - 1e-12) <= bound <= norm * (1 + 1e-12)
    assert norm * (1 - 1e-12) <= checked_norm(operation, tmp_path) <= bound


@pytest.mark.parametrize("axes", [(-2, -1), (1,), (-1,), (1, 2, 3)])
def test_what_has_lost_its_mean_is_no_longer_than_before(axes: tuple[int, ...]) -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(axes, keepdim=True)

    assert 1 <= lipschitz_bound(nn.Sequential(Centred(), nn.Flatten()), (3, 4, 5)) < 1 + 1e-7


def test_groups_that_meet_or_get_different_factors_have_the_sum_of_the_branches() -> None:
    row = randn(SIZE)
    even = torch.arange(12)
    honest = weighted(1.0, -1.0, row, even, torch.ones(2))
    assert centred_bound(honest.branches, SHAPE) is not None
    # A group of four lies in both rows of six, whose factors differ.
    uneven = weighted(1.0, -1.0, row, even, torch.tensor([1.0, 2.0]))
    # An entry is read by two groups; outputs read the sums of other groups.
    twice, crossed = even.clone(), even.clone()
    twice[0] = 5
    scaling, (first, *middle, spread, last) = honest.branches
    assert isinstance(spread, Gather)
    crossed = Gather(spread.index.flip(0, 1))
    for branches in (
        uneven.branches,
        (scaling, (Gather(twice.view(GROUPS, SIZE)), *middle, spread, last)),
        (scaling, (first, *middle, crossed, last)),
        (scaling, (first, Dense(row.expand(2, -1)), Reshape((6,)), spread, last)),
        (*honest.branches, ()),
    ):
        assert centred_bound(branches, SHAPE) is None
        assert operation_bound(Sum(branches), SHAPE) >= matrix_norm(Sum(branches)) * (1 - 1e-12)


def definite(matrix: list[list[Fraction]]) -> bool:
    """Whether a symmetric matrix is positive definite, by its pivots."""
    rows = [list(row) for row in matrix]
    for k, pivot in enumerate(rows):
        if pivot[k] <= 0:
            return False
        for row in rows[k + 1 :]:
            factor = row[k] / pivot[k]
            row[:] = [x - factor * y for x, y in zip(row, pivot, strict=True)]
    return True


@pytest.mark.parametrize("seed", range(20))
def test_the_checkers_norm_is_the_least_one_in_rationals(seed: int) -> None:
    numbers = [Fraction(int(v), 8) for v in (16 * randn(5, seed=seed))]
    a, c, *r = numbers
    group = Group(a, c, 3, sum(r, Fraction(0)), sum((v * v for v in r), Fraction(0)))
    eye = [[Fraction(i == j) for j in range(3)] for i in range(3)]
    m = [[a * eye[i][j] + c * r[j] for j in range(3)] for i in range(3)]
    gram = [[sum(m[k][i] * m[k][j] for k in range(3)) for j in range(3)] for i in range(3)]
    for t in (Fraction(k, 16) for k in range(1, 200)):
        left = [[t**2 * eye[i][j] - gram[i][j] for j in range(3)] for i in range(3)]
        # Where it is singular, both are true of the least norm only.
        assert group.obeys(t) == definite(left) or group.obeys(t) != group.obeys(t * (1 - 2.0**-60))


def test_a_centred_norm_that_is_claimed_too_small_is_refused(tmp_path: Path) -> None:
    operation = weighted(1.0, -0.5, randn(SIZE), order(), torch.ones(2))
    network = PlainNetwork((operation, Flatten(), Dense(randn(3, 12))), SHAPE)
    path = write_folder(tmp_path, network, samples=4)
    assert check(path, exact=4, seed=0).mismatches == []
    folder = Folder(path)
    claimed = folder.claim["bounds"][0]
    claimed["bound"] = math.nextafter(float.fromhex(claimed["bound"]) * (1 - 2.0**-50), 0.0).hex()
    folder.save()
    assert any("is not proved" in line for line in check(path, seed=0).mismatches)


def test_a_folder_whose_groups_were_exchanged_has_no_centred_norm(tmp_path: Path) -> None:
    operation = weighted(1.0, -0.25, torch.ones(SIZE), torch.arange(12), torch.ones(2))
    network = PlainNetwork((operation, Flatten(), Dense(randn(3, 12))), SHAPE)
    assert operation_bound(operation, SHAPE) == 1
    folder = Folder(write_folder(tmp_path, network, samples=4))
    (name,) = [k for k, t in folder.tensors.items() if k.endswith("index") and t.shape == SHAPE]
    folder.tensors[name] = folder.tensors[name][::-1, ::-1].copy()
    folder.save()
    assert any("is not proved" in line for line in check(folder.path, seed=0).mismatches)


@pytest.mark.parametrize("first", [1, -1])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
def test_relus_of_both_signs_side_by_side_keep_distances(
    first: int, shape: tuple[int, ...]
) -> None:
    class Signs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.relu(first * x), torch.relu(-first * x)], 1)

    network = fold_network(nn.Sequential(Signs(), nn.Flatten()), shape)
    assert lipschitz_bound(nn.Sequential(Signs(), nn.Flatten()), shape) == 1
    x = randn(7, *shape).double()
    assert torch.equal(network(x), Signs()(x).flatten(1))


def test_relus_of_other_pairs_are_no_signs() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.relu(x), torch.relu(-2 * x)], 1)

    # Twice the negative part has the slope 2.
    assert lipschitz_bound(Same(), (4,)) >= 2
