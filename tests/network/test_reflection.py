"""Reflections at ranges of circular convolutions: their layer, their norm, their errors."""

from contextlib import suppress
from fractions import Fraction
from typing import Any

import pytest
import torch
from helpers.proof_folders import certify
from helpers.torus_maps import require_own_function
from torch import Tensor, nn

from benchmarks.soundness.forgeries import Folder
from robustcert.certifiers import CROWNCertifier, LipschitzCertifier
from robustcert.check import UnreadableError, check
from robustcert.errors import UnsoundNetworkError
from robustcert.export.graph import Graph
from robustcert.export.operations import add_operations
from robustcert.layers import BROConv2d, fft, frequency_reflection
from robustcert.network import reflection
from robustcert.network.activation import Activation
from robustcert.network.linear import CircularConvolution, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.network.reflection import Reflection, inverses_of

UNIT = 2.0**-53
# Channels in and out, kernel, stride, padding, size of the map, margin, ridge.
CASES: list[Any] = [
    (4, 4, 3, 1, 1, (6, 6), 2, 0.0),
    (3, 8, 3, 2, 1, (7, 6), 0, 0.0),
    (8, 3, 3, 1, 1, (5, 4), 1, 1e-3),
    (2, 6, 2, (1, 2), 0, (3, 8), 0, 0.5),
]


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft, "MAX_KERNEL", 0)


def layer_of(case: Any) -> BROConv2d:
    torch.manual_seed(0)
    channels, outputs, kernel, stride, padding, size, margin, ridge = case
    options: dict[str, Any] = {"stride": stride, "padding": padding, "input_size": size}
    layer = BROConv2d(channels, outputs, kernel, **options, margin=margin, ridge=ridge)
    nn.init.normal_(layer.bias)
    return layer


def folded(case: Any) -> tuple[BROConv2d, Reflection, tuple[int, ...]]:
    layer = layer_of(case)
    operation = layer.fold()
    assert isinstance(operation, Reflection)
    return layer.double(), operation, (case[0], *case[5])


@pytest.mark.parametrize("case", [*CASES[2:], *map(slow, CASES[:2])])
@pytest.mark.parametrize("samples", [1, slow(40)])
def test_factors_train_as_the_square_does(
    monkeypatch: pytest.MonkeyPatch, case: Any, samples: int
) -> None:
    layer = layer_of(case).double()
    x = torch.randn(samples, case[0], *case[5], dtype=torch.float64, requires_grad=True)
    seen, found = torch.randn_like(layer(x)), []
    # Several pieces, the last of which is smaller.
    monkeypatch.setattr(frequency_reflection, "PIECE", 5 * max(case[:2]) ** 2)
    for largest in (0, 2**22):
        monkeypatch.setattr(fft, "MAX_KERNEL", largest)
        y = layer(x)
        found.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], seen)])
    for by_factors, by_square in zip(*found, strict=True):
        torch.testing.assert_close(by_factors, by_square, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_what_is_frozen_leaves_the_other_gradients_alone(ridge: float) -> None:
    layer = layer_of((*CASES[0][:-1], ridge)).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    weight, seen = layer.get_parameter("parametrizations.weight.original"), torch.randn(2, 4, 6, 6)
    expected = torch.autograd.grad(layer(x), [x, weight], seen.double())
    weight.requires_grad_(False)
    (at_x,) = torch.autograd.grad(layer(x), x, seen.double())
    weight.requires_grad_(True)
    (at_weight,) = torch.autograd.grad(layer(x.detach()), weight, seen.double())
    torch.testing.assert_close((at_x, at_weight), expected, rtol=0, atol=0)


def dense(operation: Reflection, shape: tuple[int, ...]) -> Tensor:
    """The map as a matrix in float64, by Fourier transforms and pseudo-inverses."""
    kernel = torch.fft.fft2(operation.weight.double(), s=operation.map).conj().permute(2, 3, 0, 1)
    gram = kernel.mH @ kernel
    rho = operation.ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1).real[..., None, None]
    inside = torch.linalg.pinv(gram + rho * torch.eye(kernel.shape[-1]))
    square = torch.eye(kernel.shape[-2]) - 2 * kernel @ inside @ kernel.mH
    x = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    height, width = (p - n for p, n in zip(operation.period, shape[1:], strict=True))
    x = nn.functional.pad(x, (0, width, 0, height))
    x = x.unflatten(3, (-1, operation.stride[1])).unflatten(2, (-1, operation.stride[0]))
    x = x.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    x = nn.functional.pad(x, (0, 0, 0, 0, 0, len(operation.weight) - x.shape[1]))
    spectrum = torch.fft.fft2(x).permute(2, 3, 1, 0)
    y = torch.fft.ifft2((square @ spectrum).permute(3, 2, 0, 1)).real
    high, wide = operation.output_size
    return y[:, : operation.outputs, :high, :wide].flatten(1).mT


@pytest.mark.parametrize("case", CASES)
def test_a_large_layer_folds_to_its_own_function_of_norm_one(case: Any) -> None:
    layer, operation, shape = folded(case)
    require_own_function(layer, operation, shape, dense(operation, shape), within=1e-13)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_within_their_error(case: Any, dtype: torch.dtype) -> None:
    _, operation, shape = folded(case)
    x = torch.randn(5, *shape).to(dtype)
    a, b = operation.rounding(shape, UNIT if dtype == torch.float64 else 2.0**-24)
    bias = operation.bias
    assert bias is not None
    real = (dense(operation, shape) @ x.double().flatten(1).mT).mT.view(5, *operation(x).shape[1:])
    wrong = (operation(x).double() - real - bias.double()[:, None, None]).flatten(1).norm(dim=1)
    room = a * x.double().flatten(1).norm(dim=1) + b
    # What it is compared with is wrong by 1e-13 itself.
    assert (wrong <= room + 1e-13).all()
    assert a < (1e-9 if dtype == torch.float64 else 0.1)


def test_the_error_of_inverses_holds_exactly() -> None:
    """In rational numbers, on a torus whose phases are 1, i, -1 and -i."""
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 2, 2)
    found = reflection._inverted(weight.double(), (2, 2), 0.0)
    v = [[[[Fraction(float(w)) for w in r] for r in k] for k in row] for row in weight]
    for f, (p, q) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        sign = [[(-1) ** (p * i + q * j) for j in range(2)] for i in range(2)]
        u = [
            [sum(sign[i][j] * k[i][j] for i in range(2) for j in range(2)) for k in row]
            for row in v
        ]
        gram = [[sum(row[a] * row[b] for row in u) for b in range(2)] for a in range(2)]
        h = [[Fraction(float(z)) for z in row] for row in found.matrices.real[f]]
        for a in range(2):
            product = [sum(h[a][c] * gram[c][b] for c in range(2)) for b in range(2)]
            product[a] -= 1
            assert sum(map(abs, product)) <= Fraction(found.error)
    assert found.matrices.imaginary.abs().max() < 1e-30


@pytest.mark.parametrize("fault", ["rounding left out", "residual left out", "another rule"])
def test_planted_faults_are_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "rounding left out":
        monkeypatch.setattr(reflection, "gamma", lambda count, unit: 0.0)
        monkeypatch.setattr(reflection, "TWIDDLE_ERROR", 0.0)
    elif fault == "residual left out":
        # The inverse of another matrix, of which the residual alone tells.
        inverse = torch.linalg.inv
        monkeypatch.setattr(torch.linalg, "inv", lambda matrix: inverse(matrix) * (1 + 1e-9))
        monkeypatch.setattr(reflection, "_rows", lambda real, imaginary: 0.0)
    else:
        wrapped = reflection._wrapped
        monkeypatch.setattr(
            reflection, "_wrapped", lambda x, w, backwards: wrapped(x, w, backwards=False)
        )
        with pytest.raises(AssertionError):
            test_values_are_within_their_error(CASES[0], torch.float64)
        return
    with pytest.raises(AssertionError):
        test_the_error_of_inverses_holds_exactly()


def test_dependent_columns_are_refused_and_small_maps_keep_their_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: Any = {"input_size": (4, 4), "output_size": (4, 4), "period": (4, 4), "outputs": 4}
    weight = torch.randn(4, 1, 3, 3).expand(4, 2, 3, 3)
    with pytest.raises(UnsoundNetworkError, match="depend on each other"):
        inverses_of(Reflection(weight, **sizes))
    # With a ridge the inverses exist.
    assert inverses_of(Reflection(weight, **sizes, ridge=0.1)).error < 1e-9
    with pytest.raises(UnsoundNetworkError, match="no reflection by a kernel"):
        Reflection(weight, **sizes, ridge=-0.1)
    monkeypatch.undo()
    assert isinstance(layer_of(CASES[0]).fold(), CircularConvolution)


def network(*, ridge: float = 0.0) -> PlainNetwork:
    torch.manual_seed(0)
    first = BROConv2d(2, 4, 3, padding=1, input_size=(5, 5), margin=1, ridge=ridge)
    second = BROConv2d(4, 4, 3, stride=2, padding=1, input_size=(5, 5), ridge=ridge)
    relu = Activation(torch.relu, {}, lipschitz=1.0)
    head = Dense(torch.randn(3, 36), torch.randn(3))
    return PlainNetwork((first.fold(), relu, second.fold(), Flatten(), head), (2, 5, 5))


@pytest.mark.parametrize("ridge", [0.0, pytest.param(0.01, marks=pytest.mark.slow)])
def test_a_certificate_of_reflections_is_verified(tmp_path: Any, ridge: float) -> None:
    folder = certify(tmp_path / "folder", network(ridge=ridge), LipschitzCertifier())
    report = check(folder)
    assert report.verified, report.mismatches
    assert (folder / "network.safetensors").stat().st_size < 8000


def _changed(folder: Folder) -> None:
    folder.tensors["0.weight"][0, 0, 0, 0] += 0.5


def _bound(folder: Folder) -> None:
    for entry in folder.claim["bounds"]:
        if entry["bound"] == (1.0).hex():
            entry["bound"] = (0.75).hex()


def _ridge(folder: Folder) -> None:
    folder.claim["network"]["operations"][0]["options"]["ridge"] = "-0x1.0000000000000p-2"


def _other_ridge(folder: Folder) -> None:
    folder.claim["network"]["operations"][0]["options"]["ridge"] = (3.0).hex()


def _singular(folder: Folder) -> None:
    folder.tensors["0.weight"][:, 1] = folder.tensors["0.weight"][:, 0]


def _smaller(folder: Folder) -> None:
    folder.claim["network"]["operations"][0]["options"]["period"] = [5, 5]


@pytest.mark.parametrize(
    "forge",
    [_changed, _bound, *map(slow, (_ridge, _other_ridge, _singular, _smaller))],
)
def test_forged_reflections_are_not_verified(tmp_path: Any, forge: Any) -> None:
    forged = Folder(certify(tmp_path / "folder", network(), LipschitzCertifier()))
    forge(forged)
    forged.save()  # with every digest and count put right
    with suppress(UnreadableError):
        assert not check(forged.path).verified


def test_what_does_not_know_reflections_names_them() -> None:
    net = network()
    with pytest.raises(UnsoundNetworkError, match="operation reflection cannot be exported"):
        add_operations(Graph(torch.float64), "x", net.operations, net.input_shape)
    with pytest.raises(UnsoundNetworkError, match="reflection"):
        CROWNCertifier().certify(net, torch.rand(1, 2, 5, 5))
