"""Training step of an MLP with constrained layers over the same MLP without a constraint.

python -m benchmarks.speed.step_time --width 512 --depth 4 --batch 512

All variants run in one process, in turn, so that a busy machine slows them alike. Prints the median
of each and its ratio to the plain network.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.activations import GroupSort, SmoothMaxMin
from robustcert.layers import (
    AOLConv2d,
    AOLLinear,
    CayleyLinear,
    CholeskyLinear,
    UnconstrainedConv2d,
    UnconstrainedLinear,
)
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.models import MLP, LayerFamily
from robustcert.objectives import EMMA
from robustcert.runs.memory import keep_freed_memory

Step = Callable[[], None]


def plain_step(x: Tensor, y: Tensor, width: int, depth: int) -> Step:
    """Step of nn.Linear and ReLU with cross-entropy."""
    sizes = [x[0].numel(), *[width] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()

    return step


def training_step(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Step of the certified-training loop, as the LightningModule takes it."""
    objective = EMMA(0.2)
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        objective(model(x), y, pairwise_lipschitz_estimate(model), 1.0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()

    return step


def constrained_step(
    x: Tensor, y: Tensor, width: int, depth: int, family: LayerFamily, activation: type[nn.Module]
) -> Step:
    """Training step of an MLP with constrained layers."""
    model = MLP(x.shape[1:], 10, width=width, depth=depth, layer=family, activation=activation)
    return training_step(model, x, y)


def main() -> None:
    """Time every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    x = torch.rand(arguments.batch, 1, 28, 28)
    y = torch.randint(10, (arguments.batch,))
    family = {
        "cholesky": LayerFamily(CholeskyLinear, AOLConv2d),
        "cayley": LayerFamily(CayleyLinear, AOLConv2d),
        "aol": LayerFamily(AOLLinear, AOLConv2d),
        "unconstrained + estimate": LayerFamily(UnconstrainedLinear, UnconstrainedConv2d),
    }
    make = partial(constrained_step, x, y, arguments.width, arguments.depth)
    steps = {"plain nn.Linear + ReLU": plain_step(x, y, arguments.width, arguments.depth)}
    for name, layers in family.items():
        steps[f"{name}, MaxMin"] = make(layers, GroupSort)
    steps["cholesky, SmoothMaxMin"] = make(family["cholesky"], SmoothMaxMin)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(arguments.repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat >= 2:
                times[name].append(time.perf_counter() - start)
    base = times["plain nn.Linear + ReLU"]
    print(
        f"MLP 784-{arguments.width}x{arguments.depth}-10, batch {arguments.batch}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'variant':28} {'median ms':>10} {'ratio':>7}")
    for name, values in times.items():
        # Pairwise, so that drift of the machine's speed cancels.
        ratio = median(a / b for a, b in zip(values, base, strict=True))
        print(f"{name:28} {1e3 * median(values):10.1f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
