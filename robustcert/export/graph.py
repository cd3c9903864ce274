"""An ONNX graph under construction: values by name, constants of one arithmetic."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.network.onnx.file import require_onnx

Array = NDArray[Any]
# ReduceMin takes its axes as an input since 18.
OPSET, IR_VERSION = 18, 9


class Graph:
    """Nodes and constants; a value is the name of a node's output.

    Args:
        dtype: ``np.float64`` or ``np.float32``: of the network's arithmetic.
    """

    def __init__(self, dtype: type[np.floating[Any]]) -> None:
        self.onnx = require_onnx()
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def apply(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first output."""
        count = len(self.nodes)
        names = [f"v{count}" if k == 0 else f"v{count}.{k}" for k in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, names, **attributes))
        return names[0]

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant, in the network's arithmetic unless another type is given."""
        name = f"c{len(self.constants)}"
        array = np.asarray(value, dtype=dtype or self.dtype)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def number(self, value: float) -> str:
        """A float64 scalar, whatever the network's arithmetic: certificates are computed in it."""
        return self.constant(value, np.float64)

    def integers(self, *values: int) -> str:
        """A list of integers, such as a shape or axes."""
        return self.constant(values, np.int64)

    def reshape(self, x: str, *shape: int) -> str:
        """The same values in another shape behind the batch dimension."""
        return self.apply("Reshape", x, self.integers(0, *shape))

    def add(self, x: str, y: str) -> str:
        """``x + y``."""
        return self.apply("Add", x, y)

    def sub(self, x: str, y: str) -> str:
        """``x - y``."""
        return self.apply("Sub", x, y)

    def mul(self, x: str, y: str) -> str:
        """``x y``."""
        return self.apply("Mul", x, y)

    def div(self, x: str, y: str) -> str:
        """``x / y``."""
        return self.apply("Div", x, y)

    def where(self, condition: str, x: str, y: str) -> str:
        """``x`` where the condition holds, else ``y``."""
        return self.apply("Where", condition, x, y)

    def along(self, value: Array, rank: int) -> str:
        """A scalar or one number per feature, laid out along dimension 1 of values of a rank."""
        wide = np.asarray(value)
        return self.constant(wide if wide.ndim == 0 else wide.reshape(-1, *(1,) * (rank - 2)))
