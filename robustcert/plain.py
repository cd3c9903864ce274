"""A trained network with its constraints folded into constant weights: a list of operations.

This is what is certified, hashed, exported and deployed. An operation holds constants (float32;
float64 if the module was) and evaluates them in the dtype of its input, so that one list of numbers
defines the real-valued function and its float32 and float64 deployments.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, ClassVar, Self, cast
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert import norms
from robustcert.arithmetic import products
from robustcert.errors import UnsoundNetworkError
from robustcert.norms.scalars import UNIT, exact, root_up

Shape = tuple[int, ...]


def constant(tensor: Tensor) -> Tensor:
    """A copy of a folded weight on the CPU, cut from the graph; finite or refused.

    Float32, in which networks are stored and deployed, unless the module computes in float64.
    """
    if not tensor.is_floating_point():
        raise UnsoundNetworkError(f"expected weights that are real numbers, got {tensor.dtype}")
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    frozen = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    if not torch.isfinite(frozen).all():
        raise UnsoundNetworkError("a weight is NaN or infinite")
    return frozen


def join_path(*parts: str) -> str:
    """Dotted path of the parts that are not empty."""
    return ".".join(part for part in parts if part)


def gamma(terms: int, unit: float) -> float:
    """Relative error of a sum of ``terms`` products, in any order, rounded up (Higham, ch. 3)."""
    if not terms * unit < 0.5:
        raise UnsoundNetworkError(f"no error bound is known for sums of {terms} products")
    # One ulp of slack per operation of this formula itself.
    return math.nextafter(math.nextafter(terms * unit / (1 - terms * unit), math.inf), math.inf)


# Note [higher orders] (from a count of roundings to a bound)
# ~~~~~~~~~~~~~~~~~~~~
# An activation's formula is computed with factors 1 + d_i, one for every rounding, |d_i| <= c_i u
# and K = sum c_i; a library function has a c_i of 8. By the mean value theorem the result is wrong
# by at most sum c_i u sup |df / d d_i|. Each of these derivatives is a value of the computation
# times the derivatives of what comes after it. To first order they are taken at d = 0; with sizes
# of values, as the counts have them (|z| + tau, not what is left when they cancel), each grows
# within the box by at most a factor (1 + u)^K for its value and another for what comes after:
# products, quotients, roots, sums and functions of slope at most 1 do no worse. An exponential
# whose argument is wrong relatively grows by a factor e^(3 u |z|) besides, |z| below 104 in float32
# and 745 in float64, where it underflows: below 1 + 2^-15. So the bound is the count times
#
#     (1 + u)^(2 K) (1 + 2^-15) <= e^(2^-5) (1 + 2^-15) < 1.032 < 17 / 16    for K u <= 2^-6,
#
# and K is at most MAX_ROUNDINGS for the coarsest unit, 2^-24.
HIGHER_ORDERS = 17 / 16
MAX_ROUNDINGS = 2**18


def counted(
    relative: float, absolute: float = 0.0, *, roundings: float = 100.0
) -> tuple[float, float]:
    """Error constants of an :class:`Activation` from those of first order: Note [higher orders].

    Args:
        relative: First-order count in multiples of the norm of the input.
        absolute: First-order count that remains where the input is 0.
        roundings: Number of roundings that were counted, at most.

    Raises:
        UnsoundNetworkError: there are too many roundings.
    """
    if not roundings <= MAX_ROUNDINGS:
        raise UnsoundNetworkError(
            f"expected an activation of at most {MAX_ROUNDINGS} roundings, got {roundings:g}: "
            "make its groups, windows or numbers of knots smaller"
        )
    return HIGHER_ORDERS * relative, HIGHER_ORDERS * absolute


def absolute_norm(weight: Tensor) -> float:
    r"""Upper bound on the norm of the map with kernel :math:`|W|`, by the Schur test.

    :math:`\lVert |W| \rVert_2 \le \sqrt{\max_i \sum_j |W_{ij}| \, \max_j \sum_i |W_{ij}|}`, which
    a convolution's taps bound from above for any padding and stride.
    """
    magnitude = weight.double().abs().flatten(2) if weight.dim() > 2 else weight.double().abs()
    out_sums = magnitude.flatten(1).sum(1).max()
    in_sums = magnitude.sum(0).max() if weight.dim() == 2 else magnitude.sum((0, 2)).max()
    # Rooted one by one, so that the product neither overflows nor underflows.
    return float(out_sums.sqrt() * in_sums.sqrt()) * (1 + 1e-9)


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """One step of a plain network: a function with constant weights.

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
        return tuple(self(_zeros(input_shape)).shape[1:])

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
        return _affine_rounding(self.weight, self.bias, self.weight.shape[1], positions, unit)

    def tensors(self) -> dict[str, Tensor]:
        return _without_none(weight=self.weight, bias=self.bias)


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
            self.weight, _plane(input_shape), self.stride, self.padding, self.dilation, self.groups
        )

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        positions = math.prod(self.output_shape(input_shape)[1:])
        return _affine_rounding(
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
        return _without_none(weight=self.weight, bias=self.bias)


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
        return _affine_rounding(
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
        return _without_none(weight=self.weight, bias=self.bias)


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
        tiny = _smallest_normal(unit)
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


@dataclass(frozen=True)
class Slopes:
    """Between which values the difference quotients of an activation lie, coordinate by coordinate.

    Attributes:
        low: The least.
        high: The greatest.
        pairs: False: every entry of the output is a function of the same entry of the input, and
            the quotients are those of this function. True: the sum of every two neighbouring
            features is kept, and their difference goes through such a function.
    """

    low: float
    high: float
    pairs: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"expected slopes from low to high, got {self.low} to {self.high}")


@dataclass(frozen=True, eq=False)
class Activation(Operation):
    r"""A nonlinearity given by a pure function and its constants.

    Args:
        function: ``function(x, **constants)``, a module-level function; its name is the
            operation's name in files. Tensor constants are cast to the dtype of ``x``.
        constants: Tensors and integers.
        lipschitz: Upper bound on the Lipschitz constant, for these constants.
        jacobian_lipschitz: Upper bound on the Lipschitz constant of the Jacobian in operator norm
            (per input unit); infinite where the function has a fold.
        error: ``(a, b)``: in arithmetic of unit roundoff u, each evaluation is within
            :math:`u (a \lVert z \rVert_2 + b \sqrt{n})` of the real function in the l2 norm, n the
            number of outputs, all orders in u included: see :func:`counted`. ``(0, 0)`` if it
            only selects and negates.
        slopes: What semidefinite bounds may use beside ``lipschitz``; None if it does not act on
            every coordinate by itself.
        squares: Whether inputs are squared, which overflows earlier.
        claimed: Constants that ``lipschitz``, ``jacobian_lipschitz``, ``error`` and ``slopes`` were
            stated for; a copy of ``constants`` if None. ``dataclasses.replace`` keeps it: with new
            constants and new bounds, give ``claimed=None`` too.
    """

    kind = "activation"
    function: Callable[..., Tensor]
    constants: dict[str, Tensor | int]
    lipschitz: float
    jacobian_lipschitz: float = math.inf
    error: tuple[float, float] = (0.0, 0.0)
    slopes: Slopes | None = None
    squares: bool = False
    claimed: dict[str, Tensor | int] | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.claimed is None:
            object.__setattr__(self, "claimed", _copied(self.constants))

    def check_claims(self) -> None:
        # Compared by value: where a conversion rounds a constant, the bounds are of another one.
        pairs = ({k: _wide(v) for k, v in c.items()} for c in (self.constants, self.claimed or {}))
        if not _same(*pairs):
            raise UnsoundNetworkError(
                f"the constants of {self.function.__name__} were changed after its bounds had been "
                "stated: fold the module again",
                self.label,
            )

    def __call__(self, x: Tensor) -> Tensor:
        constants = {k: v.to(x) if isinstance(v, Tensor) else v for k, v in self.constants.items()}
        return self.function(x, **constants)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return self.lipschitz

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        relative, absolute = self.error
        if relative == absolute == 0:
            return 0.0, 0.0
        outputs = math.prod(self.output_shape(input_shape))
        tiny = 8 * _smallest_normal(unit) * math.sqrt(outputs)
        return relative * unit, (absolute * unit * math.sqrt(outputs) + tiny) * (1 + 1e-12)

    def options(self) -> dict[str, Any]:
        integers = {k: v for k, v in self.constants.items() if not isinstance(v, Tensor)}
        return {"function": self.function.__name__, **integers}

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        moved = {
            k: v.to(device, dtype, copy=True) if isinstance(v, Tensor) else v
            for k, v in self.constants.items()
        }
        return replace(self, constants=moved)

    def tensors(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.constants.items() if isinstance(v, Tensor)}


@dataclass(frozen=True, eq=False)
class ResidualBlock(Operation):
    r"""``x -> x - 2 W' (t * s(W x + b))`` with ``t = scale**2`` for every row of W.

    W is dense, ``(m, n)``, or a zero-padded convolution of stride 1, ``(m, n, k, k)``, and W' its
    transpose; s is an activation with slopes in [0, 1], entry by entry.

    Let d and e be the differences of two inputs and of their activations, :math:`A = t^{1/2} W` and
    :math:`f = t^{1/2} e`. The slopes give :math:`e_k^2 \le e_k (W d)_k`, hence
    :math:`|f|^2 \le f^\top A d` and :math:`|f| \le \lVert A \rVert\, |d|`, and

    .. math:: |d - 2 A^\top f|^2 = |d|^2 - 4 f^\top A d + 4 |A^\top f|^2
        \le |d|^2 + 4 (\lVert A \rVert^2 - 1) |f|^2 \le (1 + 4 \eta (1 + \eta)) |d|^2,

    :math:`\eta = \max(0, \lVert A \rVert^2 - 1)`. With t of the form scale**2, A is the product
    of W and scale, which float64 holds exactly if both are float32.

    Reference: Meunier et al., `A dynamical system perspective for Lipschitz neural networks
    <https://arxiv.org/abs/2110.12690>`_, ICML 2022; Araujo et al., `A unified algebraic perspective
    on Lipschitz neural networks <https://arxiv.org/abs/2303.03169>`_, ICLR 2023 (eta of 0).
    """

    kind = "residual_block"
    weight: Tensor
    scale: Tensor
    activation: Activation
    bias: Tensor | None = None
    padding: int = 0

    def _inner(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        if self.weight.dim() == 2:
            return products.linear(x, self.weight.to(x), bias)
        padding = (self.padding, self.padding)
        return products.conv2d(x, self.weight.to(x), bias, padding=padding)

    def _outer(self, h: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return products.linear(h, self.weight.to(h).mT)
        return products.conv_transpose2d(h, self.weight.to(h), padding=self.padding)

    def __call__(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x).view(-1, *(1,) * (self.weight.dim() - 2))
        return x - 2 * self._outer(self.activation(self._inner(x)) * scale * scale)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        _check_slopes(self.activation)
        wide = self.weight.double()
        product = self.scale.double().view(-1, *(1,) * (wide.dim() - 1)) * wide
        if wide.dim() == 2:
            norm = norms.dense_norm_bound(product)
        else:
            size, padding = _plane(input_shape), self.padding
            norm = norms.conv_norm_bound(product, size, padding=padding)
        # Products of float64 constants are rounded, relatively, or lost below the normal range.
        rounded = exact(absolute_norm(product)) * UNIT * 2 + product.numel() * Fraction(2) ** -1022
        eta = max(Fraction(0), (exact(norm) + rounded) ** 2 - 1)
        return root_up(1 + 4 * eta * (1 + eta))

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        hidden = tuple(self._inner(_zeros(input_shape)).shape[1:])
        places = math.prod(hidden[1:]) if self.weight.dim() == 4 else math.prod(hidden[:-1])
        positions = math.prod(input_shape) // self.weight.shape[1]
        norm = absolute_norm(self.weight)
        largest = float(self.scale.double().abs().max())
        tiny = _smallest_normal(unit) * math.sqrt(math.prod(hidden))
        # Errors and sizes of what is computed, each (a, b) for a |z| + b.
        e2, v, h = _hidden_rounding(self.weight, self.bias, self.activation, hidden, places, unit)
        two, flushed = gamma(2, unit), 4 * tiny * (1 + largest) ** 2
        e3 = (largest**2 * (e2[0] + two * h[0]), largest**2 * (e2[1] + two * h[1]) + flushed)
        q = (largest**2 * h[0] + e3[0], largest**2 * h[1] + e3[1])
        back = self.weight.transpose(0, 1)
        a, b = _affine_rounding(back, None, math.prod(back.shape[1:]), positions, unit)
        e4 = (norm * e3[0] + a * q[0], norm * e3[1] + a * q[1] + b)
        p = (norm * q[0] + e4[0], norm * q[1] + e4[1])
        # No intermediate value is larger than 2**40 times the error over the unit.
        room = unit * 2.0**-39
        return (
            (2 * e4[0] + unit * (1 + 2 * p[0]) + room * (v[0] + h[0])) * (1 + 1e-9),
            (2 * e4[1] + unit * 2 * p[1] + room * (v[1] + h[1]) + tiny) * (1 + 1e-9),
        )

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        moved = super().to(device, dtype)
        return replace(moved, activation=self.activation.to(device, dtype))

    def options(self) -> dict[str, Any]:
        return {"padding": self.padding, "activation": self.activation.options()}

    def tensors(self) -> dict[str, Tensor]:
        constants = {f"activation.{k}": v for k, v in self.activation.tensors().items()}
        return _without_none(weight=self.weight, scale=self.scale, bias=self.bias) | constants


@dataclass(frozen=True, eq=False)
class Sandwich(Operation):
    r"""``x -> G' s(V x + b)`` for dense V ``(m, n)`` and G ``(m, out)``, bounded as a whole.

    s is an activation with slopes in [0, 1], entry by entry; ``multiplier`` is a vector psi of
    positive numbers that takes no part in the function.

    Let d and e be the differences of two inputs and of their activations, :math:`f = \psi e`,
    :math:`A = G / (\sqrt 2 \psi)` and :math:`B = \psi V / \sqrt 2`, rows by rows. The slopes give
    :math:`|f|^2 \le \sqrt 2 f^\top B d`, hence :math:`|f| \le \sqrt 2 \lVert B \rVert\, |d|`. With
    :math:`\eta = \max(0, \lVert [A\; B] \rVert^2 - 1)`,

    .. math:: |\sqrt 2 A^\top f|^2 \le 2 (1 + \eta) |f|^2 - 2 |B^\top f|^2
        \le 2 \sqrt 2 f^\top B d - 2 |B^\top f|^2 + 2 \eta |f|^2
        \le (1 + 4 \eta (1 + \eta)) |d|^2,

    since the first two terms are :math:`|d|^2 - |d - \sqrt 2 B^\top f|^2`.

    Reference: Wang and Manchester, `Direct Parameterization of Lipschitz-Bounded Deep Networks
    <https://arxiv.org/abs/2301.11526>`_, ICML 2023 (eta of 0).
    """

    kind = "sandwich"
    inner: Tensor
    outer: Tensor
    multiplier: Tensor
    activation: Activation
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        hidden = self.activation(products.linear(x, self.inner.to(x), bias))
        return products.linear(hidden, self.outer.to(x).mT)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        _check_slopes(self.activation)
        psi = self.multiplier.double()[:, None]
        if not (psi > 0).all():
            raise ValueError("the multipliers of a sandwich layer must be positive")
        both = torch.cat([self.outer.double() / psi, self.inner.double() * psi], 1)
        norm = exact(norms.dense_norm_bound(both))
        # Every entry is rounded once, relatively, or lost below the normal range.
        norm += exact(absolute_norm(both)) * UNIT * 2 + both.numel() * Fraction(2) ** -1022
        eta = max(Fraction(0), norm**2 / 2 - 1)
        return root_up(1 + 4 * eta * (1 + eta))

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        rows, positions = self.inner.shape[0], math.prod(input_shape[:-1])
        hidden = (*input_shape[:-1], rows)
        e, v, h = _hidden_rounding(self.inner, self.bias, self.activation, hidden, positions, unit)
        norm = absolute_norm(self.outer)
        a, b = _affine_rounding(self.outer.mT, None, rows, positions, unit)
        # No intermediate value is larger than 2**40 times the error over the unit.
        room = unit * 2.0**-39
        return (
            (norm * e[0] + a * h[0] + room * (v[0] + h[0])) * (1 + 1e-9),
            (norm * e[1] + a * h[1] + b + room * (v[1] + h[1])) * (1 + 1e-9),
        )

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        moved = super().to(device, dtype)
        return replace(moved, activation=self.activation.to(device, dtype))

    def options(self) -> dict[str, Any]:
        return {"activation": self.activation.options()}

    def tensors(self) -> dict[str, Tensor]:
        constants = {f"activation.{k}": v for k, v in self.activation.tensors().items()}
        own = _without_none(
            inner=self.inner, outer=self.outer, multiplier=self.multiplier, bias=self.bias
        )
        return own | constants


@dataclass(frozen=True, eq=False)
class Sum(Operation):
    r"""Sum of branches on the same input, :math:`x \mapsto \sum_k g_k(x)`; an empty one is x."""

    kind = "sum"
    branches: tuple[tuple[Operation, ...], ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([run(branch, x) for branch in self.branches]).sum(0)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return norms.sum_up([sequence_bound(b, input_shape) for b in self.branches])

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        raise NotImplementedError("the error of a sum is composed from its branches")

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        branches = tuple(tuple(op.to(device, dtype) for op in branch) for branch in self.branches)
        return replace(self, branches=branches)


def _affine_rounding(
    weight: Tensor, bias: Tensor | None, fan_in: int, positions: int, unit: float
) -> tuple[float, float]:
    # |fl(Wz + b) - (Wz + b)| <= gamma_{n+1} (|W||z| + |b|) entrywise, then the l2 norm of both.
    g = gamma(fan_in + 1, unit)
    outputs = weight.shape[0] * positions
    shift = 0.0
    if bias is not None:
        shift = float(bias.double().norm()) * math.sqrt(positions)
    # Flushed products and sums, inputs (against the weights) and weights (against the inputs).
    tiny = _smallest_normal(unit)
    flushed = 2 * (fan_in + 1) * tiny * math.sqrt(outputs) * (1 + float(weight.abs().max()))
    return (
        (g * absolute_norm(weight) + tiny * weight.numel()) * (1 + 1e-12),
        (g * shift + flushed) * (1 + 1e-9),
    )


def _check_slopes(activation: Activation) -> None:
    slopes = activation.slopes
    if slopes is None or slopes.pairs or slopes.low < 0 or slopes.high > 1:
        raise ValueError(
            "this layer is bounded for activations with slopes in [0, 1] only, not for "
            f"{activation.function.__name__}"
        )


def _hidden_rounding(
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    hidden: Shape,
    places: int,
    unit: float,
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    # s(W z + b) for slopes in [0, 1], each (a, b) for a |z| + b: its error, and the sizes of the
    # computed W z + b and s(W z + b).
    shift = 0.0
    if bias is not None:
        shift = float(bias.double().norm()) * math.sqrt(places)
    a, b = _affine_rounding(weight, bias, math.prod(weight.shape[1:]), places, unit)
    v = (absolute_norm(weight) + a, shift + b)
    own = activation.rounding(hidden, unit)
    error = (a + own[0] * v[0], b + own[0] * v[1] + own[1])
    rest = activation(_zeros(hidden, torch.float64))
    at_zero = 2 * float(rest.norm()) + own[1]
    return error, v, (v[0] + error[0], v[1] + error[1] + at_zero)


def _zeros(input_shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
    # A batch of one input.
    return torch.zeros(1, *input_shape, dtype=dtype, device="cpu")


def _above(values: Tensor) -> Tensor:
    # The next float of each entry.
    return torch.nextafter(values, torch.full_like(values, math.inf))


def _smallest_normal(unit: float) -> float:
    # Numbers below it may be lost, by underflow or on hardware that flushes subnormal ones.
    return torch.finfo(torch.float64 if unit < 1e-10 else torch.float32).smallest_normal


def _plane(input_shape: Shape) -> tuple[int, int]:
    if len(input_shape) != 3:
        raise ValueError(f"it takes inputs of shape (C, H, W), got {tuple(input_shape)}")
    return input_shape[1], input_shape[2]


def _without_none(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if v is not None}


def run(operations: Sequence[Operation], x: Tensor) -> Tensor:
    """Apply the operations in turn."""
    for operation in operations:
        x = operation(x)
    return x


def shapes(
    operations: Sequence[Operation], input_shape: Shape
) -> Iterator[tuple[Operation, Shape]]:
    """Each operation with the shape of its input."""
    for operation in operations:
        yield operation, input_shape
        input_shape = operation.output_shape(input_shape)


# Note [owned copies] (bounds that are remembered)
# ~~~~~~~~~~~~~~~~~~~
# The tensors of an operation can be changed in place, also where torch does not count it: through
# `.data`, or an array that shares their memory. So bounds are computed from a copy that nobody else
# holds, and are remembered for that copy. Whoever is given an operation compares it with its copy,
# bit by bit, which costs as much as reading both; what has changed gets a new copy. A certifier
# does so once for a batch and then works with the copies, which are their own: the network that it
# evaluates is the one that its bounds speak of, even if another thread changes it meanwhile.


def owned(operation: Operation) -> Operation:
    """A copy that nobody else holds, the same one as long as the operation has the same values.

    Raises:
        UnsoundNetworkError: bounds were stated of other constants, see
            :meth:`Operation.check_claims`.
    """
    if operation in _OWNED:
        return operation
    known = _COPIES.get(operation)
    if known is None or not _same(operation, known):
        known = cast(Operation, _copied(operation))
        known.check_claims()
        _OWNED.add(known)
        _COPIES[operation] = known
    return known


_OWNED: WeakSet[Operation] = WeakSet()
_COPIES: WeakKeyDictionary[Operation, Operation] = WeakKeyDictionary()


def _operations_in(value: object) -> Iterator[Operation]:
    if isinstance(value, Operation):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _operations_in(part)


def _copied(value: Any) -> Any:
    # Operations, containers and tensors anew; what is in none of them as `deepcopy` sees fit.
    copy: Any
    if isinstance(value, Tensor):
        copy = value.detach().clone()
    elif isinstance(value, Operation):
        copy = object.__new__(type(value))
        for name, part in vars(value).items():
            object.__setattr__(copy, name, _copied(part))
    elif isinstance(value, dict):
        copy = {key: _copied(part) for key, part in value.items()}
    elif type(value) in (tuple, list):
        copy = type(value)(map(_copied, value))
    else:
        copy = deepcopy(value)
    return copy


def _same(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _same_bits(first, second)
    if isinstance(first, Operation) and isinstance(second, Operation):
        return type(first) is type(second) and _same(vars(first), vars(second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(v, second[k]) for k, v in first.items())
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(_same, first, second))
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


def _wide(value: Tensor | int) -> Tensor | int:
    return value.detach().to("cpu", torch.float64) if isinstance(value, Tensor) else value


def operation_bound(operation: Operation, input_shape: Shape) -> float:
    """The operation's Lipschitz bound, or an error that names it."""
    operation = owned(operation)
    known = _BOUNDS.setdefault(operation, {})
    if input_shape not in known:
        try:
            bound = operation.lipschitz_bound(input_shape)
        except ValueError as error:
            raise UnsoundNetworkError(str(error), operation.label) from error
        if not 0 <= bound < math.inf:
            raise UnsoundNetworkError(
                f"its Lipschitz bound is {bound}, not finite", operation.label
            )
        known[input_shape] = bound
    return known[input_shape]


def operation_rounding(
    operation: Operation, input_shape: Shape, unit: float
) -> tuple[float, float]:
    """The operation's local error, :meth:`Operation.rounding`, computed once."""
    operation = owned(operation)
    known = _ROUNDINGS.setdefault(operation, {})
    if (input_shape, unit) not in known:
        known[input_shape, unit] = operation.rounding(input_shape, unit)
    return known[input_shape, unit]


# Of operations from `owned`, which nobody changes; a bound may cost a factorisation.
_BOUNDS: WeakKeyDictionary[Operation, dict[Shape, float]] = WeakKeyDictionary()
_ROUNDINGS: WeakKeyDictionary[Operation, dict[tuple[Shape, float], tuple[float, float]]] = (
    WeakKeyDictionary()
)


def sequence_bound(operations: Sequence[Operation], input_shape: Shape) -> float:
    """Product of the operations' bounds, rounded up."""
    return norms.product_up(
        [operation_bound(operation, shape) for operation, shape in shapes(operations, input_shape)]
    )


@dataclass(frozen=True, eq=False)
class PlainNetwork:
    """Operations applied in turn to inputs of shape ``(N, *input_shape)``.

    Raises:
        UnsoundNetworkError: the shapes do not fit together.
    """

    operations: tuple[Operation, ...]
    input_shape: Shape

    def __post_init__(self) -> None:
        shape = self.input_shape
        for operation in self.operations:
            try:
                shape = operation.output_shape(shape)
            except (RuntimeError, IndexError) as error:
                raise UnsoundNetworkError(
                    f"it does not take inputs of shape {tuple(shape)}: {error}", operation.label
                ) from error
        if len(shape) != 1:
            raise UnsoundNetworkError(f"expected logits of shape (N, C), got (N, {shape})")

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, C)`` in the dtype of ``x``."""
        return run(self.operations, x)

    def owned(self) -> "PlainNetwork":
        """The network of :func:`owned` operations, the same one as long as they are the same.

        It is what bounds are remembered for; whoever asks for it must not change it.

        Raises:
            UnsoundNetworkError: see :meth:`Operation.check_claims`.
        """
        operations, shape = tuple(map(owned, self.operations)), tuple(self.input_shape)
        if operations == tuple(self.operations):
            return self
        known = _NETWORKS.get(self)
        if known is None or (known.operations, known.input_shape) != (operations, shape):
            known = replace(self, operations=operations, input_shape=shape)
            _NETWORKS[self] = known
        return known

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "PlainNetwork":
        """A copy whose constants live on ``device``, in ``dtype`` if one is given."""
        return replace(self, operations=tuple(op.to(device, dtype) for op in self.operations))

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self(_zeros(self.input_shape)).shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Float64 if any of the constants is, else float32."""
        constants = [t for _, tensors in _walk(self.operations) for t in tensors.values()]
        wide = any(t.dtype == torch.float64 for t in constants)
        return torch.float64 if wide else torch.float32

    @property
    def head(self) -> Dense | None:
        """The last operation if it is dense: its rows give tighter pairwise constants."""
        last = self.operations[-1] if self.operations else None
        return last if isinstance(last, Dense) else None

    @property
    def backbone(self) -> tuple[Operation, ...]:
        """All operations before the head."""
        return self.operations[:-1] if self.head is not None else self.operations

    def digest(self) -> str:
        """SHA-256 over every operation's definition and little-endian constants."""
        digest = hashlib.sha256()
        digest.update(json.dumps(list(self.input_shape)).encode())
        for line, tensors in _walk(self.operations):
            digest.update(json.dumps(line, sort_keys=True).encode())
            for key in sorted(tensors):
                array = tensors[key].cpu().numpy()
                digest.update(key.encode() + array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


_NETWORKS: WeakKeyDictionary[PlainNetwork, PlainNetwork] = WeakKeyDictionary()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, list[Any]]:
    return {key: [str(t.dtype).removeprefix("torch."), *t.shape] for key, t in tensors.items()}


def _walk(operations: Sequence[Operation]) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    for operation in operations:
        tensors = operation.tensors()
        line = {"kind": operation.kind, **operation.options(), "shapes": _shapes(tensors)}
        if isinstance(operation, Sum):
            # Without their number, what follows a sum could be one branch more.
            line["branches"] = len(operation.branches)
        yield line, tensors
        if isinstance(operation, Sum):
            for branch in operation.branches:
                yield {"branch": len(branch)}, {}
                yield from _walk(branch)


def output_bound(network: PlainNetwork) -> Tensor:
    r"""Bounds :math:`K_j` on the Lipschitz constant of every logit.

    :math:`K_j = L_{backbone} \lVert w_j \rVert_2` with the head's rows, or the constant of the
    whole where the network does not end in a dense operation.

    Returns:
        Shape ``(C,)``, float64, every entry rounded up.
    """
    network = network.owned()
    rest = sequence_bound(network.backbone, network.input_shape)
    if network.head is None:
        classes = network.classes
        lengths = torch.ones(classes, dtype=torch.float64, device="cpu")
    else:
        # The length of a row is its distance from 0.
        weight = network.head.weight
        rows = torch.cat([weight, torch.zeros_like(weight[:1])])
        lengths = norms.row_distance_bounds(rows)[-1, :-1]
    bound = _above(lengths * rest)
    if not torch.isfinite(bound).all():
        raise UnsoundNetworkError("the Lipschitz bound of a logit overflows: no certificate")
    return bound


def pairwise_bound(network: PlainNetwork) -> Tensor:
    r"""Bounds :math:`K_{ij}` on the Lipschitz constant of logit i minus logit j.

    :math:`K_{ij} = L_{backbone} \lVert w_i - w_j \rVert_2` with the head's rows (GloRo, Leino et
    al. 2021), or :math:`\sqrt 2 L` where the network does not end in a dense operation.

    Returns:
        Shape ``(C, C)``, float64, zero on the diagonal, every entry rounded up.
    """
    network = network.owned()
    rest = sequence_bound(network.backbone, network.input_shape)
    if network.head is None:
        classes = network.classes
        above_root_two = math.sqrt(2) * (1 + 1e-15)
        distances = torch.full(
            (classes, classes), above_root_two, dtype=torch.float64, device="cpu"
        )
        distances.fill_diagonal_(0)
    else:
        distances = norms.row_distance_bounds(network.head.weight)
    pairwise = _above(distances * rest)
    if not torch.isfinite(pairwise).all():
        raise UnsoundNetworkError("the pairwise Lipschitz bound overflows: no certificate")
    return pairwise.fill_diagonal_(0)
