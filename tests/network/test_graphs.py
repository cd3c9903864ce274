"""Graphs that part and meet, maps of indices, and linear operations that become one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.errors import UnknownLipschitz
from robustcert.network.bounds import run, sequence_bound
from robustcert.network.branches import Concatenation, Sum
from robustcert.network.fold import fold_for
from robustcert.network.linear import Affine, CircularConvolution, Convolution, Dense, Gather
from robustcert.network.merging import merged
from robustcert.network.operation import Operation


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Calls(nn.Module):
    """A function of an input, with some modules."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def operations(
    function: Callable[..., Tensor], shape: tuple[int, ...], *modules: nn.Module
) -> list[Operation]:
    """What is captured of a function, compared with it on the way."""
    module = Calls(function, *modules).double().eval()
    found = fold_for(module, shape)
    x = torch.randn(6, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
        assert (run(found, x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    return found


MAPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], float]] = {
    "slice": (lambda x: x[:, 1:, ::2], (3, 4, 2), 1.0),
    "index": (lambda x: x[:, [0, 2, 2]], (3, 4), 2**0.5),
    "permute": (lambda x: x.permute(0, 3, 1, 2), (3, 4, 2), 1.0),
    "mT": (lambda x: x.mT, (3, 4), 1.0),
    "flip": (lambda x: x.flip(1, 2), (3, 4), 1.0),
    "roll": (lambda x: x.roll((1, 2), (1, 2)), (3, 4), 1.0),
    "repeat": (lambda x: x.repeat(1, 3), (4,), 3**0.5),
    "expand": (lambda x: x[:, None].expand(-1, 5, -1), (4,), 5**0.5),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (4, 2, 3), 1.0),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), (2, 3, 3), 2.0),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), (1, 3, 3), 3.0),
    "circular": (lambda x: F.pad(x, (1, 1, 0, 0), mode="circular"), (1, 2, 3), 2**0.5),
    "zeros": (lambda x: F.pad(x, (1, 2, -1, 0)), (1, 3, 3), 1.0),
}


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_of_indices_has_the_root_of_its_largest_multiplicity(kind: str) -> None:
    function, shape, constant = MAPS[kind]
    (operation,) = operations(function, shape)
    assert isinstance(operation, Gather)
    assert operation.rounding(shape, 2.0**-24) == (0, 0)
    matrix = operation(
        torch.eye(24, dtype=torch.float64)[: torch.Size(shape).numel()]
        .view(-1, 24)[:, : torch.Size(shape).numel()]
        .view(-1, *shape)
    )
    norm = torch.linalg.matrix_norm(matrix.flatten(1), 2)
    torch.testing.assert_close(norm, torch.tensor(constant).double())
    assert norm * (1 - 1e-12) <= operation.lipschitz_bound(shape) <= norm * (1 + 1e-12)


def test_maps_of_indices_become_one_and_those_that_undo_each_other_none() -> None:
    assert operations(lambda x: x.flip(1).permute(0, 2, 1).flip(2).mT, (3, 4)) == []
    (one,) = operations(lambda x: F.pad(x, (1, 0))[:, :-1].flip(1).unflatten(1, (2, 2)), (4,))
    assert isinstance(one, Gather)


def test_split_branches_meet_again() -> None:
    def halves(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([first(a), torch.relu(second(b))], dim=1)

    found = operations(halves, (6,), nn.Linear(3, 2), nn.Linear(3, 4))
    (whole,) = found
    assert isinstance(whole, Concatenation)
    parts = [sequence_bound(branch, (6,)) for branch in whole.branches]
    total = sum(part**2 for part in parts) ** 0.5
    assert total <= whole.lipschitz_bound((6,)) <= total * (1 + 1e-15)


@pytest.mark.parametrize(("stride", "kernel"), [(1, (3, 3)), (2, (3, 5)), (1, (1, 3))])
def test_a_convolution_of_a_map_extended_circularly_is_one_on_the_torus(
    stride: int, kernel: tuple[int, int]
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2)
    layer = nn.Conv2d(2, 3, kernel, stride, padding, padding_mode="circular")
    (whole,) = operations(lambda x, f: f(x), (2, 6, 8), layer)
    assert isinstance(whole, CircularConvolution)
    inputs = torch.eye(96, dtype=torch.float64).view(96, 2, 6, 8)
    centred = whole(inputs) - whole(torch.zeros(1, 2, 6, 8, dtype=torch.float64))
    norm = torch.linalg.matrix_norm(centred.flatten(1), 2)
    # Attained, where zeros around the extended map would double it.
    assert norm * (1 - 1e-9) <= whole.lipschitz_bound((2, 6, 8)) <= norm * (1 + 1e-6)


SORTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "vectors": (lambda x: x.sort(1)[0], (5,)),
    "channels, down": (lambda x: x.sort(1, descending=True).values, (3, 2, 4)),
    "rows": (lambda x: torch.sort(x, dim=2)[0], (3, 4, 2)),
    "last dimension": (lambda x: x.sort()[0], (3, 4)),
    "largest": (lambda x: x.max(1, keepdim=True)[0], (3, 2, 2)),
    "least": (lambda x: torch.min(x, dim=-1).values, (3, 4)),
    "along": (lambda x: torch.amax(x, 2), (3, 4)),
    "of two": (lambda x: torch.maximum(*x.chunk(2, 1)), (4, 3)),
}


@pytest.mark.parametrize("kind", SORTS)
def test_sorting_and_choosing_the_largest_keep_distances(kind: str) -> None:
    function, shape = SORTS[kind]
    assert sequence_bound(operations(function, shape), shape) == 1


def test_the_larger_and_the_smaller_of_two_are_one_sort() -> None:
    def max_min(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.max(a, b), torch.min(a, b)], 1)

    kinds = [op.kind for op in operations(max_min, (6, 2, 2))]
    assert kinds == ["gather", "activation", "gather"]
    # With a constant, and of a value and one that is computed of it.
    operations(lambda x: torch.max(x, torch.tensor([0.5, -0.5])), (3, 2))
    (whole,) = operations(lambda x: x.maximum(-x).minimum(x), (4,))[:1]
    assert isinstance(whole, Concatenation)


def test_what_branches_have_in_common_is_computed_once() -> None:
    def twice(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        return torch.cat([second(torch.relu(first(x))), torch.relu(first(x))], 1)

    found = operations(twice, (4,), nn.Linear(4, 5), nn.Linear(5, 2))
    assert [op.kind for op in found] == ["dense", "activation", "concatenate"]


def test_a_concatenation_attains_its_constant() -> None:
    (whole,) = operations(lambda x: torch.stack([x, 2 * x, torch.zeros_like(x)], 1), (3,))
    matrix = whole(torch.eye(3, dtype=torch.float64)).flatten(1)
    norm = torch.linalg.matrix_norm(matrix, 2)
    torch.testing.assert_close(norm, torch.tensor(5**0.5).double())
    # A constant branch counts nothing.
    assert norm * (1 - 1e-12) <= whole.lipschitz_bound((3,)) <= norm * (1 + 1e-12)


def test_a_graph_that_is_not_series_parallel_repeats_what_is_shared() -> None:
    def crossed(x: Tensor, *layers: nn.Module) -> Tensor:
        a = torch.relu(layers[0](x))
        b = torch.tanh(layers[1](a))
        return torch.relu(a + torch.relu(layers[2](b))) + b

    layers = [nn.Linear(4, 4) for _ in range(3)]
    found = operations(crossed, (4,), *layers)
    whole = found[-1]
    assert isinstance(whole, Sum)
    shared = [op for branch in whole.branches for op in branch if isinstance(op, Dense)]
    inner = [op for op in whole.branches[0] if isinstance(op, Sum)]
    repeated = inner[0].branches[1][0]
    assert isinstance(repeated, Dense)
    assert torch.equal(repeated.weight, shared[0].weight)


def test_a_graph_that_needs_too_many_copies_is_refused_with_its_line() -> None:
    def woven(x: Tensor) -> Tensor:
        a, b = torch.relu(x), torch.tanh(x)
        for _ in range(12):
            a, b = torch.relu(a + b), torch.tanh(a - b)
        return a + b

    with pytest.raises(UnknownLipschitz, match=r"test_graphs.py.*more than 1000 copies"):
        operations(woven, (4,))


def deeper(x: Tensor, depth: int) -> Tensor:
    return torch.relu(x) + deeper(torch.tanh(x), depth - 1) if depth else x


def test_branches_that_are_too_deep_are_refused() -> None:
    with pytest.raises(UnknownLipschitz, match="branches more than 20 deep"):
        operations(lambda x: deeper(x, 25), (4,))


def test_batch_normalisation_becomes_part_of_the_weights() -> None:
    conv, norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)
    assert norm.running_var is not None
    norm.running_var.uniform_(0.1, 4)
    with torch.no_grad():
        norm.bias.normal_()
    found = operations(lambda x, conv, norm: torch.relu(norm(conv(x))), (2, 5, 5), conv, norm)
    assert [type(op) for op in found[:1]] == [Convolution]
    assert len(found) == 2
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).abs().max().item()
    unmerged = sequence_bound([Convolution(conv.weight.detach())], (2, 5, 5)) * factor
    assert sequence_bound(found, (2, 5, 5)) < 0.99 * unmerged


def weights(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


MERGED: dict[str, tuple[list[Operation], tuple[int, ...], int]] = {
    "dense, affine": ([Dense(weights(3, 4)), Affine(weights(3), weights(3))], (4,), 1),
    "affine, dense": ([Affine(weights(4), weights(4)), Dense(weights(3, 4), weights(3))], (4,), 1),
    "affine twice": ([Affine(weights(4), weights(4))] * 2, (4, 2), 1),
    "dense twice": ([Dense(weights(4, 4), weights(4)), Dense(weights(3, 4))], (4,), 1),
    "dense twice, narrow between": ([Dense(weights(1, 9)), Dense(weights(9, 1))], (9,), 2),
    "dense on rows, affine": ([Dense(weights(3, 4)), Affine(weights(2), weights(2))], (2, 4), 2),
    "convolution, affine": (
        [Convolution(weights(4, 1, 3, 3), groups=2), Affine(weights(4), weights(4))],
        (2, 5, 5),
        1,
    ),
    "affine, convolution": (
        [Affine(weights(4), weights(4)), Convolution(weights(6, 2, 3, 3), weights(6), groups=2)],
        (4, 5, 5),
        1,
    ),
    "shift, padded convolution": (
        [Affine(weights(4), weights(4)), Convolution(weights(6, 4, 3, 3), padding=(1, 1))],
        (4, 5, 5),
        2,
    ),
    "scale, padded convolution": (
        [
            Affine(weights(4), torch.zeros(4).double()),
            Convolution(weights(6, 4, 3, 3), None, (1, 1), (1, 1)),
        ],
        (4, 5, 5),
        1,
    ),
    "dense block": ([Sum(((), (Dense(weights(4, 4), weights(4)),), ()))], (4,), 1),
    "convolutional block": (
        [
            Sum(
                (
                    (Convolution(weights(4, 1, 3, 3), weights(4), (1, 1), (2, 2), (2, 2), 4),),
                    (),
                    (Convolution(weights(4, 1, 1, 1), groups=4),),
                )
            )
        ],
        (4, 6, 6),
        1,
    ),
    "strides that differ in place": (
        [
            Sum(
                (
                    (Convolution(weights(4, 4, 3, 3), None, (2, 2), (1, 1)),),
                    (Convolution(weights(4, 4, 1, 1), weights(4), (2, 2)),),
                )
            )
        ],
        (4, 6, 6),
        1,
    ),
}


@pytest.mark.parametrize("kind", MERGED)
def test_merged_operations_are_the_same_function_within_no_larger_bound(kind: str) -> None:
    separate, shape, count = MERGED[kind]
    found = merged(separate, shape)
    assert len(found) == count
    x = torch.randn(9, *shape, dtype=torch.float64)
    torch.testing.assert_close(run(found, x), run(separate, x), rtol=1e-12, atol=1e-12)
    assert sequence_bound(found, shape) <= sequence_bound(separate, shape) * (1 + 1e-6)


def test_a_linear_residual_block_has_the_norm_of_identity_plus_weight() -> None:
    def block(x: Tensor, layer: nn.Module) -> Tensor:
        return x + layer(x)

    layer = nn.Linear(5, 5)
    (operation,) = operations(block, (5,), layer)
    norm = torch.linalg.matrix_norm(torch.eye(5) + layer.weight.detach(), 2)
    bound = operation.lipschitz_bound((5,))
    assert norm * (1 - 1e-12) <= bound <= norm * (1 + 1e-6)
    assert bound < 1 + torch.linalg.matrix_norm(layer.weight.detach(), 2)


@pytest.mark.parametrize(
    "split",
    [
        lambda x: x.split(2, 1),
        lambda x: torch.split(x, [1, 3, 2], dim=1),
        lambda x: x.tensor_split(3, dim=1),
        lambda x: [v.unsqueeze(1) for v in x.unflatten(1, (2, 3)).unbind(2)],
        lambda x: x.view(-1, 3, 2).movedim(1, 2).chunk(2, 1),
        lambda x: [x.narrow(1, 0, 4), x[:, -2:]],
        lambda x: x.view(-1, 2, 3).swapaxes(1, 2).rot90(1, (1, 2)).unbind(1),
    ],
)
def test_parts_that_stand_side_by_side_again(split: Callable[[Tensor], list[Tensor]]) -> None:
    def joined(x: Tensor) -> Tensor:
        return torch.hstack([torch.relu(part).flatten(1) for part in reversed([*split(x)])])

    found = operations(joined, (6,))
    assert any(isinstance(op, Concatenation) for op in found)


def test_constants_of_every_entry_and_values_that_broadcast() -> None:
    factors = torch.tensor([[0.5, -1.5, 2.0], [0.25, 3.0, 0.0]]).double()
    found = operations(lambda x: x * factors + x.sum((1, 2), keepdim=True) / 2, (2, 3))
    # The norm of diag(f) + 11' / 2 is at most that of its parts.
    assert sequence_bound(found, (2, 3)) >= 3
    found = operations(lambda x: x - x.mean(1, keepdim=True), (4, 2))
    assert sequence_bound(found, (4, 2)) <= 2 + 1e-9
