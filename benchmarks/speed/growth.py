"""How bound and check grow with channels, side and depth, in CPU seconds, and with what exponent.

    python -m benchmarks.speed.growth

Bounds of residual 3x3 convolutions, their proofs by the checker, and what the checker takes for a
sample of a trunk of such convolutions, in float64 and in integers. The exponent is the slope of a
straight line through the logarithms; small sizes are left out, where nothing is large. Random
weights; the medians of some repeats, one thread.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.speed.training_step import exponent
from robustcert import norms
from robustcert.check.arithmetic import FLOAT64
from robustcert.check.forward.exact import evaluate_exactly
from robustcert.check.forward.floating import evaluate
from robustcert.check.network.operation import Operation
from robustcert.check.norms.operation import prove

REPEATS = 3
# Channels on maps of one side, sides of one number of channels, and numbers of convolutions.
CHANNELS, SIDES, DEPTHS = (128, 256, 512), (16, 32, 64), (2, 4, 8)
SIDE, WIDTH = 16, 64


def kernel(width: int) -> torch.Tensor:
    """A linear residual convolution's."""
    weight = 0.1 * torch.randn(width, width, 3, 3) / width**0.5
    weight[:, :, 1, 1] += torch.eye(width)
    return weight


def convolution(weight: torch.Tensor, side: int, path: str = "0") -> Operation:
    """The checker's operation."""
    options = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    shape = (len(weight), side, side)
    tensors = {"weight": weight.numpy()}
    return Operation("convolution", "", path, options, tensors, shape, shape)


def seconds(work: Callable[[], Any]) -> float:
    """The median CPU seconds of some repeats, after a first one where that is quick."""
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < 10:
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return median(taken[1:] or taken)


def all_of(function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
    """The function's results for all layers of a trunk."""
    return list(map(function, *arguments))


def row(name: str, sizes: tuple[int, ...], times: list[float]) -> None:
    """Print a line."""
    shown = ", ".join(f"{n}: {t:.3g} s" for n, t in zip(sizes, times, strict=True))
    print(f"{name}: {shown}; to the power {exponent(list(sizes), times):.2f}", flush=True)


def bounds(name: str, cases: tuple[tuple[int, int, int], ...], sizes: tuple[int, ...]) -> None:
    """Bounds of a trunk's convolutions and their proofs by the checker."""
    found, checked = [], []
    for width, side, depth in cases:
        weights = [kernel(width) for _ in range(depth)]
        bounded = partial(all_of, partial(norms.conv_norm_bound, input_size=side, padding=1))
        claimed = bounded(weights)
        operations = [convolution(weight, side) for weight in weights]
        assert all(proof.method for proof in all_of(prove, operations, claimed))
        found.append(seconds(partial(bounded, weights)))
        checked.append(seconds(partial(all_of, prove, operations, claimed)))
    row(f"bound, {name}", sizes, found)
    row(f"its proof in the checker, {name}", sizes, checked)


def samples(name: str, cases: tuple[tuple[int, int, int], ...], sizes: tuple[int, ...]) -> None:
    """A sample of a trunk in float64 and in integers, for channels, sides and depths."""
    floats, exact = [], []
    for width, side, depth in cases:
        trunk = [convolution(kernel(width), side, str(k)) for k in range(depth)]
        claimed = {op.path: 2.0 for op in trunk}
        byte = np.random.default_rng(0).integers(0, 256, (1, width, side, side))
        x = (byte.astype(np.float32) / np.float32(255)).astype(np.float64)
        floats.append(seconds(partial(evaluate, trunk, x, claimed, [FLOAT64])))
        exact.append(seconds(partial(evaluate_exactly, trunk, x, claimed)))
    row(f"a sample in float64, {name}", sizes, floats)
    row(f"a sample in integers, {name}", sizes, exact)


def main() -> None:
    """Measure."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    bounds(f"channels on {SIDE}x{SIDE}", tuple((n, SIDE, 1) for n in CHANNELS), CHANNELS)
    bounds(f"side of {WIDTH} channels", tuple((WIDTH, n, 1) for n in SIDES), SIDES)
    bounds(f"depth of {WIDTH} channels", tuple((WIDTH, SIDE, n) for n in DEPTHS), DEPTHS)
    samples(f"channels on {SIDE}x{SIDE}", tuple((n, SIDE, 2) for n in CHANNELS), CHANNELS)
    samples(f"side of {WIDTH} channels", tuple((WIDTH, n, 2) for n in SIDES), SIDES)
    samples(f"depth of {WIDTH} channels", tuple((WIDTH, SIDE, n) for n in DEPTHS), DEPTHS)


if __name__ == "__main__":
    main()
