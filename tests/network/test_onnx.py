"""ONNX files as networks: what onnxruntime computes, and what is refused in one line."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from helpers.onnx_models import Writer, dense, resnet, saved  # noqa: E402

import robustcert  # noqa: E402
from robustcert.attacks import margin_attack  # noqa: E402
from robustcert.certificate.predictor import Predictor  # noqa: E402
from robustcert.errors import UnknownLipschitz, UnsoundNetworkError  # noqa: E402
from robustcert.export import to_onnx  # noqa: E402
from robustcert.layers import UnconstrainedLinear  # noqa: E402
from robustcert.lipschitz import fold_network  # noqa: E402
from robustcert.network.network import pairwise_bound  # noqa: E402
from robustcert.network.onnx import ONNXModule, read_onnx  # noqa: E402
from robustcert.network.onnx.operators import OPERATORS  # noqa: E402

MAP = (4, 6, 6)
# Models in which every operator occurs, with another one for older versions of it.
CASES: dict[str, list[Callable[[Writer], str]]] = {
    **{
        name: [lambda w, name=name: w.apply(name, "x")]
        for name in (
            *("Abs", "Celu", "Elu", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid"),
            *("HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Selu", "Sigmoid"),
            *("Softplus", "Softsign", "Tanh", "Flatten", "Dropout"),
        )
    },
    "Add": [lambda w: w.apply("Add", "x", w.normal(4, 1, 1))],
    "Sub": [lambda w: w.apply("Sub", w.normal(1, 4, 1, 1), "x")],
    "Mul": [lambda w: w.apply("Mul", "x", w.constant(0.3))],
    "Div": [lambda w: w.apply("Div", "x", w.normal(4, 1, 1))],
    "Sum": [lambda w: w.apply("Sum", "x", w.apply("Relu", "x"), w.normal(4, 6, 6))],
    "Max": [lambda w: w.apply("Max", "x", w.apply("Neg", "x"))],
    "Min": [lambda w: w.apply("Min", "x", w.apply("Neg", "x"), w.apply("Sigmoid", "x"))],
    "AveragePool": [
        lambda w: w.apply("AveragePool", "x", kernel_shape=[2, 3], strides=[2, 3]),
        lambda w: w.apply(
            *("AveragePool", "x"), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
        ),
        lambda w: w.apply("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ],
    "MaxPool": [
        lambda w: w.apply("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2]),
        lambda w: w.apply("MaxPool", "x", kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
    ],
    "BatchNormalization": [
        lambda w: w.apply(
            *("BatchNormalization", "x", w.normal(4), w.normal(4), w.normal(4)),
            *(w.constant(w.random.random(4) + 0.1),),
            epsilon=1e-3,
        )
    ],
    "Cast": [lambda w: w.apply("Mul", "x", w.apply("Cast", w.constant([3]), to=1))],
    "Clip": [
        lambda w: w.apply("Clip", "x", w.constant(-0.5), w.constant(0.7)),
        lambda w: w.apply("Clip", "x", w.constant(0.2)),
        lambda w: w.apply("Clip", "x", "", w.constant(0.2)),
    ],
    "Concat": [
        lambda w: w.apply("Concat", "x", w.apply("Relu", "x"), axis=2),
        # A constant is there once, in a graph for one input.
        lambda w: w.apply("Concat", "x", w.normal(1, 2, 6, 6) if w.batch == 1 else "x", axis=1),
    ],
    "ConstantOfShape": [lambda w: w.apply("Add", "x", w.apply("ConstantOfShape", w.constant([6])))],
    "Conv": [
        lambda w: w.apply("Conv", "x", w.normal(6, 2, 3, 3), w.normal(6), group=2, strides=[2, 1]),
        lambda w: w.apply("Conv", "x", w.normal(6, 4, 2, 2), auto_pad="SAME_UPPER"),
        lambda w: w.apply("Conv", "x", w.normal(6, 4, 2, 2), auto_pad="SAME_LOWER", strides=[2, 2]),
        lambda w: w.apply("Conv", "x", w.normal(6, 4, 3, 3), pads=[0, 1, 2, 0], dilations=[1, 2]),
        lambda w: w.apply(
            "Conv", w.apply("Reshape", "x", w.constant([0, 4, 36])), w.normal(3, 4, 5), pads=[2, 2]
        ),
    ],
    "ConvTranspose": [
        lambda w: w.apply(
            *("ConvTranspose", "x", w.normal(4, 3, 3, 3), w.normal(6)),
            group=2,
            strides=[2, 2],
            pads=[1, 1, 1, 1],
            output_padding=[1, 1],
        )
    ],
    "DepthToSpace": [
        lambda w: w.apply("DepthToSpace", "x", blocksize=2),
        lambda w: w.apply("DepthToSpace", "x", blocksize=2, mode="CRD"),
    ],
    "SpaceToDepth": [lambda w: w.apply("SpaceToDepth", "x", blocksize=2)],
    "Gather": [
        lambda w: w.apply("Gather", "x", w.constant([3, 0, -1]), axis=1),
        lambda w: w.apply("Gather", "x", w.constant(np.array([[0, 5], [1, 1]])), axis=2),
        lambda w: w.apply("Gather", "x", w.constant(np.array(2)), axis=3),
    ],
    "Gemm": [
        lambda w: w.apply(
            *("Gemm", w.apply("Flatten", "x"), w.normal(5, 144), w.normal(5)),
            alpha=0.5,
            beta=2.0,
            transB=1,
        ),
        lambda w: w.apply("Gemm", w.apply("Flatten", "x"), w.normal(144, 5), w.normal(1, 5)),
    ],
    "MatMul": [
        lambda w: w.apply("MatMul", "x", w.normal(6, 3)),
        lambda w: w.apply("Add", w.apply("MatMul", "x", w.normal(6, 3)), w.normal(1, 3)),
        lambda w: w.apply("Add", w.apply("MatMul", "x", w.normal(6, 6)), w.normal(6, 1)),
    ],
    "PRelu": [lambda w: w.apply("PRelu", "x", w.normal(4, 1, 1))],
    "Pad": [
        lambda w: w.apply("Pad", "x", w.constant([0, 0, 1, 2, 0, 1, 0, 0])),
        lambda w: w.apply(
            "Pad", "x", w.constant([1, -1, 2, 0]), w.constant(0.5), w.constant([2, 3])
        ),
        lambda w: w.apply("Pad", "x", w.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect"),
        lambda w: w.apply("Pad", "x", w.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode="edge"),
    ],
    "ReduceMean": [lambda w: w.apply("ReduceMean", "x", w.constant([2, 3]), keepdims=0)],
    "ReduceSum": [lambda w: w.apply("ReduceSum", "x", w.constant([-1]))],
    "Reshape": [
        lambda w: w.apply("Reshape", "x", w.constant([0, -1, 4])),
        lambda w: w.apply("Reshape", "x", w.constant([-1, 12, 12])),
    ],
    "Shape": [
        lambda w: w.apply(
            *("Reshape", "x"),
            w.apply("Concat", w.apply("Shape", "x", end=1), w.constant([-1]), axis=0),
        )
    ],
    "Slice": [
        lambda w: w.apply("Slice", "x", w.constant([1]), w.constant([-1]), w.constant([2])),
        lambda w: w.apply(
            *("Slice", "x", w.constant([-1]), w.constant([-(2**62)]), w.constant([3])),
            w.constant([-2]),
        ),
    ],
    "Split": [
        lambda w: w.apply("Neg", w.apply("Split", "x", axis=1, outputs=2, num_outputs=2) + "_1"),
        lambda w: w.apply("Split", "x", w.constant([1, 5]), axis=2, outputs=2),
    ],
    "Squeeze": [
        lambda w: w.apply(
            "Squeeze", w.apply("Unsqueeze", "x", w.constant([1, 3])), w.constant([3, 1])
        )
    ],
    "Unsqueeze": [lambda w: w.apply("Unsqueeze", "x", w.constant([-1]))],
    "Transpose": [lambda w: w.apply("Transpose", "x", perm=[0, 2, 3, 1])],
}


def in_onnxruntime(model: Any, x: Tensor) -> Tensor:
    """A model's output, evaluated by one input after the other where its batch is one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    parts = x.split(1) if given.shape[0] == 1 else [x]
    return torch.cat([torch.from_numpy(session.run(["y"], {"x": p.numpy()})[0]) for p in parts])


def assert_same(module: ONNXModule, model: Any, x: Tensor) -> None:
    expected = in_onnxruntime(model, x)
    with torch.no_grad():
        found = module(x)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


def test_every_operator_has_a_case() -> None:
    assert set(CASES) == set(OPERATORS)


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_computes_what_onnxruntime_does(
    operator: str, batch: int | str, tmp_path: Path
) -> None:
    for build in CASES[operator]:
        writer = Writer(MAP, batch=batch)
        model = writer.model(writer.apply("Flatten", build(writer)))
        module = read_onnx(saved(model, tmp_path / "model.onnx"))
        x = torch.randn(3, *MAP, generator=torch.Generator().manual_seed(0))
        assert_same(module, model, x)


def random_model(seed: int) -> Any:
    """A random graph of operators that are covered by a certificate, convolutions and sums."""
    draw = random.Random(seed)
    size, channels = draw.choice([4, 6]), draw.choice([2, 4])
    batch: int | str = draw.choice(["N", 1])
    writer = Writer((channels, size, size), batch=batch, seed=seed)
    x = "x"
    for _ in range(draw.randrange(2, 6)):
        kind = draw.choice(["conv", "norm", "active", "sum", "scale", "shift"])
        if kind == "conv":
            weight = writer.normal(channels, channels, 3, 3, scale=0.3)
            x = writer.apply("Conv", x, weight, writer.normal(channels), pads=[1, 1, 1, 1])
        elif kind == "norm":
            statistics = (writer.normal(channels) for _ in range(3))
            variance = writer.constant(writer.random.random(channels) + 0.5)
            x = writer.apply("BatchNormalization", x, *statistics, variance)
        elif kind == "active":
            x = writer.apply(draw.choice(["Relu", "LeakyRelu", "Tanh", "Sigmoid", "Elu"]), x)
        elif kind == "sum":
            x = writer.apply("Add", x, writer.apply(draw.choice(["Relu", "Softplus"]), x))
        elif kind == "scale":
            x = writer.apply("Mul", x, writer.constant(draw.uniform(-1, 1)))
        else:
            x = writer.apply("Add", x, writer.normal(channels, 1, 1))
    if draw.random() < 0.5:
        x = writer.apply("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        size //= 2
    x = writer.apply("Reshape", x, writer.constant([1 if batch == 1 else 0, -1]))
    features = channels * size * size
    x = writer.apply("MatMul", x, writer.normal(features, 3, scale=features**-0.5))
    return writer.model(writer.apply("Add", x, writer.normal(3)))


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 300), marks=pytest.mark.slow)])
def test_random_graphs_compute_what_onnxruntime_does(seeds: range, tmp_path: Path) -> None:
    for seed in seeds:
        model = random_model(seed)
        module = read_onnx(saved(model, tmp_path / "model.onnx"))
        x = torch.randn(4, *module.input_shape, generator=torch.Generator().manual_seed(seed))
        assert_same(module, model, x)
        network = fold_network(module, module.input_shape)
        torch.testing.assert_close(
            network(x.double()), in_onnxruntime(model, x).double(), rtol=1e-4, atol=1e-4
        )


def certified(path: Path, count: int = 8) -> None:
    """Certify a file at random inputs and attack it inside of its radii."""
    module = read_onnx(path)
    x = torch.rand(count, *module.input_shape, generator=torch.Generator().manual_seed(0))
    found = robustcert.certify(path, x)
    assert (found.radius > 0).all()
    network = fold_network(module, module.input_shape)
    margin, _ = margin_attack(network, x.double(), found.prediction, found.radius * (1 - 1e-9))
    assert (margin > 0).all()


def test_mnist_fc_is_certified(tmp_path: Path) -> None:
    writer = dense((784, 64, 64, 10), batch=1)
    model = writer.model(writer.nodes[-1].output[0])
    path = saved(model, tmp_path / "mnist_fc.onnx")
    certified(path)
    # The same samples as the files of the dataset hold them.
    x = torch.rand(2, 784)
    shapes = [(1, 28, 28), (784,), (1, 784, 1)]
    radii = [robustcert.certify(path, x.view(2, *shape)).radius for shape in shapes]
    assert torch.equal(radii[0], radii[1])
    assert torch.equal(radii[0], radii[2])


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [(2, 2), (2, 1, 2, 1)])
def test_cifar10_resnet_is_certified(blocks: tuple[int, ...], tmp_path: Path) -> None:
    writer = resnet((3, 16, 16), 8, blocks)
    model = writer.model(writer.nodes[-1].output[0])
    path = saved(model, tmp_path / "resnet.onnx")
    assert_same(read_onnx(path), model, torch.rand(2, 3, 16, 16))
    certified(path, 4)


def test_our_own_export_certifies_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), UnconstrainedLinear(16, 12), torch.nn.ReLU(), UnconstrainedLinear(12, 3)
    )
    network = fold_network(model, (1, 4, 4))
    to_onnx(Predictor(network, pairwise_bound(network)), tmp_path / "model.onnx")
    x = torch.rand(20, 1, 4, 4)
    again = robustcert.certify(tmp_path / "model.onnx", x)
    first = robustcert.certify(network, x)
    assert torch.equal(again.prediction, first.prediction)
    torch.testing.assert_close(again.radius, first.radius, rtol=1e-9, atol=0)
    read = fold_network(read_onnx(tmp_path / "model.onnx"), (1, 4, 4))
    for one, other in zip(read.operations, network.operations, strict=True):
        assert one.kind == other.kind
        for key, tensor in one.tensors().items():
            assert torch.equal(tensor.double(), other.tensors()[key].double())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", ["N", 1])
def test_what_torch_exports_certifies_as_the_module_does(batch: int | str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    nn = torch.nn
    module = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.LeakyReLU()),
        *(nn.AvgPool2d(2), nn.Conv2d(4, 6, 2), nn.ELU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(6, 8), nn.Hardtanh(), nn.Linear(8, 8), nn.PReLU()),
        *(nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 3)),
    ).eval()
    x = torch.rand(5, 1, 12, 12)
    axes = {"x": {0: "N"}, "y": {0: "N"}} if batch == "N" else None
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
    torch.onnx.export(module, (x[:1],), tmp_path / "model.onnx", dynamo=False, **names)
    found = robustcert.certify(tmp_path / "model.onnx", x)
    expected = robustcert.certify(module, x)
    assert torch.equal(found.prediction, expected.prediction)
    torch.testing.assert_close(found.radius, expected.radius, rtol=1e-3, atol=1e-6)


# What is refused: a change of a small model, and a word of the line that says so.


def small(**options: Any) -> Any:
    writer = Writer((4,), **options)
    product = writer.apply("MatMul", "x", writer.normal(4, 3))
    return writer.model(writer.apply("Add", writer.apply("Relu", product), writer.normal(3)))


def _node(operator: str, domain: str = "", **attributes: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        node = model.graph.node[1]
        node.op_type, node.domain = operator, domain
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in attributes.items())
        if domain:
            model.opset_import.append(onnx.helper.make_opsetid(domain, 1))

    return change


def _second_input(model: Any) -> None:
    value = onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["N", 4])
    model.graph.input.append(value)


def _second_output(model: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", ["x"], ["other"]))
    value = onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["N", 4])
    model.graph.output.append(value)


def _cycle(model: Any) -> None:
    model.graph.node[0].input[0] = model.graph.node[2].output[0]


def _opset(version: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.opset_import[0].version = version

    return change


def _sizes(*sizes: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes)
        model.graph.input[0].CopyFrom(value)

    return change


def _constant(dtype: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        array = onnx.numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return change


def _external(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


REFUSALS: dict[str, tuple[Callable[[Any], None], str]] = {
    "unknown": (_node("Sinh"), "n1: the operator Sinh is not covered"),
    "softmax": (_node("Softmax"), "certify the logits"),
    "quantised": (_node("QuantizeLinear"), "quantised"),
    "custom": (_node("Relu", "com.example"), "com.example.Relu: only ONNX's own"),
    "cycle": (_cycle, "not a valid ONNX model"),
    "old": (_opset(6), "expected an opset from"),
    "new": (_opset(99), "expected an opset from"),
    "inputs": (_second_input, "expected one input, got x, other"),
    "outputs": (_second_output, "got y, other"),
    "symbolic": (_sizes("N", "M"), "of a fixed shape, got \\(N, M\\)"),
    "batch of 7": (_sizes(7, 4), "fixed to 7 inputs"),
    "no batch": (_sizes(4), "expected a batch of inputs"),
    "half precision": (_constant(np.float16), "FLOAT16|not a valid"),
    "two precisions": (_constant(np.float64), "DOUBLE|not a valid"),
    "outside": (_external("../secret.bin"), "inside of the model's folder"),
    "absolute": (_external("/etc/passwd"), "inside of the model's folder"),
    "linked": (_external("link.bin"), "inside of the model's folder"),
    "cut": (_external("short.bin"), "cut|damaged|not a valid"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, said = REFUSALS[case]
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "short.bin").write_bytes(bytes(5))
    model = small()
    change(model)
    path = saved(model, folder / "model.onnx")
    before = sorted(os.listdir(folder))
    with pytest.raises(UnsoundNetworkError, match=said) as caught:
        read_onnx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("content", [b"", b"no model", bytes(1000)])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(UnsoundNetworkError, match=r"model\.onnx"):
        read_onnx(tmp_path / "model.onnx")
    with pytest.raises(UnsoundNetworkError, match="no such file"):
        read_onnx(tmp_path / "other.onnx")


@pytest.mark.parametrize("count", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused(count: int, tmp_path: Path) -> None:
    draw = random.Random(count)
    content = small().SerializeToString()
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        (tmp_path / "model.onnx").write_bytes(damaged[: draw.randrange(len(damaged) // 2, 10**6)])
        said = ""
        try:
            read_onnx(tmp_path / "model.onnx")
        except UnsoundNetworkError as error:
            said = str(error)
        assert said.isprintable()


def test_constants_may_be_in_a_file_beside(tmp_path: Path) -> None:
    model = small()
    expected = read_onnx(saved(model, tmp_path / "whole.onnx"))
    (tmp_path / "weights").write_bytes(b"left" + model.graph.initializer[0].raw_data)
    _external("weights")(model)
    model.graph.initializer[0].external_data.add(key="offset", value="4")
    found = read_onnx(saved(model, tmp_path / "model.onnx"))
    x = torch.rand(5, 4)
    assert torch.equal(found(x), expected(x))
    assert set(found.files) == {"model.onnx", "weights"}


@pytest.mark.parametrize(
    "build",
    [
        lambda w: w.apply("Reshape", "x", w.constant([-1, 72])),
        lambda w: w.apply("Reshape", "x", w.constant([1, -1])),
        lambda w: w.apply("Concat", "x", "x", axis=0),
        lambda w: w.apply("Slice", "x", w.constant([0]), w.constant([1]), w.constant([0])),
        lambda w: w.apply("ReduceMean", "x", w.constant([0])),
        lambda w: w.apply("Transpose", "x"),
        lambda w: w.apply("Flatten", "x", axis=2),
    ],
)
def test_what_mixes_inputs_is_refused(build: Callable[[Writer], str], tmp_path: Path) -> None:
    writer = Writer(MAP)
    model = writer.model(writer.apply("Flatten", build(writer)))
    with pytest.raises(UnsoundNetworkError, match=r"n0: .*(mixes|moves the batch)"):
        read_onnx(saved(model, tmp_path / "model.onnx"))


def test_a_product_of_two_values_is_refused_by_its_node(tmp_path: Path) -> None:
    writer = Writer((4,))
    model = writer.model(writer.apply("Mul", "x", writer.apply("Tanh", "x")))
    path = saved(model, tmp_path / "model.onnx")
    with pytest.raises(UnknownLipschitz, match="n1"):
        robustcert.certify(path, torch.rand(2, 4))


def in_doubles(path: Path, *nodes: Any, **constants: float) -> Path:
    """A model of float64: nodes from x to z, and then the logits z and -z."""
    head = onnx.helper.make_node("Gemm", ["z", "w"], ["y"])
    tensors = {key: np.array(value) for key, value in constants.items()}
    tensors["w"] = np.array([[1.0, -1.0]])
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, ["N", size])]
        for name, size in (("x", 1), ("y", 2))
    )
    given = [onnx.numpy_helper.from_array(array, key) for key, array in tensors.items()]
    graph = onnx.helper.make_graph([*nodes, head], "g", inputs, outputs, given)
    return saved(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)]), path
    )


def test_limits_that_doubles_reach_are_limits(tmp_path: Path) -> None:
    clip = onnx.helper.make_node("Clip", ["x", "low", "high"], ["z"])
    path = in_doubles(tmp_path / "clip.onnx", clip, low=-1e300, high=-1e39)
    assert read_onnx(path)(torch.tensor([[2.0]], dtype=torch.float64)).tolist() == [[-1e39, 1e39]]


def test_rounding_to_another_precision_is_refused(tmp_path: Path) -> None:
    down = onnx.helper.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT)
    up = onnx.helper.make_node("Cast", ["f"], ["z"], to=onnx.TensorProto.DOUBLE)
    path = in_doubles(tmp_path / "cast.onnx", down, up)
    with pytest.raises(UnsoundNetworkError, match="export the model in one precision"):
        robustcert.certify(path, torch.ones(1, 1, dtype=torch.float64))
