"""Bounds that another device computes are those of the CPU, from tensors of that device alone."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from inspect import getattr_static
from typing import Any

import numpy as np
import pytest
import torch
from helpers.stand_in import STAND_IN, MixedError, OnDevice, StandIn
from torch import Tensor
from torch.utils._pytree import tree_map_only

from robustcert.errors import NormBoundError
from robustcert.norms import (
    circular_conv_norm_bound,
    computed_on,
    conv_norm_bound,
    dense_norm_bound,
    norm_lower,
    quick_bounds,
    truncated,
)
from robustcert.norms.device import placed
from robustcert.norms.lines import Lines
from robustcert.norms.proof import Gram
from robustcert.norms.taps import TapProducts

CPU = torch.device("cpu")
# Weight, the map's side, stride, padding, dilation and groups, and what has to be used.
CONVOLUTIONS = {
    "products of taps": ((6, 5, 3, 3), (24, 1, 1, 1, 1), (TapProducts, "gram")),
    "products of taps, groups": ((8, 4, 3, 3), (24, 1, 1, 1, 2), (TapProducts, "gram")),
    "symbols, stride 2": ((6, 3, 4, 4), (40, 2, 1, 1, 1), (Gram, "of")),
    "symbols, stride 3, groups": ((6, 2, 5, 5), (60, 3, 2, 1, 3), (Gram, "of")),
    "one dimension": ((64, 64, 3, 3), (8, 1, 1, 1, 1), (Lines, "gram")),
    "one dimension, stride 2": ((64, 16, 4, 4), (16, 2, 1, 1, 1), (Lines, "gram")),
    "one dimension, dilation 2, wide": ((40, 80, 3, 3), (9, 1, 2, 2, 1), (Lines, "gram")),
    "one matrix": ((6, 5, 3, 3), (6, 1, 1, 1, 1), (Gram, "of")),
    "one matrix a group": ((6, 2, 3, 3), (6, 1, 1, 1, 3), (Gram, "of")),
}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def is_the_same_there(bound: Callable[[], float], *, quick: bool = False) -> StandIn:
    """Compare a bound of the CPU with that of the device, to what libraries may differ by."""
    with quick_bounds() if quick else nullcontext():
        expected = bound()
        with StandIn() as device, computed_on(STAND_IN):
            found = bound()
    # Eigenvalues of small matrices come with vectors there, by another algorithm.
    assert found == pytest.approx(expected, rel=1e-13, abs=0)
    assert {"bmm", "linalg_cholesky_ex", "linalg_vector_norm"} <= set(device.operations)
    return device


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("shape", [(60, 40), (3, 90), (400, 300), (1, 1)])
def test_matrices_are_bounded_on_the_device(shape: tuple[int, int], quick: bool) -> None:
    weight = random(*shape)
    is_the_same_there(lambda: dense_norm_bound(weight), quick=quick)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_are_bounded_on_the_device(
    case: str, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, options, (owner, name) = CONVOLUTIONS[case]
    calls = spy(monkeypatch, owner, name)
    weight = random(*shape)
    is_the_same_there(lambda: conv_norm_bound(weight, *options), quick=quick)
    assert calls


def test_circular_convolutions_are_bounded_on_the_device() -> None:
    weight = random(6, 5, 3, 3)
    is_the_same_there(lambda: circular_conv_norm_bound(weight, 12))


@pytest.mark.slow
def test_wide_convolutions_on_short_maps_are_bounded_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy(monkeypatch, truncated, "_cut_off")
    weight = random(256, 256, 3, 3)
    is_the_same_there(lambda: conv_norm_bound(weight, 6, 1, 1))
    assert calls


def spy(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """A list that is longer by one for every call of a function."""
    calls: list[None] = []
    function = getattr(owner, name)

    def told(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return function(*args, **kwargs)

    static = isinstance(getattr_static(owner, name), staticmethod)
    monkeypatch.setattr(owner, name, staticmethod(told) if static else told)
    return calls


def test_the_stand_in_refuses_tensors_of_two_devices() -> None:
    array = np.ones((2, 2))
    with StandIn(), computed_on(STAND_IN):
        with pytest.raises(MixedError):
            placed(array) @ torch.from_numpy(array)
        assert float((placed(array) @ placed(array)).sum() * torch.tensor(0.5)) == 4.0


def test_on_the_cpu_an_array_is_not_copied() -> None:
    array, weight = np.zeros((2, 2)), random(40, 30)
    with computed_on(CPU):
        placed(array)[0, 0] = 1.0
        assert dense_norm_bound(weight) == bound_without_a_device(weight)
    assert array[0, 0] == 1.0


def bound_without_a_device(weight: Tensor) -> float:
    return dense_norm_bound.__wrapped__(weight)  # type: ignore[attr-defined, no-any-return]


class _Full(StandIn):
    """A device without memory for products of more than so many columns."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "bmm" in str(func) and isinstance(args[0], OnDevice) and args[1].shape[-1] > self.most:
            raise torch.OutOfMemoryError("out of memory\non all of its lines")
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_the_cpu_proves_what_a_device_has_no_memory_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    small, large, kernels = random(30, 20), random(90, 80), random(64, 64, 3, 3)
    expected = dense_norm_bound(large), conv_norm_bound(kernels, 8, 1, 1)
    with caplog.at_level(logging.WARNING), _Full(50) as device, computed_on(STAND_IN):
        found = dense_norm_bound(large), conv_norm_bound(kernels, 8, 1, 1)
        assert found == pytest.approx(expected, rel=1e-13, abs=0)
        device.operations.clear()
        dense_norm_bound(small)
        assert "linalg_cholesky_ex" in device.operations
    (line,) = caplog.messages
    assert line == "meta failed in a bound; the CPU proves what it cannot: out of memory"


class _Untrue(StandIn):
    """A device whose factors and eigenvalues are wrong, but not its products."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_dispatch__(func, types, args, kwargs)
        if any(name in str(func) for name in ("cholesky", "triangular", "eigh")):
            return tree_map_only(OnDevice, lambda t: OnDevice(_untrue(t.held)), found)
        return found


def _untrue(found: Tensor) -> Tensor:
    """Numbers, but not whether there is a factor."""
    return found if found.dtype == torch.int32 else found * 0.99


@pytest.mark.parametrize("columns", [1, 40, 300])
def test_no_proof_rests_on_factors_and_estimates_of_the_device(columns: int) -> None:
    weight = random(310, columns)
    with _Untrue(), computed_on(STAND_IN):
        found = dense_norm_bound(weight)
    expected = dense_norm_bound(weight)
    assert norm_lower(weight) <= found
    # What they lack is paid for.
    assert found > expected * 1.001


def test_what_has_no_bound_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    weight = torch.full((3, 3), torch.nan)
    with StandIn(), computed_on(STAND_IN), pytest.raises(NormBoundError, match="NaN"):
        dense_norm_bound(weight)
    assert not caplog.messages
