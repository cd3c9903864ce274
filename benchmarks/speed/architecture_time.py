"""Training step of LiResNet's trunk and of LiResNet++ over the same network without constraints.

python -m benchmarks.speed.architecture_time trunk
python -m benchmarks.speed.architecture_time network --repeats 3

`trunk`: eight linear residual convolutions of 64 channels on 16x16 maps, a batch of 128; the step
with the norms' estimate over the step without. `network`: that trunk behind a stem, an orthogonal
neck and eight dense layers of 2048 features, over the twin made of torch.nn's layers with
cross-entropy. Variants take turns in one process, so that a busy machine slows them alike; ratios
are medians over the rounds, of wall and of CPU time.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert import layers
from robustcert.activations import GroupSort
from robustcert.layers.together import constrained_together
from robustcert.lipschitz import lipschitz_estimate, pairwise_lipschitz_estimate
from robustcert.models import LayerFamily, LiResNet, PatchFamily
from robustcert.objectives import EMMA
from robustcert.runs.memory import keep_freed_memory

Step = Callable[[], None]
# Steps before those that are timed: a step takes new memory from the system until it is the third.
WARM_UP = 2
MAXMIN = partial(GroupSort, group_size=2)


def step_of(module: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """A step of training as the LightningModule takes it."""
    optimizer = torch.optim.NAdam(module.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        optimizer.step()

    return step


def trunk_steps(depth: int, width: int, side: int, batch: int) -> dict[str, Step]:
    """Steps of the trunk alone, the first without the estimate."""
    x = torch.randn(batch, width, side, side)

    def trunk(conv: Callable[..., nn.Module]) -> nn.Sequential:
        pairs = [(conv(width, width, 3, padding=1), MAXMIN(width)) for _ in range(depth)]
        return nn.Sequential(*(module for pair in pairs for module in pair))

    lires = partial(layers.LiResConv2d, input_size=(side, side))
    bare, estimated, plain = trunk(lires), trunk(lires), trunk(nn.Conv2d)
    return {
        "LiRes, no estimate": step_of(bare, lambda: bare(x).square().mean()),
        "LiRes, estimate": step_of(
            estimated, lambda: estimated(x).square().mean() * lipschitz_estimate(estimated)
        ),
        "nn.Conv2d": step_of(plain, lambda: plain(x).square().mean()),
    }


def chord(dense: Callable[..., nn.Module] = layers.CholeskyResidualLinear) -> PatchFamily:
    """The layers of LiResNet++, with any dense ones."""
    centred = partial(layers.LiResConv2d, centering=True)
    return PatchFamily(dense, layers.CholeskyPatchConv2d, centred)


def steps_of(
    network: Callable[[LayerFamily], nn.Module],
    families: dict[str, LayerFamily],
    *,
    side: int,
    batch: int,
) -> dict[str, Step]:
    """Steps of a network of several layers, the first of its unconstrained twin."""
    x, y = torch.rand(batch, 3, side, side), torch.randint(10, (batch,))

    def certified(family: LayerFamily) -> Step:
        model, objective = network(family), EMMA(0.2)

        def loss() -> Tensor:
            with constrained_together(model):
                return objective(model(x), y, pairwise_lipschitz_estimate(model), 36 / 255)

        return step_of(model, loss)

    twin = network(LayerFamily(nn.Linear, plain_conv))
    plain = step_of(twin, lambda: F.cross_entropy(twin(x), y))
    return {
        "nn.Linear, nn.Conv2d": plain,
        **{name: certified(family) for name, family in families.items()},
    }


def network_steps(depth: int, width: int, side: int, batch: int) -> dict[str, Step]:
    """Steps of LiResNet++, the first of its unconstrained twin."""

    def network(family: LayerFamily) -> nn.Module:
        return LiResNet(
            (3, 2 * side, 2 * side),
            10,
            width=width,
            depth=depth,
            layer=family,
            activation=MAXMIN,
            neck_channels=2 * width,
            dense_width=2048,
            dense_depth=7,
        )

    families = {
        "BRO dense": chord(layers.BROLinear),
        "Cholesky residual dense": chord(),
    }
    return steps_of(network, families, side=2 * side, batch=batch)


def plain_conv(*sizes: int, input_size: tuple[int, int], **options: Any) -> nn.Conv2d:
    """A convolution without a constraint, called like the others."""
    del input_size
    return nn.Conv2d(*sizes, **options)


def measure(steps: dict[str, Step], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of every step, ``repeats`` rounds after some to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for repeat in range(repeats + WARM_UP):
        for name, step in steps.items():
            start = time.perf_counter(), time.process_time()
            step()
            took = time.perf_counter() - start[0], time.process_time() - start[1]
            if repeat >= WARM_UP:
                times[name].append(took)
    return times


def main() -> None:
    """Time the variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["trunk", "network"])
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--side", type=int, default=16, help="side of the trunk's maps")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    make = trunk_steps if options.what == "trunk" else network_steps
    times = measure(
        make(options.depth, options.width, options.side, options.batch), options.repeats
    )
    base = next(iter(times.values()))
    sizes = ", ".join(f"{key} {value}" for key, value in vars(options).items() if key != "what")
    print(f"{options.what}, {sizes}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'variant':28} {'median ms':>10} {'wall':>6} {'CPU':>6}   over the first")
    for name, values in times.items():
        wall, cpu = (
            median(mine[k] / other[k] for mine, other in zip(values, base, strict=True))
            for k in (0, 1)
        )
        took = 1e3 * median(seconds for seconds, _ in values)
        print(f"{name:28} {took:10.1f} {wall:6.2f} {cpu:6.2f}")


if __name__ == "__main__":
    main()
