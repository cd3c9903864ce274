"""Semidefinite bounds: above every slope, below the product of norms, at the optimum."""

import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.configs import slow_but
from helpers.semidefinite_networks import network, steepest
from omegaconf import OmegaConf
from torch import Tensor, nn

from robustcert.activations import (
    Abs,
    GroupSort,
    Householder,
    Identity,
    NActivation,
    ReLU,
    SmoothMaxMin,
    Softplus,
    Tanh,
)
from robustcert.certifiers import Certifier, LipschitzCertifier, LipSDPCertifier
from robustcert.certifiers.lipsdp import search, semidefinite
from robustcert.certifiers.lipsdp.certifier import BOUND_ALLOWANCE, layers_of
from robustcert.config.build import build
from robustcert.errors import NormBoundError, UnsoundNetworkError
from robustcert.metrics.gradient_ratio import gradient_ratio
from robustcert.network.activation import Activation, Slopes
from robustcert.network.branches import Sum
from robustcert.network.linear import Affine, Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork, pairwise_bound
from robustcert.network.operation import Operation

CONF = Path(__file__).parents[2] / "conf"
RELU = ReLU(4).fold()
MAXMIN = GroupSort(4).fold()
ABS = Abs(4).fold()


def orthogonal(size: int, classes: int, depth: int, activation: Operation) -> PlainNetwork:
    torch.manual_seed(0)
    operations: list[Operation] = []
    for _ in range(depth):
        weight = nn.init.orthogonal_(torch.empty(size, size, dtype=torch.float64))
        operations += [Dense(weight), activation]
    head = Dense(nn.init.orthogonal_(torch.empty(classes, size, dtype=torch.float64)))
    return PlainNetwork((*operations, head), (size,))


def off_diagonal(matrix: Tensor) -> Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


class QuadraticForm:
    """Semidefinite bounds with the multipliers of all layers in one matrix, linear in them.

    With z the input difference d0 and the deviations w_i of the activations from their mean slopes,
    ``c e`` is linear in z and ``|d0|^2 - sum_i (|l_i r_i v_i|^2 - |l_i w_i|^2)`` a quadratic form.
    """

    def __init__(self, network: PlainNetwork, pair: tuple[int, int]) -> None:
        layers, head = layers_of(network)
        sizes = [network.input_shape[0], *(int((layer.radius > 0).sum()) for layer in layers)]
        identity = torch.eye(sum(sizes), dtype=torch.float64)
        parts = identity.split(sizes)
        self.base = parts[0].mT @ parts[0]
        state, terms = parts[0], []
        for layer, part in zip(layers, parts[1:], strict=True):
            image = layer.values @ state
            free = layer.radius > 0
            wide = (layer.radius[:, None] * image)[free]
            terms += [
                torch.outer(n, n) - torch.outer(w, w) for n, w in zip(part, wide, strict=True)
            ]
            state = layer.middle[:, None] * image
            state[free] += part
        self.terms = torch.stack(terms)
        exponent = head.exponent + sum(layer.matrix.exponent for layer in layers)
        row = torch.from_numpy(head.values[pair[0]] - head.values[pair[1]])
        self.row = row @ state * 2.0**exponent

    def matrix(self, multipliers: Tensor) -> Tensor:
        return self.base + torch.einsum("k,kij->ij", multipliers, self.terms)

    def square(self, multipliers: Tensor) -> Tensor:
        """The squared bound of feasible multipliers."""
        return self.row @ torch.linalg.solve(self.matrix(multipliers), self.row)

    def minimum(self, multipliers: Tensor) -> float:
        """The least bound, by a barrier method with Newton steps."""
        scale = self.square(multipliers)
        for weight in torch.logspace(0, -7, 15).tolist():

            def objective(x: Tensor, weight: float = weight) -> float:
                factor, info = torch.linalg.cholesky_ex(self.matrix(x))
                if info or not (x > 0).all():
                    return math.inf
                barrier = 2 * factor.diagonal().log().sum() + x.log().sum()
                return float(self.square(x) / scale - weight * barrier)

            for _ in range(30):
                inverse = torch.linalg.inv(self.matrix(multipliers))
                moved = self.terms @ (inverse @ self.row)
                turned = inverse @ self.terms
                slope = -(moved @ (inverse @ self.row)) / scale
                slope -= weight * (turned.diagonal(dim1=1, dim2=2).sum(1) + 1 / multipliers)
                curvature = 2 * moved @ inverse @ moved.mT / scale
                curvature += weight * torch.einsum("kij,lji->kl", turned, turned)
                curvature += weight * torch.diag(multipliers**-2)
                step = -torch.linalg.solve(curvature, slope)
                start, length = objective(multipliers), 1.0
                assert math.isfinite(start)
                while objective(multipliers + length * step) > start and length > 1e-9:
                    length /= 2
                multipliers = multipliers + length * step
                if -(slope @ step) < 1e-9:
                    break
        return float(self.square(multipliers).sqrt())


ACTIVATIONS = {
    "relu": RELU,
    "tanh": Tanh(4).fold(),
    "softplus": Softplus(4, temperature=0.3).fold(),
    "abs": ABS,
    "maxmin": MAXMIN,
    "smooth_maxmin": SmoothMaxMin(4, temperature=0.2).fold(),
    "n": NActivation(4).fold(),
    "identity": Identity(4).fold(),
    "leaky": Activation(torch.nn.functional.leaky_relu, {}, 1.0, slopes=Slopes(0.01, 1.0)),
    "steep": Activation(lambda x: -3 * x.relu(), {}, 3.0, slopes=Slopes(-3.0, 0.0)),
}


@pytest.mark.parametrize("iterations", [0, 30])
@pytest.mark.parametrize("name", slow_but(ACTIVATIONS, ["maxmin", "smooth_maxmin"]))
def test_bounds_hold_and_do_not_exceed_the_product(name: str, iterations: int) -> None:
    for seed, sizes in enumerate([(3, 4, 3), (3, 4, 4, 3), (2, 4, 4, 4, 3)]):
        net = network(ACTIVATIONS[name], *sizes, seed=seed)
        bound = LipSDPCertifier(iterations).pairwise_bound(net)
        assert (bound <= pairwise_bound(net)).all()
        assert (off_diagonal(bound) >= off_diagonal(steepest(net))).all()
        x = torch.randn(4000, sizes[0], dtype=torch.float64) * 3
        assert gradient_ratio(net, x, bound).max() <= 1
        y = x + torch.randn_like(x) * torch.logspace(-3, 1, len(x))[:, None]
        change = net(x) - net(y)
        slope = (change[:, :, None] - change[:, None]).abs() / (x - y).norm(dim=1)[:, None, None]
        assert (slope.amax(0) <= bound * (1 + 1e-9)).all()


def positive_definite(matrix: list[list[Fraction]]) -> bool:
    """Whether the pivots of a symmetric matrix are positive, in exact arithmetic."""
    rows = [list(row) for row in matrix]
    for k, row in enumerate(rows):
        if row[k] <= 0:
            return False
        for other in rows[k + 1 :]:
            factor = other[k] / row[k]
            for j in range(k, len(row)):
                other[j] -= factor * row[j]
    return True


@pytest.mark.parametrize("name", slow_but(["relu", "maxmin", "abs"], ["relu", "maxmin"]))
@pytest.mark.parametrize("iterations", [0, 50])
def test_exact_arithmetic_confirms_the_bound(name: str, iterations: int) -> None:
    """Rationals throughout: the bordered matrix ``[[Q, c'], [c, K^2]]`` is positive definite."""
    net = network(ACTIVATIONS[name], 2, 4, 2, 3, seed=9)
    layers, head = layers_of(net)
    certifier = LipSDPCertifier(iterations)
    diagonals = certifier.multipliers(net)[-1]
    bound = semidefinite.pairwise_bound(layers, head, diagonals)
    assert (bound * (1 + BOUND_ALLOWANCE) >= certifier.pairwise_bound(net)).all()

    def fractions(matrix: Tensor) -> np.ndarray:
        return np.vectorize(Fraction, otypes=[object])(matrix.numpy())

    identity = fractions(torch.eye(2 + sum(len(d) for d in diagonals)))
    form = identity[:2].T @ identity[:2]
    state, place = identity[:2], 2
    for depth, (layer, diagonal) in enumerate(zip(layers, diagonals, strict=True), start=1):
        assert layer.matrix.tail < 1e-12
        image = fractions(layer.values) @ state
        free = (layer.high > layer.low).numpy()
        own = identity[place : place + len(diagonal)]
        place += len(diagonal)
        multiplier = 1 / (fractions(diagonal) * Fraction(1 + semidefinite.MARGIN) ** depth)
        wide = image[free] * fractions((layer.high - layer.low)[free])[:, None] / 2
        form = form + (own.T * multiplier) @ own - (wide.T * multiplier) @ wide
        state = image * fractions(layer.low + layer.high)[:, None] / 2
        state[free] += own
    exponent = head.exponent + sum(layer.matrix.exponent for layer in layers)
    rows = fractions(torch.from_numpy(head.values)) * Fraction(2) ** exponent
    for i, j in itertools.combinations(range(3), 2):
        row = (rows[i] - rows[j]) @ state
        for factor, expected in ((1.0, True), (0.999, False)):
            square = Fraction(float(bound[i, j]) * factor) ** 2
            bordered = np.block([[form, row[:, None]], [row[None], np.array([[square]])]])
            assert positive_definite(bordered.tolist()) is expected


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "identity"])
def test_the_recursion_equals_one_quadratic_form(name: str) -> None:
    net = network(ACTIVATIONS[name], 3, 4, 4, 4, 3)
    layers, head = layers_of(net)
    # Growing from layer to layer, which keeps them feasible.
    start = enumerate(search.closed_form(layers), start=1)
    diagonals = [3.0**depth * d * (1 + torch.rand_like(d) / 2) for depth, d in start]
    bound = semidefinite.pairwise_bound(layers, head, diagonals)
    form = QuadraticForm(net, (0, 2))
    multipliers = torch.cat(diagonals).reciprocal()
    assert torch.linalg.eigvalsh(form.matrix(multipliers))[0] > 0
    expected = float(form.square(multipliers).sqrt())
    assert float(bound[0, 2]) == pytest.approx(expected, rel=1e-5)
    assert float(bound[0, 2]) >= expected * (1 - 1e-12)


@pytest.mark.parametrize(
    "name", slow_but(["relu", "tanh", "maxmin", "abs", "leaky"], ["relu", "maxmin"])
)
@pytest.mark.parametrize("sizes", slow_but([(2, 4, 4, 2), (4, 6, 2), (3, 4, 4, 4, 2)], [(4, 6, 2)]))
def test_the_optimum_is_that_of_a_barrier_method(name: str, sizes: tuple[int, ...]) -> None:
    net = network(ACTIVATIONS[name], *sizes)
    start = search.closed_form(layers_of(net)[0])
    optimum = QuadraticForm(net, (0, 1)).minimum(torch.cat(start).reciprocal())
    bound = float(LipSDPCertifier(200).pairwise_bound(net)[0, 1])
    # Without a barrier of its own the problem with absolute values is only solved roughly.
    slack = 0.1 if name == "abs" else 0.005
    assert optimum * (1 - 1e-5) <= bound <= optimum * (1 + slack)
    assert bound <= 0.99 * float(pairwise_bound(net)[0, 1])


@pytest.mark.slow
def test_more_iterations_are_not_worse() -> None:
    net = network(RELU, 8, 16, 16, 16, 4)
    means = [
        float(off_diagonal(LipSDPCertifier(i).pairwise_bound(net)).log().mean())
        for i in (0, 1, 2, 5, 10, 20, 40, 80)
    ]
    assert all(after <= before + 1e-5 for before, after in itertools.pairwise(means))
    assert means[-1] < means[0] - 0.2


def test_every_pair_by_itself_is_tighter() -> None:
    net = network(MAXMIN, 6, 8, 8, 3)
    shared = LipSDPCertifier(40).pairwise_bound(net)
    own = LipSDPCertifier(40, per_pair=True).pairwise_bound(net)
    assert (own <= shared).all()
    assert off_diagonal(own).sum() < 0.999 * off_diagonal(shared).sum()
    x = torch.randn(2000, 6, dtype=torch.float64)
    assert gradient_ratio(net, x, own).max() <= 1


@pytest.mark.parametrize(
    "activation",
    [pytest.param(MAXMIN, id="maxmin"), pytest.param(ABS, id="abs", marks=pytest.mark.slow)],
)
def test_nothing_is_gained_where_gradients_keep_their_norm(activation: Operation) -> None:
    net = orthogonal(8, 4, 3, activation)
    product = off_diagonal(pairwise_bound(net))
    bound = off_diagonal(LipSDPCertifier(30).pairwise_bound(net))
    assert (bound <= product).all()
    assert (bound >= product * (1 - 1e-5)).all()
    x = torch.randn(50, 8)
    ratio = gradient_ratio(net, x, pairwise_bound(net))
    torch.testing.assert_close(ratio, torch.ones(50).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", slow_but(["relu", "maxmin"], ["relu"]))
def test_no_witness_proves_too_little(name: str) -> None:
    """Matrices, scales and rows of any kind: whatever is returned is above every slope."""
    net = network(ACTIVATIONS[name], 3, 4, 4, 3, seed=3)
    layers, head = layers_of(net)
    least = off_diagonal(steepest(net))
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        size = 10.0 ** float(torch.randint(-8, 4, (), generator=generator))
        return size * torch.randn(*shape, generator=generator, dtype=torch.float64)

    for _ in range(80):
        claim = semidefinite.Claim(None, semidefinite.exact(1.0), semidefinite.exact(1.0))
        exponent = 0
        for layer in layers:
            rows, columns = layer.values.shape
            free = int((layer.radius > 0).sum())
            witness = semidefinite.Witness(
                noise(rows, rows), noise(free), noise(free + rows, columns), noise(rows, free)
            )
            claim = semidefinite.prove(claim, layer, witness)
            exponent += layer.matrix.exponent
        bound = semidefinite.prove_head(claim, head, noise(3, 4), exponent)
        assert (off_diagonal(bound) >= least).all()


@pytest.mark.slow
def test_any_multipliers_give_a_bound_or_an_error() -> None:
    net = network(RELU, 3, 4, 4, 3, seed=4)
    layers, head = layers_of(net)
    least = off_diagonal(steepest(net))
    generator = torch.Generator().manual_seed(0)
    refused = 0
    start = search.closed_form(layers)
    for _ in range(80):
        diagonals = [
            d * 10 ** (2 * torch.rand(len(d), generator=generator).double() - 1) for d in start
        ]
        try:
            bound = semidefinite.pairwise_bound(layers, head, diagonals)
        except NormBoundError:
            refused += 1
            continue
        assert (off_diagonal(bound) >= least).all()
    assert 0 < refused < 80
    bad = [torch.full_like(d, math.nan) for d in start]
    with pytest.raises(NormBoundError):
        semidefinite.pairwise_bound(layers, head, bad)


def test_a_failed_proof_keeps_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NormBoundError("no proof")

    monkeypatch.setattr(semidefinite, "prove", fail)
    net = network(RELU, 3, 4, 4, 3, seed=5)
    assert torch.equal(LipSDPCertifier(5).pairwise_bound(net), pairwise_bound(net))


@pytest.mark.slow
def test_awkward_weights() -> None:
    net = network(RELU, 3, 4, 4, 3, seed=6)
    usual = LipSDPCertifier(20).pairwise_bound(net)
    first, act, second, _, head = net.operations
    assert isinstance(first, Dense)
    assert isinstance(second, Dense)
    assert isinstance(head, Dense)

    def bound(*operations: Operation, shape: tuple[int, ...] = (3,)) -> Tensor:
        net = PlainNetwork(operations, shape)
        result = LipSDPCertifier(20).pairwise_bound(net)
        assert torch.isfinite(result).all()
        assert (result <= pairwise_bound(net)).all()
        return result

    big, small = Dense(second.weight * 2.0**60), Dense(first.weight * 2.0**-60)
    torch.testing.assert_close(bound(small, act, big, act, head), usual, rtol=1e-6, atol=0)
    tiny = first.weight.double().clone()
    tiny[0, 0] = 1e-200
    zero = tiny.clone()
    zero[0, 0] = 0.0
    torch.testing.assert_close(
        bound(Dense(tiny), act, second, act, head), bound(Dense(zero), act, second, act, head)
    )
    dead = second.weight.clone()
    dead[1], dead[:, 2] = 0.0, 0.0
    assert (off_diagonal(bound(first, act, Dense(dead), act, head)) > 0).all()
    assert (bound(first, act, Dense(torch.zeros(4, 4)), act, head) < 1e-300).all()
    twins = head.weight.clone()
    twins[1] = twins[0]
    result = bound(first, act, second, act, Dense(twins))
    assert result[0, 1] < 1e-9 * result[0, 2]
    wide = network(MAXMIN, 2, 16, 4, 3)
    assert (off_diagonal(bound(*wide.operations, shape=(2,))) >= 0).all()
    assert bound(first, act, second, act).shape == (4, 4)
    linear = bound(first, second, head)
    expected = (head.weight.double() @ second.weight.double() @ first.weight.double())[None]
    torch.testing.assert_close(
        linear, torch.cdist(expected, expected)[0], rtol=1.01 * BOUND_ALLOWANCE, atol=1e-12
    )


def test_normalisation_is_inside_the_bound() -> None:
    scale = torch.tensor([4.0, 0.5])
    dense = network(RELU, 8, 4, 3, seed=7)
    first, act, head = dense.operations
    assert isinstance(first, Dense)
    images = PlainNetwork(
        (
            Affine(scale, torch.ones(2)),
            Flatten(),
            first,
            act,
            head,
            Affine(torch.ones(3), scale[:1]),
        ),
        (2, 2, 2),
    )
    folded = Dense(first.weight * scale.repeat_interleave(4))
    expected = LipSDPCertifier(20).pairwise_bound(PlainNetwork((folded, act, head), (8,)))
    bound = LipSDPCertifier(20).pairwise_bound(images)
    torch.testing.assert_close(bound, expected, rtol=1e-7, atol=0)
    assert (bound <= pairwise_bound(images)).all()


REFUSED = {
    "householder": Householder(4).fold(),
    "group_sort": GroupSort(4, group_size=4).fold(),
    "sum": Sum(((), (RELU,))),
    "convolution": Convolution(torch.ones(1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused_by_name(name: str) -> None:
    operation = REFUSED[name]
    operations: tuple[Operation, ...] = (Dense(torch.eye(4)), operation, Dense(torch.eye(4)))
    if name == "convolution":
        operations = (operation, Flatten())
    net = PlainNetwork(operations, (1, 2, 2) if name == "convolution" else (4,))
    with pytest.raises(UnsoundNetworkError, match=rf"(?s){name}.*certifier=lipschitz"):
        LipSDPCertifier(0).certify(net, torch.zeros(1, *net.input_shape))


@pytest.mark.parametrize("path", sorted((CONF / "activation").glob("*.yaml")), ids=lambda p: p.stem)
def test_slopes_of_activations_are_what_they_say(path: Path) -> None:
    torch.manual_seed(0)
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    module = build(node, "activation", ("robustcert",))(8)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    operation = module.fold()
    slopes = operation.slopes
    if slopes is None:
        return
    x = torch.randn(2000, 8, dtype=torch.float64) * 2
    y = x + torch.randn_like(x) * torch.logspace(-4, 1, len(x))[:, None]
    change, out = y - x, operation(y) - operation(x)
    if slopes.pairs:
        torch.testing.assert_close(
            out[:, ::2] + out[:, 1::2], change[:, ::2] + change[:, 1::2], rtol=0, atol=1e-12
        )
        change, out = change[:, 1::2] - change[:, ::2], out[:, 1::2] - out[:, ::2]
    else:
        alone = operation(torch.cat((y[:, :1], x[:, 1:]), dim=1)) - operation(x)
        assert not alone[:, 1:].any()
    allowance = 1e-12 * (1 + x.abs().max())
    assert (torch.minimum(slopes.low * change, slopes.high * change) <= out + allowance).all()
    assert (torch.maximum(slopes.low * change, slopes.high * change) >= out - allowance).all()
    assert max(abs(slopes.low), abs(slopes.high)) <= operation.lipschitz


@pytest.mark.parametrize("name", ["lipsdp", "eclipse_fast"])
def test_certificates_are_larger_and_hold(name: str) -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "certifier" / f"{name}.yaml"))
    assert isinstance(node, dict)
    certifier = build(node, "certifier", ("robustcert",), expected=Certifier)
    net = network(RELU, 2, 8, 8, 3, seed=8)
    x = torch.randn(200, 2)
    certificates = certifier.certify(net, x)
    usual = LipschitzCertifier().certify(net, x)
    assert torch.equal(certificates.prediction, usual.prediction)
    assert (certificates.radius >= usual.radius).all()
    assert certificates.radius.median() > 1.1 * usual.radius.median()
    angle = torch.linspace(0, 2 * math.pi, 360, dtype=torch.float64)
    circle = torch.stack((angle.cos(), angle.sin()), dim=1) * (1 - 1e-9)
    points = x.double()[:, None] + certificates.radius[:, None, None] * circle
    labels = net(points.flatten(0, 1)).argmax(1).view(200, -1)
    assert (labels == certificates.prediction[:, None])[certificates.radius > 0].all()


def test_negative_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"certifier\.iterations"):
        LipSDPCertifier(-1)


@pytest.mark.slow
def test_mnist_size() -> None:
    net = network(RELU, 784, 512, 512, 10)
    bound = off_diagonal(LipSDPCertifier(40).pairwise_bound(net))
    assert (bound < 0.5 * off_diagonal(pairwise_bound(net))).all()
    assert (
        gradient_ratio(net, torch.randn(4, 784), LipSDPCertifier(40).pairwise_bound(net)).max() < 1
    )
