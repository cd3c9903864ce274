"""Operations that are bounded as a whole: a linear map, an activation, a linear map."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from robustcert import norms
from robustcert.arithmetic import products
from robustcert.network.activation import Activation, check_slopes
from robustcert.network.linear import CircularConvolution, Dense, plane
from robustcert.network.local_error import absolute_norm, affine_rounding, gamma, smallest_normal
from robustcert.network.operation import Operation, Shape, without_none, zeros
from robustcert.norms.scalars import UNIT, exact, root_up


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
        check_slopes(self.activation)
        wide = self.weight.double()
        product = self.scale.double().view(-1, *(1,) * (wide.dim() - 1)) * wide
        if wide.dim() == 2:
            norm = norms.dense_norm_bound(product)
        else:
            size, padding = plane(input_shape), self.padding
            norm = norms.conv_norm_bound(product, size, padding=padding)
        # Products of float64 constants are rounded, relatively, or lost below the normal range.
        rounded = exact(absolute_norm(product)) * UNIT * 2 + product.numel() * Fraction(2) ** -1022
        eta = max(Fraction(0), (exact(norm) + rounded) ** 2 - 1)
        return root_up(1 + 4 * eta * (1 + eta))

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        hidden = tuple(self._inner(zeros(input_shape)).shape[1:])
        places = math.prod(hidden[1:]) if self.weight.dim() == 4 else math.prod(hidden[:-1])
        positions = math.prod(input_shape) // self.weight.shape[1]
        norm = absolute_norm(self.weight)
        largest = float(self.scale.double().abs().max())
        tiny = smallest_normal(unit) * math.sqrt(math.prod(hidden))
        # Errors and sizes of what is computed, each (a, b) for a |z| + b.
        e2, v, h = _hidden_rounding(self.weight, self.bias, self.activation, hidden, places, unit)
        two, flushed = gamma(2, unit), 4 * tiny * (1 + largest) ** 2
        e3 = (largest**2 * (e2[0] + two * h[0]), largest**2 * (e2[1] + two * h[1]) + flushed)
        q = (largest**2 * h[0] + e3[0], largest**2 * h[1] + e3[1])
        back = self.weight.transpose(0, 1)
        a, b = affine_rounding(back, None, math.prod(back.shape[1:]), positions, unit)
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
        return without_none(weight=self.weight, scale=self.scale, bias=self.bias) | constants


@dataclass(frozen=True, eq=False)
class Sandwich(Operation):
    r"""``x -> G' s(V x + b)`` for linear maps V and G to m features, bounded as a whole.

    They are dense, ``(m, n)`` and ``(m, out)``, or correlations on a torus that is the map, with
    kernels as large as it, ``(m, n, height, width)`` and ``(m, out, height, width)``:
    :math:`(V x)_i = \sum_t V_t\, x_{i + t}`, and G' is the transpose of such a map. s is an
    activation with slopes in [0, 1], entry by entry; ``multiplier`` is a vector psi of positive
    numbers that takes no part in the function.

    Let d and e be the differences of two inputs and of their activations, :math:`f = \psi e`,
    :math:`A = G / (\sqrt 2 \psi)` and :math:`B = \psi V / \sqrt 2`, rows by rows or channels by
    channels. The slopes give :math:`|f|^2 \le \sqrt 2 f^\top B d`, hence
    :math:`|f| \le \sqrt 2 \lVert B \rVert\, |d|`. With
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

    def linear(self) -> tuple[Dense, Dense] | tuple[CircularConvolution, CircularConvolution]:
        """V with b, and G'."""
        back = self.outer.transpose(0, 1)
        if self.inner.dim() == 2:
            return Dense(self.inner, self.bias), Dense(back)
        height, width = self.inner.shape[2:]
        on_torus = partial(
            CircularConvolution, input_size=(height, width), output_size=(height, width)
        )
        # The transpose reads backwards.
        around = (height - 1, width - 1)
        return on_torus(self.inner, self.bias), on_torus(back.flip(2, 3), padding=around)

    def __call__(self, x: Tensor) -> Tensor:
        first, last = self.linear()
        return last(self.activation(first(x)))

    def lipschitz_bound(self, input_shape: Shape) -> float:
        check_slopes(self.activation)
        psi = self.multiplier.double().view(-1, *(1,) * (self.inner.dim() - 1))
        if not (psi > 0).all():
            raise ValueError("the multipliers of a sandwich layer must be positive")
        both = torch.cat([self.outer.double() / psi, self.inner.double() * psi], 1)
        if both.dim() == 2:
            norm = exact(norms.dense_norm_bound(both))
        else:
            height, width = both.shape[2:]
            norm = exact(norms.circular_conv_norm_bound(both, (height, width)))
        # Every entry is rounded once, relatively, or lost below the normal range.
        norm += exact(absolute_norm(both)) * UNIT * 2 + both.numel() * Fraction(2) ** -1022
        eta = max(Fraction(0), norm**2 / 2 - 1)
        return root_up(1 + 4 * eta * (1 + eta))

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        rows, *kernel = self.inner.shape[0], *self.inner.shape[2:]
        positions = math.prod(kernel or input_shape[:-1])
        hidden = (rows, *kernel) if kernel else (*input_shape[:-1], rows)
        e, v, h = _hidden_rounding(self.inner, self.bias, self.activation, hidden, positions, unit)
        norm = absolute_norm(self.outer)
        fan_in = rows * math.prod(kernel)
        a, b = affine_rounding(self.outer.transpose(0, 1), None, fan_in, positions, unit)
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
        own = without_none(
            inner=self.inner, outer=self.outer, multiplier=self.multiplier, bias=self.bias
        )
        return own | constants


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
    a, b = affine_rounding(weight, bias, math.prod(weight.shape[1:]), places, unit)
    v = (absolute_norm(weight) + a, shift + b)
    own = activation.rounding(hidden, unit)
    error = (a + own[0] * v[0], b + own[0] * v[1] + own[1])
    rest = activation(zeros(hidden, torch.float64))
    at_zero = 2 * float(rest.norm()) + own[1]
    return error, v, (v[0] + error[0], v[1] + error[1] + at_zero)
