"""Norms of disjoint windows of a map, as a pure function."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from robustcert.network.activation import Activation
from robustcert.network.local_error import counted


def norm_pool(x: Tensor, size: int) -> Tensor:
    """Euclidean norm of every window of ``size`` by ``size`` positions, channel by channel."""
    check_map(x, size)
    return _WindowNorm.apply(x, size)


def norm_pool_activation(size: int) -> Activation:
    """Norms of windows: each is 1-Lipschitz in its own, and no two windows share an entry."""
    # A sum of n squares is wrong by a factor of 1 + n u, its root by half of that and one more
    # rounding; a scaled evaluation divides and multiplies once more. The norm of the outputs is
    # that of the inputs. Squares that underflow: the root of n 2^-126 in float32, in units of
    # 2^-24, is size 2^-39, and far less in float64.
    entries = size**2
    error = counted(entries / 2 + 3, size * 2.0**-39, roundings=entries + 3)
    return Activation(norm_pool, {"size": size}, lipschitz=1.0, error=error, squares=True)


# On a CPU, norms along a dimension take several times as long as sums of rows.
class _WindowNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: int) -> Tensor:
        # Half precision cannot hold the squares.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rows = reduce(torch.add, windows(wide * wide, size).unbind(-3))
        return reduce(torch.add, rows.unbind(-1)).sqrt().to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.size = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, norm = ctx.saved_tensors
        # A window of zeros has no direction: its gradient is 0.
        slope = (grad / norm.masked_fill(norm == 0, torch.inf)).unsqueeze(-1)
        row = slope.expand(*norm.shape, ctx.size).reshape(*norm.shape[:-1], 1, x.shape[-1])
        return (windows(x, ctx.size).flatten(-2) * row).reshape(x.shape), None


def windows(x: Tensor, size: int) -> Tensor:
    """A map ``(*, H, W)`` as ``(*, H / size, size, W / size, size)``."""
    height, width = x.shape[-2:]
    return x.reshape(*x.shape[:-2], height // size, size, width // size, size)


def check_map(x: Tensor, size: int) -> None:
    """Raise ``RuntimeError`` unless windows of a side fill a map."""
    if x.dim() < 3 or x.shape[-2] % size or x.shape[-1] % size:
        raise RuntimeError(
            f"windows of side {size} do not fill inputs of shape {tuple(x.shape)}: "
            f"expected (N, C, H, W) with H and W divisible by {size}"
        )
