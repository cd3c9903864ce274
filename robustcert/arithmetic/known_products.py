"""Products whose results are known bit by bit: a self-test of what a machine computes.

A setting says what a library was asked for. These inputs show what it does: each of their results
is the same in every order of summation, fused or not, as long as every operation is rounded to
nearest in the working precision, and another one in faster arithmetic.

Note [known products] (what each kind of result shows)
~~~~~~~~~~~~~~~~~~~~~
Samples and outputs take turns in four kinds; with p the bits of a significand:

0. *Selection*: a row of weights is 0 but for one 1, so that the output is an entry of the sample.
   Entries have all p bits and neighbours a ratio of 2^110 or more (float64: 2^960), or, in every
   second sample, up to 2^20; one is subnormal, and lost where these are. TF32, bfloat16, float16
   and sums of two of their pieces round it; transforms (Winograd, Fourier) add neighbours to it and
   subtract them again; emulated float64 cuts a sample into slices below its largest entry.
1. *Scaling*: a sample is 0 but for one number of p bits, so that the output is its product with a
   weight of p bits, rounded once: the same with the parts exchanged, and products of low parts.
2. *Sums* of products of positive integers whose total is odd and close to 2^p: every partial sum is
   an integer below 2^p, in any order, and an accumulator with fewer bits cannot hold the total.
3. *Rounding*: two products, +-2^p and +-1 or +-3, all others 0. There is one sum to round, ties to
   even; accumulators that truncate and directed rounding give another neighbour.

A sample of one kind meets outputs of all kinds; only pairs whose result is known are looked at.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

# Number of bits of a significand.
BITS = {torch.float32: 24, torch.float64: 53}
# Exponent of the least number above 0.
MIN_EXPONENT = {torch.float32: -149, torch.float64: -1074}
# Exponents that entries of a sample take in turn: far from their neighbours', and close to them.
WIDE = {torch.float32: (55, -55, 0, -31, 31), torch.float64: (480, -480, 0, -301, 301)}
NARROW = (0, -20, -7, -13, -2)
# Number of kinds of results.
KINDS = 4
# Samples and outputs that hold every kind, with and without a subnormal number.
PLACES = 2 * KINDS
# Outputs and samples whose known entries are compared: spread over all of them.
MAX_SELECTIONS, MAX_SCALINGS = 16, 4
# What an arithmetic does that fails at a kind of result.
FAULTS = {
    "selection": "an entry times 1 is not the entry",
    "scaling": "a single product is not rounded once",
    "sum": "a sum of integers is not exact",
    "rounding": "a sum is not rounded to the nearest number",
}

Shape = tuple[int, ...]
Evaluate = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Geometry:
    """The shapes of a convolution; a dense product is one of 1x1 maps with 1x1 kernels.

    Attributes:
        inputs: ``(N, C, H, W)``.
        weight: ``(O, C / groups, kernel height, kernel width)``.
        stride: Of both dimensions, as are padding and dilation.
        padding: Zeros on each side; a negative number crops.
        dilation: Distance between taps.
        groups: Number of groups of channels.
        bias: Whether there is one.
    """

    inputs: Shape
    weight: Shape
    stride: Shape = (1, 1)
    padding: Shape = (0, 0)
    dilation: Shape = (1, 1)
    groups: int = 1
    bias: bool = False

    @staticmethod
    def dense(samples: int, inputs: int, outputs: int, bias: bool = False) -> "Geometry":
        """That of ``x W' + b`` for x ``(samples, inputs)`` and W ``(outputs, inputs)``."""
        return Geometry((samples, inputs, 1, 1), (outputs, inputs, 1, 1), bias=bias)

    @property
    def taps(self) -> int:
        """Number of products in a sum."""
        return math.prod(self.weight[1:])

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the output."""
        sides = zip(
            self.inputs[2:], self.weight[2:], self.stride, self.padding, self.dilation, strict=True
        )
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        return height, width

    def read(self, axis: int, output: int, tap: int) -> int:
        """Input position that a tap of an output reads along a dimension; outside are zeros."""
        start = output * self.stride[axis] - self.padding[axis]
        return start + tap * self.dilation[axis]

    def reads(self, axis: int) -> Tensor:
        """All of these positions, shape ``(outputs, taps)``."""
        outputs, taps = (
            torch.arange(n, dtype=torch.int64, device="cpu")
            for n in (self.sides[axis], self.weight[2 + axis])
        )
        starts = outputs * self.stride[axis] - self.padding[axis]
        return starts[:, None] + taps * self.dilation[axis]


def first_fault(
    evaluate: Evaluate, geometry: Geometry, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Which of the :data:`FAULTS` a product shows first, or None.

    Args:
        evaluate: ``evaluate(x, weight, bias)`` of shapes ``inputs``, ``weight`` and ``(O,)``.
        geometry: The shapes; without a bias ``evaluate`` is given None.
        dtype: Float32 or float64.
        device: Where inputs are put.
    """
    samples, outputs = geometry.inputs[0], geometry.weight[0]
    known = _Known(geometry, dtype)
    # What finds no place beside each other is evaluated after each other.
    for turn in range(1 if min(samples, outputs) >= PLACES else PLACES):
        known.turn(turn)
        x, weight = known.x.to(device), known.weight.to(device)
        bias = known.bias.to(device) if geometry.bias else None
        fault = known.fault(evaluate(x, weight, bias).cpu())
        if fault is not None:
            return fault
    return None


class _Known:
    """Inputs of Note [known products], and the comparison with what a product made of them."""

    def __init__(self, geometry: Geometry, dtype: torch.dtype) -> None:
        self.geometry, self.dtype, self.bits = geometry, dtype, BITS[dtype]
        self.factor = 1 + (2 ** (self.bits - 1) // 3 | 1) * 2.0 ** (1 - self.bits)
        # c (taps d + e) + 2 stays below 2^p and is odd.
        room = (2**self.bits - 3) // (geometry.taps + 2)
        self.c = max(1, math.isqrt(room) - 1 | 1)
        self.d = room // self.c
        self.e = 2 - (geometry.taps * self.d + 1) % 2
        self._turn: int | None = None

    def turn(self, turn: int) -> None:
        """Give every sample and output its kind; those that come first, the kind ``turn``."""
        samples, outputs = self.geometry.inputs[0], self.geometry.weight[0]
        # The place of the subnormal number among the rows of its kind.
        self.tiny = slice(1, 2) if min(samples, outputs) >= PLACES else slice(turn // KINDS)
        if self._turn is None or outputs < PLACES:
            self.outputs = [slice((kind - turn) % KINDS, None, KINDS) for kind in range(KINDS)]
            self._set_weights(range(outputs)[self.outputs[0]])
        self.samples = [slice((kind - turn) % KINDS, None, KINDS) for kind in range(KINDS)]
        self._set_samples(range(samples)[self.samples[1]])
        self._turn = turn

    def _set_weights(self, selecting: Sequence[int]) -> None:
        taps = self.geometry.taps
        weight = torch.zeros(self.geometry.weight[0], taps, dtype=self.dtype, device="cpu")
        self.weight = weight.view(self.geometry.weight)
        self.bias = torch.zeros(len(weight), dtype=self.dtype, device="cpu")
        selecting = _some(selecting, MAX_SELECTIONS)
        self.selections = list(zip(selecting, _spread(len(selecting), taps), strict=True))
        for output, tap in self.selections:
            weight[output, tap] = 1
        scaled = weight[self.outputs[1]]
        _fill(scaled)
        scaled[self.tiny, 0] = 3 * 2.0 ** MIN_EXPONENT[self.dtype]
        sums = weight[self.outputs[2]]
        sums[:] = self.d
        sums[:, 0] += self.e
        if self.geometry.bias:
            self.bias[self.outputs[2]] = 2
        rounded = weight[self.outputs[3]]
        index = torch.arange(len(rounded), dtype=self.dtype, device="cpu")
        signs = 1 - 2 * (index % 4 >= 2).to(self.dtype)
        self.small = signs * (1 + 2 * (index % 2))
        self.large = signs * 2.0**self.bits
        if taps > 1:
            rounded[:, 0] = self.large
        rounded[:, -1] = self.small

    def _set_samples(self, scaling: Sequence[int]) -> None:
        x = torch.zeros(self.geometry.inputs, dtype=self.dtype, device="cpu")
        self.x, flat = x, x.view(len(x), -1)
        dense = self.samples[0]
        _fill(flat[dense])
        if self.selections:
            place = self._place(*self.selections[0])
            x[dense][self.tiny][:, place[0], place[1], place[2]] = (
                3 * 2.0 ** MIN_EXPONENT[self.dtype]
            )
        scaling = _some(scaling, MAX_SCALINGS)
        taps = _spread(len(scaling), self.geometry.taps)
        self.scalings = [(n, self._place(0, tap)) for n, tap in zip(scaling, taps, strict=True)]
        for n, place in self.scalings:
            x[n][place] = self.factor
        flat[self.samples[2]] = self.c
        flat[self.samples[3]] = 1

    def _tap(self, output: int, tap: int) -> tuple[int, int, int]:
        """Channel of the input, row and column of the kernel, that belong to a tap."""
        _, inner, height, width = self.geometry.weight
        channel, rest = divmod(tap, height * width)
        group = output // (self.geometry.weight[0] // self.geometry.groups)
        return group * inner + channel, *divmod(rest, width)

    def _place(self, output: int, tap: int) -> tuple[int, int, int]:
        """Place in the input that a tap of an output's middle reads, or the nearest to it."""
        channel, *kernel = self._tap(output, tap)
        height, width = (
            min(max(self.geometry.read(axis, side // 2, t), 0), size - 1)
            for axis, (side, t, size) in enumerate(
                zip(self.geometry.sides, kernel, self.geometry.inputs[2:], strict=True)
            )
        )
        return channel, height, width

    def fault(self, y: Tensor) -> str | None:
        """The first kind of result that is not as it is known to be."""
        checks = {
            "selection": self._selected,
            "scaling": self._scaled,
            "sum": self._summed,
            "rounding": self._rounded,
        }
        return next((FAULTS[name] for name, right in checks.items() if not right(y)), None)

    def _selected(self, y: Tensor) -> bool:
        (height, width), (high, wide) = self.geometry.sides, self.geometry.padding
        down, right = self.geometry.stride
        for output, tap in self.selections:
            channel, *kernel = self._tap(output, tap)
            top, left = (t * d for t, d in zip(kernel, self.geometry.dilation, strict=True))
            read = self.x[:, channel]
            if high or wide:
                read = F.pad(read, (wide, wide, high, high))
            rows = slice(top, top + down * (height - 1) + 1, down)
            columns = slice(left, left + right * (width - 1) + 1, right)
            if not torch.equal(y[:, output], read[:, rows, columns]):
                return False
        return True

    def _scaled(self, y: Tensor) -> bool:
        inner = self.geometry.weight[1]
        share = self.geometry.weight[0] // self.geometry.groups
        rows, columns = self.geometry.reads(0), self.geometry.reads(1)
        for n, (channel, row, column) in self.scalings:
            # Behind the last tap there is a zero, for outputs that do not read the place.
            down, across = (
                torch.where(hits.any(1), hits.int().argmax(1), hits.shape[1])
                for hits in (rows == row, columns == column)
            )
            group = slice(channel // inner * share, (channel // inner + 1) * share)
            kernels = F.pad(self.weight[group, channel % inner], (0, 1, 0, 1)) * self.factor
            unbiased = (self.bias[group] == 0)[:, None, None]
            known = torch.where(unbiased, kernels[:, down][:, :, across], 0.0)
            if not torch.equal(torch.where(unbiased, y[n, group], 0.0), known):
                return False
        return True

    def _inside(self) -> tuple[Tensor, Tensor]:
        """Whether taps read within the input, for each dimension, shape ``(outputs, taps)``."""
        height, width = self.geometry.inputs[2:]
        rows, columns = self.geometry.reads(0), self.geometry.reads(1)
        return (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)

    def _summed(self, y: Tensor) -> bool:
        rows, columns = self._inside()
        taps = self.geometry.weight[1] * rows.sum(1)[:, None] * columns.sum(1)
        first = (rows[:, :1] & columns[:, 0]).long()
        known = self.c * (taps * self.d + first * self.e) + (2 if self.geometry.bias else 0)
        return bool((y[self.samples[2], self.outputs[2]] == known.to(self.dtype)).all())

    def _rounded(self, y: Tensor) -> bool:
        rows, columns = self._inside()
        last = rows[:, -1:] & columns[:, -1]
        first = rows[:, :1] & columns[:, 0] & (self.geometry.taps > 1)
        small, large = self.small[:, None, None], self.large[:, None, None]
        # Ties to even: 2^p + 1 is 2^p, and 2^p + 3 is 2^p + 4.
        both = torch.where(small.abs() == 1, large, large + small.sign() * 4)
        one = torch.where(first, large, 0.0) + torch.where(last, small, 0.0)
        known = torch.where(first & last, both, one)
        return bool((y[self.samples[3], self.outputs[3]] == known).all())


def _fill(rows: Tensor) -> None:
    """Numbers of all bits, with another exponent each; wide and narrow rows take turns."""
    for first, exponents in enumerate((WIDE[rows.dtype], NARROW)):
        part = rows[first::2]
        if len(part):
            # A power of two, so that few lengths are remembered.
            length = 1 << (sum(part.shape) - 1).bit_length()
            windows = _sequence(length, exponents, rows.dtype).unfold(0, part.shape[1], 1)
            part.copy_(windows[: len(part)])


@lru_cache(maxsize=8)
def _sequence(length: int, exponents: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers in [1, 2) whose last bit is 1, times powers of two that take turns."""
    k = torch.arange(length, dtype=torch.int64, device="cpu")
    # Multiples of the golden section of 2^51, which stay below 2^63.
    bits = ((k % 2**11 + 1) * 1391668830519757) % 2 ** (BITS[dtype] - 2) * 2 + 1
    scale = torch.tensor([2.0**e for e in exponents], dtype=torch.float64, device="cpu")
    return ((1 + bits.double() * 2.0 ** (1 - BITS[dtype])) * scale[k % len(exponents)]).to(dtype)


def _spread(count: int, size: int) -> list[int]:
    """Indices below ``size``, from the first to the last."""
    return [i * (size - 1) // max(1, count - 1) for i in range(count)]


def _some(cases: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the cases, the first and the last among them."""
    return [cases[i] for i in _spread(min(count, len(cases)), len(cases))]
