"""An ONNX file as plain data: read and judged, with nothing of it executed."""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from robustcert.errors import ConfigError, UnsoundNetworkError
from robustcert.network.operation import Shape

# Versions of ONNX's operators whose meaning is known here.
MIN_OPSET, MAX_OPSET = 7, 25
# Maximum number of bytes of a file, and of entries of a value for one input.
MAX_BYTES, MAX_ENTRIES = 2**31, 2**31
# Output that is certified of a model with several.
LOGITS = "logits"


@dataclass(frozen=True)
class Node:
    """One node of a graph.

    Attributes:
        operator: Name of its operator.
        name: Its name, or that of its first output.
        inputs: Names of values; an empty one for an optional input that is left out.
        outputs: Names of values.
        attributes: Its attributes as Python's values and tensors.
        moving: For each input, whether it depends on the input of the network.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    moving: tuple[bool, ...] = ()


@dataclass(frozen=True, eq=False)
class Model:
    """A graph with one input and one output.

    Attributes:
        files: SHA-256 of the file and of those that hold its constants, by name.
        opset: Version of its operators.
        input: Name of its input.
        input_shape: Shape of one input, without the batch dimension.
        one: Whether the graph is written for a batch of one input alone.
        output: Name of the output.
        nodes: What is computed, in order.
        constants: Tensors by name.
    """

    files: dict[str, str]
    opset: int
    input: str
    input_shape: Shape
    one: bool
    output: str
    nodes: tuple[Node, ...]
    constants: dict[str, Tensor]


def require_onnx() -> Any:
    """The package ``onnx``, or one line that says how to get it."""
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            "ONNX models need the package onnx: pip install 'robustcert[export]'"
        ) from error
    return onnx


def read_model(path: Path) -> Model:
    """Read a file and what it needs of others in its folder.

    Raises:
        ConfigError: the package onnx is not installed.
        UnsoundNetworkError: it is no valid model, has several inputs or outputs, sizes that are not
            fixed, functions or operators of its own, or constants elsewhere than in its folder.
    """
    onnx = require_onnx()
    content = _content(path)
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # whatever a damaged file makes protobuf raise
        raise UnsoundNetworkError(f"not an ONNX model: {_line(error)}") from error
    files = {path.name: hashlib.sha256(content).hexdigest()}
    opset = _opset(proto)
    _judge_nodes(proto)
    source = _source(proto.graph)
    dtype, one, shape = _input(onnx, source)
    output = _output([value.name for value in proto.graph.output])
    files |= _load_external(onnx, proto, path.parent)
    _check(onnx, proto)
    found, constants = _nodes(onnx, proto.graph, output, dtype)
    nodes = tuple(_marked(found, source.name))
    return Model(files, opset, source.name, shape, one, output, nodes, constants)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise UnsoundNetworkError("no such file")
    if path.stat().st_size > MAX_BYTES:
        raise UnsoundNetworkError(f"more than {MAX_BYTES} bytes")
    return path.read_bytes()


def _line(error: Exception) -> str:
    """The first line of an error that says anything, cut where it is long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def _opset(proto: Any) -> int:
    """Version of the operators; no others than ONNX's own are known."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    used = {node.domain for node in proto.graph.node} - {"", "ai.onnx"}
    if used or proto.functions:
        names = [f"{n.domain}.{n.op_type}" for n in proto.graph.node if n.domain in used]
        name = names[0] if names else f"function {proto.functions[0].name}"
        raise UnsoundNetworkError(
            f"{name}: only ONNX's own operators are known: export the model without custom "
            "operators, and inline its functions by onnx.inliner"
        )
    version = int(versions.get("", versions.get("ai.onnx", 0)))
    if not MIN_OPSET <= version <= MAX_OPSET:
        raise UnsoundNetworkError(
            f"expected an opset from {MIN_OPSET} to {MAX_OPSET}, got {version}: convert the model "
            "by onnx.version_converter"
        )
    return version


def _judge_nodes(proto: Any) -> None:
    """Refuse quantised operators, and graphs inside of nodes, before anything else is read."""
    for node in proto.graph.node:
        name = node.op_type
        if any(word in name for word in ("Quantize", "QLinear", "Integer")):
            raise UnsoundNetworkError(
                f"the operator {name} is quantised, and a quantised network jumps: give the model "
                "before quantisation",
                node.name,
            )
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise UnsoundNetworkError(f"the operator {name} has a graph of its own", node.name)
    if proto.graph.sparse_initializer:
        raise UnsoundNetworkError("sparse constants are not covered: store them as dense tensors")


def _tensors(proto: Any) -> Iterator[Any]:
    """Every constant of a graph."""
    yield from proto.graph.initializer
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _load_external(onnx: Any, proto: Any, folder: Path) -> dict[str, str]:
    """Put constants of other files into the model; their digests, by name."""
    files: dict[str, bytes] = {}
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        name = said.get("location", "")
        if name not in files:
            files[name] = _external(folder, name, sum(map(len, files.values())))
        data = files[name]
        try:
            start = int(said.get("offset", 0))
            end = start + int(said.get("length", len(data) - start))
        except ValueError as error:
            raise UnsoundNetworkError(f"{tensor.name}: its place in {name} is no number") from error
        if not 0 <= start <= end <= len(data):
            raise UnsoundNetworkError(
                f"{tensor.name}: bytes {start} to {end} of {name}, which has {len(data)}"
            )
        tensor.raw_data = data[start:end]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _external(folder: Path, name: str, before: int) -> bytes:
    """Content of a regular file inside of a folder, which no link leads out of."""
    place, root = os.path.realpath(folder / name), os.path.realpath(folder)
    parts = PurePosixPath(name.replace("\\", "/")).parts
    inside = os.path.commonpath([root, place]) == root and ".." not in parts and name
    if not inside or PurePosixPath(name).is_absolute() or not os.path.isfile(place):
        raise UnsoundNetworkError(
            f"{name!r}: expected its constants in a file inside of the model's folder"
        )
    if os.path.getsize(place) + before > MAX_BYTES:
        raise UnsoundNetworkError(f"{name}: more than {MAX_BYTES} bytes of constants")
    return Path(place).read_bytes()


def _check(onnx: Any, proto: Any) -> None:
    """ONNX's own judgement: a valid graph without a cycle, with shapes that fit."""
    errors = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    try:
        onnx.checker.check_model(proto)
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=True
        )
    except (*errors, ValueError, RuntimeError, TypeError) as error:
        raise UnsoundNetworkError(f"not a valid ONNX model: {_line(error)}") from error
    for value in inferred.graph.value_info:
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim if d.dim_value > 0]
        if math.prod(sizes) > MAX_ENTRIES:
            raise UnsoundNetworkError(f"{value.name}: more than {MAX_ENTRIES} entries")


def _source(graph: Any) -> Any:
    """The one input of a graph that is no constant."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UnsoundNetworkError(f"expected one input, got {names}: certify a graph with one")
    return inputs[0]


def _nodes(
    onnx: Any, graph: Any, output: str, dtype: torch.dtype
) -> tuple[list[Node], dict[str, Tensor]]:
    """What an output is computed by, in order, and the constants of the graph."""
    constants = {t.name: _constant(onnx, t, t.name, dtype) for t in graph.initializer}
    nodes = []
    for node in _needed(graph.node, output):
        name = node.name or node.output[0]
        attributes = {a.name: _attribute(onnx, a, name, dtype) for a in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = _as_tensor(attributes, dtype, name)
        else:
            known = tuple(node.input), tuple(node.output)
            nodes.append(Node(node.op_type, name, *known, attributes))
    return nodes, constants


def _input(onnx: Any, value: Any) -> tuple[torch.dtype, bool, Shape]:
    """Type of the input, whether its batch is fixed to one, and the shape of one input."""
    kinds = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64}
    tensor = value.type.tensor_type
    if tensor.elem_type not in kinds:
        name = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UnsoundNetworkError(f"{value.name}: expected FLOAT or DOUBLE inputs, got {name}")
    dims = list(tensor.shape.dim)
    shape = tuple(int(d.dim_value) for d in dims[1:])
    if not shape or min(shape) < 1:
        shown = ", ".join(d.dim_param or str(d.dim_value) for d in dims)
        raise UnsoundNetworkError(
            f"{value.name}: expected a batch of inputs of a fixed shape, got ({shown}): export it "
            "with a dynamic batch dimension alone"
        )
    if math.prod(shape) > MAX_ENTRIES:
        raise UnsoundNetworkError(f"{value.name}: inputs of more than {MAX_ENTRIES} entries")
    if dims[0].dim_value > 1:
        raise UnsoundNetworkError(
            f"{value.name}: its batch is fixed to {dims[0].dim_value} inputs: export it for one, "
            "or with a dynamic batch dimension"
        )
    return kinds[tensor.elem_type], dims[0].dim_value == 1, shape


def _output(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if LOGITS in names:
        return LOGITS
    raise UnsoundNetworkError(
        f"expected one output, or one of several that is named {LOGITS}, got {', '.join(names)}"
    )


def _needed(nodes: Iterable[Any], output: str) -> list[Any]:
    """The nodes that an output depends on, in order."""
    wanted, found = {output}, []
    for node in reversed(list(nodes)):
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node)
    return found[::-1]


def _marked(nodes: Iterable[Node], source: str) -> Iterator[Node]:
    """The nodes, each with the inputs that depend on the network's; a shape does not."""
    moving = {source}
    for node in nodes:
        marks = tuple(name in moving for name in node.inputs)
        if any(marks) and node.operator != "Shape":
            moving |= {name for name in node.outputs if name}
        yield Node(node.operator, node.name, node.inputs, node.outputs, node.attributes, marks)


def _attribute(onnx: Any, attribute: Any, name: str, dtype: torch.dtype) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _constant(onnx, value, name, dtype)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _constant(onnx: Any, tensor: Any, name: str, dtype: torch.dtype) -> Tensor:
    """A constant; real ones have to be of the precision of the input."""
    types = onnx.TensorProto
    real = {types.FLOAT: torch.float32, types.DOUBLE: torch.float64}.get(tensor.data_type)
    if real not in (None, dtype) or tensor.data_type not in (
        *(types.FLOAT, types.DOUBLE, types.INT64, types.INT32, types.BOOL),
    ):
        kind = types.DataType.Name(tensor.data_type)
        raise UnsoundNetworkError(
            f"{name}: a constant of type {kind} in a network of inputs of {dtype}: export it in "
            "one precision, float32 or float64"
        )
    try:
        return torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
    except (ValueError, TypeError, RuntimeError) as error:
        raise UnsoundNetworkError(f"{name}: a damaged constant: {_line(error)}") from error


def _as_tensor(attributes: dict[str, Any], dtype: torch.dtype, name: str) -> Tensor:
    """The value of a node ``Constant``."""
    (key, value), *more = attributes.items() or [("none", None)]
    if more or key not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise UnsoundNetworkError(f"{name}: a constant given by {key} is not covered")
    if isinstance(value, Tensor):
        return value
    kind = dtype if "float" in key else torch.int64
    return torch.tensor(value, dtype=kind, device="cpu")
