"""Cholesky layers on batches small beside them have the gradients of their weight's definition."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils import parametrize

from robustcert.layers import (
    CholeskyLinear,
    CholeskyOrthogonal,
    CholeskyPatchConv2d,
    CholeskyResidualLinear,
    cholesky,
)

# Wide, square and tall layers, whose sides are no multiples of a block.
SIZES = [(40, 23), (23, 23), (23, 40)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(cholesky, "STRIP", 5)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches whose gradient at a weight was made as a matrix of low rank."""
    batches: list[int] = []
    function = cholesky._low_rank_less

    def counted(a: Tensor, b: Tensor, c: Tensor, w: Tensor) -> Tensor:
        batches.append(len(a))
        return function(a, b, c, w)

    monkeypatch.setattr(cholesky, "_low_rank_less", counted)
    return batches


def perturbed(layer: Any, dtype: torch.dtype = torch.float64) -> Any:
    with torch.no_grad():
        for parameter in layer.to(dtype).parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer


def reference(layer: Any, x: Tensor) -> Tensor:
    """The product with the layer's weight, each an operation of its own."""
    return nn.functional.linear(x, layer.weight, layer.bias)


def slopes(y: Tensor, *at: Tensor, **options: Any) -> tuple[Tensor, ...]:
    probe = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((y.sin() * probe).sum(), at, **options)


def assert_close(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * float(b.detach().abs().max()))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("make", [CholeskyLinear, CholeskyResidualLinear])
def test_gradients_of_a_small_batch_are_those_of_a_product_with_the_weight(
    make: Any, inputs: int, outputs: int, batch: int, has_bias: bool, made: list[int]
) -> None:
    layer = perturbed(make(inputs, outputs, bias=has_bias))
    x = torch.randn(batch, inputs, dtype=torch.float64, requires_grad=True)
    y, expected = layer(x), reference(layer, x)
    assert_close([y], [expected])
    everything = (x, *layer.parameters())
    found = slopes(y, *everything, retain_graph=True)
    assert made == [batch]
    assert_close(found, slopes(expected, *everything, retain_graph=True))
    # Of inputs that need no gradient.
    assert_close(slopes(layer(x.detach()), *layer.parameters()), found[1:])
    # A penalty on the gradient at the inputs.
    penalties = [slopes(output, x, create_graph=True)[0].square().sum() for output in (y, expected)]
    # The bias has its share in it by the curvature of the sine.
    assert_close(*(torch.autograd.grad(penalty, everything) for penalty in penalties))


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_gradients_of_a_small_batch_are_differences(
    inputs: int, outputs: int, made: list[int]
) -> None:
    # A ridge that does not count, for it is held constant.
    layer = perturbed(CholeskyResidualLinear(inputs, outputs, ridge=1e-12))
    keys, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(3, inputs, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *p: Tensor) -> Any:
        return functional_call(layer, dict(zip(keys, p, strict=True)), (x,))

    at = [v.detach().clone().requires_grad_() for v in values]
    assert torch.autograd.gradcheck(function, (x, *at), fast_mode=True)
    assert made


def test_patches_of_a_small_batch_have_the_gradients_of_a_convolution(made: list[int]) -> None:
    layer = perturbed(CholeskyPatchConv2d(6, 50, 3, stride=3, input_size=(6, 6)))
    x = torch.randn(2, 6, 6, 6, dtype=torch.float64, requires_grad=True)
    everything = (x, *layer.parameters())
    found = slopes(layer(x), *everything)
    assert made == [8]
    assert_close(found, slopes(nn.functional.conv2d(x, layer.weight, layer.bias, 3), *everything))


def test_the_gradient_at_the_inputs_alone_costs_none_at_the_weight(made: list[int]) -> None:
    layer, x = perturbed(CholeskyLinear(30, 30)), torch.randn(2, 30, dtype=torch.float64)
    x.requires_grad_()
    slopes(layer(x), x)
    assert not made


@pytest.mark.parametrize("make", [CholeskyLinear, CholeskyResidualLinear])
def test_low_rank_gradients_in_float32_are_as_accurate(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cholesky, "STRIP", 128)
    layer = perturbed(make(512, 512), torch.float32)
    x = torch.randn(8, 512)
    free = layer.parametrizations.weight.original
    (found,), (plain,) = (slopes(y, free) for y in (layer(x), reference(layer, x)))
    (exact,) = slopes(reference(layer.double(), x.double()), layer.parametrizations.weight.original)
    errors = [float((slope.double() - exact).norm()) for slope in (found, plain)]
    assert errors[0] <= 2 * errors[1]


def test_the_output_of_a_layer_without_a_bias_may_be_changed_in_place() -> None:
    layer, x = perturbed(CholeskyLinear(30, 30, bias=False)), torch.randn(2, 30).double()
    (found,) = slopes(layer(x).mul_(2), *layer.parameters())
    assert_close([found], slopes(2 * reference(layer, x), *layer.parameters()))


def test_a_second_derivative_at_the_weight_is_refused() -> None:
    layer, x = perturbed(CholeskyLinear(30, 30)), torch.randn(2, 30, dtype=torch.float64)
    (slope,) = slopes(layer(x), layer.parametrizations.weight.original, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


class Halved(CholeskyOrthogonal):
    """Half of the rule's matrix."""

    def forward(self, weight: Tensor) -> Tensor:
        """W / 2."""
        return super().forward(weight) / 2


def of_a_subclass(layer: Any) -> Any:
    layer.parametrizations.weight[0] = Halved()
    return layer


def halved(layer: Any) -> Any:
    layer.parametrizations.weight[0].register_forward_hook(lambda rule, x, w: w / 2)
    return layer


def made_ready(layer: Any) -> Any:
    layer.parametrizations.weight[0].ready = torch.randn(30, 30, requires_grad=True).double()
    return layer


def halved_twice(layer: Any) -> Any:
    parametrize.register_parametrization(layer, "weight", Halved())
    return layer


OTHERS: dict[str, Callable[[Any], Any]] = {
    "a rule of a subclass": of_a_subclass,
    "a hook of the rule": halved,
    "a weight that is ready": made_ready,
    "a second parametrization": halved_twice,
    "no parametrization": lambda x: parametrize.remove_parametrizations(x, "weight"),
    "evaluation": lambda layer: layer.eval(),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_what_changes_a_weight_changes_the_output(
    change: Callable[[Any], Any], made: list[int]
) -> None:
    layer, x = change(perturbed(CholeskyLinear(30, 30))), torch.randn(2, 30).double()
    y = layer(x)
    assert_close([y], [reference(layer, x)])
    y.sum().backward()
    assert not made


def test_a_cache_holds_one_weight_for_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = perturbed(CholeskyLinear(30, 30)), torch.randn(2, 30).double()
    factors: list[Tensor] = []
    function = cholesky.regularised_factor

    def counted(x: Tensor, ridge: float) -> Tensor:
        factors.append(function(x, ridge))
        return factors[-1]

    monkeypatch.setattr(cholesky, "regularised_factor", counted)
    with parametrize.cached():
        torch.testing.assert_close(layer(x) + layer(-x), 2 * layer.bias.expand(2, -1))
    assert len(factors) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_tangents_go_through_a_layer_in_training() -> None:
    layer, x = perturbed(CholeskyLinear(30, 30)), torch.randn(2, 30).double()
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(x, torch.ones_like(x)))
        tangent = forward_ad.unpack_dual(y).tangent
    assert_close([tangent], [torch.ones_like(x) @ layer.weight.mT])


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_other_batches_keep_their_product(precision: Any, made: list[int]) -> None:
    layer = perturbed(CholeskyLinear(30, 30), torch.float32)
    # Autocast decides on the products of any batch.
    x = torch.randn(2 if precision else 40, 30)
    with torch.autocast("cpu", precision) if precision else nullcontext():
        y = layer(x)
        assert torch.equal(y, reference(layer, x))
    y.sum().backward()
    assert not made


@pytest.mark.parametrize("shape", [(100, 120), (600, 700)])
def test_nothing_above_a_factors_diagonal_is_read(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Tensor.new_empty
    monkeypatch.setattr(
        Tensor, "new_empty", lambda self, *shape: empty(self, *shape).fill_(math.nan)
    )
    x = torch.randn(*shape, dtype=torch.float64)
    factor = cholesky.regularised_factor(x, 1e-3)
    lower = factor.tril()
    rho = 1e-3 * x.square().sum() / len(x)
    gram = x @ x.T + rho * torch.eye(len(x), dtype=torch.float64)
    torch.testing.assert_close(lower @ lower.T, gram, rtol=1e-10, atol=1e-10)
    for triangle, adjoint in ((lower, False), (lower.T, True)):
        found = cholesky.solved(factor, x, adjoint=adjoint)
        torch.testing.assert_close(triangle @ found, x, rtol=1e-10, atol=1e-10)
