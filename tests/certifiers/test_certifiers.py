"""Certified radii: where the truth is known, under attack, and where nothing may be certified."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import flint
import pytest
import torch
from helpers.configs import build, build_model, crossed, names, proving_certifiers, read, slow_but
from helpers.exact import evaluate
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert import certify
from robustcert.activations import Abs, GroupSort, NormPair
from robustcert.certifiers import Certificates, LipschitzCertifier, lipschitz, strict_arithmetic
from robustcert.errors import UnsoundNetworkError
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.models import Normalize
from robustcert.network.activation import Activation
from robustcert.network.branches import Sum
from robustcert.network.fold import fold_network
from robustcert.network.forward_error import ForwardError, forward_error
from robustcert.network.linear import Affine, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.objectives import EMMA

# One layer family for each kind of dense layer.
DENSE = sorted({str(read("layer", name)["dense"]): name for name in names("layer")}.values())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def perturb(module: nn.Module, scale: float = 0.3) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn_like(parameter)
    return module


def mlp(layer: str, activation: str, features: int = 2, classes: int = 3, **options: Any) -> Any:
    sizes = {"input_shape": (features,), "num_classes": classes, "mean": [0.0], "std": [1.0]}
    return build_model("mlp", layer, activation, **sizes | options)


def fit(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> nn.Module:
    """Certified training on a whole data set."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    objective = EMMA(0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model(x), y, pairwise_lipschitz_estimate(model), epsilon).backward()
        optimizer.step()
    return model


def blobs(count: int = 120) -> tuple[Tensor, Tensor]:
    """Three clusters in the plane."""
    y = torch.arange(count) % 3
    angle = 2 * math.pi * y / 3
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(count, 2), y


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0].float()


# Where the truth is known


@pytest.mark.parametrize("size", [1, 2, 30])
@pytest.mark.parametrize("bias", [0.0, 1e3])
def test_a_linear_network_of_two_classes_is_certified_to_its_hyperplane(
    size: int, bias: float
) -> None:
    head = Dense(torch.randn(2, size), torch.tensor([bias, 0.3 - bias / 2]))
    x = 10 * torch.randn(40, size)
    found = certify(PlainNetwork((head,), (size,)), x)
    for z, radius in zip(x, found.radius.tolist(), strict=True):
        # m / |w| in rationals, squared.
        w = [Fraction(a) - Fraction(b) for a, b in head.weight.T.tolist()]
        b = Fraction(head.bias[0].item()) - Fraction(head.bias[1].item())
        margin = sum((p * Fraction(q) for p, q in zip(w, z.tolist(), strict=True)), b)
        square = margin**2 / sum(p * p for p in w)
        assert 0 < Fraction(radius) ** 2 <= square
        assert radius >= math.sqrt(square) * (1 - 1e-9) - 1e-9 * bias


def test_with_several_classes_the_nearest_hyperplane_counts() -> None:
    head = Dense(torch.randn(6, 4), torch.randn(6))
    x = torch.randn(50, 4)
    found = certify(PlainNetwork((head,), (4,)), x)
    w, b = head.weight.double(), head.bias.double()
    for z, radius, c in zip(x.double(), found.radius, found.prediction, strict=True):
        true = [
            ((w[c] - w[j]) @ z + b[c] - b[j]) / (w[c] - w[j]).norm() for j in range(6) if j != c
        ]
        assert min(true) * (1 - 1e-8) <= radius <= min(true) * (1 + 1e-12)


def slab(function: nn.Module, matrix: Tensor) -> nn.Sequential:
    """Class 0 where |first rotated coordinate| exceeds 1/2."""
    size = len(matrix)
    first, head = nn.Linear(size, size, bias=False), nn.Linear(size, 2)
    with torch.no_grad():
        first.weight.copy_(matrix)
        head.weight.zero_()
        head.weight[0, 0], head.weight[1, 0] = 0.5, -0.5
        head.bias.copy_(torch.tensor([-0.25, 0.25]))
    return nn.Sequential(first, function, head)


def test_through_orthogonal_layers_the_distance_to_a_slab_is_certified() -> None:
    matrix = orthogonal(6)
    x = torch.randn(60, 6)
    true = ((x.double() @ matrix[0].double()).abs() - 0.5).abs()
    found = certify(slab(Abs(6), matrix), x).radius
    assert (found <= true * (1 + 1e-6)).all()  # the rows are orthonormal to 1e-7
    assert (found >= true * (1 - 1e-5)).all()


def test_through_maxmin_the_distance_to_a_corner_is_certified() -> None:
    matrix = orthogonal(4)
    module = nn.Sequential(
        nn.Linear(4, 4, bias=False), GroupSort(4, group_size=2), nn.Linear(4, 2, bias=False)
    )
    with torch.no_grad():
        module[0].weight.copy_(matrix)
        module[2].weight.zero_()
        module[2].weight[0, 1] = 1.0  # the maximum of the first two, against 0
    x = torch.randn(200, 4)
    a, b = (x.double() @ matrix.double().T)[:, :2].T
    inside = (a < 0) & (b < 0)
    # From within the quadrant the nearest side counts, from outside the nearest point of it.
    outside = torch.hypot(a.clamp(min=0), b.clamp(min=0))
    true = torch.where(inside, -torch.maximum(a, b), outside)
    found = certify(module, x).radius
    assert (found <= true * (1 + 1e-6)).all()
    tight = inside | (torch.minimum(a, b) < 0)
    assert (found >= true * (1 - 1e-5))[tight].all()


def test_the_distance_to_a_sphere_is_certified() -> None:
    tau = 1e-6
    norm = NormPair(8, group_size=8, temperature=tau, learnable=False)
    module = nn.Sequential(nn.Linear(8, 8, bias=False), norm, nn.Linear(1, 2))
    with torch.no_grad():
        module[0].weight.copy_(orthogonal(8))
        module[2].weight.copy_(torch.tensor([[0.5], [-0.5]]))
        module[2].bias.copy_(torch.tensor([-0.5, 0.5]))
    x = torch.randn(60, 8) * torch.linspace(0, 1, 60)[:, None]
    true = (x.double().norm(dim=1) - math.sqrt((1 + tau) ** 2 - tau**2)).abs()
    found = certify(module, x).radius
    assert (found <= true * (1 + 1e-6) + 1e-7).all()
    assert (found >= true * (1 - 1e-5) - 1e-5).all()


def test_the_normalisation_scales_the_radius() -> None:
    head = nn.Linear(4, 3)
    x = torch.rand(20, 4)
    plain = certify(nn.Sequential(head), x)
    module = nn.Sequential(Normalize([0.5], [0.125], channels=4), head)
    normalised = certify(module, 0.125 * x.double() + 0.5)
    torch.testing.assert_close(normalised.radius, plain.radius / 8, rtol=1e-6, atol=1e-9)
    # One narrow channel is enough.
    narrow = nn.Sequential(Normalize([0.0], [1.0, 1.0, 1.0, 0.125], channels=4), head)
    scaled = torch.cat([x[:, :3], x[:, 3:] / 8], dim=1)
    torch.testing.assert_close(certify(narrow, scaled).radius, plain.radius / 8)


# Under attack


def attack(network: PlainNetwork, x: Tensor, label: Tensor, radius: Tensor, steps: int) -> Tensor:
    """Gradient ascent on the best rival's lead, projected to the balls; the best points found."""
    radius = radius.clamp(max=1e3)[:, None] * (1 - 1e-9)
    delta = torch.randn_like(x)
    delta = radius * torch.rand_like(radius) * F.normalize(delta, dim=1)
    best, lead = x.clone(), torch.full((len(x),), -math.inf, dtype=x.dtype)
    for step in range(steps):
        delta.requires_grad_()
        logits = network(x + delta)
        own = logits.gather(1, label[:, None])
        rivals = (logits - own).scatter(1, label[:, None], -math.inf).amax(1)
        (gradient,) = torch.autograd.grad(rivals.sum(), delta)
        delta = delta.detach()
        better = rivals.detach() > lead
        lead = torch.where(better, rivals.detach(), lead)
        best = torch.where(better[:, None], x + delta, best)
        delta = delta + radius * (1 - step / steps) * F.normalize(gradient, dim=1)
        delta = delta * (radius / delta.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp(max=1)
    return best


def assert_unbroken(
    network: PlainNetwork, x: Tensor, found: Certificates, steps: int = 20, starts: int = 2
) -> None:
    """No point inside a radius that the attack finds has another largest logit, or a tie."""
    rows = (found.radius > 0).nonzero()[:, 0]
    x, label, radius = x.double()[rows], found.prediction[rows], found.radius[rows]
    for _ in range(starts):
        y = attack(network, x, label, radius, steps)
        inside = (y - x).norm(dim=1) < radius
        top = network(y).topk(2, dim=1)
        assert ((top.indices[:, 0] == label) | ~inside).all()
        assert ((top.values[:, 0] > top.values[:, 1]) | ~inside).all()


@pytest.mark.parametrize(("layer", "activation"), crossed("layer", "activation"))
def test_attacks_inside_the_radius_fail_on_random_networks(layer: str, activation: str) -> None:
    model = perturb(mlp(layer, activation, features=4, classes=5))
    network = fold_network(model, (4,))
    x = torch.randn(200, 4)
    found = certify(network, x)
    assert (found.radius > 0).sum() > 50
    assert_unbroken(network, x, found)


@cache
def trained(layer: str, activation: str) -> tuple[PlainNetwork, Tensor, Tensor]:
    """A network for three clusters, the samples and their classes."""
    x, y = blobs()
    model = fit(mlp(layer, activation, normalize_head=False), x, y, 0.3, 60)
    return fold_network(model, (2,)), x, y


# Bounds of balls around every sample take seconds.
OF_BALLS = ("crown", "local_lipsdp")


@pytest.mark.parametrize(
    "certifier", slow_but(proving_certifiers(), set(proving_certifiers()) - set(OF_BALLS))
)
@pytest.mark.parametrize("activation", slow_but(["maxmin", "smooth", "relu"], ["maxmin"]))
@pytest.mark.parametrize("layer", slow_but(["cholesky", "unconstrained"], ["unconstrained"]))
def test_attacks_inside_the_radius_fail_on_trained_networks(
    layer: str, activation: str, certifier: str
) -> None:
    network, x, y = trained(layer, activation)
    found = build("certifier", certifier).certify(network, x)
    correct = found.prediction == y
    assert correct.double().mean() > 0.9
    assert (found.radius[correct] > 0.1).double().mean() > 0.5
    assert_unbroken(network, x, found)


def test_the_attack_succeeds_not_far_outside_the_radius() -> None:
    network, x, _ = trained("cholesky", "maxmin")
    found = certify(network, x)
    wider = replace(found, radius=1.5 * found.radius)
    with pytest.raises(AssertionError):
        assert_unbroken(network, x, wider, steps=40)


def test_attacks_inside_the_radius_fail_on_a_convolutional_network() -> None:
    model = perturb(build_model("convnet", "unconstrained", "maxmin"), 0.1)
    network = fold_network(model, (2, 8, 8))
    x = torch.rand(40, 2, 8, 8)
    found = certify(network, x)
    assert (found.radius > 0).all()
    flat = PlainNetwork((Unflatten(), *network.operations), (128,))
    assert_unbroken(flat, x.flatten(1), found)


class Unflatten(Flatten):
    """Undoes a flattening, so that attacks are written for vectors."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.view(-1, 2, 8, 8)


@pytest.mark.parametrize("activation", ["maxmin", "smooth", "linear_spline", "householder2"])
def test_at_the_end_of_the_radius_the_real_network_still_agrees(activation: str) -> None:
    model = perturb(mlp("cholesky", activation, features=3, width=8))
    network = fold_network(model, (3,))
    x = torch.randn(6, 3)
    found = certify(network, x)
    worst = attack(network, x.double(), found.prediction, found.radius, 20)
    previous, flint.ctx.prec = flint.ctx.prec, 200
    try:
        for y, c, radius in zip(worst, found.prediction.tolist(), found.radius, strict=True):
            if radius > 0:
                logits = evaluate(network, y)
                assert all(logits[c] > logits[j] for j in range(3) if j != c)
    finally:
        flint.ctx.prec = previous


@pytest.mark.parametrize("distance", [0.3, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layer", DENSE)
def test_a_planted_counterexample_lies_outside_the_radius(layer: str, distance: float) -> None:
    sample, planted = torch.zeros(2, 6)[:, None]
    planted[0, 2] = distance
    x = torch.cat([torch.randn(60, 6) / 2, sample.expand(20, -1), planted.expand(20, -1)])
    y = torch.cat([torch.zeros(80), torch.ones(20)]).long()
    model = mlp(layer, "maxmin", features=6, classes=2, normalize_head=False)
    both = torch.cat([sample, planted])
    # Another processor rounds otherwise and may need more steps to learn the planted point.
    for _ in range(10):
        found = certify(fit(model, x, y, 0.0, 60), both)
        if found.prediction.tolist() == [0, 1]:
            break
    assert found.prediction.tolist() == [0, 1]
    # The boundary passes between them, so the balls do not even overlap.
    assert 0.4 * distance < found.radius.sum() <= distance


def test_shrunken_weights_certify_nothing_more() -> None:
    # Published attacks: weights whose norm an estimate takes for 0, or sees through a bad start.
    x = torch.randn(30, 4)
    layers = [torch.randn(4, 4) for _ in range(2)]
    expected = certify(relu_network(*layers), x).radius
    for exponent in (20, 44, 60):
        shrunk = relu_network(layers[0] * 2.0**-exponent, layers[1] * 2.0**exponent)
        torch.testing.assert_close(certify(shrunk, x).radius, expected, rtol=1e-9, atol=0)
    kernel = torch.eye(4)
    kernel[0], kernel[1] = torch.tensor([16.0, -16.0, 0, 0]), torch.tensor([0.5, 0.5, 0, 0])
    network = relu_network(kernel, torch.eye(4))
    found = certify(network, x)
    assert_unbroken(network, x, found)
    assert found.radius.max() < found.margin.max() / 20


def relu_network(*weights: Tensor) -> PlainNetwork:
    relu = Activation(torch.relu, {}, lipschitz=1.0)
    hidden = [op for w in weights for op in (Dense(w), relu)]
    rows = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, -0.5], [0.3, 0.3, 0.3, 0.3]])
    return PlainNetwork((*hidden, Dense(rows)), (4,))


# What does not change a radius


def network_of(*weights: Tensor, bias: Tensor | None = None) -> PlainNetwork:
    sort = GroupSort(8).fold()
    hidden = [op for w in weights[:-1] for op in (Dense(w), sort)]
    return PlainNetwork((*hidden, Dense(weights[-1], bias)), (weights[0].shape[1],))


def layers() -> list[Tensor]:
    return [torch.randn(8, 5), torch.randn(8, 8), torch.randn(3, 8)]


CHANGES: dict[str, Callable[[list[Tensor], Tensor], tuple[PlainNetwork, Tensor]]] = {
    "features permuted": lambda w, x: (
        network_of(w[0][:, [3, 1, 4, 0, 2]], *w[1:]),
        x[:, [3, 1, 4, 0, 2]],
    ),
    "pairs permuted": lambda w, x: (
        network_of(w[0][[2, 3, 6, 7, 0, 1, 4, 5]], w[1][:, [2, 3, 6, 7, 0, 1, 4, 5]], w[2]),
        x,
    ),
    "layers rescaled": lambda w, x: (network_of(8 * w[0], w[1] / 32, 4 * w[2]), x),
    "logits rescaled": lambda w, x: (network_of(w[0], w[1], 2.0**20 * w[2]), x),
    "logits shifted": lambda w, x: (network_of(*w, bias=torch.full((3,), 5.0)), x),
    "rows shifted": lambda w, x: (network_of(w[0], w[1], w[2] + 2.0**-3), x),
    "identity appended": lambda w, x: (network_of(w[0], w[1], torch.eye(8), w[2]), x),
    "sum of one branch": lambda w, x: (
        PlainNetwork((Sum((network_of(*w).backbone,)), Dense(w[2])), (5,)),
        x,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_equivalent_networks_have_the_same_radii(change: str) -> None:
    weights = [w.round(decimals=3) for w in layers()]
    if change == "rows shifted":
        weights[2] = (weights[2] * 8).round() / 8
    x = torch.randn(40, 5)
    expected = certify(network_of(*weights), x)
    network, y = CHANGES[change](weights, x)
    found = certify(network, y)
    assert (expected.radius > 0).any()
    assert torch.equal(found.prediction, expected.prediction)
    torch.testing.assert_close(found.radius, expected.radius, rtol=1e-9, atol=1e-9)


def test_an_input_scale_scales_the_radii() -> None:
    weights, x = layers(), torch.randn(40, 5)
    network = network_of(*weights)
    scaled = PlainNetwork(
        (Affine(torch.tensor([4.0]), torch.tensor([-1.0])), *network.operations), (5,)
    )
    expected = certify(network, x).radius
    torch.testing.assert_close(certify(scaled, (x.double() + 1) / 4).radius, expected / 4)


def test_a_module_is_certified_as_its_plain_network_in_any_mode() -> None:
    model = mlp("unconstrained", "smooth")
    x = torch.randn(10, 2)
    expected = LipschitzCertifier().certify(fold_network(model, (2,)), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = certify(model.train(), x)
    assert torch.equal(found.radius, expected.radius)
    assert not found.radius.requires_grad
    assert model.training


# What is never certified


@pytest.mark.parametrize("rows", [[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
def test_ties_abstain(rows: list[list[float]]) -> None:
    # Equal rows are tied everywhere, different ones here.
    network = PlainNetwork((Dense(torch.tensor(rows)),), (2,))
    found = certify(network, torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
    assert found.radius.tolist() == [0, 0]
    assert found.margin.tolist() == [0, 0]


def test_a_margin_within_the_rounding_error_abstains() -> None:
    network = PlainNetwork((Dense(torch.tensor([[1.0, 3.0], [0.0, 3.0]])),), (2,))
    x = torch.tensor([[1e-13, 1e3], [1e-3, 1e3]], dtype=torch.float64)
    found = certify(network, x)
    assert found.radius[0] == 0
    assert found.radius[1] > 0
    assert (found.error > 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
@pytest.mark.parametrize("activation", names("activation"))
def test_broken_inputs_abstain(activation: str, value: float) -> None:
    model = mlp("unconstrained", activation, features=3)
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1, 1] = value
    found = certify(model, x)
    assert found.radius[1] == 0
    assert found.radius[0].isfinite()


def test_classes_that_never_part_are_certified_at_any_distance_or_not_at_all() -> None:
    head = Dense(torch.zeros(2, 3), torch.tensor([1.0, 0.0]))
    # True for the real function and for floats short of overflow.
    one = Dense(torch.randn(1, 3))
    for operation in (head, one):
        network = PlainNetwork((operation,), (3,))
        assert certify(network, torch.zeros(1, 3)).radius.item() > 1e20


def test_overflow_inside_the_radius_is_excluded() -> None:
    # Real logits never move, but 0 times infinity is NaN: in float32 from x = 1.8 on.
    head = Dense(torch.zeros(2, 1), torch.tensor([1e3, 0.0]))
    network = PlainNetwork((Dense(torch.tensor([[2e38]])), head), (1,))
    x = torch.ones(1, 1)
    assert network(1.8 * x).isnan().any()
    assert LipschitzCertifier("float32").certify(network, x).radius.item() < 0.8
    assert LipschitzCertifier("float64").certify(network, x).radius.item() > 100


def test_inputs_of_another_shape_are_refused() -> None:
    network = fold_network(build_model("convnet", "unconstrained", "maxmin"), (2, 8, 8))
    assert network(torch.rand(1, 2, 9, 9)).shape == (1, 3)
    with pytest.raises(ValueError, match="expected inputs of shape"):
        certify(network, torch.rand(1, 2, 9, 9))


def test_networks_that_cannot_be_bounded_are_refused() -> None:
    broken = Dense(torch.tensor([[math.nan, 1.0], [0.0, 1.0]]), name="head")
    with pytest.raises(UnsoundNetworkError):
        certify(PlainNetwork((broken,), (2,)), torch.zeros(1, 2))
    middle = PlainNetwork((broken, Dense(torch.eye(2))), (2,))
    with pytest.raises(UnsoundNetworkError, match=r"^head: "):
        certify(middle, torch.zeros(1, 2))


# The arithmetic that is spoken of


@pytest.mark.parametrize("layer", DENSE)
def test_float32_certifies_less_than_float64(layer: str) -> None:
    model = perturb(mlp(layer, "smooth", features=4))
    network, x = fold_network(model, (4,)), torch.randn(100, 4)
    wide, narrow = (LipschitzCertifier(a).certify(network, x) for a in ("float64", "float32"))
    assert (narrow.radius <= wide.radius).all()
    assert (narrow.radius > 0).sum() > 50
    assert (narrow.radius < wide.radius)[narrow.radius > 0].all()
    assert (narrow.error > 1e6 * wide.error).all()
    assert LipschitzCertifier("float32").functions == ("R", "F32")
    assert LipschitzCertifier("float64").functions == ("R", "F64")


def test_float32_speaks_of_the_network_in_float32() -> None:
    network = fold_network(perturb(mlp("cholesky", "maxmin", features=4)), (4,))
    x = torch.randn(50, 4)
    found = LipschitzCertifier("float32").certify(network, x)
    kept = found.radius > 0
    assert torch.equal(network(x).argmax(1)[kept], found.prediction[kept])
    worst = attack(network, x.double(), found.prediction, found.radius, 20).float()
    inside = (worst.double() - x.double()).norm(dim=1) < found.radius
    assert inside.sum() > 20
    assert torch.equal(network(worst).argmax(1)[inside], found.prediction[inside])


def test_an_input_that_is_rounded_loses_what_it_was_moved_by() -> None:
    network = PlainNetwork((Dense(torch.tensor([[0.5], [-0.5]])),), (1,))
    # The boundary is 0 and the radius at most |x|, whatever float32 makes of x.
    x = torch.tensor([[1 + 2.0**-25], [1 - 2.0**-26], [2.0**-160]], dtype=torch.float64)
    for arithmetic in ("float64", "float32"):
        radius = build("certifier", "lipschitz", arithmetic=arithmetic).certify(network, x).radius
        assert (radius <= x[:, 0]).all()
        assert (radius[:2] > 0.999).all()
    # Without any arithmetic there is no other allowance: these two are nearly tied.
    found = LipschitzCertifier("float32").certify(
        PlainNetwork((Flatten(),), (2,)),
        torch.tensor([[1 + 0.75 * 2.0**-23, 1.0]], dtype=torch.float64),
    )
    assert 0 < found.radius.item() <= 0.75 * 2.0**-23 / math.sqrt(2)


def test_float64_constants_are_not_certified_in_float32() -> None:
    network = fold_network(mlp("cholesky", "maxmin").double(), (2,))
    x = torch.randn(3, 2, dtype=torch.float64)
    assert (LipschitzCertifier().certify(network, x).radius > 0).any()
    with pytest.raises(UnsoundNetworkError, match=r"certifier\.arithmetic=float64"):
        LipschitzCertifier("float32").certify(network, x)


def settings() -> list[Any]:
    backends = torch.backends
    owners = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv
    switches = [owner.fp32_precision for owner in owners]
    return [*switches, backends.cudnn.enabled, torch._C._get_nnpack_enabled()]


STRICT = ["ieee"] * 4 + [False] * 2


def test_certifiers_use_strict_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spy(*arguments: Any) -> ForwardError:
        seen.append(settings())
        return forward_error(*arguments)

    monkeypatch.setattr(lipschitz, "forward_error", spy)
    certify(PlainNetwork((Dense(torch.eye(2)),), (2,)), torch.zeros(1, 2))
    assert seen == [STRICT]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_fast_arithmetic_is_off_and_comes_back(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
        flushes = torch.set_flush_denormal(True)
        outside = settings()
        assert outside[-2:] == [True, True]
        with strict_arithmetic() as outer, strict_arithmetic() as record:
            assert outer == record
            assert settings() == STRICT
            assert torch.get_float32_matmul_precision() == "highest"
            assert (torch.tensor([2.0**-140]) / 2 > 0).all()
            assert record["tf32"] is record["flush_denormal"] is False
            assert record["cudnn"] is record["nnpack"] is False
        assert settings() == outside
        assert torch.get_float32_matmul_precision() == precision
        assert not flushes or (torch.tensor([2.0**-140]) / 2 == 0).all()
    finally:
        torch.set_flush_denormal(False)
        torch.backends.mkldnn.conv.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)
