"""Forward error bounds against the real-valued network, in ball arithmetic."""

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import flint
import pytest
import torch
from flint import arb
from helpers.configs import build
from helpers.exact import distance, evaluate, norm
from helpers.references import balls, referenced
from torch import Tensor, nn

from robustcert.activations import ReLU
from robustcert.errors import UnsoundNetworkError
from robustcert.layers import NormPool2d
from robustcert.models import Normalize
from robustcert.network.branches import Sum
from robustcert.network.fold import fold, fold_network
from robustcert.network.forward_error import UNIT_ROUNDOFFS, forward_error
from robustcert.network.linear import Affine, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation

FEATURES = 8
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _setup() -> Iterator[None]:
    torch.manual_seed(0)
    precision, flint.ctx.prec = flint.ctx.prec, 300
    yield
    flint.ctx.prec = precision


def perturb(module: nn.Module, scale: float = 0.3) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn_like(parameter)
    return module


def mlp(activation: str) -> PlainNetwork:
    first, second = (build("activation", activation)(FEATURES) for _ in range(2))
    module = nn.Sequential(
        Normalize([0.3], [0.4], channels=5),
        nn.Linear(5, FEATURES),
        first,
        nn.Linear(first.out_features, FEATURES),
        second,
        nn.Linear(second.out_features, 3),
    )
    return fold_network(perturb(module), (5,))


def convnet(activation: str) -> PlainNetwork:
    first, second = (build("activation", activation)(FEATURES) for _ in range(2))
    module = nn.Sequential(
        Normalize([0.1, 0.2], [0.5, 2.0], channels=2),
        nn.Conv2d(2, FEATURES, 3, stride=2, padding=1),
        first,
        nn.Conv2d(first.out_features, FEATURES, 2, padding=1, bias=False, groups=2),
        second,
        nn.Flatten(),
        nn.Linear(9 * second.out_features, 3),
    )
    return fold_network(perturb(module), (2, 4, 3))


NETWORKS = {"mlp": mlp, "convnet": convnet}


def near(x: Tensor, r: float) -> Tensor:
    """A point at about distance r, in the dtype of x."""
    direction = torch.randn(x.shape, dtype=torch.float64)
    return (x.double() + r * direction / direction.norm()).to(x.dtype)


def difference(x: Tensor, y: Tensor) -> list[arb]:
    return [a - b for a, b in zip(balls(x), balls(y), strict=True)]


def check(network: PlainNetwork, x: Tensor, radii: tuple[float, ...] = (1e-6, 0.1, 10.0)) -> None:
    """Computed and real logits part by no more than the bound, at the inputs and around them."""
    result = forward_error(network, x)
    assert result.output.dtype == x.dtype
    assert torch.equal(result.output, network(x))
    assert (result.reach > 1e6).all()
    growth = arb(result.growth)
    for i, z in enumerate(x):
        centre = arb(result.centre[i].item())
        assert distance(result.output[i], evaluate(network, z)) <= centre
        for r in radii:
            y = near(z, r)
            error = distance(network(y[None])[0], evaluate(network, y))
            assert error <= centre + growth * norm(difference(y, z))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", referenced())
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_error_is_below_its_bound_around_every_input(
    kind: str, activation: str, dtype: torch.dtype
) -> None:
    network = NETWORKS[kind](activation)
    shape = network.input_shape
    x = torch.cat([torch.rand(1, *shape), torch.ones(1, *shape), 100 * torch.randn(1, *shape)])
    check(network, x.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_branches_are_covered(dtype: torch.dtype) -> None:
    inner = tuple(Dense(torch.randn(5, 5), torch.randn(5)) for _ in range(3))
    relu = ReLU(5).fold()
    network = PlainNetwork(
        (
            Dense(torch.randn(5, 5)),
            Sum((inner[:2], (), (inner[2], relu, Sum(((), (inner[0],)))))),
            relu,
            Dense(torch.randn(3, 5), torch.randn(3)),
        ),
        (5,),
    )
    check(network, torch.randn(4, 5, dtype=dtype))


RELU = ReLU(2).fold()
# Each one's error stems from one term of the bound, which the others would not pay for.
TERMS: dict[str, tuple[Operation, ...]] = {
    "bias": (Dense(torch.randn(2, 2), torch.tensor([1e6, -1e6])),),
    "shift": (Affine(torch.tensor([1 / 3]), torch.tensor([1e6])), RELU),
    "inherited": (
        Dense(torch.tensor([[1e6, -1.1e6], [1e6 / 3, -1e6 / 3]])),
        Dense(1e4 * torch.eye(2)),
    ),
    "inherited through a selection": (Dense(torch.randn(2, 2)), RELU),
    "sum": (Sum(((), (RELU,), ())),),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("term", TERMS)
def test_every_term_of_the_bound_is_needed(term: str, dtype: torch.dtype) -> None:
    network = PlainNetwork(TERMS[term], (2,))
    small = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1e-3, 1 / 3]], dtype=dtype)
    check(network, torch.cat([small, torch.rand(4, 2, dtype=dtype)]), (1e-3, 1.0, 7.0))


def test_the_bound_is_small_beside_what_certificates_need() -> None:
    network = mlp("maxmin")
    x = torch.rand(50, 5)
    assert forward_error(network, x.double()).centre.max() < 1e-13
    assert forward_error(network, x).centre.max() < 1e-4
    ratio = forward_error(network, x).centre / forward_error(network, x.double()).centre
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0**29), rtol=1e-2, atol=0)


@pytest.mark.parametrize("order", ["forward", "backward", "pairwise"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_of_summation_is_covered(order: str, dtype: torch.dtype) -> None:
    size = 64
    # Terms that nearly cancel, so that the order matters.
    weight = torch.randn(4, size) * 2.0 ** torch.randint(-8, 8, (1, size))
    operation = Dense(weight, torch.randn(4))
    z = (torch.randn(size) / weight[0]).to(dtype)
    a, b = operation.rounding((size,), UNIT_ROUNDOFFS[dtype])
    allowed = Fraction(a) * Fraction(float(z.double().norm()) * (1 + 1e-12)) + Fraction(b)
    assert operation.bias is not None
    square = Fraction(0)
    for row, bias in zip(weight, operation.bias, strict=True):
        terms = [*(row.to(dtype) * z), bias.to(dtype)]
        exact = sum((Fraction(float(w)) * Fraction(float(v)) for w, v in zip(row, z, strict=True)))
        square += (Fraction(float(add(terms, order))) - exact - Fraction(float(bias))) ** 2
    assert square <= allowed**2


def add(terms: list[Tensor], order: str) -> Tensor:
    if order == "backward":
        return add(terms[::-1], "forward")
    if order == "pairwise" and len(terms) > 2:
        half = len(terms) // 2
        return add(terms[:half], order) + add(terms[half:], order)
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


# The ends of the range


@pytest.mark.parametrize("exponent", [-560, -200, 200])
def test_tiny_and_huge_activations_are_covered(exponent: int) -> None:
    # Squares of 2^-560 vanish: their norm must not be taken for 0.
    scale = 2.0**exponent
    network = PlainNetwork((Dense(torch.randn(6, 6)), Dense(torch.randn(3, 6))), (6,))
    check(network, scale * torch.randn(4, 6, dtype=torch.float64), (0.1 * scale, 3 * scale))


def test_subnormal_numbers_may_be_flushed() -> None:
    # Each of these products, sums, weights or inputs may count as 0 on some hardware.
    tiny = torch.finfo(torch.float32).smallest_normal
    weights = [torch.full((2, 3), tiny / 2), torch.full((2, 3), 1e3), torch.eye(2, 3)]
    for weight in weights:
        operation = Dense(weight)
        a, b = operation.rounding((3,), UNIT_ROUNDOFFS[torch.float32])
        for size in (tiny / 2, 1.0, 1e6):
            z = torch.full((3,), size, dtype=torch.float64)
            lost = float((weight.double() @ z).norm())
            exists = (weight.abs().max() < tiny) or size < tiny
            assert not exists or lost <= a * float(z.norm()) + b
    affine = Affine(torch.tensor([1e3]), torch.tensor([0.0]))
    a, b = affine.rounding((1,), UNIT_ROUNDOFFS[torch.float32])
    assert 1e3 * tiny <= b


def test_nothing_overflows_within_reach() -> None:
    # Logits (z1 - z1, z1) with z1 = 2e38 x: in float32 the first is NaN beyond x = 1.7.
    big = torch.tensor([[2e38]])
    network = PlainNetwork((Dense(big), Dense(torch.tensor([[0.0], [1.0]]))), (1,))
    result = forward_error(network, torch.tensor([[1.0]]))
    assert network(torch.tensor([[1.8]])).isnan().any()
    assert not result.reach > 0
    small = PlainNetwork((Dense(big * 1e-20), Dense(torch.tensor([[0.0], [1.0]]))), (1,))
    reach = forward_error(small, torch.tensor([[1.0]])).reach.item()
    assert 1e3 < reach < 1e20
    assert small(torch.tensor([[reach]])).isfinite().all()


@pytest.mark.parametrize("exponent", [30, 62, 63, 66, 70])
def test_squares_overflow_earlier(exponent: int) -> None:
    # The squares of 2^64 overflow in float32: nothing is said of inputs as large.
    pool, head = fold(NormPool2d(2)), Dense(torch.tensor([[1.0], [-1.0]]))
    network = PlainNetwork((*pool, Flatten(), head), (1, 2, 2))
    reach = forward_error(network, torch.full((1, 1, 2, 2), 2.0**exponent)).reach.item()
    assert (reach > 2.0**40) == (exponent == 30)
    within = torch.full((1, 1, 2, 2), 2.0**exponent + reach / 2 * (1 - 1e-6))
    assert not reach > 0 or network(within).isfinite().all()
    # Plain selections go on.
    plain = PlainNetwork((*fold(ReLU(1)), Flatten(), head), (1, 1, 1))
    assert forward_error(plain, torch.full((1, 1, 1, 1), 2.0**60)).reach > 0


def test_what_is_not_a_number_has_no_error() -> None:
    network = mlp("relu")
    x = torch.rand(3, 5)
    x[0, 0], x[1, 1] = math.nan, math.inf
    result = forward_error(network, x)
    assert not (result.centre[:2] < math.inf).any()
    assert result.centre[2] < 1


# What is refused


def test_float32_arithmetic_is_no_arithmetic_of_float64_constants() -> None:
    network = mlp("relu").to(torch.device("cpu"), torch.float64)
    forward_error(network, torch.rand(1, 5, dtype=torch.float64))
    with pytest.raises(UnsoundNetworkError, match=r"certifier\.arithmetic=float64"):
        forward_error(network, torch.rand(1, 5))


@pytest.mark.parametrize("shape", [(1, 2, 5, 3), (1, 2, 4, 4), (1, 2, 12), (2, 4, 3)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    # A strided convolution may map two sizes to the same one, but its norm is not the same.
    with pytest.raises(ValueError, match=r"expected inputs of shape \(N, 2, 4, 3\)"):
        forward_error(convnet("relu"), torch.rand(*shape))


def test_reduced_precision_does_not_reach_the_forward_pass() -> None:
    network, x = mlp("relu"), torch.rand(3, 5)
    expected = forward_error(network, x).output
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(forward_error(network, x).output, expected)


def test_sums_longer_than_the_precision_are_refused() -> None:
    wide = Dense(torch.zeros(1, 2**23))
    network = PlainNetwork((replace(wide, name="wide"),), (2**23,))
    with pytest.raises(UnsoundNetworkError, match="sums of"):
        forward_error(network, torch.zeros(1, 2**23))
