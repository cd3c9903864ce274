"""Block reflections at all frequencies of a map, as training applies them to a batch.

The blocks of V at the frequencies are many times its taps. They are made where they are read, for a
few frequencies at once, which takes less time than to fetch them from memory.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustcert.layers.cholesky import cholesky_factor
from robustcert.layers.fft import waves_at
from robustcert.layers.product import product, products
from robustcert.network.device import stays_on_device

# Entries of V's blocks, of either part, that are in work at once, what a processor holds near by,
# and frequencies at least: a product with fewer waves takes longer. On an accelerator fewer calls
# count, and in a graph fewer nodes.
PIECE, FREQUENCIES, DEVICE_PIECE = 2**18, 4, 2**21
# Columns that LAPACK, which is slow next to a product, factors at once.
PANEL = 32


def reflected(weight: Tensor, x: Tensor, period: tuple[int, int], ridge: float) -> Tensor:
    r"""``x - 2 V (V^* V + rho I)^-1 V^* x`` at all frequencies, V the conjugate transform of taps.

    Args:
        weight: V's taps, shape ``(m, n, h, w)``, around their origin.
        x: Shape ``(F, 2 N, m)`` as the result, rows of real parts before those of imaginary ones.
        period: Height and width of the map, of which the frequencies are.
        ridge: :math:`\rho` over the mean of the diagonal of :math:`V^* V`.
    """
    height, width = weight.shape[2:]

    def waves(sides: tuple[int, int]) -> Tensor:
        origin = sides[0] // 2, sides[1] // 2
        parts = waves_at(period, sides, origin, weight.dtype, weight.device)[:2]
        return torch.stack(parts, 1).unflatten(2, sides)

    gram_waves = None
    if (height * width) ** 2 < 4 * len(x):
        gram_waves = waves((2 * height - 1, 2 * width - 1))
    # Taps first, as they are transformed.
    taps = weight.permute(2, 3, 0, 1).contiguous().flatten(0, 1)
    return _Reflect.apply(taps, waves((height, width)).flatten(2), gram_waves, x, ridge)


class _Reflect(torch.autograd.Function):
    r"""Rows ``x - 2 V (V* V + rho I)^-1 V* x`` at all frequencies, rho ``ridge`` times a mean.

    ``x`` and the result are ``(F, 2 N, m)``, real parts before imaginary ones. ``taps``, of shape
    ``(count, m, n)``, are V's, ``waves`` and ``gram_waves`` as for :func:`_blocks` and
    :func:`_grams`. The mean is that of the diagonal of :math:`V^* V`. Solved by a factor of a
    matrix that is larger by rounding, with one step of refinement.

    Of the solution s and the gradients g at the result and a at what is solved for, the gradient at
    V is ``(x - V s) a* - (2 g + V a) s*``: that at :math:`V^* V`, ``-a s*``, is not formed.
    """

    @staticmethod
    def forward(
        ctx: Any, taps: Tensor, waves: Tensor, gram_waves: Tensor | None, x: Tensor, ridge: float
    ) -> Tensor:
        right, start = _onto(taps, waves, x), 0
        factors, solved = [], []
        for gram in _grams(taps, waves, gram_waves):
            diagonal = gram.diagonal(dim1=1, dim2=2)
            mean = diagonal.real.mean(1)[:, None]
            if ridge:
                diagonal.add_(ridge * mean)
            exact = diagonal.clone()
            diagonal.add_(4 * torch.finfo(gram.dtype).eps * gram.shape[1] * mean)
            factor = _factor(gram)
            diagonal.copy_(exact)
            solved.append(_solve(gram, factor, right[start : start + len(gram)]))
            factors += [gram, factor]
            start += len(gram)
        solution = torch.cat(solved)
        inside = _out_of(taps, waves, solution)
        outside = x - inside
        ctx.save_for_backward(taps, waves, outside, solution, *factors)
        ctx.ridge = ridge
        return outside - inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, None]:
        taps, waves, outside, solution, *factors = ctx.saved_tensors
        grams = factors[::2]
        parts = _onto(taps, waves, grad).split([len(gram) for gram in grams])
        solved = [_solve(*each) for each in zip(grams, factors[1::2], parts, strict=True)]
        at_right = -2 * torch.cat(solved)
        inside = _out_of(taps, waves, at_right)
        at_x = grad + inside
        if not ctx.needs_input_grad[0]:
            return None, None, None, at_x, None
        at_taps = _at_taps(taps, waves, (outside, at_right), (-grad - at_x, solution))
        if ctx.ridge:
            # rho is a mean square of V's entries.
            at_rho = (at_right.conj() * solution).real.sum((1, 2))[:, None, None]
            scaled = -2 * ctx.ridge / taps.shape[2] * at_rho * waves
            at_taps.flatten(1).addmm_(
                scaled.flatten(0, 1).mT @ waves.flatten(0, 1), taps.flatten(1)
            )
        return at_taps, None, None, at_x, None


def _size(taps: Tensor) -> int:
    piece = DEVICE_PIECE if stays_on_device(taps) else PIECE
    return max(FREQUENCIES, piece // taps[0].numel())


def _blocks(taps: Tensor, waves: Tensor) -> Iterator[Tensor]:
    """Parts of V's conjugate blocks at some frequencies after others, cosines above sines.

    Args:
        taps: Shape ``(count, m, n)``.
        waves: Cosines and minus sines at these, ``(F, 2, count)``.

    Yields:
        Shape ``(size, 2 m, n)``, in memory that the next ones will take.
    """
    _, m, n = taps.shape
    room = taps.new_empty(_size(taps), 2 * m, n)
    for some in waves.split(len(room)):
        blocks = room[: len(some)]
        torch.mm(some.flatten(0, 1), taps.flatten(1), out=blocks.view(-1, m * n))
        yield blocks


def _onto(taps: Tensor, waves: Tensor, x: Tensor) -> Tensor:
    """``V* x``, complex, ``(F, n, N)``, of rows in parts."""
    found = [
        torch.complex(*products(_turned(rows), blocks).chunk(2, 1))
        for rows, blocks in zip(x.split(_size(taps)), _blocks(taps, waves), strict=True)
    ]
    return torch.cat(found).mT


def _out_of(taps: Tensor, waves: Tensor, z: Tensor) -> Tensor:
    """``V z`` in parts, ``(F, 2 N, m)``, of complex columns ``(F, n, N)``."""
    found = []
    for columns, blocks in zip(z.split(_size(taps)), _blocks(taps, waves), strict=True):
        real, imaginary = products(_in_parts(columns), blocks.mT).chunk(2, 1)
        (a, b), (c, d) = real.chunk(2, 2), imaginary.chunk(2, 2)
        found.append(torch.cat([a + d, c - b], 1))
    return torch.cat(found)


def _at_taps(taps: Tensor, waves: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient at V's taps where those at its blocks are sums of ``x z*``.

    Args:
        taps: V's.
        waves: See :func:`_blocks`.
        pairs: x, rows in parts, and z, complex columns.
    """
    size, total = _size(taps), torch.zeros_like(taps)
    for start in range(0, len(waves), size):
        some = slice(start, start + size)
        left = torch.cat([_turned(x[some]) for x, _ in pairs], 1).mT
        blocks = products(left, torch.cat([_in_parts(z[some]) for _, z in pairs], 1))
        total.flatten(1).addmm_(waves[some].flatten(0, 1).mT, blocks.view(-1, total[0].numel()))
    return total


def _turned(x: Tensor) -> Tensor:
    """Rows in parts, beside them those of i times them: what blocks are multiplied by."""
    real, imaginary = x.chunk(2, 1)
    return torch.cat([torch.cat([real, imaginary], 1), torch.cat([-imaginary, real], 1)], 2)


def _in_parts(z: Tensor) -> Tensor:
    """Complex columns as rows, real parts before imaginary ones."""
    return torch.cat([z.mT.real, z.mT.imag], 1)


def _grams(taps: Tensor, waves: Tensor, gram_waves: Tensor | None) -> Iterator[Tensor]:
    """``V* V`` at some frequencies after others.

    Args:
        taps: V's.
        waves: See :func:`_blocks`.
        gram_waves: Those at the taps of ``V* V``, ``(F, 2, height, width)``; None where V's are so
            many that the product of its blocks is cheaper than theirs.
    """
    if gram_waves is None:
        for blocks in _blocks(taps, waves):
            cosine, sine = blocks.chunk(2, 1)
            whole = torch.complex(cosine, -sine)
            yield whole.mH @ whole
        return
    gram = _gram_taps(taps, (gram_waves.shape[2], gram_waves.shape[3]))
    # A difference and its opposite have transposed taps.
    even, odd = (part.flatten(1) for part in (gram + gram.mT, gram.mT - gram))
    for some in gram_waves.flatten(2)[:, :, -len(gram) :].split(_size(taps)):
        parts = some[:, 0] @ even, some[:, 1] @ odd
        yield torch.complex(*parts).view(-1, *gram.shape[1:])


def _gram_taps(taps: Tensor, sides: tuple[int, int]) -> Tensor:
    r"""Taps of :math:`V^\top V` from the middle one on, of which it has half: ``(half, n, n)``.

    :math:`G_k = \sum_a V_a^\top V_{a + k}`, read off products of taps: V's blocks at all
    frequencies, of which there are many more, are not multiplied. ``sides`` are those of all.
    """
    count, _, n = taps.shape
    height, width = ((side + 1) // 2 for side in sides)
    rows, columns = (
        torch.arange(k, dtype=torch.int64, device=taps.device) for k in (height, width)
    )
    places = (sides[1] * rows[:, None] + columns).flatten()
    gram = taps.new_zeros((math.prod(sides) + 1) // 2, n, n)
    beside = taps.transpose(0, 1).flatten(1)
    for first in range(count):
        found = product(taps[first].mT, beside[:, first * n :]).unflatten(1, (-1, n))
        gram.index_add_(0, places[first:] - places[first], found.transpose(0, 1))
    gram[0] /= 2
    return gram


def _factor(gram: Tensor) -> Tensor:
    """Cholesky factors of complex matrices, panel by panel: most of the work is products.

    What is above the diagonal means nothing.
    """
    if stays_on_device(gram):
        return cholesky_factor(gram)
    factor = torch.empty_like(gram)
    for start in range(0, gram.shape[1], PANEL):
        stop = start + PANEL
        panel, left = gram[:, start:, start:stop], factor[:, start:, :start]
        if start:
            panel = torch.baddbmm(panel, left, left[:, :PANEL].mH, alpha=-1)
        corner = cholesky_factor(panel[:, :PANEL])
        factor[:, start:stop, start:stop] = corner
        below = panel[:, PANEL:]
        factor[:, stop:, start:stop] = torch.linalg.solve_triangular(
            corner.mH, below, upper=True, left=False
        )
    return factor


def _solve(gram: Tensor, factor: Tensor, right: Tensor) -> Tensor:
    solution = _twice(factor, right)
    return solution + _twice(factor, right - gram @ solution)


def _twice(factor: Tensor, right: Tensor) -> Tensor:
    """What `cholesky_solve` gives, which copies the factor first."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mH, half, upper=True)
