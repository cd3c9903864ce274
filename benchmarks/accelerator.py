"""What is worth knowing of an accelerator, in nine minutes: certificates, steps, memory, training.

    ROBUSTCERT_DATA=data python -m benchmarks.accelerator

Certifies networks on the device and on the CPU, and checks a folder that was certified on the
device; times training steps of published architectures over their unconstrained twins; trains
`experiment=cifar10_small` for as many epochs as five minutes allow and certifies it there. Prints
the page docs/accelerator.md and writes it. Exit status 1 if a certificate differs or is refused.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks.speed.architecture_time import MAXMIN, Step, chord, network_steps, steps_of
from robustcert import layers
from robustcert.activations import BetaAbs
from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import Certificates, LipschitzCertifier
from robustcert.certifiers.arithmetic import check_device
from robustcert.check import check
from robustcert.data import to_unit
from robustcert.layers.together import constrained_together
from robustcert.models import MLP, LayerFamily, LipNeXt, LiResNet, PatchFamily
from robustcert.network.fold import fold_network

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "accelerator.md"
# Largest relative difference of two certificates of one sample, of rounding in another order.
SAME = 1e-9
DENSE = LayerFamily(layers.CholeskyLinear, layers.AOLConv2d)
MANIFOLD = PatchFamily(layers.ManifoldLinear, layers.ManifoldPatchConv2d, layers.AOLConv2d)


def networks() -> dict[str, nn.Module]:
    """Untrained networks of three kinds, on images of 32x32 pixels."""
    shape = (3, 32, 32)
    torch.manual_seed(0)
    return {
        "dense": MLP(shape, 10, width=256, depth=2, layer=DENSE, activation=MAXMIN),
        "LiResNet": LiResNet(
            shape, 10, width=32, depth=2, layer=chord(), activation=MAXMIN, dense_depth=1
        ),
        "LipNeXt": lipnext(MANIFOLD, width=64, depth=2),
    }


def lipnext(family: LayerFamily, *, width: int, depth: int) -> LipNeXt:
    """LipNeXt of any layers, on images of 32x32 pixels."""
    return LipNeXt(
        (3, 32, 32),
        10,
        width=width,
        depth=depth,
        layer=family,
        activation=BetaAbs,
        pool=layers.NormPool2d,
    )


def certificates(device: torch.device, samples: int) -> tuple[list[str], bool]:
    """Rows on certificates of the device beside those of the CPU, and whether all are right."""
    check_device(device)
    rows, right = [], True
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
        moved = network.to(device)
        found = certifier.certify(moved, x.to(device))
        away = Certificates(**{f.name: getattr(found, f.name).cpu() for f in fields(found)})
        end = time.perf_counter()
        apart = float(((away.radius - home.radius).abs() / home.radius.clamp(min=1e-12)).max())
        split = CertifiedSplit(inputs, away.prediction, torch.arange(samples), away)
        with tempfile.TemporaryDirectory() as folder:
            write_certificate(Path(folder), network, certifier.claim(network), split, [0.1])
            report = check(Path(folder), exact=min(4, samples), seed=0)
        same = bool((away.prediction == home.prediction).all()) and apart < SAME
        right = right and same and not report.mismatches
        said = report.mismatches[0] if report.mismatches else "verified"
        rows.append(
            f"| {name} | {samples} | {apart:.1e} | {said} | {middle - start:.2f} s | "
            f"{end - middle:.2f} s |"
        )
    return rows, right


def timed(step: Step, device: torch.device, repeats: int) -> tuple[float, str]:
    """Median seconds of a step, after two to warm up, and the most memory taken meanwhile."""
    on_gpu, taken = device.type == "cuda", []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        step()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        if repeat >= 2:
            taken.append(time.perf_counter() - start)
    most = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if on_gpu else "not known"
    return median(taken), most


def weight_steps(features: int, count: int) -> dict[str, Step]:
    """Weights of equal dense layers, with gradients: one by one, and as a training makes them."""
    model = nn.Sequential(
        *(layers.CholeskyResidualLinear(features, features) for _ in range(count))
    )

    def step(context: Callable[[nn.Module], AbstractContextManager[None]]) -> None:
        model.zero_grad()
        with context(model):
            weights = [layer.weight for layer in model]
        torch.autograd.backward(weights, weights)

    return {
        "one by one": partial(step, nullcontext),
        "together": partial(step, constrained_together),
    }


def steps(device: torch.device, *, width: int, depth: int, batch: int, repeats: int) -> list[str]:
    """Rows on training steps over those of unconstrained twins, and on what weights take."""
    rows = []
    network = partial(lipnext, width=width, depth=depth)
    parts = {
        f"LiResNet++, {width} x {depth}": partial(network_steps, depth, width, 16, batch),
        f"LipNeXt, {width} x {depth}": partial(
            steps_of, network, {"manifold": MANIFOLD}, side=32, batch=batch
        ),
        f"weights of 8 Cholesky layers of {4 * width}": partial(weight_steps, 4 * width, 8),
    }
    for title, make in parts.items():
        with torch.device(device):
            variants = make()
        first = None
        for name, step in variants.items():
            seconds, most = timed(step, device, repeats)
            first = first or seconds
            rows.append(
                f"| {title}: {name} | {1e3 * seconds:.1f} ms | {seconds / first:.2f} | {most} |"
            )
    return rows


def training(device: torch.device, seconds: float, folder: Path) -> list[str]:
    """Lines on a training for so many seconds, and its certificate, both on the device."""
    accelerator = "gpu" if device.type == "cuda" else device.type
    typed = ["experiment=cifar10_small", f"trainer.accelerator={accelerator}"]

    def train(name: str, *more: str) -> dict[str, float]:
        command = [*typed, *more, f"hydra.run.dir={folder / name}"]
        subprocess.run([sys.executable, "train.py", *command], check=True, cwd=ROOT)
        results = json.loads((folder / name / "results.json").read_text())
        seconds_of: dict[str, float] = results["seconds"]
        return seconds_of

    # What two epochs take says how many there is time for.
    trial = train("trial", "trainer.max_epochs=2", "certify=false")
    epochs = max(2, int(2 * seconds / trial["train"]))
    typed.append(f"certify_device={device}")
    found = train("run", f"trainer.max_epochs={epochs}", f"attack.seconds={seconds / 10:.0f}")
    verified = check(folder / "run" / "certificate", exact=8, seed=0)
    said = verified.mismatches[0] if verified.mismatches else "verified"
    record = json.loads((folder / "run" / "certificate" / "certificate.json").read_text())
    summary = record["summary"]
    shares = {row["decimal"]: row["count"] / summary["samples"] for row in summary["certified"]}
    return [
        f"`python train.py {' '.join(typed)} trainer.max_epochs={epochs}`: {found['train']:.0f} s",
        f"of training, {found['certify']:.0f} s of certification. Verified accuracy on the test",
        f"split: {', '.join(f'{share:.4f} at {radius:.4g}' for radius, share in shares.items())}.",
        f"The checker says: {said}.",
    ]


def main() -> int:
    """Run the parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--samples", type=int, default=256, help="certified on both sides")
    parser.add_argument("--width", type=int, default=512, help="of the networks whose steps count")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=300.0, help="of training; 0: none")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    rows, right = certificates(device, options.samples)
    lines = [
        "# On an accelerator",
        "",
        f"Measured by `python -m benchmarks.accelerator` on {time.strftime('%Y-%m-%d')}: {name},",
        f"torch {torch.__version__}, {os.cpu_count()} cores.",
        "",
        "Certificates of the device beside those of the CPU; bounds are proved on the CPU.",
        "",
        "| network | samples | largest relative difference | the checker | CPU | device |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Training steps of batches of {options.batch} images of 32x32, float32, medians of "
        f"{options.repeats}.",
        "",
        "| network | step | over the first | most memory |",
        "| --- | --- | --- | --- |",
        *steps(
            device,
            width=options.width,
            depth=options.depth,
            batch=options.batch,
            repeats=options.repeats,
        ),
    ]
    if options.seconds:
        with tempfile.TemporaryDirectory() as folder:
            lines += ["", *training(device, options.seconds, Path(folder))]
    text = "\n".join(lines) + "\n"
    print(text)
    options.page.write_text(text)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
