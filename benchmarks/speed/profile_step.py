"""Where the time of a training step goes, and the floor under it.

python -m benchmarks.speed.profile_step

Profiles steps of the networks behind `experiment=mnist_1.58` and the default run, sorts the time of
torch's operations into kinds, and sets it beside the time that the step's multiplications alone
would take at the rate that this machine reaches in one large product.
"""

import argparse
import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.step_time import Step, constrained_step
from robustcert.activations import GroupSort
from robustcert.layers import AOLConv2d, CholeskyLinear
from robustcert.models import LayerFamily

# Input shape, width, depth, batch.
RUNS = {
    "experiment=mnist_1.58": ((1, 28, 28), 512, 4, 256),
    "default (digits)": ((1, 8, 8), 128, 3, 256),
}
KINDS = {
    "products": ("mm", "addmm", "bmm", "matmul"),
    "triangular solves": ("linalg_solve_triangular",),
    "Cholesky factors": ("linalg_cholesky_ex",),
    "minimum, maximum, selection": ("minimum", "maximum", "lerp", "gt", "where"),
    "optimizer and gradient norm": (
        *("mul_", "addcmul_", "addcdiv_", "lerp_", "add_", "div", "sqrt", "linalg_vector_norm"),
    ),
    "copies": ("copy_", "cat", "zero_", "fill_", "tril"),
}


def products(shape: tuple[int, ...], width: int, depth: int, batch: int) -> tuple[float, float]:
    """Multiply-adds of a step, doubled: of the layers alone, and with what the constraint adds.

    A layer of n inputs and m outputs takes 6 n m per sample. Orthogonalising it takes half a Gram
    product, a factor and a solve, and backward half a product, a whole one and a solve: with s the
    smaller and l the larger side, 6 s^2 l + s^3 / 3.
    """
    plain = constraint = 0.0
    inputs = torch.Size(shape).numel()
    for _ in range(depth):
        plain += 6 * inputs * width * batch
        small, large = sorted((inputs, width))
        constraint += 6 * small**2 * large + small**3 / 3
        inputs = width
    return plain + 6 * width * 10 * batch, constraint


def kinds_of(step: Step, steps: int) -> Counter[str]:
    """Seconds of each kind of operation in one step."""
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    spent: Counter[str] = Counter()
    for event in found.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((k for k, names in KINDS.items() if name in names), "everything else")
        spent[kind] += event.self_cpu_time_total / 1e6 / steps
    return spent


def rate() -> float:
    """Operations a second in a product of two 1024x1024 matrices."""
    a = torch.randn(1024, 1024)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(times)


def main() -> None:
    """Profile both runs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    for name, (shape, width, depth, batch) in RUNS.items():
        torch.manual_seed(0)
        x, y = torch.rand(batch, *shape), torch.randint(10, (batch,))
        family = LayerFamily(CholeskyLinear, AOLConv2d)
        spent = kinds_of(constrained_step(x, y, width, depth, family, GroupSort), steps)
        total = sum(spent.values())
        speed = rate()
        plain, constraint = (part / speed for part in products(shape, width, depth, batch))
        print(f"{name}: {1e3 * total:.1f} ms a step, {torch.get_num_threads()} threads")
        for kind, seconds in spent.most_common():
            print(f"  {kind:28} {1e3 * seconds:7.2f} ms {seconds / total:6.1%}")
        print(
            f"  floor at {speed / 1e9:.0f} GFLOP/s: {1e3 * plain:.2f} ms for the layers, "
            f"{1e3 * constraint:.2f} ms for the constraint"
        )


if __name__ == "__main__":
    main()
