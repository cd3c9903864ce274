"""An ONNX graph as a module of torch, which runs its nodes in order."""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcert.errors import ConfigError, UnsoundNetworkError
from robustcert.network.onnx.call import Call
from robustcert.network.onnx.file import Model, Node, read_model
from robustcert.network.onnx.operators import OPERATORS, require_known
from robustcert.network.operation import Shape

# Maximum number of characters of the name of a node's module, and of a message about a file.
MAX_NAME, MAX_MESSAGE = 60, 600


def read_onnx(path: str | os.PathLike[str]) -> "ONNXModule":
    """The network of an ONNX file; nothing in it is executed but operators that are known.

    Args:
        path: The file. It has one input of a fixed shape behind the batch, and one output, or one
            that is named ``logits``; constants may be in other files of its folder.

    Raises:
        ConfigError: the package onnx is not installed.
        UnknownLipschitz: it has an operator that is not covered.
        UnsoundNetworkError: it is no valid model, or not of this form.
    """
    path = Path(path)
    try:
        module = ONNXModule(read_model(path)).eval()
        module.classes = _number_of_logits(module)
    except ConfigError:
        raise
    except UnsoundNetworkError as error:
        # Names in the file may hold anything.
        said = "".join(c if c.isprintable() else "?" for c in str(error))[:MAX_MESSAGE]
        raise type(error)(f"{path}: {said}") from error
    except Exception as error:  # whatever names that are no text, or the like, make Python raise
        raise UnsoundNetworkError(f"{path}: a damaged model: {type(error).__name__}") from error
    return module


def _number_of_logits(module: "ONNXModule") -> int:
    """The length of a row of the output, from one evaluation on two inputs."""
    floating = [t.dtype for t in module.buffers() if t.is_floating_point()]
    x = torch.zeros(2, *module.input_shape, dtype=(floating or [torch.float32])[0], device="cpu")
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            shape = tuple(module(x).shape)
    except UnsoundNetworkError:
        raise
    except Exception as error:  # whatever a graph makes torch raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsoundNetworkError(f"it cannot be evaluated: {reason}") from error
    if len(shape) != 2:
        raise UnsoundNetworkError(
            f"expected as output a row of logits for every input, got the shape {shape[1:]}"
        )
    return shape[1]


class ONNXModule(nn.Module):
    """A graph whose nodes are modules, and whose constants are buffers.

    Attributes:
        files: SHA-256 of the file and of those that hold its constants, by name.
        opset: Version of its operators.
        input_shape: Shape of one input.
        classes: Number of logits; 0 before it was evaluated.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.classes = 0
        self.files, self.opset, self.input_shape = dict(model.files), model.opset, model.input_shape
        self.one = model.one
        self._input, self._output = model.input, model.output
        nodes = _with_biases(model.nodes, model.constants, model.output)
        read = {name for node in nodes for name in node.inputs}
        # Names of buffers may not hold dots.
        kept = [name for name in model.constants if name in read]
        self._constants = {name: f"constant_{i}" for i, name in enumerate(kept)}
        for name, buffer in self._constants.items():
            self.register_buffer(buffer, model.constants[name])
        for i, node in enumerate(nodes):
            require_known(node)
            self.add_module(_module_name(i, node), _Step(node, model.opset, model.one))
        if not any(node.moving and any(node.moving) for node in nodes):
            raise UnsoundNetworkError(f"its output {model.output} does not depend on its input")

    def forward(self, x: Tensor) -> Tensor:
        """The output for a batch of inputs, ``(N, *input_shape)``."""
        values: dict[str, Tensor | None] = {"": None, self._input: x}
        for name, buffer in self._constants.items():
            values[name] = getattr(self, buffer)
        for step in self.children():
            assert isinstance(step, _Step)
            found = step(len(x), x.dtype, *(values[name] for name in step.node.inputs))
            values.update(zip(step.node.outputs, found, strict=False))
        output = values.get(self._output)
        if output is None:
            raise UnsoundNetworkError(f"its output {self._output} is not covered")
        return output


class _Step(nn.Module):
    """One node."""

    def __init__(self, node: Node, opset: int, one: bool) -> None:
        super().__init__()
        self.node, self.opset, self.one = node, opset, one

    def forward(self, count: int, dtype: torch.dtype, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """The outputs of the node for a batch of so many inputs."""
        call = Call(self.node, self.opset, self.one, count, dtype)
        found = OPERATORS[self.node.operator](call, *inputs)
        outputs = (found,) if isinstance(found, Tensor) else found
        moving = any(self.node.moving) and self.node.operator != "Shape"
        if moving and any(tuple(output.shape[:1]) != (count,) for output in outputs):
            raise call.refuse("gives a value without the batch in front")
        return outputs


def _module_name(place: int, node: Node) -> str:
    name = re.sub(r"[^A-Za-z0-9_]+", "_", node.name).strip("_")[:MAX_NAME]
    return f"{place}_{name or node.operator}"


def _with_biases(nodes: Sequence[Node], constants: Mapping[str, Tensor], output: str) -> list[Node]:
    """The nodes, with a product and the constant that is added to it as one affine map."""
    uses = Counter([output, *(name for node in nodes for name in node.inputs)])
    products = {
        node.outputs[0]: node
        for node in nodes
        if node.operator == "MatMul" and node.moving == (True, False)
        if node.inputs[1] in constants and constants[node.inputs[1]].dim() == 2
    }
    joined, absorbed = {}, set()
    for add in (node for node in nodes if node.operator == "Add"):
        for x, bias in (add.inputs, add.inputs[::-1]):
            if x in products and bias in constants and uses[x] == 1:
                inputs = (*products[x].inputs, bias)
                shape = tuple(constants[bias].shape)
                if shape in (constants[inputs[1]].shape[1:], (1, *constants[inputs[1]].shape[1:])):
                    joined[add.outputs[0]] = Node(
                        "Gemm", products[x].name, inputs, add.outputs, {}, (True, False, False)
                    )
                    absorbed.add(x)
    return [joined.get(n.outputs[0], n) for n in nodes if n.outputs[0] not in absorbed]


def fitted(module: ONNXModule, shape: Shape) -> nn.Module:
    """A network that takes the inputs of a dataset, whose entries may be laid out in another way.

    Args:
        module: The network.
        shape: Shape of one input of the dataset: that of the network, or one that differs by
            dimensions of 1, the network's flat, or the network's with channels last.

    Raises:
        UnsoundNetworkError: the two do not fit.
    """
    wanted = module.input_shape
    if shape == wanted:
        return module
    without = [tuple(n for n in sizes if n > 1) for sizes in (shape, wanted)]
    flat = len(without[1]) <= 1 and math.prod(shape) == math.prod(wanted)
    if flat or without[0] == without[1]:
        return nn.Sequential(_Reshaped(wanted), module)
    if len(shape) == len(wanted) == 3 and wanted == (*shape[1:], shape[0]):
        return nn.Sequential(_ChannelsLast(), module)
    raise UnsoundNetworkError(
        f"the network takes inputs of shape {wanted}, got samples of {shape}: choose its dataset"
    )


class _Reshaped(nn.Module):
    """The entries of every input in another shape, in their order."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(N, *)`` to ``(N, *shape)``."""
        return x.reshape(len(x), *self.shape)


class _ChannelsLast(nn.Module):
    """Channels behind height and width."""

    def forward(self, x: Tensor) -> Tensor:
        """From ``(N, C, H, W)`` to ``(N, H, W, C)``."""
        return torch.permute(x, (0, 2, 3, 1))
