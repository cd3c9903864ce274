"""The parts of the larger models on their own: what they do, their bounds, what they refuse."""

import math
from typing import Any

import pytest
import torch
from helpers.configs import build_model
from torch import Tensor, nn

from robustcert.layers import BROLinear, CholeskyPatchConv2d, ManifoldPatchConv2d
from robustcert.lipschitz import lipschitz_bound, lipschitz_estimate
from robustcert.models.fit_channels import FitChannels
from robustcert.models.position import Position
from robustcert.models.residual_mlp import Mixture
from robustcert.models.shift import CircularShift
from robustcert.network.fold import fold
from robustcert.network.network import PlainNetwork

SHAPE = (6, 4, 5)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def matrix(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The folded module as a float64 matrix, and that it is the module."""
    network = PlainNetwork(tuple(fold(nn.Sequential(module, nn.Flatten()))), shape)
    x = torch.randn(8, *shape)
    torch.testing.assert_close(network(x), module(x).detach().flatten(1), rtol=1e-5, atol=1e-6)
    impulses = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return (network(impulses) - network(torch.zeros_like(impulses))).flatten(1).T


@pytest.mark.parametrize(
    ("channels", "share", "moved"),
    [(6, 0.125, 1), (16, 0.125, 2), (16, 0.25, 4), (3, 0.25, 0), (4, 0.01, 1)],
)
def test_a_circular_shift_moves_groups_of_channels(channels: int, share: float, moved: int) -> None:
    module, x = CircularShift(channels, share), torch.randn(2, channels, 4, 5)
    y = module(x)
    for group, (step, side) in enumerate([(1, 2), (-1, 2), (1, 3), (-1, 3)]):
        rows = slice(group * moved, (group + 1) * moved)
        assert torch.equal(y[:, rows], x[:, rows].roll(step, side))
    assert torch.equal(y[:, 4 * moved :], x[:, 4 * moved :])
    w = matrix(module, (channels, 4, 5))
    assert torch.equal(w @ w.T, torch.eye(len(w)).double())  # a permutation
    assert lipschitz_bound(module, (channels, 4, 5)) == 1
    assert lipschitz_estimate(module).item() == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 0.26, math.nan])
def test_a_shift_of_more_than_all_channels_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"model\.shift"):
        CircularShift(8, share)


@pytest.mark.parametrize("out", [1, 4, 6, 9])
def test_fitting_channels_keeps_or_appends(out: int) -> None:
    module, x = FitChannels(6, out), torch.randn(2, *SHAPE)
    y, kept = module(x), min(6, out)
    assert y.shape == (2, out, 4, 5)
    assert torch.equal(y[:, :kept], x[:, :kept])
    assert not y[:, kept:].any()
    assert torch.linalg.matrix_norm(matrix(module, SHAPE), 2) == 1
    assert 1 <= lipschitz_bound(module, SHAPE) <= 1 + 1e-8
    assert lipschitz_estimate(module).item() == 1


def test_a_position_is_a_translation() -> None:
    module = Position(SHAPE)
    with torch.no_grad():
        module.shift.normal_(std=100.0)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(module(x), x + module.shift)
    w = matrix(module, SHAPE)
    assert torch.equal(w, torch.eye(len(w)).double())
    assert lipschitz_bound(module, SHAPE) == 1
    assert lipschitz_estimate(module).item() == 1


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_a_mixture_is_bounded_as_a_convex_combination(share: float, scale: float) -> None:
    branch = nn.Linear(6, 6)
    with torch.no_grad():
        nn.init.orthogonal_(branch.weight)
        branch.weight.mul_(scale)
    module = Mixture(nn.Sequential(branch, nn.ReLU()), 6, share=share)
    x = torch.randn(4, 6)
    torch.testing.assert_close(module(x), (1 - share) * x + share * module.branch(x))
    expected = 1 - share + share * scale
    bound = lipschitz_bound(module, (6,))
    assert bound == pytest.approx(expected, rel=1e-5)
    assert lipschitz_estimate(module).item() == pytest.approx(expected, rel=1e-5)
    network = PlainNetwork(tuple(fold(module)), (6,))
    a, b = torch.randn(2, 256, 6, dtype=torch.float64)
    slopes = (network(a) - network(b)).norm(dim=1) / (a - b).norm(dim=1)
    assert slopes.max() <= bound * (1 + 1e-9)
    # The branch that is the identity attains it.
    with torch.no_grad():
        branch.weight.copy_(scale * torch.eye(6))
        branch.bias.fill_(100.0)
    assert torch.linalg.matrix_norm(matrix(module, (6,)), 2) == pytest.approx(expected, rel=1e-5)
    assert lipschitz_bound(module, (6,)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 2.0, math.nan])
def test_a_mixture_needs_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=r"model\.share"):
        Mixture(nn.Identity(), 4, share=share)


@pytest.mark.parametrize("make", [CholeskyPatchConv2d, ManifoldPatchConv2d])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [(3, {}), (3, {"stride": 2}), (2, {"stride": 2, "padding": 1}), (1, {"stride": 2})],
)
def test_patches_that_overlap_or_leave_gaps_are_refused(
    make: Any, kernel: int, options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"stride = kernel_size.*model\.layer\.patch"):
        make(2, 4, kernel, **options, input_size=(6, 6))


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_a_block_reflector_differentiates_at_any_batch_size(batch: int) -> None:
    # Small batches take another way back.
    module = BROLinear(20, 18).double()
    x = torch.randn(batch, 20, dtype=torch.float64, requires_grad=True)
    module(x).square().sum().backward()
    found = module.v.grad
    v = module.v.detach().clone().requires_grad_()
    square = torch.eye(20) - 2 * v @ torch.linalg.solve(v.T @ v, v.T)
    (x @ square[:18].T).square().sum().backward()
    torch.testing.assert_close(found, v.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        *[
            (name, {key: value}, rf"model\.{key}")
            for name in ("liresnet", "lipnext", "lip_convnet", "residual_mlp")
            for key, value in (("width", 0), ("depth", 0), ("depth", -1))
        ],
        *[
            (name, {"input_shape": shape}, "model=mlp")
            for name in ("liresnet", "lipnext", "lip_convnet")
            for shape in ((2,), (2, 8))
        ],
        ("liresnet", {"stem_kernel": 2, "stem_stride": 3}, r"model\.stem_kernel"),
        ("liresnet", {"stem_stride": 0}, r"model\.stem_kernel"),
        ("liresnet", {"dense_depth": -1}, r"model\.dense_depth"),
        ("liresnet", {"stem_kernel": 16, "stem_stride": 16}, r"model\.stem_stride"),
        ("lipnext", {"patch": 0}, r"model\.patch"),
        ("lipnext", {"patch": 9}, "does not fit a map of 8x8"),
        ("lipnext", {"shift": 0.5}, r"model\.shift"),
        ("lip_convnet", {"width": 1}, r"model\.width"),
        ("residual_mlp", {"share": 1.0}, r"model\.share"),
    ],
)
def test_impossible_sizes_are_refused_by_key(name: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        build_model(name, "unconstrained", "maxmin", **options)
