r"""Norms of zero-padded convolutions from large singular values of their symbols and the map."""

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.errors import NormBoundError
from robustcert.norms.device import placed
from robustcert.norms.proof import Array, Gram, bound_by_gram, energy_up, squared_norm_bound
from robustcert.norms.scalars import TINY, exact, gamma, root_up, round_up
from robustcert.norms.symbols import Axis, blocks, roots_of_unity, symbol_error, symbols

# Note [truncated] (why a map has less than its circle)
# ~~~~~~~~~~~~~~~~~~~~
# In Note [symbol] the padded convolution is P C E: E extends a signal by zeros to a circle of M
# positions, P forgets outputs. So ||A x|| <= ||C x|| for a signal x on the map. On the circle
# signals are sums over frequencies w, one of every conjugate pair, of sqrt(2 / M) times
# cos(w q) u_w + sin(w q) v_w, and of cos(w q) u_w / sqrt(M) where w is its own opposite: an
# orthonormal basis. For z = u - i v the pair is the real part of exp(i w q) z, so that C is
# z -> K(w) z at w, K(w) being the symbol.
#
# For any numbers s, vectors in the columns of U and V, and N = K(w) - U diag(s) V^H, let nu be at
# least ||N||. They are meant to be the singular values above nu with their vectors, which nothing
# rests on. Let V^H V and U^H U differ from I by d at most, and let ||N V||, ||U^H N|| be at most m.
# With a = V^H z,
#     |N z| <= nu |(I - V V^H) z| + (1 + d) m |z|,
#     |(I - V V^H) z|^2 <= |z|^2 - |a|^2 + d (1 + d) |z|^2        (V V^H V V^H <= (1 + d) V V^H),
#     |K z|^2 <= |N z|^2 + 2 |a|_s m |z| + (1 + d) |a|_s^2,       |a|_s^2 = sum_i s_i^2 |a_i|^2,
# and with |(I - V V^H) z| <= (1 + d) |z| and |a|_s <= (1 + d) max(s) |z|,
#     |K z|^2 <= (nu^2 + e) |z|^2 + sum_i ((1 + d) s_i^2 - nu^2) |a_i|^2,
#     e = nu^2 d (1 + d) + 2 nu m (1 + d)^2 + m^2 (1 + d)^2 + 2 max(s) m (1 + d).
# Added up over all frequencies of a signal x on the map,
#     ||A x||^2 <= (nu^2 + e) |x|^2 + |B x|^2,
# where B has a row for every real part, and every imaginary part, of the a_i, times a root of its
# factor: the signals of sqrt((1 + d) s_i^2 - nu^2) v_i, cut off where the map ends. Hence
#     ||A||^2 <= nu^2 + e + ||B B'||.
# On the circle B B' would be diagonal, and the bound the largest s^2. It is less by how little of
# the singular vectors fits into the map. B B' is small where nu is close to the largest s.
#
# Rounding. An entry of B B' is a sum of four: products of a sum over channels and one over the map,
# of at most MAX_TERMS terms each. Columns have norms below 2 times the root of their factor, waves
# over the map below 1 each, all wrong by less than 2^-46: an entry is wrong by at most ENTRY_ERROR
# times the two factors' roots. Where wider sums or longer columns would be, nothing is claimed.

# How many singular values are kept, as a share of all and at most: what the checker can factorise.
KEPT_SHARE, MAX_KEPT = 0.125, 4096
# Maximum number of positions of the circle along an axis, per degree of the kernel, and least and
# greatest number of channels, for which it is worth the time.
MAX_POINTS_PER_DEGREE, LEAST_SIDE, MAX_SIDE = 8, 256, 1024
# Maximum number of entries of the squares of all symbols, which are kept at the same time.
MAX_ENTRIES = 2**24
# What a bound is raised by, so that the checker, which finds it anew in branches, finds no more.
ROOM = Fraction(1, 2**19)
# Largest error of an entry of B B' over the roots of its factors, and of terms of a sum in it.
ENTRY_ERROR, MAX_TERMS = Fraction(1, 2**30), 2**18


@dataclass(frozen=True)
class Kept:
    """Singular values above a threshold, and their vectors, at one frequency.

    Attributes:
        values: s, (k,).
        left: U, (m, k), complex.
        right: V, (n, k), complex.
    """

    values: Tensor
    left: Tensor
    right: Tensor


def truncated_norm_bound(weight: Array, axes: tuple[Axis, Axis]) -> Fraction | None:
    """Bound of the norm by large singular values of symbols, or None where that is dear or idle.

    Args:
        weight: Shape (1, c_out, c_in, kh, kw).
        axes: Its dimensions, zero-padded.
    """
    if not _is_worth_truncating(weight, axes):
        return None
    taps = blocks(weight, axes)
    points: list[NDArray[np.int64]] = []
    every: list[Tensor] = []
    for some, real, imag in symbols(taps, axes):
        points.append(some)
        parts = (real, np.zeros_like(real) if imag is None else imag)
        every += torch.complex(*map(torch.from_numpy, parts)).unbind()
    own = _own(np.concatenate(points), axes)
    kept, nu = _large(every, own)
    if not any(len(part.values) for part in kept):
        return None
    nu_squared, slack, growth = _remainder(every, kept, nu)
    # Blocks that are transposed are those of the transposed map, reflected.
    reflected = weight.shape[1] < weight.shape[2] * len(taps)
    sides = tuple(axis.outputs if reflected else _length(axis) for axis in axes)
    waves = _waves(np.concatenate(points), axes, sides, -1 if reflected else 1)
    square = nu_squared + slack + _cut_off(kept, own, waves, nu_squared, growth)
    return exact(root_up(square)) * (1 + ROOM) + symbol_error(taps)


def _is_worth_truncating(weight: Array, axes: tuple[Axis, Axis]) -> bool:
    groups, out, inner = weight.shape[:3]
    small, large = sorted((out, inner * axes[0].residues * axes[1].residues))
    return (
        groups == 1
        and small >= LEAST_SIDE
        and large <= MAX_SIDE
        and small**2 * axes[0].points * axes[1].points <= MAX_ENTRIES
        and all(axis.degree and axis.factor == 1 for axis in axes)
        and all(axis.points <= MAX_POINTS_PER_DEGREE * axis.degree for axis in axes)
    )


def _length(axis: Axis) -> int:
    """Number of positions of a subsampled signal that are read."""
    return 1 + max(int(outs[-1]) + shift for _, shift, _, outs, _ in axis.taps)


def _own(points: NDArray[np.int64], axes: tuple[Axis, Axis]) -> NDArray[np.bool_]:
    """Which frequencies are their own opposites."""
    return np.asarray((2 * points % np.array([axis.points for axis in axes]) == 0).all(1))


def _large(every: list[Tensor], own: NDArray[np.bool_]) -> tuple[list[Kept], float]:
    """Singular vectors above as small a threshold as their number allows, and the threshold."""
    # Single precision is enough: what the vectors are wrong by is measured.
    found = []
    for symbol, real in zip(every, own, strict=True):
        narrow = symbol.real.float() if real else symbol.to(torch.complex64)
        found.append(torch.linalg.eigh(narrow.mH @ narrow))
    roots = [values.clamp(min=0).sqrt() for values, _ in found]
    # A pair of frequencies has every singular value twice.
    twice = [
        values.repeat_interleave(1 if real else 2) for values, real in zip(roots, own, strict=True)
    ]
    ordered = torch.cat(twice).sort(descending=True).values
    least = float(ordered[min(MAX_KEPT, int(KEPT_SHARE * len(ordered)))])
    above = [values > least for values in roots]
    kept = []
    for symbol, (_, vectors), chosen in zip(every, found, above, strict=True):
        right = vectors[:, chosen].to(torch.complex128)
        image = _product(symbol, right)
        values = torch.linalg.vector_norm(image, dim=0)
        kept.append(Kept(values, image / values, right))
    return kept, least


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product of complex matrices in real products only."""
    return torch.complex(
        torch.cat((left.real, -left.imag), 1) @ torch.cat((right.real, right.imag), 0),
        torch.cat((left.real, left.imag), 1) @ torch.cat((right.imag, right.real), 0),
    )


def _frobenius(*matrices: Tensor) -> Fraction:
    """Bound of the product of Frobenius norms."""
    return math.prod((_frobenius_of(m) for m in matrices), start=Fraction(1))


def _frobenius_of(matrix: Tensor) -> Fraction:
    parts = torch.view_as_real(matrix).flatten().numpy()
    return exact(root_up(energy_up(parts[None]))) if parts.size else Fraction(0)


def _remainder(
    every: list[Tensor], kept: list[Kept], nu: float
) -> tuple[Fraction, Fraction, Fraction]:
    """Note [truncated]: the square of nu, e, and 1 + d."""
    nu_squared, apart, meets, largest = Fraction(0), Fraction(0), Fraction(0), Fraction(0)
    for symbol, part in zip(every, kept, strict=True):
        count, size = len(part.values), max(symbol.shape)
        scaled = part.left * part.values
        rest = symbol - _product(scaled, part.right.mH)
        # Entries are sums of 2 k + 2 products, one of which is that with s.
        lost = 2 * gamma(2 * count + 4) * (_frobenius(symbol) + _frobenius(scaled, part.right))
        squared = squared_norm_bound(
            rest.real[None].contiguous().numpy(), rest.imag[None].contiguous().numpy(), nu * nu
        )
        nu_squared = max(nu_squared, (exact(root_up(squared)) + lost) ** 2)
        for side, image in (
            (part.right, _product(rest, part.right)),
            (part.left, _product(part.left.mH, rest)),
        ):
            eye = torch.eye(count, dtype=torch.complex128, device="cpu")
            off = 2 * gamma(2 * size + 2)
            gram = _product(side.mH, side) - eye
            apart = max(apart, _frobenius(gram) + off * (1 + _frobenius(side, side)))
            meets = max(
                meets, _frobenius(image) + _frobenius(side) * (off * _frobenius(rest) + lost)
            )
        if count:
            largest = max(largest, exact(float(part.values.max())))
    if apart > 1:
        raise NormBoundError("Singular vectors of a symbol are not orthogonal")
    growth, root = 1 + apart, exact(root_up(nu_squared))
    slack = (
        nu_squared * apart * growth
        + 2 * root * meets * growth**2
        + meets**2 * growth**2
        + 2 * largest * meets * growth
    )
    return nu_squared, slack, growth


def _waves(
    points: NDArray[np.int64], axes: tuple[Axis, Axis], sides: tuple[int, ...], sign: int
) -> list[Tensor]:
    """Cosines and sines of all frequencies, (F, positions), on a map, as part of a basis."""
    height, width = axes[0].points, axes[1].points
    rows, columns = np.divmod(np.arange(sides[0] * sides[1]), sides[1])
    turns = np.outer(points[:, 0] * width, rows) + np.outer(points[:, 1] * height, columns)
    cosine, sine = roots_of_unity(sign * turns, height * width)
    own = _own(points, axes)[:, None]
    size = np.sqrt(np.where(own, 1.0, 2.0) / (height * width))
    return [placed(wave) for wave in (cosine * size, np.where(own, 0.0, sine) * size)]


def _cut_off(
    kept: list[Kept],
    own: NDArray[np.bool_],
    waves: list[Tensor],
    nu_squared: Fraction,
    growth: Fraction,
) -> Fraction:
    """Bound of the norm of B B': Note [truncated]."""
    cosine: list[Tensor] = []
    sine: list[Tensor] = []
    place: list[Tensor] = []
    energy = Fraction(0)
    more = 1 + 2.0**-40
    for number, (part, real) in enumerate(zip(kept, own, strict=True)):
        factors = round_up(growth) * more * part.values.square() - float(nu_squared) / more
        roots = factors.clamp(min=0).sqrt() * more
        g, h = part.right.real * roots, part.right.imag * roots
        cosine += [g, h] if not real or h.any() else [g]
        sine += [-h, g] if not real or h.any() else [-h]
        copies = len(cosine) - len(place)
        place += [torch.full((len(roots),), number, dtype=torch.int64, device="cpu")] * copies
        energy += copies * energy_up(roots[None].numpy()) if len(roots) else 0
    # The waves' device has the large products; what they are made of is on the CPU.
    parts = [torch.cat(part, 1).to(waves[0].device) for part in (cosine, sine)]
    at = torch.cat(place).to(waves[0].device)
    if max(len(parts[0]), waves[0].shape[1]) > MAX_TERMS:
        raise NormBoundError(f"A map or a symbol has more than {MAX_TERMS} terms")
    gram = parts[0].new_zeros(len(at), len(at))
    for left, right in product((0, 1), repeat=2):
        over_map = waves[left] @ waves[right].mT
        gram += (parts[left].mT @ parts[right]) * over_map[at[:, None], at]
    # The trace charges for what t I less this matrix is rounded by, as in Note [residual].
    gram = torch.nn.functional.hardshrink((gram + gram.mT) / 2, TINY)[None]
    trace = exact(float(gram.diagonal(dim1=1, dim2=2).abs().sum())) * 2
    return bound_by_gram(Gram(gram, None, 1, len(at), trace)) + ENTRY_ERROR * energy
