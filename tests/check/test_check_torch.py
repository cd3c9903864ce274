"""Modules of torch in folders: the checker verifies them, and onnxruntime computes them.

Also that the checker's formulas, exact values, roundings and constants of torch's activations are
those of ball arithmetic, and that a constant which is 1 % too small is refused.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flint
import numpy as np
import pytest
import torch
from flint import arb
from helpers.deployed import write_folder
from helpers.torch_modules import MODULES, drawn
from torch import Tensor, nn

import robustcert
from benchmarks.soundness.forgeries import Folder
from benchmarks.speed.captured_resnet import certified_folder, exact_bound, random_resnet
from robustcert.certificate.predictor import Predictor
from robustcert.check import UnreadableError, check
from robustcert.check.activations.table import KINDS
from robustcert.check.activations.torch_functions import (
    GELU_SLOPE,
    GELU_TANH_SLOPE,
    SILU_SLOPE,
    TORCH,
)
from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation
from robustcert.network.bounds import sequence_bound
from robustcert.network.fold import fold_for, fold_network
from robustcert.network.network import PlainNetwork


@pytest.fixture(autouse=True)
def _setup() -> Iterator[None]:
    torch.manual_seed(0)
    precision, flint.ctx.prec = flint.ctx.prec, 500
    yield
    flint.ctx.prec = precision


class Classifier(nn.Module):
    """A module and a dense layer on what it returns."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module = module
        with torch.no_grad():
            size = module(torch.zeros(2, *shape, dtype=torch.float64)).flatten(1).shape[1]
        self.head = nn.Linear(size, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.module(x).flatten(1))


def classifier(kind: str, dtype: torch.dtype = torch.float32) -> PlainNetwork:
    make, shape = MODULES[kind]
    return fold_network(Classifier(drawn(make), shape).to(dtype).eval(), shape)


def session_logits(path: Path, x: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"x": x.numpy()})[0])


def exported(predictor: Predictor, path: Path) -> None:
    from robustcert.export import to_onnx

    pytest.importorskip("onnx")
    to_onnx(predictor, path)
    x = torch.rand(5, *predictor.input_shape).to(predictor.dtype)
    state = predictor.evaluate(x)
    apart = (session_logits(path, x).double() - state.output.double()).norm(dim=1)
    assert (apart <= 2 * state.centre).all()


# Two that are tested with the fast tests.
FAST = ("MaxPool2d disjoint", "ELU")
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in MODULES if kind not in FAST]


@pytest.mark.parametrize("kind", [*FAST, *SLOW])
def test_a_module_of_torch_is_certified_checked_and_exported(kind: str, tmp_path: Path) -> None:
    network = classifier(kind)
    folder = write_folder(tmp_path / "folder", network, samples=6)
    report = check(folder, exact=3, seed=0)
    assert report.mismatches == []
    assert report.uncovered == []
    predictor = robustcert.load(folder)
    x = torch.rand(5, *network.input_shape, dtype=torch.float64)
    assert torch.equal(predictor.network(x), network(x))
    if kind == "GELU":
        with pytest.raises(UnsoundNetworkError, match="gelu cannot be exported in float64"):
            exported(predictor, tmp_path / "m.onnx")
    else:
        exported(predictor, tmp_path / "m.onnx")
    exported(robustcert.load(folder, dtype="float32"), tmp_path / "m.onnx")


# Kinds of operations whose constants are no norms of weights.
CLAIMED = [
    *("GELU", "ReflectionPad2d"),
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in ("MaxPool2d", "Conv2d reflect", "SiLU", "Sigmoid", "PReLU channels", "Tanh")
    ),
]


@pytest.mark.parametrize("kind", CLAIMED)
def test_a_constant_that_is_too_small_is_refused(kind: str, tmp_path: Path) -> None:
    folder = Folder(write_folder(tmp_path / "folder", classifier(kind), samples=2))
    bounds = folder.claim["bounds"]
    place = next(k for k, b in enumerate(bounds) if b["kind"] in ("activation", "gather"))
    bounds[place]["bound"] = (0.99 * float.fromhex(bounds[place]["bound"])).hex()
    folder.save()
    assert any("is not proved" in line for line in check(folder.path, seed=0).mismatches)


class Joined(nn.Module):
    """Branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.cat([torch.relu(self.first(x)), self.second(x).tanh(), x], 1)
        return self.head(hidden)


def test_a_concatenation_is_certified_checked_and_exported(tmp_path: Path) -> None:
    network = fold_network(Joined().eval(), (4,))
    path = write_folder(tmp_path / "folder", network)
    assert check(path, exact=6, seed=0).mismatches == []
    restored = robustcert.load(path)
    assert restored.network.to(torch.device("cpu"), torch.float32).digest() == network.digest()
    exported(restored, tmp_path / "m.onnx")
    folder = Folder(path)
    (place,) = [k for k, b in enumerate(folder.claim["bounds"]) if b["kind"] == "concatenate"]
    bound = folder.claim["bounds"][place]
    bound["bound"] = (0.99 * float.fromhex(bound["bound"])).hex()
    folder.save()
    assert any("is not proved" in line for line in check(path, seed=0).mismatches)


def test_what_reads_beyond_its_input_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "folder", classifier("ReflectionPad1d"), samples=2)
    folder = Folder(path)
    name = next(name for name in folder.tensors if name.endswith(".index"))
    folder.tensors[name] = folder.tensors[name].copy()
    folder.tensors[name].flat[0] = 10**6
    folder.save()
    with pytest.raises(UnreadableError, match="an index is not from -1 to 7"):
        check(path, seed=0)


def test_branches_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "folder", fold_network(Joined().eval(), (4,)), samples=2)
    claim = json.loads((path / "certificate.json").read_text())
    for operation in claim["network"]["operations"]:
        if operation["kind"] == "concatenate":
            operation["options"]["axis"] = 1
    (path / "certificate.json").write_text(json.dumps(claim))
    with pytest.raises(UnreadableError, match="axis"):
        check(path, seed=0)


def ball(value: Tensor) -> Any:
    return arb(float(value))


REAL: dict[str, Callable[..., Any]] = {
    "leaky_relu": lambda x, slope: x if x > 0 else ball(slope.flatten()[0]) * x,
    "elu": lambda x, alpha, width: x if x > 0 else ball(alpha) * ((x / ball(width)).exp() - 1),
    "silu": lambda x: x / (1 + (-x).exp()),
    "gelu": lambda x: x * (1 + (x / arb(2).sqrt()).erf()) / 2,
    "gelu_tanh": lambda x: (
        x * (1 + ((2 / arb.pi()).sqrt() * (x + arb("0.044715") * x * x * x)).tanh()) / 2
    ),
    "hardtanh": lambda x, low, high: min(max(x, ball(low)), ball(high)),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "log_sigmoid": lambda x: -(1 + (-x).exp()).log(),
    "smooth_relu": lambda x, temperature: (
        ball(temperature) * (1 + (x / ball(temperature)).exp()).log()
    ),
    "softsign": lambda x: x / (1 + abs(x)),
    "hardswish": lambda x: x * min(max(x + 3, arb(0)), arb(6)) / 6,
    "softshrink": lambda x, width: x - min(max(x, -ball(width)), ball(width)),
    "tanhshrink": lambda x: x - x.tanh(),
}
EXAMPLES = {
    "leaky_relu": "PReLU",
    "elu": "CELU",
    "silu": "SiLU",
    "gelu": "GELU",
    "gelu_tanh": "GELU tanh",
    "hardtanh": "Hardtanh",
    "sigmoid": "Sigmoid",
    "log_sigmoid": "LogSigmoid",
    "smooth_relu": "Softplus",
    "softsign": "Softsign",
    "hardswish": "Hardswish",
    "softshrink": "Softshrink",
    "tanhshrink": "Tanhshrink",
    "max_pool": "MaxPool2d",
}


def test_every_function_of_torch_has_a_reference_and_an_example() -> None:
    assert {*REAL} == {*TORCH} - {"max_pool"}
    assert {*EXAMPLES} == {*TORCH}


def example(name: str) -> tuple[Activation, dict[str, Any]]:
    make, shape = MODULES[EXAMPLES[name]]
    operation = next(
        op
        for op in fold_for(nn.Sequential(nn.Identity(), drawn(make).float()), shape)
        if isinstance(op, Activation)
    )
    constants = {
        k: v.double().numpy() if isinstance(v, Tensor) else v
        for k, v in operation.constants.items()
    }
    return operation, constants


@pytest.mark.parametrize("name", REAL)
def test_values_of_the_checker_are_those_of_ball_arithmetic(name: str) -> None:
    operation, constants = example(name)
    kind = KINDS[name]
    x = torch.cat([torch.randn(40) * 10.0 ** torch.randint(-6, 3, (40,)), torch.zeros(1)]).double()
    tensors = {k: v for k, v in operation.constants.items() if isinstance(v, Tensor)}
    real = [REAL[name](arb(v), **tensors) for v in x.tolist()]
    # In float64, within its rounding; our own formula likewise.
    a, b = kind.rounding(**constants)
    for computed in (
        kind.apply(x.numpy()[:, None], **constants)[:, 0],
        operation(x[:, None])[:, 0],
    ):
        for value, point, true in zip(computed, x.tolist(), real, strict=True):
            allowed = 2.0**-53 * (a * abs(point) + b) + 1e-300
            assert abs(arb(float(value)) - true) <= allowed, f"{name} at {point}"
    # In integers, within the error that they state.
    z = np.array([int(v * 2**60) for v in x.tolist()], dtype=object)[:, None]
    exact, places, error = kind.exact(z, 60, **constants)
    for value, point in zip(exact[:, 0], z[:, 0], strict=True):
        true = REAL[name](arb((int(point), -60)), **tensors)
        assert abs(arb((int(value), -places)) - true) <= arb(error) + arb(2) ** -200
    # The package counts at least as much as it needs, and claims no less than the checker proves.
    assert operation.lipschitz >= kind.lipschitz(**constants)
    assert 2 * a >= operation.error[0]
    assert 2 * b + 1e-12 >= operation.error[1]


def test_max_pooling_of_the_checker_is_torchs() -> None:
    operation, constants = example("max_pool")
    x = torch.randn(3, *MODULES["MaxPool2d"][1], dtype=torch.float64)
    expected = operation(x).numpy()
    assert (KINDS["max_pool"].apply(x.numpy(), **constants) == expected).all()
    z = (x.numpy() * 2.0**60).astype(np.int64).astype(object)
    values, _, error = KINDS["max_pool"].exact(z, 60, **constants)
    assert error == 0
    assert abs(values.astype(float) / 2.0**60 - expected).max() < 2.0**-50
    assert KINDS["max_pool"].shape is not None
    assert KINDS["max_pool"].shape(x.shape[1:], constants) == expected.shape[1:]


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + (-x).exp())


def _gelu_tanh_slope(x: Any) -> Any:
    beta, kappa = (2 / arb.pi()).sqrt(), arb("0.044715")
    tanh = (beta * x * (1 + kappa * x * x)).tanh()
    return (1 + tanh) / 2 + x / 2 * (1 - tanh * tanh) * beta * (1 + 3 * kappa * x * x)


@pytest.mark.parametrize(
    ("slope", "constant"),
    [
        (lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))), SILU_SLOPE),
        (
            lambda x: (
                (1 + (x / arb(2).sqrt()).erf()) / 2 + x * (-x * x / 2).exp() / (2 * arb.pi()).sqrt()
            ),
            GELU_SLOPE,
        ),
        (_gelu_tanh_slope, GELU_TANH_SLOPE),
    ],
    ids=["silu", "gelu", "gelu_tanh"],
)
def test_slopes_are_enclosed_below_the_constants_of_the_checker(
    slope: Callable[[Any], Any], constant: float
) -> None:
    # Piece by piece on [-40, 40], beyond which exponentials are below 1e-17.
    largest, pieces = 0.0, [(0.0, 40.0)]
    while pieces:
        centre, radius = pieces.pop()
        found = slope(arb(centre, radius))
        if not abs(found) < constant:
            assert radius > 2**-30
            pieces += [(centre - radius / 2, radius / 2), (centre + radius / 2, radius / 2)]
        else:
            largest = max(largest, float(abs(slope(arb(centre))).mid()))
    assert largest > constant * (1 - 1e-3)
    assert math.isfinite(largest)


@pytest.mark.slow
def test_a_resnet_is_certified_and_checked(tmp_path: Path) -> None:
    network = fold_network(random_resnet(classes=10, width=4, size=64), (3, 64, 64))
    # Stem, pooling, eight blocks with a ReLU each, average, flattening and head.
    assert len(network.operations) == 22
    certified_folder(tmp_path, network, samples=2)
    assert check(tmp_path, exact=0, seed=0).mismatches == []
    bound = sequence_bound(network.operations, network.input_shape)
    exact = exact_bound(network.operations, network.input_shape)
    assert exact * (1 - 1e-9) <= bound
