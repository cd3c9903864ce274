"""Training step of an experiment in float32 and under bfloat16 autocast, and what its parts take.

python -m benchmarks.speed.precision_time cifar10_small

Both precisions take steps in turn on the same random images, augmentation, clipping and optimizer
included, without Lightning and its metrics. CPU time of the process, so that other work on the
machine counts less; give ``OMP_NUM_THREADS=1`` to compare machines. Verified numbers never see
bfloat16: validation and certification leave autocast.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from benchmarks.studies.claims import compose
from robustcert.config.build import COMMAND_LINE_TARGETS, build_data, build_dataset, build_module
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.runs.results import processor

PARTS = ("augmentation", "forward", "estimate and loss", "backward", "clipping and optimizer")
Times = dict[str, list[float]]


@contextmanager
def clock(times: Times, part: str) -> Iterator[None]:
    """Append the CPU time of what runs inside."""
    start = time.process_time()
    yield
    times[part].append(time.process_time() - start)


def make_step(overrides: list[str], reduced: bool, times: Times) -> Callable[[], None]:
    """A step as the LightningModule takes it."""
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


def main() -> None:
    """Time both precisions in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    overrides = [f"experiment={options.experiment}", *options.overrides]
    found: list[Times] = [defaultdict(list), defaultdict(list)]
    steps = [make_step(overrides, reduced, found[reduced]) for reduced in (False, True)]
    for _ in range(options.steps + 3):
        for step in steps:
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


if __name__ == "__main__":
    main()
