"""The error constants of activations, in package and checker: how much of them is used at worst.

Float32 is compared with float64, whose own error is 2^-29 of the bound; `test_activations` compares
both with balls of 200 bits.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import flint
import numpy as np
import pytest
import torch
from flint import arb
from helpers.configs import build, names
from torch import Tensor

from robustcert.activations import LinearSpline, NormPair
from robustcert.check.activations.table import KINDS
from robustcert.errors import UnsoundNetworkError
from robustcert.layers import NormPool2d
from robustcert.network.activation import Activation
from robustcert.network.local_error import MAX_ROUNDINGS, counted

POINTS = 2**14
UNIT = 2.0**-24
# Largest share of a bound that may be seen. Of counts of first order, 0.98 was.
USED = 0.95
# Inputs of the smallest size that an activation takes.
SIZES = {"groupsort": (4,), "norm_pool": (1, 2, 2)}


@pytest.fixture(autouse=True)
def _setup() -> Iterator[None]:
    torch.manual_seed(0)
    precision, flint.ctx.prec = flint.ctx.prec, 200
    yield
    flint.ctx.prec = precision


def fold(name: str, temperature: float) -> Activation:
    """The activation with constants of full precision."""
    if name == "norm_pool":
        return NormPool2d(2).fold()
    options = (
        {"temperature": temperature} if "temperature" in dir(build("activation", name)(4)) else {}
    )
    module = build("activation", name, **options)(SIZES.get(name, (2,))[0])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        if name == "grafted":
            module.graft.fill_(1.0)
            module.raw_slope.fill_(1 - 2.0**-20)
    return module.fold()


def hard(shape: tuple[int, ...], scale: float) -> Tensor:
    """Inputs of all sizes around ``scale``, with mantissas that round badly, pairs near ties."""
    exponent = torch.empty(POINTS, *shape).uniform_(-12, 12).exp2()
    mantissa = (
        1
        + torch.rand(POINTS, *shape) * torch.tensor([1e-3, 1.0])[torch.randint(2, (POINTS, *shape))]
    )
    x = scale * exponent * mantissa * torch.randn(POINTS, *shape).sign()
    near = torch.rand(POINTS) < 0.3
    x[near] = x[near][:, :1] * (1 + 1e-3 * torch.randn(int(near.sum()), *shape))
    return x.float()


def used(computed: Tensor, real: Tensor, x: Tensor, error: tuple[float, float]) -> Tensor:
    """Share of the bound that the error of every row takes."""
    difference = (computed.double() - real).flatten(1).norm(dim=1)
    outputs = computed[0].numel()
    allowed = error[0] * x.double().flatten(1).norm(dim=1) + error[1] * math.sqrt(outputs)
    # What underflows is charged elsewhere.
    allowed = allowed + 8 * 2.0**-126 / UNIT * math.sqrt(outputs)
    return difference / (UNIT * allowed)


# Those that only select and negate have no error.
EXACT = [name for name in names("activation") if fold(name, 1.0).error == (0.0, 0.0)]
NAMES = [*(name for name in names("activation") if name not in EXACT), "norm_pool"]


@pytest.mark.parametrize("name", EXACT)
def test_what_states_no_error_makes_none(name: str) -> None:
    x = hard(SIZES.get(name, (2,)), 1.0)
    operation = fold(name, 1.0)
    assert torch.equal(operation(x).double(), operation(x.double()))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_no_more_than_nineteen_twentieths_of_a_constant_are_used(
    name: str, temperature: float
) -> None:
    operation = fold(name, temperature)
    x = hard(SIZES.get(name, (2,)), temperature)
    computed, real = operation(x), operation(x.double())
    share = used(computed, real, x, operation.error)
    assert 0.01 < share.max() < USED


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize(
    "name", [name for name in NAMES if fold(name, 1.0).function.__name__ in KINDS]
)
def test_nor_of_the_checkers(name: str, temperature: float) -> None:
    operation = fold(name, temperature)
    x = hard(SIZES.get(name, (2,)), temperature)
    kind = KINDS[operation.function.__name__]
    constants = {
        k: v.numpy() if isinstance(v, Tensor) else v for k, v in operation.constants.items()
    }
    wide = {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) else v for k, v in constants.items()
    }
    computed = kind.apply(x.numpy(), **constants)
    assert computed.dtype == np.float32
    real = kind.apply(x.double().numpy(), **wide)
    share = used(torch.from_numpy(computed), torch.from_numpy(real), x, kind.rounding(**wide))
    assert share.max() < USED


TOO_LONG: dict[str, Callable[[], Any]] = {
    "norm_pair": lambda: NormPair(2**16, group_size=2**16).fold(),
    "norm_pool": lambda: NormPool2d(600).fold(),
    "linear_spline": lambda: LinearSpline(1, num_knots=2**20 + 1).fold(),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_higher_orders_of_too_many_roundings_are_refused(name: str) -> None:
    with pytest.raises(UnsoundNetworkError, match=r"at most 262144 roundings"):
        TOO_LONG[name]()


def test_what_is_let_pass_is_within_the_margin() -> None:
    # (1 + u)^(2 K) and the growth of an exponential, for as many roundings as there may be.
    growth = (arb(1) + arb(UNIT)) ** (2 * MAX_ROUNDINGS) * (1 + arb(2) ** -15)
    assert growth < counted(1.0)[0]


def test_a_norm_of_many_entries_errs_by_more_than_first_order() -> None:
    # 8 u for every hypot, each by its largest error, as its formula is bounded.
    hypots = 2**14
    worst = (arb(1) + 8 * arb(UNIT)) ** hypots - 1
    a, _ = NormPair(hypots, group_size=hypots).fold().error
    assert 8 * hypots * UNIT < worst < a * UNIT
