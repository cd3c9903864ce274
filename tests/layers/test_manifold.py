"""Matrices that training moves along the orthogonal manifold."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import run
from torch import Tensor

from robustcert.layers import ManifoldLinear, ManifoldPatchConv2d
from robustcert.layers.manifold import ManifoldOrthogonal, fast_exponential
from robustcert.lipschitz import lipschitz_bound
from robustcert.network.fold import fold

SIZES = [(5, 5), (7, 4), (4, 7), (1, 3)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def free(module: Any) -> Tensor:
    return module.parametrizations.weight.original


def rule(module: Any) -> ManifoldOrthogonal:
    return module.parametrizations.weight[0]


def miss(w: Tensor) -> float:
    """How far the rows or columns are from orthonormal."""
    w = w.detach().double()
    w = w if len(w) <= w.shape[1] else w.T
    return float((w @ w.T - torch.eye(len(w))).abs().max())


@pytest.mark.parametrize("sizes", SIZES)
def test_the_gradient_at_zero_is_that_along_the_exponential(sizes: tuple[int, int]) -> None:
    module = ManifoldOrthogonal(*sizes).double()
    step = torch.zeros((max(sizes),) * 2, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(sizes[::-1], dtype=torch.float64)
    (found,) = torch.autograd.grad((module(step) * direction).sum(), step)
    module.eval()  # X exp(A) itself
    (expected,) = torch.autograd.grad((module(step) * direction).sum(), step)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, -found.T)  # a tangent: skew
    # And it is a derivative, by differences.
    h = 1e-6 * torch.randn_like(step)
    with torch.no_grad():
        moved = ((module(h) - module(-h)) * direction).sum() / 2
    torch.testing.assert_close(moved, (found * h).sum(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("size", [1e-3, 0.04, 0.2, 0.9, 5.0])
def test_the_exponential_misses_orthogonality_by_what_it_says(size: float) -> None:
    a = torch.randn(8, 8, dtype=torch.float64)
    a = a - a.T
    a *= size / torch.linalg.matrix_norm(a)
    found = fast_exponential(a)
    order = {1e-3: size**4 / 4, 0.04: size**4 / 4, 0.2: size**4 / 12, 0.9: size**6 / 72}
    assert torch.linalg.matrix_norm(found.T @ found - torch.eye(8), 2) <= order.get(size, 0) + 1e-12
    assert (found - torch.matrix_exp(a)).abs().max() <= size**3 / 6


def test_a_step_is_taken_once_and_in_training_only() -> None:
    module = ManifoldLinear(6, 6)
    start = rule(module).point.clone()
    step = 0.005 * torch.randn(6, 6)
    with torch.no_grad():
        free(module).copy_(step)
    evaluated = module.eval().weight
    assert torch.equal(rule(module).point, start)
    expected = torch.matrix_exp(step - step.T) @ start
    torch.testing.assert_close(evaluated, expected, rtol=0, atol=1e-4)
    trained = module.train().weight
    torch.testing.assert_close(trained, evaluated)  # the same matrix, before and after the move
    assert not free(module).any()
    assert torch.equal(module.weight, trained)  # a second pass of the same step moves nothing
    assert torch.equal(module.eval().weight, trained)


@pytest.mark.parametrize("sizes", SIZES)
def test_it_stays_orthogonal_over_hundreds_of_steps_and_learns(sizes: tuple[int, int]) -> None:
    module = ManifoldLinear(*sizes, bias=False)
    target = torch.empty(sizes[::-1])
    torch.nn.init.orthogonal_(target)
    if sizes[0] == sizes[1] and torch.det(target) * torch.det(rule(module).point) < 0:
        target[0] *= -1  # the components of the orthogonal group are not connected
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    x = torch.randn(64, sizes[0])
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (module(x) - x @ target.T).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert rule(module).steps == 300
    for mode in (module.eval(), module.train()):
        assert miss(mode.weight) < 1e-4
        assert lipschitz_bound(mode, (sizes[0],)) <= 1 + 1e-4


def test_a_retraction_returns_to_the_manifold() -> None:
    often, never = (ManifoldLinear(6, 6, retract_every=k) for k in (10, 10**6))
    for module in (often, never):
        with torch.no_grad():
            rule(module).point.mul_(1.01)  # off the manifold
            for _ in range(10):
                assert module.weight.shape == (6, 6)
    assert miss(often.weight) < 1e-6
    assert miss(never.weight) > 0.01


def test_patches_are_moved_like_matrices() -> None:
    module = ManifoldPatchConv2d(2, 5, 2, stride=2, input_size=(4, 6))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    x = torch.randn(8, 2, 4, 6)
    for _ in range(30):
        optimizer.zero_grad()
        (module(x) - 1).square().mean().backward()
        optimizer.step()
    assert miss(module.weight.flatten(1)) < 1e-3  # not retracted yet
    (operation,) = fold(module)
    torch.testing.assert_close(operation(x), module.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_copy_in_the_middle_of_training_goes_the_same_way() -> None:
    x = torch.randn(16, 5)

    def steps(module: Any, optimizer: Any, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (module(x) - x.roll(1, 1)).square().mean().backward()
            optimizer.step()

    one, other = ManifoldLinear(5, 5, retract_every=3), ManifoldLinear(5, 5, retract_every=3)
    first, second = (torch.optim.Adam(m.parameters(), lr=0.05) for m in (one, other))
    steps(one, first, 4)
    # The point, the counter and the step that has not been taken yet are all part of the state.
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(one, first, 5)
    steps(other, second, 5)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    overrides = ("layer=manifold", "optimizer.lr=0.02", "certify=false", "trainer.max_epochs=3")
    assert run(tmp_path / "straight", *overrides) > 0
    with pytest.raises(Killed):
        run(tmp_path / "resumed", *overrides, callbacks=[Kill(2)])
    resume(tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.parametrize("name", ["nadam_lookahead", "schedule_free"])
def test_optimizers_that_average_weights_are_refused(name: str, tmp_path: Path) -> None:
    # They would average steps in different tangent spaces, which is no average of matrices.
    pytest.importorskip("pytorch_optimizer" if "lookahead" in name else "schedulefree")
    with pytest.raises(ValueError, match=r"averages weights.*ManifoldOrthogonal.*optimizer=nadam"):
        run(tmp_path, "layer=manifold", f"optimizer={name}", "certify=false")


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (partial(ManifoldLinear, 2, 2, retract_every=0), r"model\.layer\.dense\.retract_every"),
        (partial(ManifoldPatchConv2d, 2, 2, 3, stride=2, input_size=(4, 4)), "stride = kernel"),
    ],
)
def test_what_has_no_meaning_is_refused(make: Any, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make()
