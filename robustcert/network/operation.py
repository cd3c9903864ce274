"""One step of a folded network: a function with constant weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError

Shape = tuple[int, ...]


def constant(tensor: Tensor) -> Tensor:
    """A copy of a folded weight on the CPU, cut from the graph; finite or refused.

    Float32, in which networks are stored and deployed, unless the module computes in float64.
    """
    if not tensor.is_floating_point():
        raise UnsoundNetworkError(f"expected weights that are real numbers, got {tensor.dtype}")
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    frozen = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    # The extremes of what contains NaN are NaN.
    if frozen.numel() and not all(map(torch.isfinite, frozen.aminmax())):
        raise UnsoundNetworkError("a weight is NaN or infinite")
    return frozen


def join_path(*parts: str) -> str:
    """Dotted path of the parts that are not empty."""
    return ".".join(part for part in parts if part)


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """One step of a folded network: a function with constant weights.

    ``kind`` names it in files; ``name`` is the module that it was folded from.
    """

    kind: ClassVar[str]
    name: str = field(default="", kw_only=True)

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.name or self.kind

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate on ``x`` of shape ``(N, *input_shape)``, in the dtype and device of ``x``."""

    @abstractmethod
    def lipschitz_bound(self, input_shape: Shape) -> float:
        r"""Upper bound on the :math:`\ell_2` Lipschitz constant on inputs of this shape."""

    @abstractmethod
    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        r"""``(a, b)`` with :math:`\lVert fl(op(z)) - op(z) \rVert_2 \le a \lVert z \rVert_2 + b`.

        ``unit`` is the unit roundoff of the arithmetic, for any order of summation.
        """

    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of the output without the batch dimension."""
        return tuple(self(zeros(input_shape)).shape[1:])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """A copy with its constants moved, so that evaluation does not move them every time."""
        moved: dict[str, Any] = {
            f.name: value.to(device, dtype, copy=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def options(self) -> dict[str, Any]:
        """Plain values that define the operation beside its tensors."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Constants that define the operation."""
        return {}

    def check_claims(self) -> None:
        """Refuse bounds that were stated of other constants than there are now.

        Raises:
            UnsoundNetworkError: constants of an activation were changed after it was made.
        """
        for part in _operations_in(tuple(vars(self).values())):
            part.check_claims()


def zeros(input_shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch of one input, all zero, on the CPU."""
    # A batch of one input.
    return torch.zeros(1, *input_shape, dtype=dtype, device="cpu")


def without_none(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The tensors that are there, by name."""
    return {k: v for k, v in tensors.items() if v is not None}


def _operations_in(value: object) -> Iterator[Operation]:
    if isinstance(value, Operation):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _operations_in(part)


def copied(value: Any) -> Any:
    """A copy of operations, containers and tensors that shares nothing with the first."""
    # Operations, containers and tensors anew; what is in none of them as `deepcopy` sees fit.
    copy: Any
    if isinstance(value, Tensor):
        copy = value.detach().clone()
    elif isinstance(value, Operation):
        copy = object.__new__(type(value))
        for name, part in vars(value).items():
            object.__setattr__(copy, name, copied(part))
    elif isinstance(value, dict):
        copy = {key: copied(part) for key, part in value.items()}
    elif type(value) in (tuple, list):
        copy = type(value)(map(copied, value))
    else:
        copy = deepcopy(value)
    return copy


def same(first: object, second: object) -> bool:
    """Whether two values are of the same types and bits."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _same_bits(first, second)
    if isinstance(first, Operation) and isinstance(second, Operation):
        return type(first) is type(second) and same(vars(first), vars(second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(v, second[k]) for k, v in first.items())
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(same, first, second))
    # What cannot tell whether it is the same is taken for changed.
    return first is second or (first == second) is True


def _same_bits(first: Tensor, second: Tensor) -> bool:
    if (first.dtype, first.device, first.shape) != (second.dtype, second.device, second.shape):
        return False
    # As integers, so that NaN is the same as itself; of 64 bits where that fits, which is faster.
    flat = [tensor.detach().reshape(-1) for tensor in (first, second)]
    size = first.element_size()
    if any(t.storage_offset() * size % 8 for t in flat) or flat[0].numel() * size % 8:
        integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]
    else:
        integer = torch.int64
    one, other = (tensor.view(integer) for tensor in flat)
    if first.device.type != "cpu":
        return torch.equal(one, other)
    # On a CPU numpy takes three quarters of torch's time.
    return np.array_equal(one.numpy(), other.numpy())
