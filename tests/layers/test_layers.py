"""Every layer of conf/layer, as a matrix, keeps the bound that it folds into certificates."""

import copy
import math
from typing import Any

import pytest
import torch
from helpers.configs import build, names, read
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from robustcert.layers import (
    AOLConv2d,
    AOLConvolution,
    AOLDense,
    AOLLinear,
    CayleyOrthogonal,
    CholeskyLinear,
    CholeskyOrthogonal,
    CholeskyPatchConv2d,
    UnconstrainedConv2d,
    UnconstrainedLinear,
    cholesky,
)
from robustcert.lipschitz import lipschitz_bound, lipschitz_estimate
from robustcert.network.fold import fold

LAYERS = names("layer")
DENSE = [(6, 6), (9, 4), (4, 9), (1, 6), (6, 1)]  # inputs, outputs
CONV: list[dict[str, Any]] = [
    {"channels": (2, 3), "kernel_size": 3, "stride": 1, "padding": 1, "input_size": (5, 4)},
    {"channels": (3, 2), "kernel_size": 3, "stride": 1, "padding": 0, "input_size": (5, 5)},
    {"channels": (2, 4), "kernel_size": 4, "stride": 2, "padding": 1, "input_size": (6, 6)},
    {"channels": (1, 3), "kernel_size": 3, "stride": 2, "padding": 2, "input_size": (4, 7)},
    {"channels": (4, 4), "kernel_size": 1, "stride": 1, "padding": 0, "input_size": (3, 3)},
    # Signals are maps of height 1; their convolutions are residual in no family.
    *[
        {"channels": (3, 3), "kernel_size": (1, k), "stride": (1, s), "padding": (0, 1)}
        | {"input_size": (1, 10)}
        for k, s in ((3, 1), (4, 2))
    ],
]


def _nonlinear(name: str, case: Any) -> bool:
    # Layers with an activation inside are no matrices: test_field_layers.py has their tests.
    family = read("layer", name)
    if "activation" not in family["dense"]:
        return False
    if "linear" not in family:
        return isinstance(case, tuple)
    if isinstance(case, tuple):
        return case[0] == case[1]
    keeps = case["stride"] == 1 and 2 * case["padding"] == case["kernel_size"] - 1
    return keeps and case["channels"][0] == case["channels"][1]


def _first(name: str, kind: str) -> bool:
    """Whether no family before this one has the same layer, under the same options."""

    def described(other: str) -> dict[str, Any]:
        drop = "conv" if kind == "dense" else "dense"
        return {k: v for k, v in read("layer", other).items() if k not in (drop, "_target_")}

    return not any(described(other) == described(name) for other in LAYERS[: LAYERS.index(name)])


CASES = [
    pytest.param(name, case, id=f"{name}-{kind}{i}")
    for name in LAYERS
    for kind, cases in (("dense", DENSE), ("conv", CONV))
    if _first(name, kind)
    for i, case in enumerate(cases)
    if not _nonlinear(name, case)
]
FREE = (UnconstrainedLinear, UnconstrainedConv2d)

Module = Any


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(name: str, case: Any) -> tuple[Module, tuple[int, ...]]:
    """A layer and the shape of its input."""
    family = build("layer", name)
    if isinstance(case, tuple):
        return family.dense(*case), (case[0],)
    options = dict(case)
    channels = options.pop("channels")
    return family.conv(*channels, **options), (channels[0], *case["input_size"])


def perturb(module: Module, scale: float = 0.5) -> Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn_like(parameter)
    return module


def train(module: Module, shape: tuple[int, ...], steps: int = 25) -> Module:
    """Steps towards outputs that only a layer of a larger norm could give."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    x = torch.randn(16, *shape)
    target = 5 * torch.randn_like(module(x).detach())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(x) - target).square().mean() + 0.01 * lipschitz_estimate(module)
        loss.backward()
        optimizer.step()
    return module


def matrix(module: Module, shape: tuple[int, ...]) -> Tensor:
    """The folded layer as a float64 matrix, by its impulse responses."""
    (operation,) = fold(module)
    impulses = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return (operation(impulses) - operation(torch.zeros_like(impulses))).flatten(1).T


def norm(module: Module, shape: tuple[int, ...]) -> float:
    return float(torch.linalg.matrix_norm(matrix(module, shape), 2))


def assert_bounded(module: Module, shape: tuple[int, ...]) -> None:
    (operation,) = fold(module.train())
    (evaluated,) = fold(module.eval())
    constants = zip(operation.tensors().values(), evaluated.tensors().values(), strict=True)
    assert all(torch.equal(*pair) for pair in constants)
    true, bound = norm(module, shape), lipschitz_bound(module, shape)
    assert true * (1 - 1e-12) <= bound
    # A convolution is bounded on a slightly larger map.
    assert bound <= true * (1 + 1e-6 if len(shape) == 1 else 1.5)
    for mode in (module.eval(), module.train()):
        estimate = torch.as_tensor(lipschitz_estimate(mode)).item()
        if isinstance(module, FREE):
            assert estimate <= true * (1 + 1e-5)
        else:
            assert estimate == 1
            assert true <= 1 + 1e-5


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_layer_as_a_matrix_stays_below_its_bound(name: str, case: Any) -> None:
    module, shape = make(name, case)
    assert_bounded(module, shape)
    assert_bounded(train(module, shape), shape)
    assert_bounded(perturb(module), shape)


@pytest.mark.parametrize("name", LAYERS)
def test_dense_and_convolutional_layers_are_described(name: str) -> None:
    family = read("layer", name)
    assert set(family) >= {"dense", "conv"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_folded_operation_is_the_layer(name: str, case: Any, dtype: torch.dtype) -> None:
    module, shape = make(name, case)
    perturb(module).to(dtype)
    x = torch.randn(8, *shape, dtype=dtype)
    (operation,) = fold(module)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(operation(x), module.eval()(x), rtol=tolerance, atol=tolerance)
    assert all(t.dtype == dtype for t in operation.tensors().values())


@pytest.mark.parametrize(("name", "case"), CASES)
def test_copies_and_state_dicts_restore_the_layer(name: str, case: Any) -> None:
    module, shape = make(name, case)
    train(module, shape, steps=3)
    restored, _ = make(name, case)
    restored.load_state_dict(module.state_dict())
    x = torch.randn(4, *shape)
    for other in (restored, copy.deepcopy(module)):
        assert torch.equal(other.eval()(x), module.eval()(x))
        assert torch.equal(
            torch.as_tensor(lipschitz_estimate(other.eval())),
            torch.as_tensor(lipschitz_estimate(module.eval())),
        )


@pytest.mark.parametrize(("name", "case"), CASES)
def test_reduced_precision_does_not_reach_the_constraint(name: str, case: Any) -> None:
    module, shape = make(name, case)
    perturb(module).eval()
    expected = matrix(module, shape), torch.as_tensor(lipschitz_estimate(module))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.randn(1, *shape)).dtype == torch.bfloat16
        weight = module.weight
        found = matrix(module, shape), torch.as_tensor(lipschitz_estimate(module))
    assert torch.equal(weight, module.weight)
    assert weight.dtype == torch.float32
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_bias_is_optional(name: str, case: Any) -> None:
    family = build("layer", name)
    if isinstance(case, tuple):
        module = family.dense(*case, bias=False)
    else:
        options = {k: v for k, v in case.items() if k != "channels"}
        module = family.conv(*case["channels"], **options, bias=False)
    assert module.bias is None
    (operation,) = fold(module)
    # A centred layer has the running mean there.
    centred = getattr(module, "centering", None) is not None
    assert set(operation.tensors()) == ({"weight", "bias"} if centred else {"weight"})


# Gradients


def _ridged(name: str, case: Any) -> bool:
    # Cholesky layers hold their ridge constant: the next test but one has theirs.
    module, _ = make(name, case)
    rules = getattr(module, "parametrizations", nn.Module()).modules()
    return any(isinstance(rule, CholeskyOrthogonal) for rule in rules)


def differentiable(module: Module) -> tuple[Any, list[Tensor]]:
    keys, values = zip(*module.double().named_parameters(), strict=True)
    return (
        lambda x, *p: functional_call(module, dict(zip(keys, p, strict=True)), (x,)),
        [v.detach().clone().requires_grad_() for v in values],
    )


@pytest.mark.parametrize(("name", "case"), [p for p in CASES if not _ridged(*p.values)])
def test_gradients_are_those_of_the_constrained_layer(name: str, case: Any) -> None:
    module, shape = make(name, case)
    function, parameters = differentiable(perturb(module).eval())
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    # Along random directions only: some weights go through many complex solves.
    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("shape", [*DENSE, (3, 20)])
def test_the_gradient_of_the_cholesky_layer_holds_the_ridge_constant(
    shape: tuple[int, int],
) -> None:
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    # The definition, by autograd, on the side that has fewer rows.
    x = weight if shape[0] <= shape[1] else weight.mT
    gram = x @ x.mT
    ridge = 1e-3 * gram.diagonal().mean().detach()
    factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(x), dtype=torch.float64))
    expected = torch.linalg.solve_triangular(factor, x, upper=False)
    expected = expected if shape[0] <= shape[1] else expected.mT
    found = CholeskyOrthogonal()(weight)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(expected)
    gradients = [torch.autograd.grad((w * direction).sum(), weight)[0] for w in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_the_cholesky_layer_refuses_a_second_derivative() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    loss = CholeskyOrthogonal()(weight).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("rule", [AOLDense(), AOLConvolution()])
def test_rescaling_survives_dead_columns(rule: nn.Module) -> None:
    weight = torch.randn(4, 4, 3, 3) if isinstance(rule, AOLConvolution) else torch.randn(5, 4)
    weight[:, 1] = 0
    weight.requires_grad_()
    rescaled = rule(weight)
    assert (rescaled[:, 1] == 0).all()
    assert rescaled.isfinite().all()
    (gradient,) = torch.autograd.grad(rescaled.square().sum(), weight)
    assert gradient.isfinite().all()


# What each constraint promises


@pytest.mark.parametrize(("rows", "scale"), [(260, 1.0), (300, 0.1), (260, 1e4)])
def test_the_cayley_transform_in_blocks_is_its_formula(rows: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = scale * torch.randn(rows, 260, dtype=torch.float64, generator=generator) / 16
    weight.requires_grad_()
    u, v = weight[:260], weight[260:]
    a, identity = u - u.mT + v.mT @ v, torch.eye(260, dtype=torch.float64)
    inverse = torch.linalg.inv(identity + a)
    expected = torch.cat([(identity - a) @ inverse, -2 * v @ inverse])
    found = CayleyOrthogonal()(weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad((w * direction).sum(), weight)[0] for w in (found, expected)]
    largest = float(gradients[1].abs().max())
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9 * largest)
    w = CayleyOrthogonal()(weight.detach().float()).double()
    assert torch.linalg.matrix_norm(w.mT @ w - identity) <= (1e-4 if scale <= 1 else 1.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("shape", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cayley_transform_is_orthogonal(
    shape: tuple[int, int], scale: float, dtype: torch.dtype
) -> None:
    w = CayleyOrthogonal()(scale * torch.randn(shape, dtype=torch.float64).to(dtype)).double()
    product = w @ w.mT if shape[0] <= shape[1] else w.mT @ w
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        product, torch.eye(min(shape), dtype=torch.float64), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("shape", DENSE)
def test_the_cholesky_factor_shrinks_singular_values_as_it_says(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    s = torch.linalg.svdvals(x)
    ridge = 0.1 * s.square().sum() / min(shape)
    found = torch.linalg.svdvals(CholeskyOrthogonal(ridge=0.1)(x))
    torch.testing.assert_close(
        found.sort().values, (s / (s.square() + ridge).sqrt()).sort().values, rtol=1e-9, atol=0
    )
    # The scale of the free weight does not matter.
    torch.testing.assert_close(
        CholeskyOrthogonal()(1e-6 * x), CholeskyOrthogonal()(x), rtol=1e-9, atol=1e-12
    )


def test_the_cholesky_layer_takes_matrices_of_low_rank() -> None:
    x = torch.ones(6, 8)
    assert torch.linalg.matrix_norm(CholeskyOrthogonal()(x), 2) <= 1


KERNELS: dict[str, Tensor] = {
    "ones": torch.ones(3, 2, 3, 3),
    "one_tap": torch.zeros(3, 2, 3, 3).index_fill(3, torch.tensor([1]), 1.0),
    "high_pass": torch.tensor([1.0, -1.0, 1.0])
    .outer(torch.tensor([1.0, -1.0, 1.0]))
    .repeat(2, 2, 1, 1),
    "large": 1e15 * torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)),
    "small": 1e-15 * torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (1, 0), (2, 1), (3, 2)])
def test_rescaled_convolutions_have_norm_one_at_most(
    kernel: str, stride: int, padding: int
) -> None:
    weight = KERNELS[kernel]
    layer = AOLConv2d(
        weight.shape[1], weight.shape[0], 3, stride=stride, padding=padding, input_size=(6, 6)
    )
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(weight)
    assert 0.1 < norm(layer, (2, 6, 6)) <= 1 + 1e-5


def test_disjoint_patches_are_rescaled_as_a_matrix() -> None:
    weight = torch.randn(5, 2, 3, 3)
    found = AOLConvolution(stride=3)(weight).flatten(1)
    w = weight.flatten(1)
    torch.testing.assert_close(found, w * (w.T @ w).abs().sum(0).rsqrt())


@pytest.mark.parametrize(("channels", "kernel", "stride"), [(4, 3, 1), (16, 4, 2), (18, 3, 3)])
def test_rescaled_convolutions_start_as_isometries(channels: int, kernel: int, stride: int) -> None:
    inputs = channels // stride**2
    layer = AOLConv2d(
        inputs, channels, kernel, stride=stride, padding=(kernel - stride) // 2, input_size=(6, 6)
    )
    w = matrix(layer, (inputs, 6, 6))
    torch.testing.assert_close(w.T @ w, torch.eye(w.shape[1]).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make_layer", [AOLLinear, CholeskyLinear])
def test_constraints_bind_after_the_weight_grows(make_layer: Any) -> None:
    layer = make_layer(8, 8)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(1e3).add_(50)
    assert 0.5 < norm(layer, (8,)) <= 1 + 1e-5


# Estimates of free layers


@pytest.mark.parametrize("case", [DENSE[1], CONV[0], CONV[2]])
def test_estimates_of_free_layers_converge_in_training_and_rest_in_evaluation(
    case: Any,
) -> None:
    module, shape = make("unconstrained", case)
    perturb(module)
    with torch.no_grad():
        for _ in range(100):
            lipschitz_estimate(module)
    true = norm(module, shape)
    assert true * (1 - 1e-3) <= lipschitz_estimate(module).item() <= true * (1 + 1e-5)
    module.eval()
    before = copy.deepcopy(module.state_dict())
    assert lipschitz_estimate(module).item() == lipschitz_estimate(module).item()
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("case", [DENSE[1], CONV[2]])
def test_the_gradient_of_an_estimate_pays_for_the_norm(case: Any) -> None:
    module, shape = make("unconstrained", case)
    perturb(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    before = norm(module, shape)
    for _ in range(60):
        optimizer.zero_grad()
        lipschitz_estimate(module).backward()
        optimizer.step()
    assert norm(module, shape) < 0.6 * before


def test_a_convolution_is_estimated_at_its_size_stride_and_padding() -> None:
    kernel = torch.ones(1, 1, 3, 3)
    for size, padding in ((4, 0), (4, 1), (16, 1)):
        layer = UnconstrainedConv2d(1, 1, 3, padding=padding, input_size=(size, size))
        with torch.no_grad():
            layer.weight.copy_(kernel)
            for _ in range(200):
                lipschitz_estimate(layer)
        assert lipschitz_estimate(layer).item() == pytest.approx(
            norm(layer, (1, size, size)), rel=1e-3
        )


# Options


@pytest.mark.parametrize("iterations", [0, -1])
def test_iterations_are_checked(iterations: int) -> None:
    for make_layer in (
        lambda: UnconstrainedLinear(2, 2, iterations=iterations),
        lambda: UnconstrainedConv2d(1, 1, 1, input_size=(2, 2), iterations=iterations),
    ):
        with pytest.raises(ValueError, match=r"model\.layer\.dense\.iterations"):
            make_layer()


@pytest.mark.parametrize("ridge", [0.0, -1e-3, math.nan])
def test_the_ridge_is_checked(ridge: float) -> None:
    with pytest.raises(ValueError, match=r"model\.layer\.dense\.ridge"):
        CholeskyLinear(2, 2, ridge=ridge)


@pytest.mark.parametrize("size", [(8, 8), (9, 11)])  # the second leaves a rest that is not read
def test_a_convolution_on_patches_is_the_product_that_it_computes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = CholeskyPatchConv2d(3, 5, 4, stride=4, input_size=size).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(module(x), F.conv2d(x, module.weight, module.bias, stride=4))


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("rows", [7, 24, 25])
def test_triangles_are_solved_with_by_blocks(
    rows: int, adjoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cholesky, "UNBLOCKED", 10)
    monkeypatch.setattr(cholesky, "SOLVED", 8)
    torch.manual_seed(0)
    triangle = torch.randn(rows, rows, dtype=torch.float64).tril() + 5 * torch.eye(rows)
    x = torch.randn(rows, 11, dtype=torch.float64)
    found = cholesky.solved(triangle, x, adjoint=adjoint)
    assert torch.allclose((triangle.mT if adjoint else triangle) @ found, x, atol=1e-12)
