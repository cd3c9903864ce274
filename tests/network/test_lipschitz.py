"""Folding: the folded network is the module, and what is not known for certain is refused."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from robustcert.activations import (
    GroupSort,
    Householder,
    Householder2,
    LinearSpline,
    NActivation,
    SinCos,
    SmoothAbs,
)
from robustcert.errors import UnknownLipschitz, UnsoundNetworkError
from robustcert.layers import ConstrainedLinear, UnconstrainedLinear
from robustcert.lipschitz import lipschitz_bound, lipschitz_estimate, pairwise_lipschitz_estimate
from robustcert.models import Classifier, Head, Normalize
from robustcert.network.activation import Activation
from robustcert.network.fold import fold, fold_network
from robustcert.network.linear import Dense
from robustcert.network.operation import Operation


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Identity(),
        nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding=2, bias=False),
        GroupSort(4),
        nn.Flatten(),
        nn.Sequential(nn.Linear(36, 8), nn.ReLU()),
        nn.Linear(8, 3),
    )


class Doubled(nn.Module):
    """Claims its constant, as a user's module would."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(2 * torch.eye(size))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def lipschitz_estimate(self) -> Tensor:
        return torch.linalg.matrix_norm(self.weight, 2)

    def fold(self) -> Operation:
        return Dense((self.weight @ torch.eye(len(self.weight))).detach())


class InheritsBoth(Doubled):
    """Neither forward nor fold is its own: they still belong together."""


class OverridesForward(Doubled):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * super().forward(x)


class OverridesFold(Doubled):
    def fold(self) -> Operation:
        return Dense(torch.zeros(4, 4))


class OverridesCall(Doubled):
    def __call__(self, x: Tensor) -> Tensor:
        return 10 * super().__call__(x)


class OverridesForwardOfTorch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * super().forward(x)


class SubclassOfTorch(nn.Linear):
    """Adds nothing, but torch's own classes are known by name only."""


class Unfolded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


# What is known


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folded_sequential_is_the_same_function(dtype: torch.dtype) -> None:
    module = sequential().to(dtype)
    x = torch.randn(20, 2, 6, 6, dtype=dtype)
    network = fold_network(module, (2, 6, 6))
    assert network.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(network(x), module(x), rtol=tolerance, atol=tolerance)
    names = [operation.name for operation in network.operations]
    assert names == ["0", "1", "3", "4", "5", "6.0", "6.1", "7"]


def test_a_module_used_twice_counts_twice() -> None:
    linear, relu = nn.Linear(4, 4, bias=False), nn.ReLU()
    nn.init.eye_(linear.weight)
    with torch.no_grad():
        linear.weight *= 3
    module = nn.Sequential(linear, relu, linear, relu, linear)
    assert len(fold(module)) == 5
    assert lipschitz_bound(module, (4,)) == pytest.approx(27)
    assert lipschitz_estimate(module).item() == pytest.approx(27)
    assert pairwise_lipschitz_estimate(module)[0, 1].item() == pytest.approx(27 * math.sqrt(2))
    x = torch.randn(5, 4)
    torch.testing.assert_close(fold_network(module, (4,))(x), module(x))


@pytest.mark.parametrize("module", [Doubled(), InheritsBoth(), nn.Sequential(Doubled())])
def test_a_users_module_is_known_by_its_fold(module: nn.Module) -> None:
    assert lipschitz_bound(module, (4,)) == pytest.approx(2)
    assert lipschitz_estimate(module).item() == pytest.approx(2)


PARAMETRIZED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "orthogonal": parametrizations.orthogonal,
    "cayley": lambda linear: parametrizations.orthogonal(linear, orthogonal_map="cayley"),
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
}


@pytest.mark.parametrize("kind", PARAMETRIZED)
@pytest.mark.parametrize("shape", [(6, 6), (4, 7), (7, 4)])
def test_torch_parametrizations_fold_to_the_weight_in_use(
    kind: str, shape: tuple[int, int]
) -> None:
    layer = PARAMETRIZED[kind](nn.Linear(*shape))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    before = copy.deepcopy(layer.state_dict())
    (operation,) = fold(layer)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert isinstance(operation, Dense)
    layer.eval()
    weight = torch.as_tensor(layer.weight).detach()
    assert torch.equal(operation.weight, weight)
    # Nothing rests on the construction: a float32 'orthogonal' weight may have norm 1 + 7e-8.
    true = torch.linalg.matrix_norm(weight.double(), 2)
    assert true <= lipschitz_bound(layer, (shape[0],)) <= true * (1 + 1e-6)
    assert lipschitz_estimate(layer).item() == pytest.approx(true.item(), rel=1e-5)


def test_a_deep_copy_of_a_parametrized_layer_folds_to_its_own_weight() -> None:
    # Torch's cache of parametrized tensors takes it for the original.
    first = parametrizations.orthogonal(nn.Linear(4, 4))
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.parametrizations.weight.original.normal_()
    module = nn.Sequential(first, nn.ReLU(), second)
    x = torch.rand(5, 4)
    torch.testing.assert_close(fold_network(module, (4,))(x), module(x))
    with parametrize.cached(), pytest.raises(UnsoundNetworkError, match=r"cached\(\) is in force"):
        fold(module)


def test_stale_iterates_of_spectral_norm_do_not_reach_the_bound() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(16, 16, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(torch.diag(torch.logspace(-3, 0, 16)))
        smallest = torch.eye(16)[0]
        layer.parametrizations.weight[0]._u.copy_(smallest)
        layer.parametrizations.weight[0]._v.copy_(smallest)
    # 'Normalised to 1' in evaluation mode, the layer stretches by a thousand.
    assert lipschitz_bound(layer, (16,)) == pytest.approx(1000, rel=1e-4)


def test_folding_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(sequential(), nn.ReLU()).train()
    module[0][6].eval()
    modes = [m.training for m in module.modules()]
    requires = [p.requires_grad for p in module.parameters()]
    fold(module)
    assert [m.training for m in module.modules()] == modes
    with pytest.raises(UnknownLipschitz):
        fold(nn.Sequential(module, nn.Dropout()))
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == requires


def test_later_changes_of_the_module_do_not_reach_the_plain_network() -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    network = fold_network(module, (3,))
    digest = network.digest()
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert network.digest() == digest


# What is refused


UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "Dropout": lambda: nn.Dropout(),
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "GELU": lambda: nn.GELU(),
    "Conv2d-circular": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    "Conv2d-same": lambda: nn.Conv2d(4, 4, 3, padding="same"),
    "Conv1d": lambda: nn.Conv1d(4, 4, 3),
    "Flatten-2": lambda: nn.Flatten(2),
    "Unfolded": lambda: Unfolded(),
    "Sequential-subclass": lambda: type("Mine", (nn.Sequential,), {})(nn.ReLU()),
    "OverridesForward": lambda: OverridesForward(),
    "OverridesFold": lambda: OverridesFold(),
    "OverridesCall": lambda: OverridesCall(),
    "OverridesForwardOfTorch": lambda: OverridesForwardOfTorch(4, 4),
    "SubclassOfTorch": lambda: SubclassOfTorch(4, 4),
    "hook": lambda: hooked(nn.Linear(4, 4), lambda m, x, y: 2 * y),
}


def hooked(module: nn.Module, hook: Callable[..., Any]) -> nn.Module:
    module.register_forward_hook(hook)
    return module


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_is_not_known_is_refused_with_its_path(kind: str) -> None:
    module = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity(), UNKNOWN[kind]()))
    with pytest.raises(UnknownLipschitz, match=r"^1\.1: no Lipschitz bound is known for") as error:
        fold(module)
    assert "cannot assume 1" in str(error.value)
    if not isinstance(module[1][1], nn.Conv2d | nn.Flatten | OverridesFold):
        with pytest.raises(UnknownLipschitz, match=r"^1\.1: "):
            lipschitz_estimate(module)
        # As a type error or as a value error, it can be caught.
        with pytest.raises(TypeError):
            lipschitz_estimate(module)


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), lambda: nn.ReLU(), lambda: Doubled()])
@pytest.mark.parametrize("way", ["hook", "pre_hook", "global hook", "global pre_hook", "forward"])
def test_an_instance_that_computes_something_else_is_refused(
    make: Callable[[], nn.Module], way: str
) -> None:
    module: Any = make()
    if way == "hook":
        handle = module.register_forward_hook(lambda m, x, y: 2 * y)
    elif way == "pre_hook":
        handle = module.register_forward_pre_hook(lambda m, x: (2 * x[0],))
    elif way == "global hook":
        handle = nn.modules.module.register_module_forward_hook(lambda m, x, y: 2 * y)
    elif way == "global pre_hook":
        handle = nn.modules.module.register_module_forward_pre_hook(lambda m, x: (2 * x[0],))
    else:
        module.forward = lambda x: 2 * x
    try:
        for claim in (fold, lipschitz_estimate, lambda m: fold(nn.Sequential(m))):
            with pytest.raises(UnknownLipschitz, match=r"hooks|overridden"):
                claim(module)
    finally:
        if way != "forward":
            handle.remove()
    if way != "forward":
        fold(module)


@pytest.mark.parametrize(
    ("activation", "features"),
    [
        (Householder(8), 2),
        (Householder2(8), 2),
        (NActivation(8), 1),
        (LinearSpline(8), 1),
        (SmoothAbs(8, per_feature=True), 1),
        (SinCos(8, per_feature=True), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_feature_is_not_copied_to_several(activation: Any, features: int) -> None:
    # By broadcasting it would be, which stretches by the root of their number.
    module = nn.Sequential(
        nn.Linear(4, features), activation, nn.Linear(activation.out_features, 3)
    )
    with pytest.raises(UnsoundNetworkError, match=r"^1: it does not take inputs of shape"):
        fold_network(module, (4,))


def test_a_fold_that_an_instance_was_given_is_no_claim() -> None:
    module: Any = Unfolded()
    module.fold = lambda: []
    with pytest.raises(UnknownLipschitz):
        fold(module)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_weights_are_refused_with_their_path(value: float) -> None:
    module = sequential()
    with torch.no_grad():
        module[6][0].weight[3, 5] = value
    with pytest.raises(UnsoundNetworkError, match=r"^6\.0: a weight is NaN or infinite"):
        fold(module)
    model = Classifier(
        nn.Sequential(Normalize([0.0], [1.0], channels=1), UnconstrainedLinear(4, 4)), Head(4, 2)
    )
    with torch.no_grad():
        model.backbone[1].bias[0] = value
    with pytest.raises(UnsoundNetworkError, match=r"^backbone\.1: a weight is NaN or infinite"):
        fold(model)


def test_a_parametrization_of_ones_own_is_bounded_as_it_is() -> None:
    class Tripled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 3 * weight

    layer = ConstrainedLinear(4, 4, parametrization=Tripled())
    # The layer's estimate rests on the constraint, the bound does not.
    assert lipschitz_estimate(layer).item() == 1
    assert lipschitz_bound(layer, (4,)) == pytest.approx(3)
    linear = nn.Linear(4, 4)
    nn.init.eye_(linear.weight)
    parametrize.register_parametrization(linear, "weight", Tripled())
    assert lipschitz_bound(linear, (4,)) == pytest.approx(3)


# Estimates


def test_estimates_are_differentiable_products() -> None:
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), UnconstrainedLinear(6, 4), nn.Linear(4, 3))
    estimate = lipschitz_estimate(module)
    norms = [lipschitz_estimate(layer) for layer in (module[0], module[2], module[3])]
    torch.testing.assert_close(estimate, norms[0] * norms[1] * norms[2], rtol=0.2, atol=0)
    estimate.backward()
    for layer in (module[0], module[2], module[3]):
        assert layer.weight.grad is not None
        # The norm is homogeneous of degree one in every weight.
        along = (layer.weight.grad * layer.weight).sum().item()
        assert along == pytest.approx(estimate.item(), rel=1e-3)


def test_the_pairwise_estimate_of_a_sequential_ends_in_its_rows() -> None:
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    estimate = pairwise_lipschitz_estimate(module)
    rows = module[2].weight.detach()
    norm = torch.linalg.matrix_norm(module[0].weight.detach(), 2)
    torch.testing.assert_close(estimate.detach(), norm * torch.cdist(rows, rows), atol=1e-5, rtol=0)
    with pytest.raises(UnknownLipschitz, match="ends in a dense layer"):
        pairwise_lipschitz_estimate(nn.Sequential(nn.Linear(5, 6), nn.ReLU()))
    for broken in (nn.Sequential(), nn.Linear(3, 3)):
        with pytest.raises(UnknownLipschitz):
            pairwise_lipschitz_estimate(broken)


def test_reduced_precision_does_not_reach_folds_and_estimates() -> None:
    model = Classifier(nn.Sequential(UnconstrainedLinear(8, 8), GroupSort(8)), Head(8, 4)).eval()
    with torch.no_grad():  # rows that nearly agree
        model.head.raw[1] = model.head.raw[0] + 1e-2 * torch.randn(8)
    constrained = parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map="householder")
    plain = nn.Sequential(constrained, Doubled(8), nn.Linear(8, 4))
    for module in (model, plain):
        claims = lipschitz_estimate, pairwise_lipschitz_estimate
        expected = [claim(module) for claim in claims]
        digest = fold_network(module, (8,)).digest()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module(torch.randn(2, 8)).dtype == torch.bfloat16
            found = [claim(module) for claim in claims]
            assert fold_network(module, (8,)).digest() == digest
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_users_activation_needs_a_fold_of_its_own() -> None:
    class Shrink(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

        def lipschitz_bound(self) -> float:
            return 0.5

        def fold(self) -> Activation:
            return Activation(function=half, constants={}, lipschitz=0.5, error=(1.0, 0.0))

    module = nn.Sequential(Shrink(), nn.Linear(4, 2))
    assert lipschitz_estimate(module[0]).item() == 0.5
    x = torch.randn(3, 4)
    torch.testing.assert_close(fold_network(module, (4,))(x), module(x))


def half(x: Tensor) -> Tensor:
    return x / 2
