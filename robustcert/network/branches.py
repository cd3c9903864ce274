"""Operations that are made of sequences of operations on the same input."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from robustcert import norms
from robustcert.network.bounds import run, sequence_bound
from robustcert.network.centred import centred_bound
from robustcert.network.operation import Operation, Shape


@dataclass(frozen=True, eq=False)
class Branched(Operation):
    """Branches on the same input, each a sequence of operations; an empty one is the input."""

    branches: tuple[tuple[Operation, ...], ...]

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        raise NotImplementedError("the error is composed from the branches'")

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        branches = tuple(tuple(op.to(device, dtype) for op in branch) for branch in self.branches)
        return replace(self, branches=branches)


@dataclass(frozen=True, eq=False)
class Sum(Branched):
    r"""Sum of branches on the same input, :math:`x \mapsto \sum_k g_k(x)`; an empty one is x."""

    kind = "sum"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([run(branch, x) for branch in self.branches]).sum(0)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        total = norms.sum_up([sequence_bound(b, input_shape) for b in self.branches])
        centred = centred_bound(self.branches, input_shape)
        return total if centred is None else min(total, centred)


@dataclass(frozen=True, eq=False)
class Concatenation(Branched):
    r"""Outputs of branches side by side along one dimension of a sample.

    With constants :math:`K_k` of the branches, its own is :math:`(\sum_k K_k^2)^{1/2}`.
    """

    kind = "concatenate"
    axis: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([run(branch, x) for branch in self.branches], self.axis + 1)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return norms.hypot_up([sequence_bound(b, input_shape) for b in self.branches])

    def options(self) -> dict[str, Any]:
        return {"axis": self.axis}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, list[Any]]:
    return {key: [str(t.dtype).removeprefix("torch."), *t.shape] for key, t in tensors.items()}


def walk(operations: Sequence[Operation]) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """The definition of every operation, those of branches included, with its tensors."""
    for operation in operations:
        tensors = operation.tensors()
        line = {"kind": operation.kind, **operation.options(), "shapes": _shapes(tensors)}
        if isinstance(operation, Branched):
            # Without their number, what follows could be one branch more.
            line["branches"] = len(operation.branches)
        yield line, tensors
        if isinstance(operation, Branched):
            for branch in operation.branches:
                yield {"branch": len(branch)}, {}
                yield from walk(branch)


def digest(operations: Sequence[Operation], input_shape: Shape) -> str:
    """SHA-256 over every operation's definition and little-endian constants."""
    hashed = hashlib.sha256()
    hashed.update(json.dumps(list(input_shape)).encode())
    for line, tensors in walk(operations):
        hashed.update(json.dumps(line, sort_keys=True).encode())
        for key in sorted(tensors):
            array = tensors[key].cpu().numpy()
            hashed.update(key.encode() + array.astype(array.dtype.newbyteorder("<")).tobytes())
    return hashed.hexdigest()
