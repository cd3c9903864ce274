"""What is worth knowing of an accelerator, in nine minutes: certificates, steps, memory, training.

    ROBUSTCERT_DATA=data python -m benchmarks.accelerator

Certifies networks on the device and on the CPU, checks a folder that was certified on the device,
and proves bounds on both; trains `experiment=cifar10_small` for as many epochs as five minutes
allow and certifies it there; times float64 passes, certificates and attacks, and training steps of
published architectures over their unconstrained twins and beside the operations of published code.
Writes the page docs/accelerator.md, anew after each row, and names what did not fit into the time.
Exit status 1 if a certificate or a bound differs or is refused, or a part fails.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.speed.accelerator_bounds import bound_rows
from benchmarks.speed.accelerator_steps import MANIFOLD, STEPS, Sizes, step_rows, throughput_rows
from benchmarks.speed.architecture_time import MAXMIN, chord
from benchmarks.studies.claims import compose
from robustcert import layers
from robustcert.activations import BetaAbs
from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import Certificates, LipschitzCertifier
from robustcert.certifiers.arithmetic import check_device
from robustcert.check import check
from robustcert.check.effort import effort_of
from robustcert.check.report import Report
from robustcert.config.build import COMMAND_LINE_TARGETS, build_dataset
from robustcert.data import DatasetError, to_unit
from robustcert.models import MLP, LayerFamily, LipNeXt, LiResNet
from robustcert.network.fold import fold_network

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "accelerator.md"
# Largest relative difference of two certificates of one sample, of rounding in another order.
SAME = 1e-9
# Seconds that the checker may take for the trained network.
CHECK_SECONDS = 60.0
EXPERIMENT = "experiment=cifar10_small"
DENSE = LayerFamily(layers.CholeskyLinear, layers.AOLConv2d)


class OutOfTimeError(BaseException):
    """The time of all parts is over; of no use to whoever handles errors on the way."""


class WrongError(Exception):
    """A certificate of the device differs from that of the CPU, or the checker refuses it."""


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        title: Its heading.
        head: Lines before those that are measured.
        lines: What is measured.
    """

    title: str
    head: Sequence[str]
    lines: Callable[[], Iterator[str]]


def networks() -> dict[str, nn.Module]:
    """Untrained networks of three kinds, on images of 32x32 pixels."""
    shape = (3, 32, 32)
    torch.manual_seed(0)
    return {
        "dense": MLP(shape, 10, width=256, depth=2, layer=DENSE, activation=MAXMIN),
        "LiResNet": LiResNet(
            shape, 10, width=32, depth=2, layer=chord(), activation=MAXMIN, dense_depth=1
        ),
        "LipNeXt": LipNeXt(
            *(shape, 10),
            width=64,
            depth=2,
            layer=MANIFOLD,
            activation=BetaAbs,
            pool=layers.NormPool2d,
        ),
    }


def certificates(device: torch.device, samples: int) -> Iterator[str]:
    """Rows on certificates of the device beside those of the CPU.

    Raises:
        WrongError: not all are right; after all rows.
    """
    check_device(device)
    wrong = []
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(
        0, 256, (samples, 3, 32, 32), dtype=torch.uint8, generator=generator, device="cpu"
    )
    certifier = LipschitzCertifier()
    for name, model in networks().items():
        network = fold_network(model.eval(), inputs.shape[1:])
        x = to_unit(inputs)
        certifier.claim(network)  # bounds are proved once, on the CPU
        start = time.perf_counter()
        home = certifier.certify(network, x)
        middle = time.perf_counter()
        found = certifier.certify(network.to(device), x.to(device))
        away = Certificates(**{f.name: getattr(found, f.name).cpu() for f in fields(found)})
        end = time.perf_counter()
        apart = float(((away.radius - home.radius).abs() / home.radius.clamp(min=1e-12)).max())
        split = CertifiedSplit(inputs, away.prediction, torch.arange(samples), away)
        with tempfile.TemporaryDirectory() as folder:
            write_certificate(Path(folder), network, certifier.claim(network), split, [0.1])
            report = check(Path(folder), exact=min(4, samples), seed=0)
        same = bool((away.prediction == home.prediction).all()) and apart < SAME
        if not (same and report.verified):
            wrong.append(name)
        yield (
            f"| {name} | {samples} | {apart:.1e} | {verdict(report)} | {middle - start:.2f} s | "
            f"{end - middle:.2f} s |"
        )
    if wrong:
        raise WrongError(f"certificates of the device are wrong: {', '.join(wrong)}")


def verdict(report: Report) -> str:
    """What the checker says: verified, or the first thing that is not."""
    if report.verified:
        return "verified"
    if report.mismatches:
        return f"refused: {report.mismatches[0]}"
    return f"not all was checked: {[*report.uncovered, *report.untried][0]}"


def training(device: torch.device, seconds: float, overrides: Sequence[str]) -> Iterator[str]:
    """Lines on a training for so many seconds, and its certificate, both on the device.

    Raises:
        WrongError: the checker refuses the certificate.
    """
    accelerator = "gpu" if device.type == "cuda" else device.type
    typed = [EXPERIMENT, f"trainer.accelerator={accelerator}", *overrides]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What two epochs take says how many there is time for.
        trial = train(folder / "trial", *typed, "trainer.max_epochs=2", "certify=false")
        epochs = max(2, int(2 * seconds / trial["train"]))
        typed += [f"certify_device={device}", f"trainer.max_epochs={epochs}"]
        found = train(folder / "run", *typed, f"attack.seconds={seconds / 10:.0f}")
        yield f"`python train.py {' '.join(typed)}`: {found['train']:.0f} s of training,"
        yield f"{found['certify']:.0f} s of certification. Verified accuracy on the test split:"
        folder = folder / "run" / "certificate"
        summary = json.loads((folder / "certificate.json").read_text())["summary"]
        shares = [(row["decimal"], row["count"]) for row in summary["certified"]]
        yield ", ".join(f"{n / summary['samples']:.4f} at {radius:.4g}" for radius, n in shares)
        report = check(folder, exact=8, seed=0, effort=effort_of(CHECK_SECONDS))
        yield f"(one seed). The checker, in {CHECK_SECONDS:.0f} s: {verdict(report)}."
    if report.mismatches:
        raise WrongError("the checker refuses the trained network's certificate")


def train(folder: Path, *typed: str) -> dict[str, float]:
    """Seconds of the parts of a run of ``python train.py``."""
    command = [sys.executable, "train.py", *typed, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, cwd=ROOT)
    seconds: dict[str, float] = json.loads((folder / "results.json").read_text())["seconds"]
    return seconds


def parts_of(device: torch.device, options: argparse.Namespace) -> list[Part]:
    """The parts of the page, of which the first matter most."""
    sizes = Sizes(options.width, options.depth, options.batch, options.repeats, options.backend)
    found = [
        Part(
            "Certificates of the device beside those of the CPU; bounds are proved on the CPU",
            [
                "| network | samples | largest relative difference | the checker | CPU | device |",
                "| --- | --- | --- | --- | --- | --- |",
            ],
            partial(certificates, device, options.samples),
        ),
        Part(
            "Bounds that the device proves beside those that the CPU proves",
            [
                "| what | CPU | device | over the CPU | relative difference |",
                "| --- | --- | --- | --- | --- |",
            ],
            partial(bound_rows, device, sizes),
        ),
        Part(
            "A training and its certificate",
            [],
            partial(training, device, options.seconds, options.override),
        ),
        Part(
            "Certification in float64 on the device, images a second",
            [
                f"| network | bounds | forward | certificates | attacks, {STEPS} steps | memory |",
                "| --- | --- | --- | --- | --- | --- |",
            ],
            partial(throughput_rows, device, sizes, options.certified),
        ),
        Part(
            f"Training steps of batches of {options.batch} images of 32x32, medians of "
            f"{options.repeats}; float32 where nothing is said",
            ["| network | step | over the first | most memory |", "| --- | --- | --- | --- |"],
            partial(step_rows, device, sizes),
        ),
    ]
    return [part for part in found if options.seconds or part.lines.func is not training]


class Page:
    """The page, written anew with every line.

    Args:
        path: Where.
        name: Of the device.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.lines = [
            "# On an accelerator",
            "",
            f"Measured by `python -m benchmarks.accelerator` on {time.strftime('%Y-%m-%d')}:",
            f"{name}, torch {torch.__version__}, {os.cpu_count()} cores.",
        ]

    def add(self, *lines: str) -> None:
        """Write more lines, and print them."""
        self.lines += lines
        print("\n".join(lines), flush=True)
        self.path.write_text("\n".join(self.lines) + "\n")


def fill(page: Page, parts: Sequence[Part]) -> bool:
    """Measure the parts, one after the other; whether all went well.

    What a part raises is said on the page, and the next one begins.
    """
    well = True
    for k, part in enumerate(parts):
        try:
            page.add("", f"## {part.title}", "", *part.head)
            for line in part.lines():
                page.add(line)
        except OutOfTimeError:
            rest = [f"the rest of “{part.title}”", *(f"“{p.title}”" for p in parts[k + 1 :])]
            page.add("", f"Left out, as the time was over: {'; '.join(rest)}.")
            return well
        except Exception as error:
            traceback.print_exc()
            page.add("", f"This part failed: {type(error).__name__}: {error}")
            well = False
    return well


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--minutes", type=float, default=9.0, help="of everything")
    parser.add_argument("--samples", type=int, default=256, help="certified on both sides")
    parser.add_argument("--certified", type=int, default=64, help="images of a float64 batch")
    parser.add_argument("--width", type=int, default=512, help="of the networks whose steps count")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--backend", default="inductor", help="of compiled steps")
    parser.add_argument("--seconds", type=float, default=300.0, help="of training; 0: none")
    parser.add_argument("--override", nargs="*", default=[], help="of the training")
    options = parser.parse_args(arguments)
    if options.seconds:
        # Before anything is measured: without data the training would fail minutes later.
        dataset = build_dataset(compose(EXPERIMENT, *options.override), COMMAND_LINE_TARGETS)
        try:
            dataset.prepare()
            dataset.read("test")
        except (DatasetError, OSError) as error:
            parser.error(f"{error}\nset ROBUSTCERT_DATA to a folder with CIFAR-10, or --seconds 0")
    return options


def stop(*_: object) -> None:
    """End what is being measured."""
    raise OutOfTimeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the page."""
    options = options_of(arguments)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * options.minutes)
    try:
        return 0 if fill(Page(options.page, name), parts_of(device, options)) else 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main())
