"""A published network at its size, from its weights to its certificate, in CPU seconds.

    python -m benchmarks.speed.published_size liresnet_plus_cifar10 --samples 1000 --attacked 32
    python -m benchmarks.speed.published_size bronet_cifar10 --folder outputs/size
    python -m benchmarks.speed.published_size bronet_cifar10 --training-step 8

builds the network of an experiment with its initial weights and folds, bounds and evaluates it; it
certifies random images and attacks some of them. One line for each. With ``--folder`` the
certificate is kept, for ``benchmarks.speed.checker_size --folder``. ``--training-step``, instead,
times steps of so many images in turn with those of the same network without constraints. Further
words are overrides, as in ``model.depth=2``.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks.speed.architecture_time import measure, steps_of
from benchmarks.studies.claims import compose
from robustcert.attacks import pgd_survivors
from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import LipschitzCertifier, strict_arithmetic
from robustcert.config.build import COMMAND_LINE_TARGETS, build, build_model
from robustcert.data import as_numbers
from robustcert.models import LayerFamily
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.runs.memory import keep_freed_memory

Found = TypeVar("Found")
Shape = tuple[int, int, int]
# Images and classes by the class of a data set, which need not be on the disk.
IMAGES: dict[str, tuple[Shape, int]] = {
    "robustcert.data.CIFAR10": ((3, 32, 32), 10),
    "robustcert.data.ImageNet": ((3, 224, 224), 1000),
}
# Samples that are certified at once, and the radius of the attack.
BATCH, RADIUS = 50, 36 / 255
# Steps that are timed, after some to warm up.
REPEATS = 5


def timed(said: str, function: Callable[[], Found]) -> Found:
    """The function's result, with a line on its time and the memory so far."""
    worked, clock = time.process_time(), time.monotonic()
    found = function()
    worked, clock = time.process_time() - worked, time.monotonic() - clock
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{said}: CPU {worked:.2f} s, clock {clock:.2f} s, {memory:.2f} GB so far", flush=True)
    return found


def certified(network: PlainNetwork, images: Shape, samples: int) -> CertifiedSplit:
    """Random images with their certificates, every one labelled as predicted."""
    inputs = torch.randint(0, 256, (samples, *images), dtype=torch.uint8)
    certifier = LipschitzCertifier()
    parts = [certifier.certify(network, as_numbers(x, "images")) for x in inputs.split(BATCH)]
    names = ("prediction", "radius", "margin", "error", "decided")
    found = type(parts[0])(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
    return CertifiedSplit(inputs, found.prediction.clone(), torch.arange(samples), found)


def compare_steps(model: dict[str, Any], images: Shape, classes: int, batch: int) -> None:
    """A line on the training steps of a configured model and of its unconstrained twin."""
    stem = {"stem": model["stem"]} if model.get("stem") else {}
    apart = ("layer", "stem", "monotone")
    rest = {key: value for key, value in model.items() if key not in apart}
    own = build(model["layer"], "model.layer", COMMAND_LINE_TARGETS, expected=LayerFamily)

    def network(layer: LayerFamily) -> nn.Module:
        # A twin has plain convolutions only, the stem included.
        node = {**rest, **stem} if layer is own else rest
        sizes = {"input_shape": images, "num_classes": classes}
        return build(node, "model", COMMAND_LINE_TARGETS, expected=nn.Module, layer=layer, **sizes)

    steps = steps_of(network, {"own": own}, side=images[1], batch=batch)
    plain, taken = ([cpu for _, cpu in times] for times in measure(steps, REPEATS).values())
    ratios = sorted(mine / other for mine, other in zip(taken, plain, strict=True))
    print(
        f"step of {batch}: CPU {median(taken):.2f} s, twin {median(plain):.2f} s, ratio "
        f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--attacked", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--training-step", type=int, metavar="IMAGES")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    config = compose(f"experiment={options.experiment}", *options.overrides)
    images, classes = IMAGES[config["dataset"]["_target_"]]
    torch.manual_seed(0)
    if options.training_step is not None:
        compare_steps(config["model"], images, classes, options.training_step)
        return 0
    model = timed("build", lambda: build_model(config, images, classes, COMMAND_LINE_TARGETS))
    count = sum(p.numel() for p in model.parameters())
    network = timed(f"fold {count / 1e6:.1f}M", lambda: fold_network(model.eval(), images))
    size = sum(t.nbytes for op in network.operations for t in op.tensors().values())
    certifier = LipschitzCertifier()
    timed(f"bound, {torch.get_num_threads()} threads", lambda: certifier.pairwise_bound(network))
    x = torch.rand(8, *images, dtype=torch.float64)
    with strict_arithmetic(), torch.no_grad():
        timed("first float64 forward of an image", lambda: network(x[:1]))
        timed("another", lambda: network(x[:1]))
        timed("of 8", lambda: network(x))
    split = timed(f"certify {options.samples}", lambda: certified(network, images, options.samples))
    some = split.inputs[: options.attacked]
    if len(some):
        timed(
            f"attack {len(some)} by {options.steps} steps",
            lambda: pgd_survivors(
                *(network, as_numbers(some, "images"), split.target[: len(some)], [RADIUS]),
                steps=options.steps,
            ),
        )
    print(f"constants: {size / 2**20:.1f} MiB")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        claim = certifier.claim(network)
        timed("write", lambda: write_certificate(options.folder, network, claim, split, [RADIUS]))
        kept = sum(path.stat().st_size for path in options.folder.iterdir())
        print(f"folder: {kept / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
