"""Fuzz the norm bounds against exact Rayleigh quotients in integer arithmetic.

    python -m benchmarks.soundness.fuzz_norms --cases 100000 --seed 0 --seconds 600

Random and adversarial matrices and convolutions; a violation is a bound below the quotient of some
vector, which proves it wrong. Exits with 1 if there is one and prints how to repeat it.
"""

import argparse
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from robustcert.norms import eigenvalues, proof, quick_bounds
from robustcert.norms.convolution import (
    Axis,
    conv_norm_bound,
    mixed_norm_bound,
    operator_norm_bound,
    symbol_norm_bound,
)
from robustcert.norms.dense import dense_norm_bound, gram_bound
from robustcert.norms.eigenvalues import DIRECT_SIZE
from robustcert.norms.estimates import norm_lower
from robustcert.norms.proof import BLOCK, Gram, residual_bound, scaled

Array = np.ndarray


def gaussian(rng: Generator, m: int, n: int) -> Array:
    """Independent normal entries."""
    return rng.standard_normal((m, n))


def orthogonal(rng: Generator, m: int, n: int) -> Array:
    """Orthonormal rows or columns: all singular values are 1."""
    size = max(m, n)
    return np.linalg.qr(rng.standard_normal((size, size)))[0][:m, :n]


def hidden_gap(rng: Generator, m: int, n: int) -> Array:
    """One singular value a little above the others, between random bases."""
    matrix = orthogonal(rng, m, n)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return matrix + rng.choice([1e-6, 1e-3, 0.02, 0.3, 3.0]) * np.outer(left[:, 0], right[0])


def clustered(rng: Generator, m: int, n: int) -> Array:
    """Singular values that agree to rounding at the top, then fall fast."""
    left, right = orthogonal(rng, m, m), orthogonal(rng, n, n)
    size = min(m, n)
    values = np.where(rng.random(size) < 0.5, 1 + 1e-8 * rng.random(size), 10 ** -rng.uniform(0, 9))
    return left[:, :size] * values @ right[:size]


def row_scales(rng: Generator, m: int, n: int) -> Array:
    """Rows between 2^-40 and 2^40."""
    return gaussian(rng, m, n) * 2.0 ** rng.integers(-40, 41, (m, 1))


def column_scales(rng: Generator, m: int, n: int) -> Array:
    """Columns between 2^-40 and 2^40."""
    return gaussian(rng, m, n) * 2.0 ** rng.integers(-40, 41, n)


def entry_scales(rng: Generator, m: int, n: int) -> Array:
    """Entries over the whole range of float32, denormals included."""
    return gaussian(rng, m, n) * 2.0 ** rng.integers(-148, 126, (m, n))


def zero_row_sums(rng: Generator, m: int, n: int) -> Array:
    """All-ones in the kernel."""
    matrix = gaussian(rng, m, n)
    return matrix - matrix.mean(1, keepdims=True)


def start_in_kernel(rng: Generator, m: int, n: int) -> Array:
    """All-ones is an eigenvector of a small eigenvalue."""
    matrix = np.eye(m, n)
    if min(m, n) > 1:
        matrix[:2] = 0
        matrix[0, :2] = rng.integers(2, 60) * np.array([1, -1])
        matrix[1, :2] = 0.5
    return matrix


def antisymmetric(rng: Generator, m: int, n: int) -> Array:
    """Paired singular values."""
    matrix = gaussian(rng, max(m, n), max(m, n))
    return matrix - matrix.T


def rank_one(rng: Generator, m: int, n: int) -> Array:
    """An outer product."""
    return gaussian(rng, m, 1) @ gaussian(rng, 1, n)


def low_rank(rng: Generator, m: int, n: int) -> Array:
    """Rank 2 and float32 noise."""
    return gaussian(rng, m, 2) @ gaussian(rng, 2, n)


def sparse(rng: Generator, m: int, n: int) -> Array:
    """Mostly zeros, perhaps all."""
    return gaussian(rng, m, n) * (rng.random((m, n)) < 2 / n)


def signs(rng: Generator, m: int, n: int) -> Array:
    """Plus and minus one."""
    return rng.choice([-1.0, 1.0], (m, n))


def positive(rng: Generator, m: int, n: int) -> Array:
    """Positive entries: one dominant singular value."""
    return rng.random((m, n))


def permutation(rng: Generator, m: int, n: int) -> Array:
    """A permutation with a scale that is not a power of two."""
    size = max(m, n)
    return rng.permutation(np.eye(size)) * rng.uniform(0.5, 2)


def triangular(rng: Generator, m: int, n: int) -> Array:
    """A far from normal matrix."""
    return np.triu(np.ones((m, n))) * rng.uniform(0.5, 2)


FAMILIES: list[Callable[[Generator, int, int], Array]] = [
    gaussian,
    orthogonal,
    hidden_gap,
    clustered,
    row_scales,
    column_scales,
    entry_scales,
    zero_row_sums,
    start_in_kernel,
    antisymmetric,
    rank_one,
    low_rank,
    sparse,
    signs,
    positive,
    permutation,
    triangular,
]
DTYPES = [torch.float32] * 6 + [torch.float64, torch.float16, torch.bfloat16]


def draw_matrix(rng: Generator, largest: int) -> tuple[str, Tensor]:
    """A random member of a random family in a random dtype and scale."""
    family = FAMILIES[rng.integers(len(FAMILIES))]
    m, n = np.maximum(1, np.exp(rng.uniform(0, math.log(largest), 2)).astype(int))
    values = family(rng, int(m), int(n))
    dtype = DTYPES[rng.integers(len(DTYPES))]
    if rng.random() < 0.3 and dtype in (torch.float32, torch.float64) and family != entry_scales:
        values = values * 10.0 ** rng.choice([-43, -38, -30, -20, -7, 7, 15, 18, 24])
    weight = torch.from_numpy(values).to(dtype)
    return family.__name__, torch.nan_to_num(weight)


def integers(array: Array) -> tuple[Array, Fraction]:
    """Python integers and a unit with ``array == integers * unit``, exactly."""
    mantissa, exponent = np.frexp(array)
    exponent = np.where(mantissa == 0, exponent[mantissa != 0].min(initial=0), exponent)
    least = int(exponent.min())
    whole = (mantissa * 2.0**53).astype(np.int64).astype(object)
    return whole << (exponent - least).astype(object), Fraction(2) ** (least - 53)


def exact_square(matrix: Array) -> Fraction:
    """Squared Rayleigh quotient of about the leading singular vector, in exact rationals."""
    peak = np.abs(matrix).max()
    if peak == 0:
        return Fraction(0)
    right = np.linalg.svd(matrix / peak, full_matrices=False)[2][0]
    vector = np.rint(right * 2.0**50).astype(np.int64).astype(object)
    whole, unit = integers(matrix)
    image = whole @ vector
    return Fraction(int((image**2).sum()), int((vector**2).sum())) * unit**2


class Tally:
    """Cases, violations and excess of every kind of check."""

    def __init__(self) -> None:
        self.excess: dict[str, list[float]] = defaultdict(list)
        self.violations: dict[str, int] = defaultdict(int)

    def check(self, kind: str, bound: float | Fraction, square: Fraction, case: str) -> None:
        """Compare a bound with a squared norm that is not high."""
        if Fraction(bound) ** 2 < square:
            self.violations[kind] += 1
            print(f"VIOLATION of {kind}: bound {float(bound)!r} in {case}", flush=True)
        ratio = Fraction(bound) ** 2 / square if square else Fraction(1 if bound == 0 else 10**6)
        self.excess[kind].append(float(ratio) ** 0.5 - 1)

    def report(self) -> int:
        """Print the table and return the number of violations."""
        print(f"{'check':24}{'cases':>10}{'violations':>12}{'median excess':>16}{'max excess':>14}")
        for kind, values in self.excess.items():
            print(
                f"{kind:24}{len(values):10d}{self.violations[kind]:12d}"
                f"{np.median(values):16.2e}{max(values):14.2e}"
            )
        return sum(self.violations.values())


def fuzz_dense(rng: Generator, tally: Tally, case: str, largest: int) -> None:
    """One matrix: the bound, the second opinion, the lower bound and a garbage factor."""
    family, weight = draw_matrix(rng, largest)
    case = f"{case} {family} {tuple(weight.shape)} {weight.dtype}"
    matrix = weight.double().numpy()
    square = exact_square(matrix)
    bound = dense_norm_bound(weight)
    tally.check("dense_norm_bound", bound, square, case)
    kind = rng.integers(10)
    if kind == 0:
        tally.check("gram_bound", gram_bound(weight, int(rng.integers(1, 13))), square, case)
    elif kind == 1:
        lower = Fraction(norm_lower(weight)) ** 2
        tally.check("bound over norm_lower", bound, lower, case)
    elif kind == 2 and square:
        copy = scaled(weight)
        n = copy.values.shape[1]
        near = float(square / Fraction(2) ** (2 * copy.exponent))
        t = near * float(rng.choice([0.0, 0.5, 1 - 1e-9, 1.0, 1.1]))
        factor = torch.from_numpy(rng.standard_normal((1, n, n)) * 10.0 ** rng.uniform(-20, 0.5))
        total = residual_bound(Gram.of(copy.values[None]), t, factor)
        if total < square / Fraction(2) ** (2 * copy.exponent) and not copy.tail:
            tally.violations["garbage factor"] += 1
            print(f"VIOLATION of garbage factor in {case}", flush=True)
        tally.excess["garbage factor"].append(float(total) / near - 1)


def fuzz_convolution(rng: Generator, tally: Tally, case: str) -> None:
    """One convolution: the bound and all of its parts against the matrix of unit responses."""

    def pair(high: int) -> tuple[int, int]:
        first, second = rng.integers(1, high + 1, 2)
        return int(first), int(second)

    groups, size = int(rng.choice([1, 1, 1, 2, 3])), pair(8)
    stride, kernel, dilation = pair(3), pair(5), pair(3)
    padding = (int(rng.integers(0, 5)), int(rng.integers(0, 5)))
    channels = pair(3)
    _, flat = draw_matrix(rng, 2)
    shape = (groups * channels[0], channels[1], *kernel)
    values = rng.standard_normal(shape) * float(flat.abs().max())
    if rng.random() < 0.3:
        sign = (-1.0) ** np.add.outer(np.arange(kernel[0]), np.arange(kernel[1]))
        values = np.abs(values) * sign
    if rng.random() < 0.2:
        values -= values.mean((2, 3), keepdims=True)
    weight = torch.nan_to_num(torch.from_numpy(values).float())
    case = f"{case} {shape} size={size} {stride=} {padding=} {dilation=} {groups=}"
    inputs = channels[1] * groups
    impulses = torch.eye(inputs * size[0] * size[1], dtype=torch.float64)
    impulses = impulses.reshape(-1, inputs, *size)
    try:
        responses = F.conv2d(impulses, weight.double(), None, stride, padding, dilation, groups)
    except RuntimeError:
        return
    square = exact_square(responses.flatten(1).T.numpy())
    bound = conv_norm_bound(weight, size, stride, padding, dilation, groups)
    tally.check("conv_norm_bound", bound, square, case)
    copy = scaled(weight)
    values = copy.values.reshape(groups, -1, *weight.shape[1:])
    vertical, horizontal = (
        Axis.of(*numbers, circular=False)
        for numbers in zip(kernel, size, stride, padding, dilation, strict=True)
    )
    if not square:
        return
    axes = (vertical, horizontal)
    unit = Fraction(2) ** copy.exponent
    tally.check("  by symbols", symbol_norm_bound(values, axes) * unit, square, case)
    for name, part in (("one axis", mixed_norm_bound), ("its matrix", operator_norm_bound)):
        found = part(values, axes)
        if found is not None:
            tally.check(f"  by {name}", found * unit, square, case)


def main() -> int:
    """Run until the cases or the seconds are used up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="case to start from")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--largest", type=int, default=40, help="rows or columns of a matrix")
    parser.add_argument("--block", type=int, default=BLOCK, help="columns at once")
    parser.add_argument("--quick", action="store_true", help="bounds as validation has them")
    options = parser.parse_args()
    # Larger matrices are factorised by blocks and estimated otherwise: small ones shall be, too.
    proof.DIRECT_SIZE = eigenvalues.DIRECT_SIZE = min(DIRECT_SIZE, options.block)
    proof.BLOCK = options.block
    torch.set_num_threads(1)
    tally, start, case = Tally(), time.monotonic(), options.first
    while case < options.first + options.cases and time.monotonic() - start < options.seconds:
        rng = np.random.default_rng((options.seed, case))
        label = f"--seed {options.seed} --first {case}"
        with quick_bounds() if options.quick else nullcontext():
            if case % 10:
                fuzz_dense(rng, tally, label, options.largest)
            else:
                fuzz_convolution(rng, tally, label)
        case += 1
    print(f"{case - options.first} cases in {time.monotonic() - start:.0f} s")
    return 1 if tally.report() else 0


if __name__ == "__main__":
    sys.exit(main())
