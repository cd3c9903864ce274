"""Layers that change the resolution of a map and keep its norm, or its parts' norms."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from robustcert.network.activation import Activation
from robustcert.network.linear import Convolution
from robustcert.network.local_error import counted


def norm_pool(x: Tensor, size: int) -> Tensor:
    """Euclidean norm of every window of ``size`` by ``size`` positions, channel by channel."""
    _check_map(x, size)
    return _WindowNorm.apply(x, size)


class NormPool2d(nn.Module):
    r"""Norms of disjoint windows, :math:`\sqrt{\sum_{i \in w} x_i^2}`.

    Each norm is 1-Lipschitz in its own window, and the windows do not overlap, so the squares of
    the changes add up: the map is 1-Lipschitz, and its gradient has unit norm for every window that
    is not zero.

    Reference: Boureau, Ponce and LeCun, `A theoretical analysis of feature pooling in visual
    recognition <https://icml.cc/Conferences/2010/papers/638.pdf>`_, ICML 2010.

    Args:
        size: Side of the windows; it must divide the height and the width.

    Example:
        >>> NormPool2d(2)(torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]]]))
        tensor([[[[5.]]]])
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size = _check(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H / size, W / size)``."""
        return norm_pool(x, self.size)

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Activation:
        """The norms as a pure function."""
        # A sum of n squares is wrong by a factor of 1 + n u, its root by half of that and one more
        # rounding; a scaled evaluation divides and multiplies once more. The norm of the outputs is
        # that of the inputs. Squares that underflow: the root of n 2^-126 in float32, in units of
        # 2^-24, is size 2^-39, and far less in float64.
        entries = self.size**2
        error = counted(entries / 2 + 3, self.size * 2.0**-39, roundings=entries + 3)
        return Activation(norm_pool, {"size": self.size}, lipschitz=1.0, error=error, squares=True)


class InvertibleDownsampling(nn.Module):
    """Move every ``size`` by ``size`` window into channels: a permutation of the entries.

    Reference: Jacobsen, Smeulders and Oyallon, `i-RevNet: deep invertible networks
    <https://arxiv.org/abs/1802.07088>`_, ICLR 2018.

    Args:
        channels: Channels of the input, of shape ``(N, channels, H, W)``.
        size: Side of the windows; it must divide the height and the width.

    Example:
        >>> layer = InvertibleDownsampling(1)
        >>> layer(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).squeeze()
        tensor([1., 2., 3., 4.])
    """

    def __init__(self, channels: int, size: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.size = _check(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C size^2, H / size, W / size)``."""
        return _downsample(x, self.size)

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Convolution:
        """The permutation as a convolution with one tap of 1 for every output."""
        k = self.size
        taps = (
            torch.eye(k * k, dtype=torch.float32, device="cpu")
            .view(k * k, 1, k, k)
            .repeat(self.channels, 1, 1, 1)
        )
        return Convolution(taps, stride=(k, k), groups=self.channels)


# On a CPU, norms along a dimension and `pixel_unshuffle` take several times as long as sums of rows
# and a selection of columns.


class _WindowNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: int) -> Tensor:
        # Half precision cannot hold the squares.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rows = reduce(torch.add, _windows(wide * wide, size).unbind(-3))
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
        return (_windows(x, ctx.size).flatten(-2) * row).reshape(x.shape), None


class _Reorder(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, _: Tensor) -> Tensor:
        return x.index_select(1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grad, inverse, order), None, None


def _downsample(x: Tensor, size: int) -> Tensor:
    _check_map(x, size)
    *batch, channels, height, width = x.shape
    small = height // size, width // size
    places = torch.arange(height * width, dtype=torch.int64, device=x.device)
    order = _windows(places.view(height, width), size).permute(1, 3, 0, 2).flatten()
    inverse = places.view(size, size, *small).permute(2, 0, 3, 1).flatten()
    moved = _Reorder.apply(x.flatten(0, -3).flatten(1), order, inverse)
    return moved.reshape(*batch, channels * size**2, *small)


def _windows(x: Tensor, size: int) -> Tensor:
    # (*, H, W) to (*, H / size, size, W / size, size).
    height, width = x.shape[-2:]
    return x.reshape(*x.shape[:-2], height // size, size, width // size, size)


def _check_map(x: Tensor, size: int) -> None:
    if x.dim() < 3 or x.shape[-2] % size or x.shape[-1] % size:
        raise RuntimeError(
            f"windows of side {size} do not fill inputs of shape {tuple(x.shape)}: "
            f"expected (N, C, H, W) with H and W divisible by {size}"
        )


def _check(size: int) -> int:
    if size < 1:
        raise ValueError(f"expected windows of side 1 at least, got {size}: set size")
    return size
