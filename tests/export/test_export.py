"""ONNX models in onnxruntime: the predictor's logits, labels and radii, and no attack inside."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.configs import build, build_model, names
from helpers.deployed import perturbed, plain_network
from helpers.regression import certify as certify_regression
from helpers.regression import network as regression_network
from torch import Tensor, nn

import robustcert
from robustcert.activations import Grafted, GroupSort, ReLU
from robustcert.arithmetic.settings import UnsoundArithmeticError
from robustcert.attacks import margin_attack
from robustcert.certificate.predictor import Predictor
from robustcert.certificate.regressor import Regressor
from robustcert.errors import ConfigError, UnsoundNetworkError
from robustcert.export import check_runtime, to_onnx
from robustcert.export.__main__ import main
from robustcert.export.activations import ACTIVATIONS
from robustcert.layers import FreeSandwich, NormPool2d, SkewSeriesConv2d
from robustcert.network.activation import Activation
from robustcert.network.blocks import ResidualBlock
from robustcert.network.branches import Sum
from robustcert.network.input_space import InputSpace, scaling
from robustcert.network.linear import Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork, pairwise_bound
from robustcert.runs.regression import largest_changes

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Session:
    """A model in onnxruntime."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(path), options, providers)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self.session.run(["logits", "label", "radius"], {"x": x.numpy()})
        logits, label, radius = map(torch.from_numpy, outputs)
        return logits, label, radius


def round_trip(network: PlainNetwork, dtype: Any, path: Path) -> tuple[Predictor, Session]:
    predictor = Predictor(network, pairwise_bound(network), dtype=dtype)
    to_onnx(predictor, path)
    return predictor, Session(path)


def assert_equivalent(network: PlainNetwork, dtype: Any, path: Path) -> None:
    """Logits within the allowance, radii as far apart as that lets them be."""
    predictor, session = round_trip(network, dtype, path)
    for count in (1, 9):
        x = torch.rand(count, *network.input_shape).to(predictor.dtype)
        logits, label, radius = session(x)
        state, found = predictor.evaluate(x), predictor(x)
        apart = (logits.double() - state.output.double()).norm(dim=1)
        assert (apart <= 2 * state.centre).all()
        # Far below what is granted: the same sums in another order.
        scale = state.output.double().abs().max() + 1
        assert apart.max() <= 200 * torch.finfo(predictor.dtype).eps * scale
        assert torch.equal(label, found.label)
        least = predictor.pairwise[predictor.pairwise > 0].min()
        allowed = 2 * apart / least + 1e-7 * state.centre / least + 1e-14 * found.radius
        assert ((radius - found.radius).abs() <= allowed).all()
        assert (radius > 0).any() or dtype == "float32"


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("activation", names("activation"))
def test_every_activation_is_exported(activation: str, dtype: Any, tmp_path: Path) -> None:
    network = plain_network(build_model("mlp", "unconstrained", activation), 2, 8, 8)
    function = build("activation", activation)(8).fold().function.__name__
    if function not in ACTIVATIONS:
        with pytest.raises(UnsoundNetworkError, match=f"{function} cannot be exported: "):
            assert_equivalent(network, dtype, tmp_path / "m.onnx")
        return
    assert_equivalent(network, dtype, tmp_path / "m.onnx")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layer", ["aol", "bro", "cayley_conv"])
def test_convolutions_on_planes_and_tori_are_exported(
    layer: str, dtype: Any, tmp_path: Path
) -> None:
    network = plain_network(build_model("convnet", layer, "maxmin"), 2, 8, 8)
    assert_equivalent(network, dtype, tmp_path / "m.onnx")


def relu(count: int) -> Activation:
    return ReLU(count).fold()


def grafts(pairs: bool) -> Grafted:
    module = Grafted(8, base="maxmin" if pairs else "relu")
    with torch.no_grad():
        module.graft[1:3] = torch.tensor([1.0, 2.0 if pairs else 1.0])
    return module


def classifier(*modules: nn.Module) -> PlainNetwork:
    """Operations on inputs (2, 6, 6) that end in 3 logits."""
    body = plain_network(nn.Sequential(*modules, nn.Flatten()), 2, 6, 6).operations
    features = PlainNetwork(body, (2, 6, 6))(torch.zeros(1, 2, 6, 6)).shape[1]
    return PlainNetwork((*body, Dense(torch.randn(3, features), torch.randn(3))), (2, 6, 6))


def grouped() -> PlainNetwork:
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    return classifier(nn.Conv2d(2, 6, (3, 2), **options), GroupSort(6, group_size=3))


def residual() -> PlainNetwork:
    blocks = (
        ResidualBlock(0.2 * torch.randn(5, 2, 3, 3), torch.rand(5), relu(5), torch.randn(5), 1),
        ResidualBlock(0.2 * torch.randn(5, 2, 3, 2), torch.rand(5), relu(5), padding=0),
        Flatten(),
        ResidualBlock(0.1 * torch.randn(7, 72), torch.rand(7), relu(7), torch.randn(7)),
        Sum(((), (Dense(0.1 * torch.randn(72, 72)), relu(72)))),
        Dense(torch.randn(3, 72)),
    )
    return PlainNetwork(blocks, (2, 6, 6))


OTHERS = {
    "grouped": grouped,
    "pooled": lambda: classifier(NormPool2d(3)),
    "residual": residual,
    "grafted maps": lambda: classifier(nn.Conv2d(2, 8, 3), grafts(pairs=True)),
    "grafted relu": lambda: classifier(nn.Conv2d(2, 8, 3), grafts(pairs=False)),
    "sandwich": lambda: plain_network(build_model("mlp", "sandwich", "relu"), 2, 8, 8),
    "sandwich on a torus": lambda: classifier(
        FreeSandwich(2, 3, activation=ReLU, input_size=(6, 6))
    ),
    "skew series": lambda: classifier(SkewSeriesConv2d(2, 3)),
    "no head": lambda: PlainNetwork((Convolution(torch.randn(3, 2, 2, 2)), Flatten()), (2, 2, 2)),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_operation_is_exported(kind: str, dtype: Any, tmp_path: Path) -> None:
    assert_equivalent(OTHERS[kind](), dtype, tmp_path / "m.onnx")


def test_no_attack_inside_a_radius_changes_the_label_of_the_model(tmp_path: Path) -> None:
    network = plain_network(build_model("mlp", "unconstrained", "maxmin"), 2, 8, 8)
    _, session = round_trip(network, "float64", tmp_path / "m.onnx")
    x = torch.rand(64, 2, 8, 8, dtype=torch.float64)
    _, label, radius = session(x)
    assert (radius > 0).all()
    _, delta = margin_attack(network, x, label, radius * (1 - 1e-6), steps=10)
    assert torch.equal(session(x + delta)[1], label)


def test_ties_and_values_that_are_no_numbers_get_radius_0(tmp_path: Path) -> None:
    network = PlainNetwork((Dense(torch.eye(2)),), (2,))
    _, session = round_trip(network, "float64", tmp_path / "m.onnx")
    nan, inf = torch.nan, torch.inf
    x = torch.tensor([[1.0, 0], [1, 1], [nan, 0], [0, nan], [inf, 0], [1e300, 0]]).double()
    radius = session(x)[2]
    assert 0.7071 < radius[0] < 0.5**0.5
    assert (radius[1:] == 0).all()


def test_the_command_says_what_the_radius_speaks_of(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    for dtype, said in (("float64", "float64, summed in any"), ("float32", "float32, summed in")):
        assert main([str(tiny_run), str(path), "--dtype", dtype]) == 0
        assert said in capsys.readouterr().out
        model = onnx.load(path)
        stored = {entry.key: entry.value for entry in model.metadata_props}
        assert said in stored["robustcert.functions"]
        predictor = robustcert.load(tiny_run, dtype=dtype)
        assert stored["robustcert.digest"] == predictor.digest
        x = torch.rand(5, 1, 8, 8).to(predictor.dtype)
        found = predictor(x)
        _, label, radius = Session(path)(x)
        assert torch.equal(label, found.label)
        np.testing.assert_allclose(radius, found.radius, rtol=0, atol=1e-5)
    assert main([str(tmp_path), str(path)]) == 1
    assert (
        "neither a run nor a certificate: expected a folder with certificate.json"
        in capsys.readouterr().err
    )


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    def cube(x: Tensor) -> Tensor:
        return x.clamp(-1, 1) ** 3 / 3

    network = PlainNetwork((Activation(cube, {}, lipschitz=1.0, name="odd"),), (3,))
    with pytest.raises(UnsoundNetworkError, match="odd: the activation cube cannot be exported"):
        round_trip(network, "float64", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_another_function_of_a_known_name_is_not_exported(tmp_path: Path) -> None:
    def relu(x: Tensor) -> Tensor:
        return x.clamp(-1, 1)

    network = PlainNetwork((Activation(relu, {}, lipschitz=1.0),), (3,))
    with pytest.raises(UnsoundNetworkError, match="activation relu of test_export cannot be"):
        round_trip(network, "float64", tmp_path / "m.onnx")


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "onnx":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    network = perturbed(nn.Sequential(nn.Linear(2, 2)))
    plain = robustcert.network.fold.fold_network(network, (2,))
    with pytest.raises(ConfigError, match=r"pip install 'robustcert\[export\]'"):
        to_onnx(Predictor(plain, pairwise_bound(plain)), tmp_path / "m.onnx")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_runtime_gives_known_results_at_the_shapes_of_a_model(
    dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    round_trip(plain_network(build_model("convnet", "aol", "maxmin"), 2, 8, 8), dtype, path)
    for count in (1, 9):
        assert check_runtime(path, batch_size=count) >= 3
    session = onnxruntime.InferenceSession

    class Fast(session):  # type: ignore[misc, valid-type]
        """Inputs are cut to half of their bits."""

        def run(self, outputs: Any, feed: dict[str, Any]) -> Any:
            x = feed["x"]
            half = np.float16 if x.dtype == np.float32 else np.float32
            with np.errstate(over="ignore"):
                return super().run(outputs, {"x": x.astype(half).astype(x.dtype)})

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fast)
    with pytest.raises(UnsoundArithmeticError, match=f"{dtype} as IEEE 754 asks for"):
        check_runtime(path)
    with pytest.raises(ValueError, match="batch_size"):
        check_runtime(path, batch_size=0)


def regression(kind: str) -> PlainNetwork:
    """A network of one output; in a metric with scales where asked for."""
    metric = scaling(torch.tensor([2.0, 0.5, 0.0])) if kind == "metric" else None
    space = InputSpace("columns", ("a", "b", "c"), metric)
    return regression_network([1, -1, 0] if kind == "monotone" else None, space=space)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", ["metric", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("l2", "monotone"))]
)
def test_intervals_of_a_regression_are_those_of_the_certificate(
    kind: str, dtype: Any, tmp_path: Path
) -> None:
    regressor = Regressor(regression(kind), dtype=dtype)
    metadata = to_onnx(regressor, tmp_path / "m.onnx")
    assert ("robustcert.change" in metadata) == (kind == "metric")
    session = Session(tmp_path / "m.onnx").session
    x = torch.rand(9, 3).to(regressor.dtype)
    eps = torch.finfo(regressor.dtype).eps

    def answer(x: Tensor, radius: float) -> list[Any]:
        found = session.run(None, {"x": x.numpy(), "radius": np.array(radius)})
        return [torch.from_numpy(value) for value in found]

    for radius in (0.0, 0.1, 3.0):
        prediction, lower, upper = answer(x, radius)
        found = regressor(x, radius)
        torch.testing.assert_close(prediction, found.prediction, rtol=200 * eps, atol=200 * eps)
        # Wider by what is known of rounding beforehand, and no narrower than the constant's.
        ours, theirs = (upper - lower) / 2, (found.upper - found.lower) / 2
        slack = 4 * (regressor.known_error().alpha + regressor.known_error().beta * x.norm(dim=1))
        assert (ours <= theirs * (1 + 1e-12) + 1.01 * slack + 1e-12).all()
        assert (ours >= regressor.lipschitz * radius).all()
    moved = attacked_ends(regressor.network, x.double(), 0.1)
    _, lower, upper = answer(x, 0.1)
    assert (lower <= moved[0]).all()
    assert (moved[1] <= upper).all()
    for radius in (-1.0, torch.nan, torch.inf, 1e300):
        assert all(end.isinf().all() for end in answer(x, radius)[1:])
    odd = torch.tensor([[torch.nan, 0, 0], [torch.inf, 0, 0]], dtype=regressor.dtype)
    assert all(end.isinf().all() for end in answer(odd, 0.1)[1:])


def attacked_ends(network: PlainNetwork, x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    wide = network.to(torch.device("cpu"), torch.float64)
    return largest_changes(wide, x, radius, steps=10)


@pytest.mark.slow
def test_the_command_exports_a_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, random = regression("l2"), np.random.RandomState(0)
    inputs = random.rand(12, 3)
    certify_regression(tmp_path / "r" / "certificate", net, inputs, inputs[:, 0])
    path = tmp_path / "model.onnx"
    assert main([str(tmp_path / "r" / "certificate"), str(path), "--test-runtime", "4"]) == 0
    assert "inputs x, radius; outputs prediction, lower, upper" in capsys.readouterr().out
    regressor = robustcert.load_regressor(tmp_path / "r" / "certificate")
    x = torch.from_numpy(inputs.astype(np.float32)).double()
    given = {"x": x.numpy(), "radius": np.array(0.5)}
    _, lower, upper = Session(path).session.run(None, given)
    found = regressor(x, 0.5)
    np.testing.assert_allclose(upper - lower, found.upper - found.lower, rtol=1e-9)
