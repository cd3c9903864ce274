"""Orthogonal convolutions kept as kernel and rule: their layers, their norm, their errors."""

import math
from contextlib import suppress
from typing import Any

import flint
import numpy as np
import pytest
import torch
from flint import acb, acb_mat, arb, fmpq
from helpers.proof_folders import certify
from helpers.torus_maps import require_own_function
from torch import Tensor, nn

import robustcert
from benchmarks.soundness.forgeries import Folder
from robustcert.certifiers import CROWNCertifier, LipschitzCertifier
from robustcert.check import UnreadableError, check
from robustcert.check.arithmetic import FLOAT32, FLOAT64
from robustcert.check.forward import orthogonal as checked
from robustcert.check.network.operation import Operation as CheckedOperation
from robustcert.errors import UnsoundNetworkError
from robustcert.export.graph import Graph
from robustcert.export.operations import add_operations
from robustcert.layers import CayleyConv2d, LOTConv2d, SOCConv2d, fft
from robustcert.layers.fft import FrequencyConstraint, FrequencyConv2d
from robustcert.network import balls, orthogonal
from robustcert.network.activation import Activation
from robustcert.network.linear import CircularConvolution, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.network.orthogonal import OrthogonalConvolution, blocks_of

LAYERS: dict[str, type[FrequencyConv2d]] = {
    "exponential": SOCConv2d,
    "cayley": CayleyConv2d,
    "polar": LOTConv2d,
}
# Channels in and out, kernel, stride, padding, size of the map.
CASES: list[Any] = [
    (4, 4, 3, 1, 1, (6, 6)),
    (3, 8, 3, 2, 1, (7, 6)),
    (8, 3, 3, 1, 1, (5, 4)),
    (2, 6, 2, (1, 2), 0, (3, 8)),
]
# Rules with one case each, and all others if asked.
PAIRS = [
    pytest.param(rule, case, marks=() if (i + j) % 3 == 0 else pytest.mark.slow)
    for i, rule in enumerate(LAYERS)
    for j, case in enumerate(CASES)
]
BITS = 200


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft, "MAX_KERNEL", 0)


def layer_of(rule: str, case: Any) -> FrequencyConv2d:
    torch.manual_seed(0)
    channels, outputs, kernel, stride, padding, size = case
    options: dict[str, Any] = {"stride": stride, "padding": padding, "input_size": size}
    layer = LAYERS[rule](channels, outputs, kernel, **options)
    nn.init.normal_(layer.parametrizations["weight"].original)
    nn.init.normal_(layer.bias)
    return layer


def folded(rule: str, case: Any) -> tuple[FrequencyConv2d, OrthogonalConvolution, tuple[int, ...]]:
    layer = layer_of(rule, case)
    operation = layer.fold()
    assert isinstance(operation, OrthogonalConvolution)
    assert operation.rule == rule
    return layer.double(), operation, (case[0], *case[5])


def as_checked(operation: OrthogonalConvolution, shape: tuple[int, ...]) -> CheckedOperation:
    """The operation as the checker reads it."""
    tensors = {key: tensor.numpy() for key, tensor in operation.tensors().items()}
    output = operation.output_shape(shape)
    return CheckedOperation(operation.kind, "", "", operation.options(), tensors, shape, output)


def by_definition(operation: OrthogonalConvolution) -> list[acb_mat]:
    """The blocks of the rule at every frequency that is kept, in balls of 200 bits."""
    (height, width), (rows, columns, *sides) = operation.map, operation.weight.shape
    found = []
    for f, g in np.ndindex(height, width):
        if (f, g) > (-f % height, -g % width):
            continue
        block = acb_mat(rows, columns)
        for i, j in np.ndindex(*sides):
            turns = fmpq(f * (i - sides[0] // 2), height) + fmpq(g * (j - sides[1] // 2), width)
            sine, cosine = arb.sin_cos_pi_fmpq(2 * turns)
            tap = operation.weight[:, :, i, j].double().tolist()
            block += acb_mat(tap) * acb(cosine, sine)
        found.append(of_block(operation.rule, block))
    return found


def of_block(rule: str, block: acb_mat) -> acb_mat:
    if rule != "exponential" and block.nrows() < block.ncols():
        return adjoint(of_block(rule, adjoint(block)))
    count = block.ncols()
    one = acb_mat(count, count, [int(i == j) for i in range(count) for j in range(count)])
    if rule == "exponential":
        return (block - adjoint(block)).exp()
    if rule == "polar":
        y = block * (1 / frobenius(adjoint(block) * block).sqrt())
        for _ in range(10):
            y = y * (one * 3 - adjoint(y) * y) * acb(0.5)
        return y
    upper, lower = block.table()[:count], block.table()[count:]
    form = one + acb_mat(upper) - adjoint(acb_mat(upper))
    form += adjoint(acb_mat(lower)) * acb_mat(lower) if lower else 0 * one
    rows = (form.inv() * 2 - one).table()
    return acb_mat(rows + ((acb_mat(lower) * form.inv() * -2).table() if lower else []))


def adjoint(block: acb_mat) -> acb_mat:
    return acb_mat([[z.conjugate() for z in row] for row in block.transpose().table()])


def frobenius(block: acb_mat) -> arb:
    return sum((z.real**2 + z.imag**2 for z in block.entries()), arb(0)).sqrt()


def distance(operation: OrthogonalConvolution, blocks: Any) -> float:
    """The largest distance of Frobenius, which is at least that of the spectral norm."""
    with flint.ctx.workprec(BITS):
        exact = by_definition(operation)
        assert len(exact) == len(blocks)
        apart = [
            frobenius(acb_mat(block.tolist()) - real).abs_upper()
            for block, real in zip(blocks, exact, strict=True)
        ]
        return max(float(each) for each in apart)


def own_distance(operation: OrthogonalConvolution) -> float:
    matrices = blocks_of(operation).matrices
    return distance(operation, torch.complex(matrices.real, matrices.imaginary).numpy())


@pytest.mark.parametrize(("rule", "case"), PAIRS)
def test_blocks_are_within_their_error_of_the_rule(rule: str, case: Any) -> None:
    _, operation, shape = folded(rule, case)
    assert own_distance(operation) <= blocks_of(operation).error < 1e-8
    other = checked.blocks_of(as_checked(operation, shape))
    assert distance(operation, other.values) <= other.error < blocks_of(operation).error


FAULTS = ["rounding", "residual", "term", "step", "tap"]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_of_blocks_are_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    rule, case = "exponential", CASES[0]
    if fault == "rounding":
        rule = "polar"
        for module, name in [(balls, "UNIT"), (orthogonal, "UNIT"), (orthogonal, "TWIDDLE_ERROR")]:
            monkeypatch.setattr(module, name, 0.0)
        for module in (balls, orthogonal):
            monkeypatch.setattr(module, "gamma", lambda count, unit: 0.0)
    elif fault == "residual":
        # The inverse of another matrix, of which the residual alone tells.
        rule, inverse = "cayley", torch.linalg.inv
        monkeypatch.setattr(torch.linalg, "inv", lambda matrix: inverse(matrix) * (1 + 1e-9))
        monkeypatch.setattr(balls.Ball, "size", 0.0)
    elif fault == "term":
        factorial = math.factorial
        monkeypatch.setattr(orthogonal.math, "factorial", lambda k: factorial(k) + (k == 7))
    elif fault == "step":
        rule = "polar"
        monkeypatch.setattr(orthogonal, "POLAR_STEPS", 9)
    else:
        numerators = orthogonal.numerators
        monkeypatch.setattr(orthogonal, "numerators", lambda size, at: numerators(size, at + 1))
    _, operation, _ = folded(rule, case)
    found = orthogonal._computed(operation.weight.double(), operation.map, rule)
    values = torch.complex(found.matrices.real, found.matrices.imaginary).numpy()
    assert distance(operation, values) > found.error


@pytest.mark.parametrize(("rule", "case"), PAIRS)
def test_a_large_layer_folds_to_its_own_function_of_norm_one(rule: str, case: Any) -> None:
    layer, operation, shape = folded(rule, case)
    require_own_function(layer, operation, shape, dense(operation, shape), within=1e-12)


def dense(operation: OrthogonalConvolution, shape: tuple[int, ...]) -> Tensor:
    """The map without bias as a matrix in float64."""
    x = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return (operation(x) - operation(0 * x[:1])).flatten(1).mT


@pytest.mark.parametrize(("rule", "case"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_within_their_error(rule: str, case: Any, dtype: torch.dtype) -> None:
    _, operation, shape = folded(rule, case)
    x = torch.randn(5, *shape).to(dtype)
    unit, kind = (2.0**-53, FLOAT64) if dtype == torch.float64 else (2.0**-24, FLOAT32)
    a, b = operation.rounding(shape, unit)
    # The map of the layer is wrong by 1e-13 itself.
    real = layer_of(rule, case).double()(x.double())
    wrong = (operation(x).double() - real).flatten(1).norm(dim=1)
    assert (wrong <= a * x.double().flatten(1).norm(dim=1) + b + 1e-12).all()
    assert a < (1e-7 if dtype == torch.float64 else 1e-3)
    # The checker's own bound is no more than what is claimed, or no claim would be verified.
    other = checked.rotation_error(as_checked(operation, shape), kind)
    assert other[0] <= a
    assert other[1] <= b


@pytest.mark.parametrize(("rule", "case"), PAIRS)
def test_the_checker_evaluates_the_same_map(rule: str, case: Any) -> None:
    _, operation, shape = folded(rule, case)
    x = torch.randn(3, *shape, dtype=torch.float64)
    values = checked.rotate(as_checked(operation, shape), x.numpy())
    np.testing.assert_allclose(values, operation(x).numpy(), rtol=0, atol=1e-12)


def test_what_has_no_close_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: Any = {"input_size": (4, 4), "output_size": (4, 4), "period": (4, 4), "outputs": 2}
    square, wide = torch.randn(2, 2, 3, 3), torch.randn(2, 3, 3, 3)
    with pytest.raises(UnsoundNetworkError, match="zero at a frequency"):
        blocks_of(OrthogonalConvolution(0 * square, **sizes, rule="polar"))
    # A tap less its neighbour vanishes where both have one phase.
    square[:, :, 0, 0], square[:, :, 1:], square[:, :, 0, 2:] = -square[:, :, 0, 1], 0, 0
    with pytest.raises(UnsoundNetworkError, match="zero at a frequency"):
        blocks_of(OrthogonalConvolution(square, **sizes, rule="polar"))
    for rule in LAYERS:
        with pytest.raises(UnsoundNetworkError, match=r"norm up to|known up to|zero at"):
            blocks_of(OrthogonalConvolution(1e12 * square, **sizes, rule=rule))
    for rule, kernel in [("exponential", wide), ("square", wide)]:
        with pytest.raises(UnsoundNetworkError, match=f"no rule {rule}"):
            OrthogonalConvolution(kernel, **sizes, rule=rule)
    monkeypatch.undo()
    assert isinstance(layer_of("cayley", CASES[0]).fold(), CircularConvolution)


def test_a_subclass_with_another_constraint_keeps_its_kernel() -> None:
    class Halved(CayleyConv2d.constraint):  # type: ignore[name-defined, misc]
        def constrain(self, blocks: Tensor) -> Tensor:
            return super().constrain(blocks) / 2

    class Layer(FrequencyConv2d):
        constraint: type[FrequencyConstraint] = Halved

    layer = Layer(2, 2, 3, padding=1, input_size=(4, 4))
    x = torch.randn(1, 2, 4, 4)
    operation = layer.fold()
    assert isinstance(operation, CircularConvolution)
    torch.testing.assert_close(operation(x), layer(x))


def network(rule: str) -> PlainNetwork:
    torch.manual_seed(0)
    layer = LAYERS[rule]
    first = layer(2, 4, 3, padding=1, input_size=(5, 5))
    second = layer(4, 4, 3, stride=2, padding=1, input_size=(5, 5))
    relu = Activation(torch.relu, {}, lipschitz=1.0)
    head = Dense(torch.randn(3, 36), torch.randn(3))
    return PlainNetwork((first.fold(), relu, second.fold(), Flatten(), head), (2, 5, 5))


@pytest.mark.parametrize("rule", LAYERS)
def test_a_certificate_is_verified_and_predicts(tmp_path: Any, rule: str) -> None:
    net = network(rule)
    folder = certify(tmp_path / "folder", net, LipschitzCertifier())
    report = check(folder)
    assert report.verified, report.mismatches
    x = torch.rand(4, 2, 5, 5, dtype=torch.float64)
    assert (robustcert.load(folder)(x).label == net(x).argmax(1)).all()


def _weight(folder: Folder) -> None:
    folder.tensors["0.weight"][0, 0, 0, 0] += 0.5


def _bound(folder: Folder) -> None:
    for entry in folder.claim["bounds"]:
        if entry["bound"] == (1.0).hex():
            entry["bound"] = (0.75).hex()


def _changed(key: str, value: Any) -> Any:
    def forge(folder: Folder) -> None:
        folder.claim["network"]["operations"][0]["options"][key] = value

    forge.__name__ = f"{key} {value}"
    return forge


FORGERIES = [
    _weight,
    _bound,
    _changed("rule", "exponential"),
    *(
        pytest.param(_changed(key, value), marks=pytest.mark.slow)
        for key, value in [
            ("rule", "polar"),
            ("rule", "identity"),
            ("outputs", 3),
            ("period", [6, 5]),
            ("stride", [5, 1]),
            ("input_size", [5, 4]),
            ("ridge", "0x0p+0"),
        ]
    ),
]


@pytest.mark.parametrize("forge", FORGERIES)
def test_forged_ones_are_not_verified(tmp_path: Any, forge: Any) -> None:
    forged = Folder(certify(tmp_path / "folder", network("cayley"), LipschitzCertifier()))
    forge(forged)
    forged.save()  # with every digest and count put right
    with suppress(UnreadableError):
        assert not check(forged.path).verified


def test_what_does_not_know_them_names_them() -> None:
    net = network("cayley")
    with pytest.raises(UnsoundNetworkError, match="orthogonal_convolution cannot be exported"):
        add_operations(Graph(torch.float64), "x", net.operations, net.input_shape)
    with pytest.raises(UnsoundNetworkError, match="orthogonal_convolution"):
        CROWNCertifier().certify(net, torch.rand(1, 2, 5, 5))
