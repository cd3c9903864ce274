"""Maps on a torus by their matrix at every frequency, which are computed once and remembered."""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.arithmetic import products
from robustcert.errors import UnsoundNetworkError
from robustcert.network.local_error import gamma
from robustcert.network.operation import Operation, Shape, same, without_none
from robustcert.norms.symbols import roots_of_unity

# Largest error of a computed cosine or sine, as in norms/symbols.py.
TWIDDLE_ERROR = 2.0**-48
# Bytes of the matrices of all operations that are remembered.
MAX_BYTES = 3 * 2**30

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class TorusMap(Operation):
    """``x -> W x + b`` on a torus, with a linear W of norm at most 1 that a small kernel gives.

    Inputs are extended by zeros to the torus; positions modulo the stride become channels, which
    zeros extend to those of W; outputs beyond ``output_size`` and channels beyond ``outputs`` are
    dropped. None of it raises the norm.

    Attributes:
        weight: The kernel, shape ``(m, n, height, width)``.
        bias: Shape ``(outputs,)``.
        outputs: Number of output channels, at most m.
        input_size: Height and width of inputs.
        output_size: Of outputs.
        period: Of the torus, multiples of the stride.
        stride: Height and width of a block of positions that becomes one.
    """

    weight: Tensor
    bias: Tensor | None = None
    outputs: int = field(kw_only=True)
    input_size: Pair = field(kw_only=True)
    output_size: Pair = field(kw_only=True)
    period: Pair = field(kw_only=True)
    stride: Pair = field(default=(1, 1), kw_only=True)

    def __post_init__(self) -> None:
        fits = all(
            period % s == 0 and size <= period and 1 <= out <= period // s and k <= period // s
            for period, size, out, s, k in zip(
                *(self.period, self.input_size, self.output_size, self.stride),
                self.weight.shape[2:],
                strict=True,
            )
        )
        if not (fits and 1 <= self.outputs <= len(self.weight)):
            raise UnsoundNetworkError(
                f"no {self.kind} by a kernel {tuple(self.weight.shape)} takes {self.input_size} to "
                f"{self.output_size} positions with period {self.period}, stride {self.stride} and "
                f"{self.outputs} outputs"
            )

    @property
    @abstractmethod
    def columns(self) -> int:
        """Number of channels that W reads."""

    @abstractmethod
    def turned(self, x: Tensor) -> Tensor:
        """W x on the whole torus, its first ``outputs`` channels; x has those that are no zeros."""

    @property
    def map(self) -> Pair:
        """Height and width of the torus of output positions."""
        return self.period[0] // self.stride[0], self.period[1] // self.stride[1]

    def output_shape(self, input_shape: Shape) -> Shape:
        share = math.prod(self.stride)
        if (
            tuple(input_shape[1:]) != tuple(self.input_size)
            or input_shape[0] * share > self.columns
        ):
            raise RuntimeError(
                f"it takes at most {self.columns // share} channels of {self.input_size}, got "
                f"{tuple(input_shape)}"
            )
        return (self.outputs, *self.output_size)

    def __call__(self, x: Tensor) -> Tensor:
        self.output_shape(tuple(x.shape[1:]))
        height, width = (p - n for p, n in zip(self.period, x.shape[2:], strict=True))
        y = self.turned(residues(F.pad(x, (0, width, 0, height)), self.stride))
        y = y[:, :, : self.output_size[0], : self.output_size[1]]
        return y if self.bias is None else y + self.bias.to(x)[:, None, None]

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return 1.0

    def options(self) -> dict[str, Any]:
        return {
            "outputs": self.outputs,
            "input_size": list(self.input_size),
            "output_size": list(self.output_size),
            "period": list(self.period),
            "stride": list(self.stride),
        }

    def tensors(self) -> dict[str, Tensor]:
        return without_none(weight=self.weight, bias=self.bias)


def residues(x: Tensor, stride: Pair) -> Tensor:
    """Positions modulo the stride as channels, those of a channel after each other."""
    if stride == (1, 1):
        return x
    split = x.unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))
    return split.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def numerators(size: Pair, positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``w p`` in units of a turn over all positions, of one frequency of every conjugate pair."""
    height, width = size
    rows, columns = np.divmod(np.arange(height * width), width)
    kept = np.arange(height * width) <= (-rows % height) * width + (-columns % width)
    points = np.stack([rows[kept] * width, columns[kept] * height], axis=1)
    return points @ positions.T


def basis(size: Pair) -> Tensor:
    """Cosines, then minus sines, of length 1 or 0, shape ``(2 F, M)``, float64."""
    if size not in _BASES:
        total = math.prod(size)
        positions = np.stack(np.divmod(np.arange(total), size[1]), axis=1)
        turns = numerators(size, positions)
        cosine, sine = roots_of_unity(turns, total)
        alone = ((2 * turns) % total == 0).all(1)
        length = np.where(alone, 1 / math.sqrt(total), math.sqrt(2 / total))[:, None]
        sine[alone] = 0.0
        _BASES[size] = torch.from_numpy(np.concatenate([length * cosine, -length * sine]))
    return _BASES[size]


_BASES: dict[Pair, Tensor] = {}


def basis_error(size: Pair, terms: int, unit: float) -> float:
    """Bound on the relative error of a product with :func:`basis`, of sums of so many terms."""
    return gamma(terms, unit) * math.sqrt(terms) + TWIDDLE_ERROR * math.sqrt(2 * math.prod(size))


def by_frequency(x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    """Both parts of complex matrices ``(F, m, n)`` at the frequencies of maps ``(N, n, *size)``."""
    size = x.shape[2], x.shape[3]
    waves = basis(size).to(x)
    count, channels = x.shape[:2]
    spectrum = products.linear(x.flatten(2).flatten(0, 1), waves)
    # Frequencies first; of each, the real parts of all samples before the imaginary ones.
    parts = spectrum.view(count, channels, 2, -1).permute(3, 2, 0, 1).flatten(1, 2)
    found = []
    for part, re, im in zip(parts.unbind(), real, imaginary, strict=True):
        by_real, by_imaginary = products.linear(part, re), products.linear(part, im)
        first, second = by_imaginary.split(count)
        found.append(by_real + torch.cat([-second, first]))
    outputs = real.shape[1]
    back = torch.stack(found).view(-1, 2, count, outputs).permute(2, 3, 1, 0)
    maps = products.linear(back.reshape(count * outputs, -1), waves.mT.contiguous())
    return maps.view(count, outputs, *size)


class Matrices:
    """Complex matrices ``(F, m, n)`` at one frequency of every conjugate pair, in float64.

    Attributes:
        real: Their real parts.
        imaginary: Likewise.
    """

    def __init__(self, real: Tensor, imaginary: Tensor) -> None:
        self.real = real
        self.imaginary = imaginary
        self._placed: tuple[Tensor, Tensor] | None = None

    def on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both parts in the arithmetic and on the device of a tensor; the last ones are kept."""
        if (self.real.dtype, self.real.device) == (like.dtype, like.device):
            return self.real, self.imaginary
        placed = self._placed
        if placed is None or (placed[0].dtype, placed[0].device) != (like.dtype, like.device):
            self._placed = placed = self.real.to(like), self.imaginary.to(like)
        return placed


class Computed(Protocol):
    """What is remembered of an operation: matrices, and what is known of them."""

    @property
    def matrices(self) -> Matrices:
        """At all frequencies."""


Found = TypeVar("Found", bound=Computed)


def remembered(rule: tuple[Any, ...], weight: Tensor, compute: Callable[[Tensor], Found]) -> Found:
    """What a rule computes of a kernel, remembered for its values.

    Args:
        rule: What the result depends on beside the kernel.
        weight: The kernel.
        compute: Of a copy of it on the CPU, in float64.
    """
    weight = weight.detach().to("cpu", torch.float64, copy=True)
    key = (*rule, *weight.shape, float(weight.sum()))
    known = _KNOWN.get(key)
    if known is None or not same(known[0], weight):
        known = weight, compute(weight)
        _KNOWN[key] = known
    _KNOWN.move_to_end(key)
    while len(_KNOWN) > 1 and sum(map(_bytes, _KNOWN.values())) > MAX_BYTES:
        _KNOWN.popitem(last=False)
    return known[1]


def _bytes(known: tuple[Tensor, Any]) -> int:
    return 16 * known[1].matrices.real.numel()


_KNOWN: OrderedDict[tuple[Any, ...], tuple[Tensor, Any]] = OrderedDict()
