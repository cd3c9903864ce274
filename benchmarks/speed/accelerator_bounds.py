"""Bounds of norms that a device proves, beside those of the CPU, a row of a table for each.

Of shapes whose proofs differ, and of LiResNet++ as a validation bounds it. Neither side is exact:
both raise estimates by what a proof needs, so that they agree but for some units of 1e-6.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.speed.accelerator_steps import SHAPE, Sizes, liresnet
from benchmarks.speed.architecture_time import chord
from robustcert.certifiers import (
    LipschitzCertifier,
    UnsoundArithmeticError,
    bounds_on,
    quick_bounds,
    strict_arithmetic,
)
from robustcert.network.fold import fold_network
from robustcert.norms import conv_norm_bound, dense_norm_bound

CPU = torch.device("cpu")
# Largest relative difference of two bounds: what one of them may have to be raised by.
CLOSE = 2e-4


def shapes(width: int) -> dict[str, Callable[[], float]]:
    """Bounds by what is bounded, and by what proves it at a width of 512."""
    torch.manual_seed(0)
    wide, half, quarter, least = 4 * width, width // 2, width // 4, max(1, width // 8)
    matrix = torch.randn(wide, wide)
    kernels = {
        "products of taps": (torch.randn(width, width, 3, 3), 16, 1, 1),
        "symbols, stride 2": (torch.randn(half, quarter, 4, 4), 32, 2, 1),
        "large singular values": (torch.randn(half, half, 3, 3), 8, 1, 1),
        "one dimension": (torch.randn(least, least, 3, 3), 8, 1, 1),
    }
    found: dict[str, Callable[[], float]] = {
        f"a matrix of {wide} x {wide}": partial(dense_norm_bound, matrix)
    }
    for name, (weight, side, *options) in kernels.items():
        out, inner, kernel, _ = weight.shape
        title = f"{inner} to {out} channels, {kernel}x{kernel}, {side}x{side} map: {name}"
        found[title] = partial(conv_norm_bound, weight, side, *options)
    return found


def whole(sizes: Sizes) -> Callable[[], float]:
    """The largest pairwise constant of LiResNet++, folded anew, as nothing is remembered then."""
    torch.manual_seed(0)
    model = liresnet(sizes, chord()).eval()
    networks = iter([fold_network(model, SHAPE) for _ in range(2)])

    def bound() -> float:
        with quick_bounds():
            return float(LipschitzCertifier().pairwise_bound(next(networks)).max())

    return bound


def bound_rows(device: torch.device, sizes: Sizes) -> Iterator[str]:
    """Rows on bounds of both.

    Raises:
        UnsoundArithmeticError: bounds differ by more than :data:`CLOSE`, or the device failed;
            after all rows.
    """
    with strict_arithmetic(), bounds_on(device):
        # What is tested and loaded once is no bound's.
        dense_norm_bound(torch.randn(300, 300))
    wrong = []
    every = {**shapes(sizes.width), f"LiResNet++, {sizes.width} x {sizes.depth}": whole(sizes)}
    for title, bound in every.items():
        home, home_seconds, _ = timed(bound, CPU)
        away, away_seconds, failed = timed(bound, device)
        apart = away / home - 1
        if failed or not abs(apart) < CLOSE:
            wrong.append(title)
        told = "failed, so that the CPU proved it" if failed else f"{away_seconds:.2f} s"
        over = away_seconds / home_seconds
        yield f"| {title} | {home_seconds:.2f} s | {told} | {over:.3f} | {apart:+.1e} |"
    if wrong:
        raise UnsoundArithmeticError(f"bounds of the device are not usable: {', '.join(wrong)}")


def timed(bound: Callable[[], float], device: torch.device) -> tuple[float, float, bool]:
    """A bound by a device, its seconds, and whether another one had to prove it."""
    start = time.perf_counter()
    with strict_arithmetic(), bounds_on(device) as place:
        found = bound()
        seconds = time.perf_counter() - start
        return found, seconds, place.failed or place.device != device
