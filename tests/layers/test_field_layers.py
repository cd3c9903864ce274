"""Layers of the literature: what each promises beyond what test_layers.py asks of every layer."""

import copy
import math
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from helpers.configs import build, names, slow_but
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from robustcert.activations import ReLU, Softplus
from robustcert.errors import UnsoundNetworkError
from robustcert.layers import (
    BCOPConv2d,
    BjorckLinear,
    BjorckOrthogonal,
    BROConv2d,
    BROLinear,
    CayleyConv2d,
    CholeskyResidualLinear,
    CPLConv2d,
    CPLLinear,
    ExponentialLinear,
    FreeSandwich,
    InvertibleDownsampling,
    LiResConv2d,
    LiResLinear,
    LOTConv2d,
    NormPool2d,
    SandwichLinear,
    SkewSeriesConv2d,
    SLLConv2d,
    SLLLinear,
    SOCConv2d,
    fft,
    frequency_reflection,
)
from robustcert.layers.cayley import cayley
from robustcert.layers.sll import diagonal_scale
from robustcert.lipschitz import lipschitz_bound, lipschitz_estimate
from robustcert.network.activation import Activation, Slopes
from robustcert.network.blocks import ResidualBlock, Sandwich
from robustcert.network.bounds import operation_bound
from robustcert.network.fold import fold
from robustcert.network.linear import CircularConvolution, Convolution, Dense
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation
from robustcert.network.skew_series import SkewSeries

Module = Any
SIZE = (5, 4)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def perturb(module: Module, scale: float = 0.5) -> Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn_like(parameter)
    return module


def train(module: Module, shape: tuple[int, ...], steps: int = 25) -> Module:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    x = torch.randn(16, *shape)
    target = -5 * module(x).detach() + torch.randn(())
    for _ in range(steps):
        optimizer.zero_grad()
        (module(x) - target).square().mean().backward()
        optimizer.step()
    return module


def jacobians(operation: Operation, x: Tensor) -> Tensor:
    """Jacobian of every sample as a matrix."""
    shape = x.shape[1:]
    rows = vmap(jacrev(lambda z: operation(z.view(1, *shape)).flatten()))(x.flatten(1))
    return rows.detach()


def steepest(operation: Operation, shape: tuple[int, ...], scale: float = 1.0) -> float:
    """The largest difference quotient and Jacobian norm that are found."""
    x = scale * torch.randn(64, *shape, dtype=torch.float64)
    norms = torch.linalg.matrix_norm(jacobians(operation, x), 2).max()
    y = torch.cat([x.roll(1, 0), x + 1e-3 * torch.randn_like(x)])
    x = torch.cat([x, x])
    moved = (operation(x) - operation(y)).flatten(1).norm(dim=1)
    return max(float(norms), float((moved / (x - y).flatten(1).norm(dim=1)).max()))


def matrix(operation: Operation, shape: tuple[int, ...]) -> Tensor:
    impulses = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return (operation(impulses) - operation(torch.zeros_like(impulses))).flatten(1).T


def stays_within_rounding(operation: Operation, shape: tuple[int, ...]) -> None:
    """Float32 arithmetic against float64, at inputs of any size."""
    a, b = operation.rounding(shape, 2.0**-24)
    for size in (0.0, 1e-3, 1.0, 1e4):
        x = size * torch.randn(16, *shape)
        error = (operation(x).double() - operation(x.double())).flatten(1).norm(dim=1)
        assert (error <= a * x.double().flatten(1).norm(dim=1) + b).all()
    fine_a, fine_b = operation.rounding(shape, 2.0**-53)
    assert 0 < fine_a < 1e-6 * a
    assert fine_b <= 1e-6 * b


# Residual blocks

RELU = partial(ReLU)
CONV = {"stride": 1, "padding": 1, "input_size": SIZE}
BLOCKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "cpl": (lambda **o: CPLLinear(6, 6, **o), (6,)),
    "cpl-wide": (lambda **o: CPLLinear(4, 4, hidden=9, **o), (4,)),
    "cpl-conv": (lambda **o: CPLConv2d(3, 3, 3, **CONV, **o), (3, *SIZE)),
    "sll": (lambda **o: SLLLinear(6, 6, **o), (6,)),
    "sll-narrow": (lambda **o: SLLLinear(6, 6, hidden=2, **o), (6,)),
    "sandwich": (lambda **o: SandwichLinear(6, 6, **o), (6,)),
    "sandwich-wide": (lambda **o: SandwichLinear(3, 7, **o), (3,)),
    "sandwich-narrow": (lambda **o: SandwichLinear(7, 3, **o), (7,)),
    "sll-conv": (lambda **o: SLLConv2d(3, 3, 3, hidden=4, **CONV, **o), (3, *SIZE)),
}


@pytest.mark.parametrize("activation", [RELU, partial(Softplus, temperature=0.2)])
@pytest.mark.parametrize("state", ["initial", "perturbed", "trained"])
@pytest.mark.parametrize("name", BLOCKS)
def test_residual_blocks_stay_below_their_bound(name: str, state: str, activation: Any) -> None:
    make, shape = BLOCKS[name]
    module = make(activation=activation)
    if state == "perturbed":
        perturb(module)
    if state == "trained":
        train(module, shape)
    for training in (True, False):
        module.train(training)
        (operation,) = fold(module)
        bound = lipschitz_bound(module, shape)
        assert steepest(operation, shape) <= bound * (1 + 1e-12)
        # The scale errs on the safe side but for rounding.
        assert 1 <= bound <= 1 + 1e-5
        assert lipschitz_estimate(module).item() == 1
        x = torch.randn(8, *shape)
        if not (training and name.startswith("cpl")):  # which estimates its norm in training
            torch.testing.assert_close(operation(x), module(x), rtol=1e-5, atol=1e-5)
    stays_within_rounding(operation, shape)
    restored = make(activation=activation).eval()
    restored.load_state_dict(module.state_dict())
    assert torch.equal(restored(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@pytest.mark.parametrize("name", slow_but(BLOCKS, BLOCKS.keys() - {"cpl-conv"}))
def test_residual_blocks_differentiate(name: str) -> None:
    make, shape = BLOCKS[name]
    module = perturb(make(activation=partial(Softplus, temperature=0.5))).double().eval()
    keys, values = zip(*module.named_parameters(), strict=True)
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    parameters = [v.detach().clone().requires_grad_() for v in values]
    assert torch.autograd.gradcheck(
        lambda x, *p: functional_call(module, dict(zip(keys, p, strict=True)), (x,)),
        (x, *parameters),
    )
    (operation,) = fold(module)
    torch.testing.assert_close(operation(x), module(x), rtol=1e-12, atol=1e-12)
    assert steepest(operation, shape) <= lipschitz_bound(module, shape) * (1 + 1e-12)


@pytest.mark.parametrize("name", ["cpl", "cpl-wide", "cpl-conv"])
def test_the_norm_of_training_comes_from_below_and_is_near_that_of_the_certificate(
    name: str,
) -> None:
    make, shape = BLOCKS[name]
    module = perturb(make(activation=RELU))
    weight, linear = module.weight.detach(), len(shape) == 1
    inside = Dense(weight) if linear else Convolution(weight, padding=(1, 1))
    norm = steepest(inside, shape)
    before = module.vector.clone()
    for _ in range(60):
        module(torch.randn(2, *shape))
    scale = module.training_scale()
    assert not torch.equal(module.vector, before)
    assert norm * (1 - 1e-3) <= 1 / scale[0].item() <= norm * (1 + 1e-5)
    assert 1 / module.scale()[0].item() >= norm * (1 - 1e-5)
    # The gradient is that of the norm: its inner product with the weight is the norm again.
    (gradient,) = torch.autograd.grad(1 / scale[0], module.weight)
    assert (gradient * weight).sum().item() == pytest.approx(1 / scale[0].item(), rel=1e-5)
    kept = module.vector.clone()
    module.eval()(torch.randn(2, *shape))
    fold(module)
    assert torch.equal(module.vector, kept)


def relu_block(weight: Tensor, scale: Tensor) -> ResidualBlock:
    return ResidualBlock(weight, scale, ReLU(len(weight)).fold())


@pytest.mark.parametrize("excess", [0.5, 1.0, 1.001, 1.1, 2.0, 10.0])
@pytest.mark.parametrize("shape", [(4, 4), (2, 5), (6, 3), (1, 1)])
def test_a_residual_block_is_bounded_over_all_slopes(shape: tuple[int, int], excess: float) -> None:
    weight, scale = torch.randn(shape), torch.rand(shape[0]) + 0.1
    scale = scale * excess / torch.linalg.matrix_norm(scale[:, None] * weight, 2)
    bound = relu_block(weight, scale).lipschitz_bound((shape[1],))
    w, t = weight.double(), scale.double() ** 2
    true = max(
        float(
            torch.linalg.matrix_norm(torch.eye(shape[1]) - 2 * (w.T * t * torch.tensor(s)) @ w, 2)
        )
        for s in product((0.0, 0.5, 1.0), repeat=shape[0])
    )
    assert true <= bound * (1 + 1e-12)
    eta = max(0.0, excess**2 - 1)
    assert bound == pytest.approx(math.sqrt(1 + 4 * eta * (1 + eta)), rel=1e-5)
    if shape == (1, 1) and excess > 1:
        # One unit: |1 - 2 a^2| is what the bound gives, so it cannot be lowered.
        assert bound == pytest.approx(2 * excess**2 - 1, rel=1e-5)


def test_a_convolutional_block_is_bounded_at_its_own_padding() -> None:
    weight, scale = torch.ones(2, 2, 3, 3), torch.full((2,), 0.2)
    block = ResidualBlock(weight, scale, ReLU(2).fold(), padding=1)
    assert steepest(block, (2, 4, 5)) <= block.lipschitz_bound((2, 4, 5))
    assert block.lipschitz_bound((2, 4, 5)) > 1.1


@pytest.mark.parametrize("slopes", [None, Slopes(-1.0, 1.0), Slopes(0.0, 1.5), Slopes(0, 1, True)])
def test_a_residual_block_has_no_bound_for_other_slopes(slopes: Slopes | None) -> None:
    activation = Activation(torch.relu, {}, lipschitz=1.0, slopes=slopes)
    block = ResidualBlock(torch.eye(2), torch.ones(2), activation, name="here")
    with pytest.raises(UnsoundNetworkError, match=r"here.*slopes in \[0, 1\]"):
        operation_bound(block, (2,))


@pytest.mark.parametrize("name", names("activation"))
def test_residual_layers_take_activations_with_slopes_in_the_unit_interval(name: str) -> None:
    activation = build("activation", name)
    slopes = activation(4).fold().slopes
    fits = slopes is not None and not slopes.pairs and 0 <= slopes.low <= slopes.high <= 1
    assert fits or name not in ("relu", "softplus", "tanh", "identity")
    for make in (
        partial(CPLLinear, 4, 4),
        partial(SLLConv2d, 4, 4, 3, **CONV),
        partial(SandwichLinear, 3, 4),
    ):
        if fits:
            make(activation=activation)
        else:
            with pytest.raises(ValueError, match=r"slopes.*model\.layer\.dense\.activation"):
                make(activation=activation)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (partial(CPLLinear, 4, 6), r"model\.layer\.linear"),
        (partial(SLLLinear, 6, 4), r"model\.layer\.linear"),
        (partial(CPLLinear, 4, 4, hidden=0), r"model\.layer\.dense\.hidden"),
        (partial(SLLConv2d, 4, 4, 3, **CONV, hidden=-1), r"model\.layer\.conv\.hidden"),
        (partial(CPLConv2d, 3, 4, 3, **CONV), r"model\.layer\.linear"),
        (partial(CPLConv2d, 3, 3, 3, **{**CONV, "stride": 2}), r"model\.layer\.linear"),
        (partial(SLLConv2d, 3, 3, 3, **{**CONV, "padding": 0}), r"model\.layer\.linear"),
        (partial(SLLConv2d, 3, 3, 4, **CONV), r"model\.layer\.linear"),
    ],
)
def test_residual_layers_refuse_what_has_no_residual(make: Any, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make(activation=RELU)


@pytest.mark.parametrize("make", [BLOCKS["cpl"][0], BLOCKS["sll"][0], BLOCKS["cpl-conv"][0]])
def test_a_zero_weight_is_the_identity(make: Any) -> None:
    module = make(activation=RELU)
    nn.init.zeros_(module.weight)
    shape = (6,) if isinstance(module.weight, Tensor) and module.weight.dim() == 2 else (3, *SIZE)
    x = torch.randn(2, *shape)
    assert torch.equal(module(x), x)
    assert lipschitz_bound(module, shape) == 1
    module(x).square().sum().backward()
    assert module.weight.grad.isfinite().all()


@pytest.mark.parametrize("excess", [0.5, 1.0, 1.1, 3.0])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 3, 5), (1, 1, 1)])
def test_a_sandwich_is_bounded_over_all_slopes(sizes: tuple[int, ...], excess: float) -> None:
    rows, inputs, outputs = sizes
    psi = torch.rand(rows) + 0.3
    both = torch.randn(rows, outputs + inputs)
    both *= excess / torch.linalg.matrix_norm(both, 2)
    outer = math.sqrt(2) * psi[:, None] * both[:, :outputs]
    inner = math.sqrt(2) / psi[:, None] * both[:, outputs:]
    operation = Sandwich(inner, outer, psi, ReLU(rows).fold())
    bound = operation.lipschitz_bound((inputs,))
    true = max(
        float(torch.linalg.matrix_norm(outer.double().T * torch.tensor(s) @ inner.double(), 2))
        for s in product((0.0, 0.5, 1.0), repeat=rows)
    )
    assert true <= bound * (1 + 1e-12)
    eta = max(0.0, excess**2 - 1)
    assert bound == pytest.approx(math.sqrt(1 + 4 * eta * (1 + eta)), rel=1e-5)
    broken = Sandwich(inner, outer, -psi, ReLU(rows).fold())
    with pytest.raises(ValueError, match="must be positive"):
        broken.lipschitz_bound((inputs,))


@pytest.mark.parametrize("excess", [0.5, 1.0, 1.1, 3.0])
def test_a_sandwich_on_a_torus_is_bounded_over_slopes(excess: float) -> None:
    shape, psi = (2, 4, 6), torch.rand(3) + 0.3
    both = torch.randn(3, 2 + 3, 4, 6)
    flat = CircularConvolution(both, input_size=(4, 6), output_size=(4, 6))
    both *= excess / torch.linalg.matrix_norm(matrix(flat, (5, 4, 6)), 2)
    outer = math.sqrt(2) * psi[:, None, None, None] * both[:, 2:]
    inner = math.sqrt(2) / psi[:, None, None, None] * both[:, :2]
    operation = Sandwich(inner, outer, psi, ReLU(3).fold())
    bound = operation.lipschitz_bound(shape)
    first, last = operation.linear()
    v, g = matrix(first, shape), matrix(last, (3, 4, 6))
    # G' is the transpose of a correlation with G.
    whole = CircularConvolution(outer, input_size=(4, 6), output_size=(4, 6))
    torch.testing.assert_close(g, matrix(whole, (3, 4, 6)).T)
    slopes = [torch.ones(len(v)), *(torch.rand(20, len(v)) > 0.3).double()]
    true = max(float(torch.linalg.matrix_norm(g * s @ v, 2)) for s in slopes)
    assert true <= bound * (1 + 1e-12)
    eta = max(0.0, excess**2 - 1)
    assert bound == pytest.approx(math.sqrt(1 + 4 * eta * (1 + eta)), rel=1e-5)
    stays_within_rounding(operation, shape)


@pytest.mark.parametrize("size", [None, (4, 5)])
def test_a_sandwich_of_free_factors_is_its_fold(size: Any) -> None:
    module = perturb(FreeSandwich(3, 4, activation=RELU, input_size=size))
    x = torch.randn(2, 3, *(size or ()))
    (operation,) = fold(module)
    torch.testing.assert_close(operation(x), module(x))
    assert module(x).shape == (2, 4, *(size or ()))


# Skew series


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (6, 4)])
@pytest.mark.parametrize("norm", [0.3, 1.0, 2.0, 6.0])
@pytest.mark.parametrize("terms", [1, 4, 12])
def test_a_skew_series_is_bounded_on_its_map(size: Any, norm: float, terms: int) -> None:
    layer, shape = SkewSeriesConv2d(3, 3, terms=terms), (3, *size)
    with torch.no_grad():
        layer.weight.normal_()
        step = fold(layer)[0].step
        layer.weight *= norm / torch.linalg.matrix_norm(matrix(step, shape), 2)
        layer.bias.normal_()
    (operation,) = fold(layer)
    bound = operation.lipschitz_bound(shape)
    true = float(torch.linalg.matrix_norm(matrix(operation, shape), 2))
    assert true <= bound * (1 + 1e-12)
    # The series is as far from the exponential, a rotation, as its remainder is large.
    rest = norm ** (terms + 1) / math.factorial(terms + 1)
    exponential = torch.linalg.matrix_exp(matrix(operation.step, shape))
    wrong = torch.linalg.matrix_norm(matrix(operation, shape) - exponential, 2)
    assert wrong <= 2 * rest * math.exp(norm) + 1e-5
    assert bound <= 1 + 2 * rest * math.exp(norm) + 1e-6 * math.exp(norm)
    stays_within_rounding(operation, shape)
    x = torch.randn(4, *shape)
    torch.testing.assert_close(operation(x), layer(x), rtol=1e-5, atol=1e-5)


def test_the_border_cuts_every_term_of_a_skew_series() -> None:
    # A shift to one side minus one to the other: its square on a circle reads across the border.
    layer = SkewSeriesConv2d(1, 3, terms=2, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 1, 2] = 1.0
    a = torch.diag(torch.ones(3), 1) - torch.diag(torch.ones(3), -1)
    found = matrix(fold(layer)[0], (1, 1, 4)).float()
    torch.testing.assert_close(found, torch.eye(4) + a / 2 + a @ a / 8)


def test_a_series_of_another_kernel_has_no_bound() -> None:
    weight = torch.randn(2, 2, 3, 3)
    series = SkewSeries.of(weight=weight, scales=torch.ones(2), name="here")
    with pytest.raises(UnsoundNetworkError, match=r"here.*minus its own transpose"):
        operation_bound(series, (2, 4, 4))
    with pytest.raises(ValueError, match=r"odd kernel.*kernel_size"):
        SkewSeriesConv2d(2, 4)


# Circular convolutions


def circular(x: Tensor, op: CircularConvolution) -> Tensor:
    """The definition, position by position."""
    height, width = op.weight.shape[2:]
    (s, t), (p, q) = op.stride, op.padding
    y = torch.zeros(len(x), op.weight.shape[0], *op.output_size, dtype=x.dtype)
    for i, j in product(*map(range, op.output_size)):
        for a, b in product(range(height), range(width)):
            row, column = (s * i + a - p) % height, (t * j + b - q) % width
            if row < x.shape[2] and column < x.shape[3]:
                y[:, :, i, j] += x[:, :, row, column] @ op.weight[:, :, a, b].to(x).T
    return y if op.bias is None else y + op.bias.to(x)[:, None, None]


@pytest.mark.parametrize(
    ("period", "size", "out", "stride", "padding"),
    [
        ((4, 5), (4, 5), (4, 5), (1, 1), (0, 0)),
        ((4, 5), (4, 5), (4, 5), (1, 1), (2, 1)),
        ((6, 4), (5, 4), (3, 2), (2, 2), (1, 1)),
        ((6, 6), (3, 4), (2, 5), (3, 1), (7, 9)),
    ],
)
def test_a_circular_convolution_is_its_definition(
    period: Any, size: Any, out: Any, stride: Any, padding: Any
) -> None:
    op = CircularConvolution(
        torch.randn(3, 2, *period),
        torch.randn(3),
        input_size=size,
        output_size=out,
        stride=stride,
        padding=padding,
    )
    x = torch.randn(4, 2, *size, dtype=torch.float64)
    torch.testing.assert_close(op(x), circular(x, op), rtol=1e-12, atol=1e-12)
    shape = (2, *size)
    true, bound = torch.linalg.matrix_norm(matrix(op, shape), 2), op.lipschitz_bound(shape)
    assert true * (1 - 1e-12) <= bound
    if period == size and tuple(n // s for n, s in zip(size, stride, strict=True)) == out:
        assert bound <= true * (1 + 1e-7)
    stays_within_rounding(op, shape)
    with pytest.raises(UnsoundNetworkError, match="it takes maps of"):
        PlainNetwork((op,), (2, size[0] + 1, size[1]))


def test_an_impossible_circular_convolution_is_refused() -> None:
    weight = torch.zeros(1, 1, 4, 4)
    for size, out, stride in (
        ((5, 4), (4, 4), (1, 1)),
        ((4, 4), (2, 5), (1, 1)),
        ((4, 4), (1, 1), (3, 3)),
    ):
        with pytest.raises(UnsoundNetworkError, match="no circular convolution"):
            CircularConvolution(weight, input_size=size, output_size=out, stride=stride)


@pytest.mark.parametrize("make", [CayleyConv2d, SOCConv2d, BROConv2d, LOTConv2d])
def test_convolutions_on_a_torus_are_orthogonal(make: Any) -> None:
    options = {"margin": 0} if make is BROConv2d else {}
    for channels, kernel, stride, padding in (
        ((3, 3), 3, 1, 1),
        ((2, 8), 4, 2, 1),
        ((2, 4), 2, 2, 0),
    ):
        module = make(
            *channels, kernel, stride=stride, padding=padding, input_size=(6, 4), **options
        )
        perturb(module, 0.2)
        w = matrix(fold(module)[0], (channels[0], 6, 4))
        w = w if w.shape[0] <= w.shape[1] else w.T
        if make is LOTConv2d:
            # Small singular values are still on their way to 1.
            assert torch.linalg.svdvals(w).max() <= 1 + 1e-5
            assert torch.linalg.svdvals(w).median() >= 0.99
        else:
            torch.testing.assert_close(
                w @ w.T, torch.eye(len(w), dtype=torch.float64), rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("size", [(7, 5), (6, 8)])
@pytest.mark.parametrize(
    ("make", "kernel", "stride"), [(SOCConv2d, 3, 1), (BROConv2d, 3, 1), (CayleyConv2d, 4, 2)]
)
def test_products_and_fast_transforms_agree(
    make: Any, kernel: int, stride: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients, on maps with and without borders that are cut."""
    layer = make(2, 3, kernel, stride=stride, padding=1, input_size=size).double()
    x = torch.randn(4, 2, *size, dtype=torch.float64, requires_grad=True)
    found = []
    for large in (fft.LARGE, 0):
        monkeypatch.setattr(fft, "LARGE", large)
        y = layer(x)
        found.append((y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])))
    for by_product, fast in zip(*found, strict=True):
        torch.testing.assert_close(by_product, fast, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("period", [(4, 6), (5, 7), (4, 5), (5, 4), (1, 8)])
def test_frequencies_and_their_mirror_images_are_all(period: tuple[int, int]) -> None:
    """None is left out, and none counts twice: a transform keeps lengths."""
    x = torch.randn(1, 1, *period, dtype=torch.float64)
    real, imaginary = fft.analyse(x, period)
    counts = fft.waves_at(period, period, (0, 0), x.dtype, x.device)[2]
    assert counts.sum() == math.prod(period)
    assert len(counts) == math.prod(period) // 2 + 1 + (period[1] % 2 == 0 == period[0] % 2)
    energy = (counts * (real.square() + imaginary.square()).flatten()).sum() / math.prod(period)
    torch.testing.assert_close(energy, x.square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 32, 33, 70])
def test_a_factor_in_panels_is_that_of_cholesky(size: int) -> None:
    v = torch.randn(3, 80, size, dtype=torch.complex128)
    gram, right = v.mH @ v, torch.randn(3, size, 2, dtype=torch.complex128)
    factor = frequency_reflection._factor(gram)
    torch.testing.assert_close(factor.tril(), torch.linalg.cholesky(gram), rtol=1e-9, atol=1e-9)
    solved = torch.linalg.solve(gram, right)
    torch.testing.assert_close(
        frequency_reflection._solve(gram, factor, right), solved, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 5), (2, 3, 3)])
def test_the_cayley_transform_of_complex_blocks_is_its_formula(shape: tuple[int, ...]) -> None:
    blocks = torch.randn(shape, dtype=torch.complex128, requires_grad=True)
    tall = blocks if shape[1] >= shape[2] else blocks.mH
    n = tall.shape[2]
    u, v = tall[:, :n], tall[:, n:]
    a, identity = u - u.mH + v.mH @ v, torch.eye(n, dtype=blocks.dtype)
    inverse = torch.linalg.inv(identity + a)
    expected = torch.cat([(identity - a) @ inverse, -2 * v @ inverse], 1)
    found, expected = cayley(blocks), expected if tall is blocks else expected.mH
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((w * direction).real.sum(), blocks)[0] for w in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


def test_scales_of_distant_weights_stay_finite() -> None:
    correlation = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    log_q = torch.tensor([160.0, 80.0])
    q = log_q.double().exp()
    expected = (correlation.double() @ q / q).rsqrt()
    found = diagonal_scale(correlation, log_q)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=0)


def test_a_torus_can_be_trained_after_inference() -> None:
    """What is computed once and kept is no tensor of the inference mode."""
    layer = CayleyConv2d(2, 2, 3, padding=1, input_size=(3, 11))
    x = torch.randn(1, 2, 3, 11, requires_grad=True)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("make", [CayleyConv2d, BROConv2d])
def test_a_torus_has_one_size(make: Any) -> None:
    module = make(2, 2, 3, padding=1, input_size=(6, 4))
    assert module(torch.zeros(1, 2, 6, 4)).shape == (1, 2, 6, 4)
    with pytest.raises(ValueError, match="at this size only"):
        module(torch.zeros(1, 2, 4, 6))
    with pytest.raises(ValueError, match=r"model\.depth"):
        make(2, 2, 5, input_size=(4, 4))


# Orthogonal kernels and matrices


@pytest.mark.parametrize(
    ("channels", "kernel", "stride"),
    [
        ((4, 4), 3, 1),
        ((3, 5), 2, 1),
        ((5, 3), 4, 1),
        ((2, 8), 4, 2),
        ((3, 4), 3, 2),
        ((1, 1), 3, 1),
    ],
)
def test_projector_blocks_are_orthogonal_away_from_the_border(
    channels: tuple[int, int], kernel: int, stride: int
) -> None:
    module = BCOPConv2d(*channels, kernel, stride=stride, padding=0, input_size=(16, 16))
    perturb(module)
    w = matrix(fold(module)[0], (channels[0], 16, 16))
    if channels[1] <= channels[0] * stride**2:
        # No output reads the border: the rows are those of the unbounded operator.
        expected = torch.eye(len(w), dtype=torch.float64)
        torch.testing.assert_close(w @ w.T, expected, rtol=0, atol=1e-4)
    else:
        inside = w.view(-1, channels[0], 16, 16)[:, :, 5:11, 5:11].flatten(1)
        expected = torch.eye(inside.shape[1], dtype=torch.float64)
        torch.testing.assert_close(inside.T @ inside, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sizes", [(6, 6), (9, 4), (4, 9), (1, 5)])
@pytest.mark.parametrize(
    "make", [ExponentialLinear, BROLinear, BjorckLinear, CholeskyResidualLinear]
)
def test_dense_layers_are_orthogonal(make: Any, sizes: tuple[int, int]) -> None:
    module = make(*sizes)
    with torch.no_grad():
        free = module.v if make is BROLinear else module.parametrizations.weight.original
        free.add_(0.2 * torch.randn(()))
    w = module.weight.double()
    w = w if len(w) <= w.shape[1] else w.T
    tolerance = 0.05 if make is CholeskyResidualLinear else 1e-5
    torch.testing.assert_close(w @ w.T, torch.eye(len(w)).double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("iterations", [1, 2, 15])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e15])
def test_bjorck_never_ends_above_one(scale: float, iterations: int) -> None:
    for weight in (torch.randn(8, 5), torch.ones(4, 6), torch.diag(torch.tensor([3.0, 1e-3, 0.0]))):
        found = torch.linalg.matrix_norm(BjorckOrthogonal(iterations)(scale * weight), 2)
        assert found <= 1 + 1e-5


# Residuals with a free weight


def test_linear_residuals_add_the_identity() -> None:
    dense = LiResLinear(4, 4, gamma=0.5)
    free = dense.parametrizations.weight.original
    torch.testing.assert_close(dense.weight, torch.eye(4) + 0.5 * free)
    conv = LiResConv2d(3, 3, 3, padding=1, input_size=SIZE, gamma=0.5)
    x = torch.randn(2, 3, *SIZE)
    kernel = conv.parametrizations.weight.original
    expected = x + 0.5 * nn.functional.conv2d(x, kernel, padding=1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)
    for plain in (LiResLinear(4, 5), LiResConv2d(3, 3, 3, padding=0, input_size=SIZE)):
        assert not hasattr(plain, "parametrizations")


# Resolution


@pytest.mark.parametrize("size", [1, 2, 3])
def test_downsampling_permutes(size: int) -> None:
    module = InvertibleDownsampling(3, size)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    (operation,) = fold(module)
    assert torch.equal(operation(x), module(x))
    w = matrix(operation, (3, 6, 6))
    assert torch.equal(w @ w.T, torch.eye(108).double())
    assert 1 <= lipschitz_bound(module, (3, 6, 6)) <= 1 + 1e-8
    assert lipschitz_estimate(module) == 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pooling_takes_norms(size: int) -> None:
    module = NormPool2d(size)
    x = torch.randn(2, 3, 6, 6)
    patches = x.unfold(2, size, size).unfold(3, size, size)
    torch.testing.assert_close(module(x), patches.square().sum((4, 5)).sqrt())
    (operation,) = fold(module)
    assert torch.equal(operation(x), module(x))
    assert steepest(operation, (2, 6, 6)) <= 1 + 1e-12
    assert lipschitz_bound(module, (3, 6, 6)) == 1
    stays_within_rounding(operation, (3, 6, 6))
    # The gradient at a window of zeros is finite.
    z = torch.zeros(1, 1, 6, 6, requires_grad=True)
    module(z).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_resolution_layers_are_their_plain_formulas(size: int) -> None:
    def norm(x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, size).unflatten(1, (-1, size**2)).square().sum(2).sqrt()

    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    probe = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    pairs: list[tuple[Module, Any]] = [
        (NormPool2d(size), norm),
        (InvertibleDownsampling(2, size), lambda x: F.pixel_unshuffle(x, size)),
    ]
    for module, plain in pairs:
        torch.testing.assert_close(module(x), plain(x))
        torch.testing.assert_close(module(x[0]), plain(x[:1])[0])
        assert torch.autograd.gradgradcheck(lambda z, module=module: module(z).sin(), probe)
        maps = [vmap(jacrev(lambda z, f=f: f(z[None])[0]))(x) for f in (module, plain)]
        torch.testing.assert_close(*maps)
        if size > 1:
            with pytest.raises(RuntimeError, match=rf"side {size}.*divisible by {size}"):
                module(x[..., :-1])


def test_a_pooled_window_of_zeros_has_gradient_0() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(NormPool2d(2)(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert not first.any()
    assert not second.any()
    # In half precision the squares of large numbers do not overflow.
    large = torch.full((1, 1, 2, 2), 1000.0).half()
    assert NormPool2d(2)(large).item() == 2000


# All families


@pytest.mark.parametrize("layer", names("layer"))
def test_variance_over_a_batch_does_not_grow(layer: str) -> None:
    family = build("layer", layer)
    conv = {"stride": 1, "padding": 1, "input_size": (6, 6)}
    for module, shape in (
        (family.dense(8, 8), (8,)),
        (family.dense(8, 5), (8,)),
        (family.conv(4, 4, 3, **conv), (4, 6, 6)),
        (family.conv(4, 6, 4, **{**conv, "stride": 2}), (4, 6, 6)),
    ):
        perturb(module)
        bound = lipschitz_bound(module, shape)
        for x in (torch.randn(32, *shape), torch.rand(32, *shape), torch.eye(32, math.prod(shape))):
            x = x.view(-1, *shape)
            before, after = (z.detach().double().var(0).sum() for z in (x, module(x)))
            assert after <= bound**2 * before * (1 + 1e-5)


# Options


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (partial(BjorckLinear, 2, 2, iterations=0), r"model\.layer\.dense\.iterations"),
        (partial(BROConv2d, 2, 2, 3, input_size=SIZE, margin=-1), r"model\.layer\.conv\.margin"),
        (partial(BCOPConv2d, 2, 2, 1, stride=2, input_size=SIZE), "layer=aol"),
        (partial(LiResLinear, 2, 2, gamma=0.0), r"model\.layer\.dense\.gamma"),
        (partial(LiResConv2d, 2, 2, 3, input_size=SIZE, gamma=math.nan), r"layer\.conv\.gamma"),
        (partial(CholeskyResidualLinear, 2, 2, gamma=-1.0), r"model\.layer\.dense\.gamma"),
        (partial(CholeskyResidualLinear, 2, 2, ridge=0.0), r"model\.layer\.dense\.ridge"),
        (partial(NormPool2d, 0), "set size"),
        (partial(InvertibleDownsampling, 3, -2), "set size"),
    ],
)
def test_options_are_checked(make: Any, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make()
