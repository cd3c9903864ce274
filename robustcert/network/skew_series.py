"""Polynomials of skew convolutions, such as an exponential that is cut off after some terms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

import torch
from torch import Tensor

from robustcert.network.bounds import operation_bound, operation_rounding
from robustcert.network.linear import Convolution
from robustcert.network.local_error import smallest_normal
from robustcert.network.operation import Operation, Shape, without_none
from robustcert.norms.scalars import exact, round_up


@dataclass(frozen=True, eq=False)
class SkewSeries(Operation):
    r"""``x -> b + x + s_1 A (x + s_2 A (x + ... s_n A x))`` for a zero-padded convolution A.

    The map keeps its size, and the kernel is minus itself with channels exchanged and taps
    reflected, so that the matrix A is skew: normal, with eigenvalues :math:`i \lambda` on the
    imaginary axis, :math:`|\lambda| \le L` for a bound L of its norm. With
    :math:`c_k = s_1 \cdots s_k` the norm of :math:`p(A) = \sum_{k \le n} c_k A^k` is the largest
    :math:`|p(i \lambda)|`, and as :math:`|e^{i \lambda}| = 1`,

    .. math:: |p(i \lambda)| \le 1 + \sum_{k \le n} |c_k - 1 / k!|\, L^k + \sum_{k > n} L^k / k!\,.

    With :math:`s_k = 1 / k` it is the exponential of A, which is orthogonal, without the terms
    after the n-th.

    Reference: Singla and Feizi, `Skew Orthogonal Convolutions
    <https://arxiv.org/abs/2105.11417>`_, ICML 2021 (the remainder, for :math:`s_k = 1 / k`).

    Attributes:
        step: A, without a bias.
        scales: s, shape ``(n,)``.
        bias: b, one value per channel.
    """

    kind = "skew_series"
    step: Convolution
    scales: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(
        cls, *, weight: Tensor, scales: Tensor, bias: Tensor | None = None, name: str = ""
    ) -> Self:
        """The operation with a kernel ``(C, C, height, width)`` of odd sides."""
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        return cls(Convolution(weight, padding=padding), scales, bias, name=name)

    def __call__(self, x: Tensor) -> Tensor:
        z = x
        for scale in self.scales.to(x).flip(0):
            z = x + self.step(z) * scale
        return z if self.bias is None else z + self.bias.to(x)[:, None, None]

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.step.output_shape(input_shape)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        weight = self.step.weight
        sides = tuple(weight.shape[2:])
        fits = self.step.padding == tuple(n // 2 for n in sides) and all(n % 2 for n in sides)
        if not fits or not torch.equal(weight, -weight.transpose(0, 1).flip(2, 3)):
            raise ValueError("the kernel of a skew series must be minus its own transpose")
        norm = exact(operation_bound(self.step, input_shape))
        # A little above it, so that another proof of the norm has room.
        return round_up(series_bound(self.scales.tolist(), norm * (1 + Fraction(1, 10**9))))

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        norm = operation_bound(self.step, input_shape)
        a, b = operation_rounding(self.step, input_shape, unit)
        tiny = smallest_normal(unit) * math.sqrt(math.prod(input_shape))
        # Errors, sizes of what is computed and of all that comes before it, each (p, q) for
        # p |x| + q.
        error, size, largest = (0.0, 0.0), (1.0, 0.0), (1.0, 0.0)
        for s in map(abs, reversed(self.scales.double().tolist())):
            product = ((norm + a) * size[0], (norm + a) * size[1] + b)
            scaled = (s * (1 + unit) * product[0], s * (1 + unit) * product[1] + tiny)
            own = s * a * size[0], s * (a * size[1] + b) + tiny
            size = (1 + unit) * (1 + scaled[0]), (1 + unit) * scaled[1]
            error = (
                s * norm * error[0] + own[0] + unit * (scaled[0] + size[0]),
                s * norm * error[1] + own[1] + unit * (scaled[1] + size[1]),
            )
            largest = largest[0] + product[0] + size[0], largest[1] + product[1] + size[1]
        if self.bias is not None:
            shift = float(self.bias.double().norm()) * math.sqrt(math.prod(input_shape[1:]))
            error = error[0] + unit * size[0], error[1] + unit * (size[1] + shift) + tiny
        # No intermediate value is larger than 2**40 times the error over the unit.
        room = unit * 2.0**-39
        return (
            (error[0] + room * largest[0]) * (1 + 1e-9),
            (error[1] + room * largest[1]) * (1 + 1e-9),
        )

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        moved = super().to(device, dtype)
        return replace(moved, step=self.step.to(device, dtype))

    def tensors(self) -> dict[str, Tensor]:
        return without_none(weight=self.step.weight, scales=self.scales, bias=self.bias)


def series_bound(scales: Sequence[float], norm: Fraction) -> Fraction:
    """Bound on ``|p(i t)|`` for ``|t|`` up to a norm: see :class:`SkewSeries`."""
    away, largest, product, power = Fraction(0), Fraction(1), Fraction(1), Fraction(1)
    for k, scale in enumerate(scales, 1):
        product, power = product * exact(scale), power * norm
        away += abs(product - Fraction(1, math.factorial(k))) * power
        largest += abs(product) * power
    rest = len(scales) + 1
    if norm >= rest + 1:
        return largest
    # The terms left out are at most geometric from the first on.
    tail = power * norm / math.factorial(rest) / (1 - norm / (rest + 1))
    return min(largest, 1 + away + tail)
