"""Where an operator is called: its node, its place in the graph and the batch in hand."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.network.onnx.file import Node


@dataclass(frozen=True)
class Call:
    """Where an operator is called: its node, and the batch in hand.

    Attributes:
        node: The node.
        opset: Version of the operators.
        one: Whether the graph is written for a batch of one.
        count: Number of inputs in the batch.
        dtype: Precision of the network.
    """

    node: Node
    opset: int
    one: bool
    count: int
    dtype: torch.dtype

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.attributes.get(name, default)

    def moving(self, place: int = 0) -> bool:
        """Whether an input depends on the input of the network."""
        return place < len(self.node.moving) and self.node.moving[place]

    def seen(self, x: Tensor, place: int = 0) -> list[int]:
        """Shape of an input as the graph sees it."""
        return [1, *x.shape[1:]] if self.one and self.moving(place) else list(x.shape)

    def axis(self, axis: int, x: Tensor) -> int:
        """An axis counted from the front; of a value that depends on the input, not the batch."""
        found = axis + x.dim() if axis < 0 else axis
        if not 0 <= found < x.dim():
            raise self.refuse(f"axis {axis} of a value of {x.dim()} dimensions")
        if found == 0 and self.moving():
            raise self.refuse("works along the batch: it mixes inputs")
        return found

    def given(self, name: str, value: Tensor | None) -> list[int] | None:
        """Integers that are an input in later versions of an operator and an attribute before."""
        return self.get(name) if value is None else [int(n) for n in value.flatten().tolist()]

    def refuse(self, why: str) -> UnsoundNetworkError:
        """An error about this node."""
        return UnsoundNetworkError(f"the operator {self.node.operator} {why}", self.node.name)
