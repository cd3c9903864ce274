"""Norms by large singular values of symbols within a map, here and in the checker."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.check.network.operation import Operation
from robustcert.check.norms import convolution as checked_convolution
from robustcert.check.norms import dense
from robustcert.check.norms import truncated as checked
from robustcert.check.norms.operation import find
from robustcert.norms import (
    conv_norm_bound,
    conv_norm_lower,
    quick_bounds,
    symbols,
    truncated,
)
from robustcert.norms.proof import scaled
from robustcert.norms.taps import symbol_norm_bound

# Channels out and in, side of the map and of the kernel, stride, padding.
CASES = [
    *((8, 8, 5, 3, 1, 1), (4, 8, 5, 3, 1, 1), (8, 4, 5, 3, 1, 1), (6, 3, 6, 3, 2, 1)),
    *((4, 4, 7, 5, 1, 2), (3, 6, 7, 3, 2, 1), (5, 5, 6, 2, 1, 0)),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions are bounded so as well, by a larger share of their singular values."""
    for module, name in ((truncated, "LEAST_SIDE"), (checked, "LEAST_CHANNELS")):
        monkeypatch.setattr(module, name, 1)
        monkeypatch.setattr(module, "KEPT_SHARE", 0.4)


def kernel(case: tuple[int, ...], seed: int = 0) -> Tensor:
    out, inner, _, side, *_ = case
    return torch.randn(out, inner, side, side, generator=torch.Generator().manual_seed(seed))


def exact_norm(weight: Tensor, case: tuple[int, ...]) -> float:
    *_, size, _, stride, padding = case
    basis = torch.eye(weight.shape[1] * size * size, dtype=torch.float64)
    images = F.conv2d(
        basis.view(-1, weight.shape[1], size, size), weight.double(), None, stride, padding
    )
    return float(torch.linalg.matrix_norm(images.flatten(1), 2))


def axes_of(case: tuple[int, ...]) -> tuple[symbols.Axis, symbols.Axis]:
    _, _, size, side, stride, padding = case
    axis = symbols.Axis.of(side, size, stride, padding, 1, circular=False)
    return axis, axis


def bound_of(weight: Tensor, case: tuple[int, ...]) -> float:
    copy = scaled(weight)
    found = truncated.truncated_norm_bound(copy.values[None], axes_of(case))
    assert found is not None
    return copy.unscale(found)


def operation_of(weight: Tensor, case: tuple[int, ...]) -> Operation:
    out, inner, size, _, stride, padding = case
    options: dict[str, Any] = {"stride": [stride] * 2, "padding": [padding] * 2}
    options |= {"dilation": [1, 1], "groups": 1}
    outputs = axes_of(case)[0].outputs
    shapes = (inner, size, size), (out, outputs, outputs)
    return Operation("convolution", "", "0", options, {"weight": weight.numpy()}, *shapes)


@pytest.mark.parametrize("case", CASES)
def test_it_lies_between_the_norm_and_that_of_the_circle(case: tuple[int, ...]) -> None:
    weight = kernel(case)
    copy, norm = scaled(weight), exact_norm(weight, case)
    circle = copy.unscale(symbol_norm_bound(copy.values[None], axes_of(case)))
    bound = bound_of(weight, case)
    assert norm <= bound <= circle * (1 + 1e-5)
    if case[5]:
        assert bound - norm < 0.85 * (circle - norm)


@pytest.mark.parametrize("case", CASES)
def test_the_checker_proves_it_and_nothing_below_the_norm(case: tuple[int, ...]) -> None:
    weight = kernel(case, seed=1)
    operation, norm = operation_of(weight, case), exact_norm(weight, case)
    bound = bound_of(weight, case)
    assert checked.prove_truncated(operation, Fraction(bound)).method
    assert not checked.prove_truncated(operation, Fraction(norm * (1 - 1e-9))).method
    assert not checked_convolution.prove_convolution(operation, Fraction(norm * (1 - 1e-9))).method
    # What it finds for itself is proved, and no more than what is claimed.
    found = checked.estimate_truncated(operation)
    assert norm < found * (1 + 2e-10) <= bound
    assert checked.prove_truncated(operation, Fraction(found * (1 + 2e-10))).method


@pytest.mark.parametrize("noise", [1e-9, 1e-4, 1e-2])
def test_nothing_rests_on_the_singular_vectors(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[0]
    weight = kernel(case, seed=2)
    honest, norm = bound_of(weight, case), exact_norm(weight, case)
    operation = operation_of(weight, case)
    torch_eigh, numpy_eigh = torch.linalg.eigh, np.linalg.eigh
    generator = np.random.default_rng(0)

    def wrong(matrix: Tensor) -> Any:
        values, vectors = torch_eigh(matrix)
        moved = torch.from_numpy(generator.standard_normal(vectors.shape)).to(vectors.dtype)
        return values, vectors + noise * moved

    def also_wrong(matrix: Any) -> Any:
        values, vectors = numpy_eigh(matrix)
        return values, vectors + noise * generator.standard_normal(vectors.shape)

    monkeypatch.setattr(torch.linalg, "eigh", wrong)
    monkeypatch.setattr(np.linalg, "eigh", also_wrong)
    assert norm <= bound_of(weight, case)
    checked._blocks.cache_clear()
    assert not checked.prove_truncated(operation, Fraction(norm * (1 - 1e-9))).method
    if noise >= 1e-4:
        assert bound_of(weight, case) > honest
        assert not checked.prove_truncated(operation, Fraction(honest)).method


@pytest.mark.parametrize("seed", range(12))
def test_random_geometries_are_bounded_from_above(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    side, stride = int(drawn.integers(2, 6)), int(drawn.integers(1, 3))
    size, padding = int(drawn.integers(side, 9)), int(drawn.integers(0, side))
    case = (*(int(n) for n in drawn.integers(1, 7, 2)), size, side, stride, padding)
    weight = kernel(case, seed)
    copy = scaled(weight)
    found = truncated.truncated_norm_bound(copy.values[None], axes_of(case))
    norm = exact_norm(weight, case)
    assert found is None or copy.unscale(found) >= norm
    operation = operation_of(weight, case)
    assert not checked.prove_truncated(operation, Fraction(norm * (1 - 1e-9))).method
    if found is not None:
        assert checked.prove_truncated(operation, Fraction(copy.unscale(found))).method


def test_what_is_bounded_so_is_within_the_checkers_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert truncated.MAX_KEPT <= checked.MAX_VECTORS <= dense.MAX_FACTOR_SIDE
    tried = 0
    for size, side, stride in ((7, 3, 1), (14, 3, 1), (14, 3, 2), (16, 5, 1), (20, 3, 1)):
        for out, inner in ((256, 256), (512, 256), (1024, 1024), (255, 256), (1025, 256)):
            case = (out, inner, size, side, stride, 1)
            shape = (out, inner, side, side)
            empty = np.broadcast_to(np.float32(0), shape)
            worth = truncated._is_worth_truncating(empty[None], axes_of(case))
            operation = operation_of(torch.zeros(1), case)
            operation.tensors["weight"] = empty
            assert checked.is_tried(operation) == worth
            if worth:
                assert checked.truncated_bytes(operation) < 2**32.5
            tried += worth
    assert tried > 5


@pytest.mark.slow
@pytest.mark.parametrize("channels", [256, 512])
def test_wide_convolutions_on_small_maps_are_close(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    case = (channels, channels, 7, 3, 1, 1)
    weight = kernel(case)
    copy, bound = scaled(weight), conv_norm_bound(weight, 7, 1, 1)
    circle = copy.unscale(symbol_norm_bound(copy.values[None], axes_of(case)))
    assert 0.95 < bound / circle < 0.99
    # What the checker finds in a branch, where nothing is claimed, has to be no more.
    assert 0.99 * bound < find(operation_of(weight, case)) <= bound


def test_quick_bounds_leave_it_out() -> None:
    weight = torch.randn(256, 256, 3, 3, generator=torch.Generator().manual_seed(0))
    close = conv_norm_bound(weight, 5, padding=1)
    with quick_bounds():
        circle = conv_norm_bound(weight, 5, padding=1)
        with quick_bounds():
            assert conv_norm_bound(weight, 5, padding=1) == circle
        assert conv_norm_bound(weight, 5, padding=1) == circle
    assert conv_norm_lower(weight, 5, padding=1) <= close < 0.99 * circle
    assert conv_norm_bound(weight, 5, padding=1) == close
