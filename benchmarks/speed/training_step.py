"""What a training step costs: how it grows, where its time goes, and what comes before the first.

python -m benchmarks.speed.training_step growth
python -m benchmarks.speed.training_step start
python -m benchmarks.speed.training_step operations
python -m benchmarks.speed.training_step precision cifar10_small

*growth*: one size grows at a time, the others stay: width, depth and batch of an orthogonal MaxMin
MLP, and the side of the map of an orthogonal convolutional network. Every point is a process of its
own, whose processor time per step is the median over the steps and whose memory is the most it ever
held beyond what it held before the network was built. The exponent is the slope of a straight line
through the last three points of log(time) over log(size).

*start*: processor seconds of whole processes, the least of some, and of building LiResNet++ as
published, 83M parameters.

*operations*: steps of the networks behind ``experiment=mnist_1.58`` and the default run, the time
of torch's operations sorted into kinds, beside the time that the step's multiplications alone would
take at the rate that this machine reaches in one large product.

*precision*: steps of an experiment in float32 and under bfloat16 autocast, in turn, on the same
random images, augmentation, clipping and optimizer included, without Lightning and its metrics. CPU
time of the process, so that other work on the machine counts less; give ``OMP_NUM_THREADS=1`` to
compare machines. Verified numbers never see bfloat16: validation and certification leave autocast.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.step_time import Step, constrained_step, training_step
from robustcert.activations import GroupSort
from robustcert.layers import AOLConv2d, BCOPConv2d, CholeskyLinear
from robustcert.layers.product import product
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.models import MLP, ConvNet, LayerFamily
from robustcert.runs.memory import keep_freed_memory

ROOT = Path(__file__).parents[2]
# Model, sizes that stay, and the values of the one that grows.
DENSE = {"width": 512, "depth": 4, "batch": 512, "side": 28}
MAPS = {"width": 256, "depth": 4, "batch": 64, "side": 16}
SWEEPS: dict[str, tuple[str, dict[str, int], list[int]]] = {
    "width": ("mlp", DENSE, [128, 256, 512, 1024]),
    "depth": ("mlp", DENSE, [2, 4, 8, 16]),
    "batch": ("mlp", DENSE, [128, 256, 512, 1024]),
    "side": ("convnet", MAPS, [8, 16, 32, 64]),
}
STARTS = {
    "python train.py --help": ["train.py", "--help"],
    "import robustcert": ["-c", "import robustcert"],
    "import robustcert.check": ["-c", "import robustcert.check.verdict"],
    "robustcert.certify": ["-c", "import robustcert; robustcert.certify"],
    # Without what Python does at its exit, as the run below, which leaves that out.
    "import lightning.pytorch": ["-c", "import lightning.pytorch, os; os._exit(0)"],
    "python train.py +trainer.fast_dev_run=true": ["train.py", "+trainer.fast_dev_run=true"],
}
# Input shape, width, depth, batch.
RUNS = {
    "experiment=mnist_1.58": ((1, 28, 28), 512, 4, 256),
    "default (digits)": ((1, 8, 8), 128, 3, 256),
}
KINDS = {
    "products": ("mm", "addmm", "bmm", "matmul", "mkldnn::_linear_pointwise"),
    "triangular solves": ("linalg_solve_triangular",),
    "Cholesky factors": ("linalg_cholesky_ex",),
    "minimum, maximum, selection": ("minimum", "maximum", "lerp", "gt", "where"),
    "optimizer and gradient norm": (
        *("mul_", "addcmul_", "addcdiv_", "lerp_", "add_", "div", "sqrt", "linalg_vector_norm"),
    ),
    "copies": ("copy_", "cat", "zero_", "fill_", "tril"),
}
PARTS = ("augmentation", "forward", "estimate and loss", "backward", "clipping and optimizer")
Times = dict[str, list[float]]


def measure(model: str, sizes: dict[str, int], steps: int) -> dict[str, float]:
    """Processor seconds of a training step, and MiB beyond the start, in this process."""
    channels = 1 if model == "mlp" else 3
    x = torch.rand(sizes["batch"], channels, sizes["side"], sizes["side"])
    y = torch.randint(10, (sizes["batch"],))
    before = _most_held()
    network = (MLP if model == "mlp" else ConvNet)(
        tuple(x.shape[1:]),
        10,
        width=sizes["width"],
        depth=sizes["depth"],
        layer=LayerFamily(CholeskyLinear, BCOPConv2d),
        activation=GroupSort,
    )
    step, times = training_step(network, x, y), []
    for _ in range(steps + 1):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return {"seconds": median(times[1:]), "mib": _most_held() - before}


def exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of log(time) over log(size) through the last three points."""
    x, y = ([math.log(v) for v in values[-3:]] for values in (sizes, times))
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum(
        (a - middle) ** 2 for a in x
    )


def _most_held() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_a_process(model: str, sizes: dict[str, int], steps: int) -> dict[str, float]:
    point = json.dumps([model, sizes, steps])
    command = [sys.executable, "-m", "benchmarks.speed.training_step", "point", point]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _start_seconds(arguments: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def _build_seconds(repeats: int) -> float:
    from benchmarks.studies.claims import compose
    from robustcert.config.build import COMMAND_LINE_TARGETS, build_model

    config = compose("experiment=liresnet_plus_cifar10")
    times = []
    for _ in range(repeats):
        start = time.process_time()
        build_model(config, (3, 32, 32), 10, COMMAND_LINE_TARGETS)
        times.append(time.process_time() - start)
    return min(times)


def print_start(repeats: int = 5) -> None:
    """What comes before the first step."""
    print("| start | CPU seconds |\n| --- | --- |")
    for label, command in STARTS.items():
        print(f"| `{label}` | {_start_seconds(command, repeats):.2f} |")
    print(f"| LiResNet++ 512x12, built | {_build_seconds(repeats):.2f} |")


def print_growth(steps: int) -> None:
    """Measure every point."""
    for name, (model, fixed, values) in SWEEPS.items():
        points = [_in_a_process(model, fixed | {name: v}, steps) for v in values]
        others = ", ".join(f"{k} {v}" for k, v in fixed.items() if k != name)
        power = exponent(values, [point["seconds"] for point in points])
        print(f"\n{model}, {others}: time grows with {name} to the power {power:.2f}")
        print("| " + name + " | " + " | ".join(map(str, values)) + " |")
        print("| --- |" + " --- |" * len(values))
        for label, key, scale in (("CPU ms a step", "seconds", 1e3), ("peak MiB", "mib", 1)):
            print(f"| {label} | " + " | ".join(f"{p[key] * scale:.0f}" for p in points) + " |")


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
        product(a, a)
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(times)


def print_operations(steps: int) -> None:
    """Profile both runs and print the tables."""
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


@contextmanager
def clock(times: Times, part: str) -> Iterator[None]:
    """Append the CPU time of what runs inside."""
    start = time.process_time()
    yield
    times[part].append(time.process_time() - start)


def make_step(overrides: list[str], reduced: bool, times: Times) -> Callable[[], None]:
    """A step as the LightningModule takes it."""
    from benchmarks.studies.claims import compose
    from robustcert.config.build import (
        COMMAND_LINE_TARGETS,
        build_data,
        build_dataset,
        build_module,
    )

    config = compose(*overrides)
    torch.manual_seed(0)
    dataset = build_dataset(config, COMMAND_LINE_TARGETS)
    module = build_module(config, dataset, COMMAND_LINE_TARGETS).train()
    data = build_data(config, dataset, COMMAND_LINE_TARGETS)
    optimizer = module.optimizer(module.parameters())
    generator = torch.Generator().manual_seed(0)
    shape = (config["loader"]["batch_size"], *dataset.input_shape)
    stored = torch.randint(256, shape, dtype=torch.uint8)
    target = torch.randint(dataset.num_classes, shape[:1])

    def step() -> None:
        with clock(times, "augmentation"):
            x = stored.float() / 255
            for augment in data.augmentation:
                x = augment(x, generator)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            with clock(times, "forward"):
                logits = module(x).float()
            with clock(times, "estimate and loss"):
                pairwise = pairwise_lipschitz_estimate(module.model).float()
                loss = module.objective(logits, target, pairwise, module.epsilon)
        with clock(times, "backward"):
            loss.backward()
        with clock(times, "clipping and optimizer"):
            torch.nn.utils.clip_grad_norm_(module.parameters(), 3.0)
            optimizer.step()

    return step


def print_precision(overrides: list[str], steps: int) -> None:
    """Time both precisions in turn and print the table."""
    from robustcert.runs.results import processor

    found: list[Times] = [defaultdict(list), defaultdict(list)]
    both = [make_step(overrides, reduced, found[reduced]) for reduced in (False, True)]
    for _ in range(steps + 3):
        for step in both:
            step()
    print(f"{' '.join(overrides)}: CPU ms a step, {torch.get_num_threads()} threads, {processor()}")
    print(f"{'':24} {'float32':>9} {'bf16-mixed':>11}")
    rows = [(part, [times[part][3:] for times in found]) for part in PARTS]
    whole = [
        [sum(parts) for parts in zip(*(times[part][3:] for part in PARTS), strict=True)]
        for times in found
    ]
    for name, (full, reduced) in [*rows, ("all", whole)]:
        print(f"{name:24} {1e3 * median(full):9.1f} {1e3 * median(reduced):11.1f}")


def main() -> None:
    """Measure what is asked for and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for name, steps in (("growth", 8), ("operations", 20), ("precision", 30)):
        part = parts.add_parser(name)
        part.add_argument("--steps", type=int, default=steps)
        if name == "precision":
            part.add_argument("experiment")
            part.add_argument("overrides", nargs="*")
    parts.add_parser("start")
    parts.add_parser("point", description="One point of growth.").add_argument("point")
    options = parser.parse_args()
    keep_freed_memory()
    if options.part == "point":
        print(json.dumps(measure(*json.loads(options.point))))
    elif options.part == "start":
        print_start()
    elif options.part == "growth":
        print_growth(options.steps)
    elif options.part == "operations":
        print_operations(options.steps)
    else:
        print_precision([f"experiment={options.experiment}", *options.overrides], options.steps)


if __name__ == "__main__":
    main()
