"""Linear and affine functions of torch as operations.

A rule has the arguments of its function and gives the operations that it is on one input.
"""
# Every rule has the name and the arguments of torch's function, which documents them.
# ruff: noqa: ARG001, D103

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.errors import UnsoundNetworkError
from robustcert.network.linear import Affine, Dense, Flatten, Gather
from robustcert.network.operation import Operation, constant
from robustcert.network.torch_indices import read, reshaped


class Joined(NamedTuple):
    """What a function returns: operations on values that depend on the input, put together.

    Attributes:
        steps: Operations, one list for every value.
        axis: The dimension of a sample along which they stand side by side; None: they are added.
        sources: The values; empty: all that the function was called with, in their order.
        after: Operations on all of them together.
    """

    steps: list[list[Operation]]
    axis: int | None = None
    sources: tuple[Tensor, ...] = ()
    after: tuple[Operation, ...] = ()


def number(value: Any, x: Tensor) -> Tensor:
    """A Python number as the module computes with it."""
    if not isinstance(value, (int, float)):
        raise UnsoundNetworkError(f"is not covered with {type(value).__name__} as a number")
    return torch.tensor(float(value), dtype=torch.float64, device="cpu").to(x.dtype)


def scaled(x: Tensor, factor: Any) -> list[Operation]:
    """Multiplication by a number, by one for every channel, or by one for every entry."""
    full = _constant_like(factor, x)
    rows = full.reshape(len(full), -1)
    if (rows == 1).all():
        return []
    if not (rows == rows[:, :1]).all():
        # Every entry is a channel of its own.
        shape, scale = tuple(full.shape), constant(full.flatten())
        return [Flatten(), Affine(scale, torch.zeros_like(scale)), *reshaped(scale.shape, shape)]
    scale = constant(rows[:, 0])
    return [Affine(scale, torch.zeros_like(scale))]


def shifted(x: Tensor, offset: Any) -> list[Operation]:
    """Addition of a number, of one for every channel, or of one for every entry."""
    full = _constant_like(offset, x)
    rows = full.reshape(len(full), -1)
    if (rows == 0).all():
        return []
    shift = constant(rows[:, 0] if (rows == rows[:, :1]).all() else full)
    return [Affine(torch.ones(len(full), dtype=shift.dtype, device="cpu"), shift)]


def _constant_like(value: Any, x: Tensor) -> Tensor:
    """A constant, laid out as one input, of shape ``(C, *)``."""
    wide = value.detach().to(x) if isinstance(value, Tensor) else number(value, x)
    if wide.dim() == x.dim():
        if (wide != wide[:1]).any():
            raise UnsoundNetworkError("has a constant for every input of the batch")
        wide = wide[:1]
    try:
        return wide.expand(1, *x.shape[1:])[0]
    except RuntimeError as error:
        raise UnsoundNetworkError("makes more entries of its input by broadcasting") from error


def _combined(known: list[Tensor], x: Any, y: Any, first: Any, second: Any) -> list[Any]:
    """``first * x + second * y`` of values that depend on the input, or of one and a constant."""
    terms = [(x, first), (y, second)]
    moving = [(t, c) for t, c in terms if any(t is k for k in known)]
    shape = torch.broadcast_shapes(*(t.shape for t, _ in moving))
    steps = []
    for t, c in moving:
        (wider,) = read(Tensor.expand, (t, shape), {}, t)
        steps.append(wider + scaled(t.expand(shape), c))
    for t, c in terms:
        if all(t is not k for k in known):
            steps[0] = steps[0] + shifted(moving[0][0], t * c)
    return steps


def joined(known: list[Tensor], tensors: Any, dim: int, *, stack: bool) -> Joined:
    """Values that stand side by side.

    Constants stand for the first value times 0 plus themselves.
    """
    axis = dim % (tensors[0].dim() + stack)
    if axis == 0:
        raise UnsoundNetworkError("mixes the inputs of a batch")
    steps, sources = [], []
    for tensor in tensors:
        shape = tuple(tensor.shape[1:])
        made: list[Operation] = []
        sources.append(next((value for value in known if value is tensor), known[0]))
        if sources[-1] is not tensor:
            nothing = torch.full(shape, -1, dtype=torch.int64, device="cpu")
            made = [Gather(nothing), *shifted(tensor.to(known[0]), tensor)]
        wider = (*shape[: axis - 1], 1, *shape[axis - 1 :]) if stack else shape
        steps.append(made + reshaped(shape, wider))
    return Joined(steps, axis - 1, tuple(sources))


def add(known: list[Tensor], x: Any, other: Any, alpha: Any = 1) -> list[Any]:
    return _combined(known, x, other, 1, alpha)


def sub(known: list[Tensor], x: Any, other: Any, alpha: Any = 1) -> list[Any]:
    return _combined(known, x, other, 1, -alpha)


def rsub(known: list[Tensor], x: Any, other: Any, alpha: Any = 1) -> list[Any]:
    return _combined(known, x, other, -alpha, 1)


def mul(known: list[Tensor], x: Any, other: Any) -> list[Any]:
    if len(known) != 1:
        raise UnsoundNetworkError(
            "multiplies two values that depend on the input, which has no finite Lipschitz constant"
        )
    return [scaled(known[0], other if known[0] is x else x)]


def div(known: list[Tensor], x: Any, other: Any) -> list[Any]:
    if len(known) != 1 or known[0] is not x:
        raise UnsoundNetworkError(
            "divides by a value that depends on the input, which has no finite Lipschitz constant"
        )
    wide = other.detach().double() if isinstance(other, Tensor) else float(other)
    return [scaled(x, 1 / wide)]


def neg(x: Tensor) -> list[Operation]:
    return scaled(x, -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Operation]:
    return [Dense(constant(weight), None if bias is None else constant(bias))]


def matmul(x: Tensor, other: Tensor) -> list[Operation]:
    if other.dim() != 2:
        raise UnsoundNetworkError(f"is covered for matrices, not for {tuple(other.shape)}")
    return [Dense(constant(other.mT))]


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Operation]:
    if training or running_mean is None or running_var is None:
        raise UnsoundNetworkError("normalises by statistics of the batch: use running statistics")
    scale = (running_var.double() + eps).rsqrt()
    scale = scale if weight is None else weight.double() * scale
    shift = -running_mean.double() * scale
    shift = shift if bias is None else bias.double() + shift
    # Computed in float64 and rounded once, to the precision of the module.
    return [Affine(constant(scale.to(x.dtype)), constant(shift.to(x.dtype)))]


def mean_over(x: Tensor, dim: Any, keepdim: bool = False) -> list[Operation]:
    axes = {d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)}
    sizes = [n for d, n in enumerate(x.shape) if d in axes]
    return _reduced(x, axes, keepdim, 1 / math.prod(sizes))


def sum_over(x: Tensor, dim: Any, keepdim: bool = False) -> list[Operation]:
    return _reduced(x, {d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)}, keepdim, 1)


def _reduced(x: Tensor, axes: set[int], keepdim: bool, factor: float) -> list[Operation]:
    rest = [d for d in range(x.dim()) if d not in axes]
    left = tuple(x.shape[d] for d in rest[1:])
    (made,) = read(lambda v: v.permute(*rest, *sorted(axes)).flatten(len(rest)), (x,), {}, x)
    row = torch.full(
        (1, math.prod(x.shape) // len(x) // math.prod(left)), factor, dtype=x.dtype, device="cpu"
    )
    kept = tuple(1 if d in axes else n for d, n in enumerate(x.shape) if d)
    return [*made, Dense(constant(row)), *reshaped((*left, 1), kept if keepdim else left)]


def pad(x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> list[Operation]:
    (made,) = read(F.pad, (x, pad, mode), {}, x)
    if mode != "constant" or not value:
        return made
    ones = F.pad(torch.ones_like(x), pad)
    return made + shifted(ones, (1 - ones) * number(value, x))
