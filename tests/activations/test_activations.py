"""Every activation of conf/activation keeps the promises that it folds into certificates."""

import copy
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import flint
import pytest
import torch
from flint import arb
from helpers.references import FEATURES, REFERENCES, balls, referenced
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from robustcert.activations import (
    Abs,
    BetaAbs,
    GroupSort,
    Householder,
    Householder2,
    LinearSpline,
    NActivation,
    NormPair,
    ReLU,
    SinCos,
    SmoothAbs,
    SmoothHouseholder,
    SmoothMaxMin,
    SmoothN,
    Softplus,
    Tanh,
)
from robustcert.activations.features import (
    join_pairs,
    ordered,
    reflect_pairs,
    split_pairs,
)
from robustcert.check.activations.table import KINDS
from robustcert.check.activations.torch_functions import TORCH
from robustcert.network.activation import Activation
from robustcert.network.forward_error import UNIT_ROUNDOFFS
from robustcert.network.sorting import comparators, group_sort, sort_pairs

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "activation").glob("*.yaml"))
NAMES = [path.stem for path in CONFIGS]
ISOMETRIC = {
    "abs",
    "beta_abs",
    "groupsort",
    "householder",
    "householder2",
    "identity",
    "linear_spline",
    "maxmin",
    "n_activation",
    "sin_cos",
}

Module = Any


@pytest.fixture(autouse=True)
def _setup() -> None:
    torch.manual_seed(0)
    flint.ctx.prec = 200


def build(name: str, **options: Any) -> Module:
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS[NAMES.index(name)]))
    assert isinstance(config, dict)
    assert config.pop("_partial_") is True
    module, cls = config.pop("_target_").rsplit(".", 1)
    return getattr(import_module(module), cls)(FEATURES, **config | options)


# Those that bound how fast their Jacobian changes.
SMOOTH = {name for name in NAMES if hasattr(build(name), "jacobian_lipschitz_bound")}


def perturb(module: Module, scale: float = 0.5) -> Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn_like(parameter)
    return module


def train(module: Module) -> Module:
    linear = nn.Linear(FEATURES, FEATURES)
    optimizer = torch.optim.Adam([*module.parameters(), *linear.parameters()], lr=0.1)
    target = torch.randn(64, module.out_features)
    x = torch.randn(64, FEATURES)
    for _ in range(25):
        optimizer.zero_grad()
        (module(linear(x)) - target).square().mean().backward()
        optimizer.step()
    return module


STATES: dict[str, Callable[[Module], Module]] = {
    "initial": lambda module: module,
    "perturbed": perturb,
    "trained": train,
}


def points(count: int = 200) -> Tensor:
    """Points at many scales, near and on ties, zeros and grid points."""
    x = torch.randn(count, FEATURES, dtype=torch.float64)
    scale = 10.0 ** torch.linspace(-4, 3, count, dtype=torch.float64)[:, None]
    ties = x.clone()
    ties[:, 1::2] = ties[:, ::2]
    nudge = 1e-3 * torch.randn_like(x)
    return torch.cat((x, scale * x, ties, ties + nudge, nudge, x.round(), torch.zeros(1, FEATURES)))


def jacobians(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Shape ``(N, out_features, C)``; the rows of a batch do not interact."""
    batched = torch.autograd.functional.jacobian(lambda z: module(z).sum(0), x, vectorize=True)
    assert isinstance(batched, Tensor)
    return batched.movedim(1, 0)


def norms(matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrices, 2)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_positions(name: str) -> None:
    module = build(name)
    x = torch.randn(3, FEATURES, 5, 4)
    y = module(x)
    assert y.shape == (3, module.out_features, 5, 4)
    assert module.num_features == FEATURES
    rows = module(x.movedim(1, -1).reshape(-1, FEATURES))
    assert torch.equal(y.movedim(1, -1).reshape(-1, module.out_features), rows)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", NAMES)
def test_distances_grow_by_no_more_than_the_bound(name: str, state: str) -> None:
    module = STATES[state](build(name)).double().requires_grad_(False)
    x = points()
    step = 10.0 ** torch.linspace(-6, 3, len(x), dtype=torch.float64)[torch.randperm(len(x)), None]
    for y in (x + step * torch.randn_like(x), x[torch.randperm(len(x))], x + step):
        grown = (module(x) - module(y)).norm(dim=1)
        slack = 1e-13 * (1 + x.norm(dim=1) + y.norm(dim=1))
        assert (grown <= module.lipschitz_bound() * (x - y).norm(dim=1) + slack).all()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", NAMES)
def test_jacobian_stays_below_the_bound_and_reaches_it(name: str, state: str) -> None:
    module = STATES[state](build(name)).double()
    found = norms(jacobians(module, points())).max()
    assert found <= module.lipschitz_bound() * (1 + 1e-13)
    assert found >= 0.9 * module.lipschitz_bound()


@pytest.mark.parametrize("name", sorted(ISOMETRIC))
def test_isometric_activations_preserve_gradient_norms(name: str) -> None:
    module = build(name).double()
    x = points()
    if name in {"abs", "beta_abs"}:
        # At 0 the slope that autograd takes is 0.
        x = x[(x != 0).all(1)]
    j = jacobians(module, x)
    identity = torch.eye(FEATURES, dtype=torch.float64).expand(len(j), -1, -1)
    torch.testing.assert_close(j.mT @ j, identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_smooth_activations_and_only_they_bound_their_curvature(name: str) -> None:
    operation = build(name).fold()
    assert math.isfinite(operation.jacobian_lipschitz) == (name in SMOOTH)
    assert operation.jacobian is None or name in SMOOTH


def test_the_smooth_activations_of_the_package_are_known_as_such() -> None:
    assert {
        *("identity", "norm_pair", "sin_cos", "smooth", "smooth_abs", "smooth_householder"),
        *("smooth_n", "softplus", "tanh"),
    } <= SMOOTH


def test_what_the_checker_knows_has_a_reference() -> None:
    # Two are functions of a layer and of a model; those of torch have theirs in tests/check.
    assert {*REFERENCES} == {*KINDS} - {"norm_pool", "circular_shift", *TORCH}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_jacobian_changes_by_no_more_than_the_bound(name: str, state: str) -> None:
    module = STATES[state](build(name)).double()
    x = points()
    step = 10.0 ** torch.linspace(-4, 1, len(x), dtype=torch.float64)[torch.randperm(len(x)), None]
    for y in (x + step * torch.randn_like(x), x[torch.randperm(len(x))]):
        change = norms(jacobians(module, x) - jacobians(module, y))
        assert (change <= module.jacobian_lipschitz_bound() * (x - y).norm(dim=1) + 1e-9).all()


@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_curvature_bound_is_nearly_reached(name: str) -> None:
    module = build(name).double()
    h = 1e-5
    best, x = torch.tensor(0.0), torch.zeros(1, FEATURES, dtype=torch.float64)
    # Random local search with shrinking steps, along single coordinates and at random.
    for spread in (1.0, 0.3, 0.1, 0.03, 0.01):
        x = torch.cat((x, x + spread * torch.randn(300, FEATURES, dtype=torch.float64)))
        direction = torch.randn_like(x) * torch.rand_like(x).round()
        direction[-FEATURES:] = torch.eye(FEATURES)
        direction = nn.functional.normalize(direction)
        change = norms(jacobians(module, x + h * direction) - jacobians(module, x)) / h
        best, x = max(best, change.max()), x[change.argmax()][None]
    assert best <= module.jacobian_lipschitz_bound() * (1 + 1e-6)
    assert module.jacobian_lipschitz_bound() <= 1.25 * best


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", NAMES)
def test_folded_operation_is_the_module(name: str, state: str, dtype: torch.dtype) -> None:
    module = STATES[state](build(name)).to(dtype)
    operation = module.fold()
    assert isinstance(operation, Activation)
    x = points().to(dtype)
    assert torch.equal(operation(x), module(x).detach())
    assert operation.lipschitz == module.lipschitz_bound()
    assert operation.output_shape((FEATURES,)) == (module.out_features,)
    if name in SMOOTH:
        assert operation.jacobian_lipschitz == module.jacobian_lipschitz_bound()
    # The name that identifies it in files leads back to it.
    function = operation.function.__name__
    assert operation.function is getattr(
        import_module(f"robustcert.activations.{function}"), function
    )


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_restores_the_function(name: str) -> None:
    module = train(build(name))
    restored = build(name)
    restored.load_state_dict(module.state_dict())
    x = torch.randn(16, FEATURES)
    assert torch.equal(restored(x), module(x))


# The functions as their definitions read, on lists of balls; constants are lists too.


def hard_points(operation: Activation, dtype: torch.dtype) -> Tensor:
    """Tails, near-ties and the neighbourhood of corners, as numbers of this dtype."""
    x = points(12)
    exponent = torch.empty(24, FEATURES, dtype=torch.float64).uniform_(-30, 30)
    tails = 10.0**exponent * torch.randn(24, FEATURES, dtype=torch.float64)
    near = torch.randn(12, FEATURES, dtype=torch.float64)
    near[:, 1::2] = near[:, ::2]
    near = near * (1 + 8 * torch.finfo(dtype).eps * torch.randn_like(near))
    rows = [x, tails, tails.clamp(-100, 100), near]
    for value in operation.tensors().values():
        corners = value.double()
        if corners.shape[-2:] == (2, FEATURES // 2):
            corners = corners.reshape(-1, 2, FEATURES // 2).mT.flatten(1)
        if corners.dim() == 2 and corners.shape[1] == FEATURES:
            rows += [corners, corners * (1 + torch.finfo(dtype).eps), -corners]
    return torch.cat(rows).to(dtype)


def variants(chosen: list[str]) -> list[Any]:
    """Every yaml, and with a tiny and a large temperature, one for each feature."""
    found = []
    for name in chosen:
        found.append(pytest.param(name, {}, id=name))
        if hasattr(build(name), "temperature"):
            for t in (1e-6, 3.0, 1e6):
                options = {"temperature": t, "per_feature": t == 3.0}
                found.append(pytest.param(name, options, id=f"{name}-{t:g}"))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), variants(referenced()))
def test_evaluation_error_against_balls(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    operation = perturb(build(name, **options)).fold()
    a, b = operation.rounding((FEATURES,), UNIT_ROUNDOFFS[dtype])
    reference = REFERENCES[operation.function.__name__]
    x = hard_points(operation, dtype)
    worst = 0.0
    for z, y in zip(x, operation(x), strict=True):
        exact = reference(balls(z), operation.constants)
        differences = [abs(p - q).upper() for p, q in zip(balls(y), exact, strict=True)]
        if a or b:
            error, size = (sum((p * p for p in v), arb(0)).sqrt() for v in (differences, balls(z)))
            allowed = a * size + b
            assert error <= allowed
            worst = max(worst, float((error / allowed).mid()))
        else:
            assert all(d == 0 for d in differences)
    # An allowance far above what is seen would be a wrong constant, too.
    assert not (a or b) or worst > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", ["exp", "log1p", "tanh", "sin", "cos", "hypot"])
def test_elementary_functions_are_within_four_ulp(function: str, dtype: torch.dtype) -> None:
    count = 2**20 if dtype == torch.float32 else 5000
    magnitude = 10.0 ** torch.empty(count, dtype=torch.float64).uniform_(-8, 2)
    x = (magnitude * torch.randn(count).sign()).to(dtype)
    if function == "exp":
        x = -x.abs().clamp(max=80)
    if function == "log1p":
        x = x.abs().clamp(max=1)
    arguments = [x, x.flip(0)] if function == "hypot" else [x]
    computed = getattr(torch, function)(*arguments)
    if dtype == torch.float32:
        exact = getattr(torch, function)(*(z.double() for z in arguments))
        error = (computed.double() - exact).abs() / exact.abs()
        assert error.max() <= 8 * UNIT_ROUNDOFFS[dtype]
        return
    for y, *z in zip(balls(computed), *map(balls, arguments), strict=True):
        exact = (z[0] ** 2 + z[1] ** 2).sqrt() if function == "hypot" else getattr(z[0], function)()
        assert abs(y - exact) <= 8 * UNIT_ROUNDOFFS[dtype] * abs(exact)


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize(("name", "options"), variants(NAMES))
def test_values_and_gradients_are_finite(
    name: str, options: dict[str, Any], magnitude: float
) -> None:
    module = build(name, **options)
    generic = magnitude * torch.randn(4, FEATURES)
    tied = torch.full((2, FEATURES), magnitude)
    alternating = tied * torch.tensor([1.0, -1.0]).repeat(FEATURES // 2)
    x = torch.cat((generic, tied, -tied, alternating)).requires_grad_()
    y = module(x)
    assert y.isfinite().all()
    gradients = torch.autograd.grad(
        (y * torch.randn_like(y)).sum(), [x, *(p for p in module.parameters() if p.requires_grad)]
    )
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_swallowed(name: str) -> None:
    module = build(name)
    assert module(torch.full((2, FEATURES), math.nan)).isnan().all()


def functional(module: Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
    keys, values = (
        zip(*module.named_parameters(), strict=True) if [*module.parameters()] else ((), ())
    )
    return (
        lambda x, *p: functional_call(module, dict(zip(keys, p, strict=True)), (x,)),
        [v.detach().clone().requires_grad_() for v in values],
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradients_at_generic_points(name: str) -> None:
    function, parameters = functional(perturb(build(name).double(), 0.1))
    x = torch.randn(2, FEATURES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_first_and_second_derivatives_of_smooth_activations_at_ties(name: str) -> None:
    module = build(name)
    if hasattr(module, "temperature"):
        module = build(name, temperature=0.5)
    function, parameters = functional(module.double())
    tied = torch.randn(2, FEATURES // 2, dtype=torch.float64).repeat_interleave(2, dim=1)
    x = torch.cat((tied, torch.zeros_like(tied))).requires_grad_()
    if name == "smooth_n":
        # Only the order of the two corners is not smooth, where they meet.
        parameters[-1] = parameters[-1].detach()
    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters), atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(
    ("smooth", "hard", "distance"),
    [
        (SmoothMaxMin, GroupSort, math.log(2)),
        (SmoothHouseholder, Householder, 1.0),
        (SmoothAbs, Abs, 1.0),
        (SmoothN, NActivation, 2 * math.log(2)),
        (Softplus, ReLU, math.log(2)),
    ],
)
def test_smooth_activations_tend_to_their_hard_limits(
    smooth: type[nn.Module], hard: type[nn.Module], distance: float, temperature: float
) -> None:
    x = points()
    difference = smooth(FEATURES, temperature=temperature).double()(x) - hard(FEATURES).double()(x)
    assert difference.abs().max() <= distance * temperature * (1 + 1e-6) + 1e-10
    assert difference.abs().max() >= 0.5 * distance * temperature


def test_maxmin_special_cases() -> None:
    x = torch.randn(200, FEATURES, dtype=torch.float64)
    maxmin = GroupSort(FEATURES)(x)
    pairs = x.unflatten(1, (-1, 2))
    assert torch.equal(maxmin, torch.stack((pairs.amin(2), pairs.amax(2)), 2).flatten(1))
    torch.testing.assert_close(Householder(FEATURES).double()(x), maxmin, rtol=0, atol=1e-6)
    # Rotated coordinates turn MaxMin into the absolute value of half of the features.
    sums, differences = (
        pairs.sum(2) / math.sqrt(2),
        (pairs[:, :, 0] - pairs[:, :, 1]) / math.sqrt(2),
    )
    rotated = BetaAbs(FEATURES, beta=0.5)(torch.cat((differences, sums), 1))
    high = (rotated[:, : FEATURES // 2] + rotated[:, FEATURES // 2 :]) / math.sqrt(2)
    torch.testing.assert_close(high, maxmin[:, 1::2])


def test_maxmin_keeps_gradient_norms_at_ties() -> None:
    x = torch.zeros(1, FEATURES, requires_grad=True)
    (gradient,) = torch.autograd.grad(GroupSort(FEATURES)(x)[0, 0], x)
    assert gradient.norm() == 1


def test_householder2_folds_the_circle() -> None:
    module = perturb(Householder2(FEATURES), 2.0).double()
    angles = torch.linspace(0, 2 * math.pi, 10_001, dtype=torch.float64)
    circle = torch.stack((angles.cos(), angles.sin()), 1).repeat(1, FEATURES // 2)
    images = module(circle).detach().unflatten(1, (-1, 2))
    lengths = images.diff(dim=0).norm(dim=2) / circle[:, :2].diff(dim=0).norm(dim=1)[:, None]
    assert lengths.max() <= 1 + 1e-9
    # Each of the four rays shortens one chord; every other one keeps its length.
    assert ((lengths < 1 - 1e-9).sum(0) <= 4).all()
    torch.testing.assert_close(images.norm(dim=2), torch.ones(10_001, FEATURES // 2).double())


def test_linear_spline_slopes_stay_in_bounds_and_alive() -> None:
    module = LinearSpline(1, num_knots=3)
    raw = torch.tensor([[-7.0, 1.25]])
    with torch.no_grad():
        module.raw_slopes.copy_(raw)
    slopes = module.slopes()
    assert slopes.tolist() == [[1.0, 0.75]]
    (gradient,) = torch.autograd.grad(slopes[0, 1], module.raw_slopes)
    assert gradient.tolist() == [[0.0, -1.0]]


def test_n_activation_starts_as_absolute_values_and_identities() -> None:
    x = torch.linspace(-99, 99, 16 * FEATURES).view(16, FEATURES)
    expected = torch.where(torch.arange(FEATURES) % 2 == 0, x.abs(), x)
    assert torch.equal(NActivation(FEATURES)(x), expected)


def test_n_activation_lr_factor_scales_steps_of_the_corners() -> None:
    steps = []
    for lr_factor in (1.0, 0.01):
        module = NActivation(FEATURES, lr_factor=lr_factor)
        before = module.corners().detach()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(torch.ones(1, FEATURES)).sum().backward()
        optimizer.step()
        steps.append(module.corners().detach() - before)
    torch.testing.assert_close(steps[1], 0.01 * steps[0], rtol=1e-3, atol=1e-5)
    assert steps[0].abs().max() > 0.1


@pytest.mark.parametrize(
    ("cls", "options", "num_features", "message"),
    [
        (GroupSort, {"group_size": 3}, 8, "multiple of 3 or model.activation.group_size"),
        (GroupSort, {"group_size": 0}, 8, "model.activation.group_size"),
        (NormPair, {"group_size": 3}, 8, "multiple of 3 or model.activation.group_size"),
        (NormPair, {"temperature": math.nan}, 8, "set model.activation.temperature"),
        (SmoothMaxMin, {}, 7, "set model.width to a multiple of 2"),
        (SmoothMaxMin, {"temperature": 0.0}, 8, "set model.activation.temperature"),
        (SmoothHouseholder, {}, 7, "set model.width to a multiple of 2"),
        (SmoothHouseholder, {"temperature": -1.0}, 8, "set model.activation.temperature"),
        (Householder, {}, 7, "set model.width to a multiple of 2"),
        (Householder2, {}, 7, "set model.width to a multiple of 2"),
        (SmoothAbs, {"temperature": math.inf}, 8, "set model.activation.temperature"),
        (Softplus, {"temperature": 1e-7}, 8, "set model.activation.temperature"),
        (SmoothN, {"temperature": 1e7}, 8, "set model.activation.temperature"),
        (SmoothN, {"lr_factor": 0.0}, 8, "set model.activation.lr_factor"),
        (NActivation, {"lr_factor": -1.0}, 8, "set model.activation.lr_factor"),
        (SinCos, {"frequency": 0.0}, 8, "set model.activation.frequency"),
        (BetaAbs, {"beta": 1.5}, 8, "set model.activation.beta"),
        (LinearSpline, {"num_knots": 4}, 8, "set model.activation.num_knots"),
        (LinearSpline, {"radius": 0.0}, 8, "set model.activation.radius"),
    ],
)
def test_invalid_options_name_the_key_to_change(
    cls: type[nn.Module], options: dict[str, Any], num_features: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        cls(num_features, **options)


def test_learnable_options() -> None:
    for cls in (SmoothMaxMin, SmoothAbs, SmoothHouseholder, SmoothN, Softplus, NormPair, SinCos):
        fixed = cls(FEATURES, learnable=False)
        assert not any("log" in name for name, _ in fixed.named_parameters())
        assert any("log" in name for name in fixed.state_dict())
    assert not any(
        p.requires_grad
        for p in SmoothHouseholder(FEATURES, learnable=False, learn_normal=False).parameters()
    )


def test_broken_temperature_is_refused_and_extreme_ones_are_clamped() -> None:
    module = SmoothMaxMin(FEATURES)
    with torch.no_grad():
        module.temperature.log.fill_(-1e4)
    assert float(module.temperature().detach()) == pytest.approx(1e-6)
    assert module(torch.randn(4, FEATURES)).isfinite().all()
    with torch.no_grad():
        module.temperature.log.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        module.fold()


def test_tanh_curvature_constant() -> None:
    x = math.atanh(1 / math.sqrt(3))
    second = 2 * math.tanh(x) * (1 - math.tanh(x) ** 2)
    assert Tanh(1).jacobian_lipschitz_bound() == pytest.approx(second, rel=1e-14)
    # 16/27 is its square, in integers.
    value = Tanh(1).jacobian_lipschitz_bound().as_integer_ratio()
    assert 27 * value[0] ** 2 >= 16 * value[1] ** 2


def test_deep_copy_keeps_the_function() -> None:
    for name in NAMES:
        module = build(name)
        x = torch.randn(4, FEATURES)
        assert torch.equal(copy.deepcopy(module)(x), module(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sorting_pairs_in_place_is_splitting_ordering_and_joining(layout: Any) -> None:
    def in_steps(x: Tensor) -> Tensor:
        return join_pairs(*ordered(*split_pairs(x)))

    torch.manual_seed(0)
    x = torch.randn(4, 6, 3, 2, dtype=torch.float64).to(memory_format=layout)
    x[0, 0] = x[0, 1]  # ties
    before, weight = x.clone(), torch.randn(4, 6, 3, 2, dtype=torch.float64)
    assert torch.equal(sort_pairs(x), in_steps(x))
    assert torch.equal(x, before)
    slopes = [
        torch.func.grad(lambda z, f=f: (f(z) * weight).sum())(x) for f in (sort_pairs, in_steps)
    ]
    assert torch.equal(*slopes)
    jacobians = [vmap(jacrev(lambda z, f=f: f(z[None])[0]))(x) for f in (sort_pairs, in_steps)]
    assert torch.equal(*jacobians)
    smooth = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z: sort_pairs(z).square(), smooth)


@pytest.mark.parametrize("size", range(1, 11))
def test_comparators_sort(size: int) -> None:
    # The 0-1 principle: a network that sorts all zeros and ones sorts everything.
    numbers = [list(map(int, f"{k:0{size}b}")) for k in range(2**size)]
    for values in numbers:
        for i, j in comparators(size):
            assert i < j
            values[i], values[j] = sorted((values[i], values[j]))
        assert values == sorted(values)


@pytest.mark.parametrize("size", [1, 3, 4, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sorting_maps_by_a_network_is_sorting(size: int, layout: Any) -> None:
    def in_one(x: Tensor, size: int) -> Tensor:
        return x.unflatten(1, (-1, size)).sort(dim=2).values.flatten(1, 2)

    x = torch.randn(3, 2 * size, 2, 2, dtype=torch.float64).to(memory_format=layout)
    before, functions = x.clone(), (group_sort, in_one)
    assert torch.equal(*(f(x, size) for f in functions))
    assert torch.equal(x, before)
    batched = [vmap(jacrev(lambda z, f=f: f(z[None], size)[0]))(x) for f in functions]
    assert torch.equal(*batched)
    assert torch.equal(*(jacobians(lambda z, f=f: f(z, size), x) for f in functions))
    smooth = x[:1].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: group_sort(z, size).square(), smooth)
    # At ties the Jacobian still is a permutation.
    tied = jacrev(lambda z: group_sort(z, size))(torch.zeros(1, size, 1, 1)).view(size, size)
    assert torch.equal(tied @ tied.T, torch.eye(size))


@pytest.mark.parametrize("shape", [(4, 6), (3, 6, 2, 1)])
def test_reflecting_pairs_is_the_plain_formula(shape: tuple[int, ...]) -> None:
    where = torch.randint(2, (3, shape[0], 3, *shape[2:])).double()

    def plain(x: Tensor, normals: Tensor) -> Tensor:
        for normal, reflected in zip(normals, where, strict=True):
            z = x.unflatten(1, (-1, 2)).movedim(2, 0)
            v = normal.view(2, 1, -1, *(1,) * (x.dim() - 2))
            z = z - 2 * reflected * (v * z).sum(0) * v / v.square().sum(0)
            x = z.movedim(0, 2).flatten(1, 2)
        return x

    def ours(x: Tensor, normals: Tensor) -> Tensor:
        return reflect_pairs(x, normals, where)

    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    normals = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x, normals), plain(x, normals))
    assert torch.autograd.gradcheck(ours, (x, normals))
    assert torch.autograd.gradgradcheck(ours, (x, normals))
    x, several = x.detach(), normals.detach() + torch.rand(5, 1, 1, 1).double()
    for argument in (0, 1):  # maps of Jacobians, for one input and several mirrors
        slopes = [vmap(jacrev(f, argument), (None, 0))(x, several) for f in (ours, plain)]
        torch.testing.assert_close(*slopes)
