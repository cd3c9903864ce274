"""Linear and affine operations."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert import norms
from robustcert.arithmetic import products
from robustcert.errors import UnsoundNetworkError
from robustcert.network.local_error import affine_rounding, gamma, smallest_normal
from robustcert.network.operation import Operation, Shape, without_none


@dataclass(frozen=True, eq=False)
class Dense(Operation):
    """``x -> W x + b`` on inputs of shape ``(N, in_features)``."""

    kind = "dense"
    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        return products.linear(x, self.weight.to(x), bias)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return norms.dense_norm_bound(self.weight)

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        positions = math.prod(input_shape[:-1])
        return affine_rounding(self.weight, self.bias, self.weight.shape[1], positions, unit)

    def tensors(self) -> dict[str, Tensor]:
        return without_none(weight=self.weight, bias=self.bias)


@dataclass(frozen=True, eq=False)
class Convolution(Operation):
    """Zero-padded two-dimensional convolution on inputs of shape ``(N, C, H, W)``."""

    kind = "convolution"
    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        return products.conv2d(
            x, self.weight.to(x), bias, self.stride, self.padding, self.dilation, self.groups
        )

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return norms.conv_norm_bound(
            self.weight, plane(input_shape), self.stride, self.padding, self.dilation, self.groups
        )

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        positions = math.prod(self.output_shape(input_shape)[1:])
        return affine_rounding(
            self.weight, self.bias, math.prod(self.weight.shape[1:]), positions, unit
        )

    def options(self) -> dict[str, Any]:
        return {
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
        }

    def tensors(self) -> dict[str, Tensor]:
        return without_none(weight=self.weight, bias=self.bias)


@dataclass(frozen=True, eq=False)
class CircularConvolution(Operation):
    r"""Convolution on a torus, with a kernel as large as the torus.

    Inputs of ``input_size`` are extended by zeros to the kernel's own height and width M; then

    .. math:: y_i = b + \sum_{t = 0}^{M - 1} K_t\, x_{(s i + t - p) \bmod M}

    in each dimension, for the outputs i below ``output_size``. Extending by zeros keeps norms and
    dropping outputs does not raise them, so the norm is at most that of the circular convolution.
    """

    kind = "circular_convolution"
    weight: Tensor
    bias: Tensor | None = None
    input_size: tuple[int, int] = field(kw_only=True)
    output_size: tuple[int, int] = field(kw_only=True)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for period, size, out, s in zip(
            self.weight.shape[2:], self.input_size, self.output_size, self.stride, strict=True
        ):
            if period % s or size > period or not 1 <= out <= period // s:
                raise UnsoundNetworkError(
                    f"no circular convolution takes {size} to {out} positions with period {period} "
                    f"and stride {s}"
                )

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != tuple(self.input_size):
            raise RuntimeError(f"it takes maps of {self.input_size}, got {tuple(x.shape[2:])}")
        height, width = self.weight.shape[2:]
        x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
        for axis, period, out, s, p in zip(
            (2, 3), (height, width), self.output_size, self.stride, self.padding, strict=True
        ):
            reads = (
                torch.arange(s * (out - 1) + period, dtype=torch.int64, device=x.device) - p
            ) % period
            x = x.index_select(axis, reads)
        bias = None if self.bias is None else self.bias.to(x)
        return products.conv2d(x, self.weight.to(x), bias, self.stride)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        height, width = self.weight.shape[2:]
        return norms.circular_conv_norm_bound(self.weight, (height, width), self.stride)

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        positions = math.prod(self.output_size)
        return affine_rounding(
            self.weight, self.bias, math.prod(self.weight.shape[1:]), positions, unit
        )

    def options(self) -> dict[str, Any]:
        return {
            "input_size": list(self.input_size),
            "output_size": list(self.output_size),
            "stride": list(self.stride),
            "padding": list(self.padding),
        }

    def tensors(self) -> dict[str, Tensor]:
        return without_none(weight=self.weight, bias=self.bias)


@dataclass(frozen=True, eq=False)
class Affine(Operation):
    """``x -> scale * x + shift`` per channel (dimension 1), such as an input normalisation.

    The shift may be one per channel or, of the input's own shape, one for every entry.
    """

    kind = "affine"
    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        scale, shift = (
            c.to(x).view(-1, *(1,) * (x.dim() - 2)) if c.dim() == 1 else c.to(x)
            for c in (self.scale, self.shift)
        )
        # Expanded, so that one channel is not silently copied to several.
        return x * scale.expand(x.shape[1:]) + shift.expand(x.shape[1:])

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return float(self.scale.abs().max())

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        entries = math.prod(input_shape)
        g = gamma(2, unit)
        bound = self.lipschitz_bound(input_shape)
        tiny = smallest_normal(unit)
        shift = g * float(self.shift.abs().max()) + 4 * tiny * (1 + bound)
        return (g * bound + tiny) * (1 + 1e-12), shift * math.sqrt(entries) * (1 + 1e-12)

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "shift": self.shift}


@dataclass(frozen=True, eq=False)
class Flatten(Operation):
    """``(N, *) -> (N, D)``."""

    kind = "flatten"

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return 1.0

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        return 0.0, 0.0


@dataclass(frozen=True, eq=False)
class Reshape(Operation):
    """The same entries, in the same order, as ``(N, *shape)``."""

    kind = "reshape"
    shape: Shape

    def __call__(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return 1.0

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        return 0.0, 0.0

    def options(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}


@dataclass(frozen=True, eq=False)
class Gather(Operation):
    r"""Entries of the input by their indices, :math:`y_i = x_{k_i}`, and 0 for an index of -1.

    Slices, permutations, flips, shifts, repetition and padding are such maps of indices. Its norm
    is the root of the largest number of outputs that read one entry, and nothing is rounded.

    Attributes:
        index: Indices into the flattened input, int64, of the shape of the output.
    """

    kind = "gather"
    index: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        padded = F.pad(x.flatten(1), (0, 1))
        index = self.index.to(x.device).flatten()
        places = torch.where(index < 0, padded.shape[1] - 1, index)
        return padded.index_select(1, places).view(len(x), *self.index.shape)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        read = self.index[self.index >= 0]
        return norms.sqrt_up(float(read.bincount().max()) if read.numel() else 0.0)

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        return 0.0, 0.0

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        # Indices stay integers in any arithmetic.
        return replace(self, index=self.index.to(device, copy=True))

    def tensors(self) -> dict[str, Tensor]:
        return {"index": self.index}


def plane(input_shape: Shape) -> tuple[int, int]:
    """Height and width of inputs of shape ``(C, H, W)``."""
    if len(input_shape) != 3:
        raise ValueError(f"it takes inputs of shape (C, H, W), got {tuple(input_shape)}")
    return input_shape[1], input_shape[2]
