"""The steps of a certification run that are a regression's own."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from robustcert.attacks import BrokenCertificate, Budget, ascend
from robustcert.attacks.clipping import around_clipped, limits
from robustcert.attacks.gradient import gradient_dtype
from robustcert.certificate.claim import write_claim
from robustcert.certificate.outputs import CertifiedOutputs, joined
from robustcert.certifiers import Certifier, Claim, IntervalCertifier
from robustcert.certifiers.conformal import IntervalSets
from robustcert.data import as_numbers
from robustcert.network.network import PlainNetwork
from robustcert.runs.attack import attacked_rows, in_words
from robustcert.runs.console import print_directions, print_files, print_metric, print_sets
from robustcert.runs.duration import foretold
from robustcert.training.stage import stage

if TYPE_CHECKING:
    from robustcert.runs.certify import _Options, _Prepared
    from robustcert.runs.subject import Subject

log = logging.getLogger(__name__)


def claim(certifier: Certifier, network: PlainNetwork, batches: Iterable[Tensor]) -> Claim:
    """What is said of the network beside the intervals of samples; no sample is needed."""
    del batches
    return IntervalCertifier(certifier).claim(network)


def certify(
    subject: "Subject", options: "_Options", prepared: "_Prepared", folder: Path
) -> CertifiedOutputs:
    """Bound the outputs of all samples and write their table."""
    stored, certifier = prepared.examples, IntervalCertifier(subject.certifier)
    batches = subject.parts.in_order(options.split, options.batch_size, 0, len(stored))
    kind = prepared.network.space.kind
    parts = [
        certifier.certify(prepared.network, as_numbers(batch.to(options.device), kind))
        for batch, _ in foretold(batches, len(stored), subject.trained)
    ]
    found = CertifiedOutputs(stored.inputs[:], stored.labels, stored.indices, joined(parts))
    found.write(folder, subject.radii(options.radii))
    return found


def attack(
    subject: "Subject", options: "_Options", prepared: "_Prepared", result: CertifiedOutputs
) -> dict[str, Any]:
    """Move outputs up and down inside every radius, and hold them against the intervals.

    Raises:
        BrokenCertificate: an output leaves an interval.
    """
    started, network = time.perf_counter(), prepared.network
    radii = subject.radii(options.radii)
    rows = attacked_rows(len(result.target), options.attack.samples)
    record: dict[str, Any] = {
        "method": f"gradient ascent and descent, one random start, {limits(network)}",
        **in_words(asdict(options.attack)),
    }
    x = as_numbers(result.inputs[rows], network.space.kind).double().to(options.device)
    steps, asked = options.attack.steps, len(rows)
    # Half of the time is for prediction sets, where there are some.
    budget = options.budget.share(0.5)
    said = f"attacking {asked} samples at {len(radii)} radii, at most {budget.left:.3g} s"
    with stage(said, asked) as advance:
        ends = ends_under_attack(network, x, radii, steps=steps, budget=budget, advance=advance)
    rows = rows[: ends.shape[2]]
    if len(rows) < asked:
        log.info(
            "attack.seconds=%.3g: %d of %d samples were attacked at every radius",
            *(options.attack.seconds, len(rows), asked),
        )
    target = result.target[rows].double()
    for radius, (low, high) in zip(radii, ends, strict=True):
        _hold((low, high), result, rows, radius)
    worst = torch.maximum(ends[:, 1] - target, target - ends[:, 0])
    some = len(rows) > 0
    return {
        **record,
        "samples": len(rows),
        "radii": radii if some else [],
        "mean_absolute_error": worst.mean(1).tolist() if some else [],
        "width": (ends[:, 1] - ends[:, 0]).mean(1).tolist() if some else [],
        "took": round(time.perf_counter() - started, 3),
    }


def ends_under_attack(
    network: PlainNetwork,
    x: Tensor,
    radii: Sequence[float],
    *,
    steps: int,
    budget: Budget,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """The least and the largest outputs that attacks find within radii, shape ``(R, 2, M)``.

    Of the first M samples of ``x``: all where there is time.
    """

    def gradient(rows: Tensor) -> object:
        return largest_changes(network, x[rows], max(radii), steps=0)[0].sum().item()

    found = [torch.zeros(len(radii), 2, 0, dtype=torch.float64, device="cpu")]
    every = torch.arange(len(x), dtype=torch.int64, device=x.device)
    for rows in budget.parts(every, gradient, (steps + 1) * len(radii)):
        ends = [largest_changes(network, x[rows], radius, steps=steps) for radius in radii]
        found.append(torch.stack([torch.stack(pair) for pair in ends]).cpu())
        advance(len(rows))
    return torch.cat(found, dim=2)


def largest_changes(
    network: PlainNetwork, x: Tensor, radius: float, *, steps: int
) -> tuple[Tensor, Tensor]:
    """The least and the largest output that an attack finds within a radius, shape ``(N,)``.

    Gradients are float32, see :func:`robustcert.attacks.gradient.gradient_dtype`; outputs float64.
    """
    found = []
    f, centre = around_clipped(network, x)
    dtype = gradient_dtype(network, radius)
    searched, _ = around_clipped(network, x.to(dtype))
    for sign in (-1.0, 1.0):

        def value(u: Tensor, sign: float = sign) -> Tensor:
            return sign * searched(u)[:, 0]

        points = ascend(value, centre, radius, steps=steps, dtype=dtype)
        with torch.no_grad():
            found.append(f(points)[:, 0])
    return found[0], found[1]


def _hold(
    ends: tuple[Tensor, Tensor], result: CertifiedOutputs, rows: Tensor, radius: float
) -> None:
    lower, upper = (end[rows] for end in result.outputs.interval(radius))
    broken = (ends[0] < lower) | (ends[1] > upper)
    if bool(broken.any()):
        index = int(result.indices[rows][broken][0])
        raise BrokenCertificate(
            f"the interval of sample {index} is broken: an input within {radius:g} has an output "
            "outside it"
        )


def write(
    subject: "Subject",
    options: "_Options",
    prepared: "_Prepared",
    result: CertifiedOutputs,
    attacked: Mapping[str, Any],
    seconds: float,
    folder: Path,
) -> dict[str, Any]:
    """Write the claim beside samples and intervals; returns certificate.json."""
    record = {**prepared.record, "attack": attacked, "seconds": round(seconds, 3)}
    radii = subject.radii(options.radii)
    return write_claim(folder, subject.network, prepared.claim, result, radii, record)


def tell(written: Mapping[str, Any], claim: Claim, folder: Path) -> tuple[None, dict[str, float]]:
    """Print what was certified; returns no row to compare, and metrics."""
    del claim
    console = Console(soft_wrap=True)
    console.print(_table(written))
    print_metric(console, written)
    print_sets(console, written)
    print_directions(console, written)
    print_files(console, folder)
    split, summary = written["dataset"]["split"], written["summary"]
    metrics = {f"{split}/mae": float(summary["mean_absolute_error"])}
    for row in summary["certified"]:
        radius = f"{row['decimal']:.4g}"
        metrics[f"{split}/certified_mae_{radius}"] = float(row["mean_absolute_error"])
        metrics[f"{split}/width_{radius}"] = float(row["width"])
    for row in (written.get("conformal") or {}).get("radii", []):
        metrics[f"{split}/coverage_{row['radius']:.4g}"] = float(row["coverage"])
    return None, metrics


def _table(written: Mapping[str, Any]) -> Table:
    summary, attacked, dataset = written["summary"], written["attack"], written["dataset"]
    found = dict(zip(attacked["radii"], attacked["mean_absolute_error"], strict=True))
    title = f"{dataset['name']}, {dataset['split']} split, {summary['samples']} samples"
    table = Table(title=f"{title}, certifier=lipschitz")
    table.add_column("radius", justify="right")
    table.add_column("mean absolute error, certified", justify="right")
    if found:
        table.add_column(f"under attack ({attacked['samples']})", justify="right")
    table.add_column("interval width", justify="right")
    table.add_row("0", f"{float(summary['mean_absolute_error']):.5g}", end_section=True)
    for row in summary["certified"]:
        radius, error = row["decimal"], float(row["mean_absolute_error"])
        seen = [f"{found[radius]:.5g}"] if found else []
        table.add_row(f"{radius:.4g}", f"{error:.5g}", *seen, f"{float(row['width']):.5g}")
    return table


# In the order of a certification; prediction sets stand between attack and writing.
STEPS = (claim, certify, attack, IntervalSets, write, tell)
