"""The steps of a certification run that are a classification's own."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robustcert.certificate.claim import write_claim
from robustcert.certificate.figures import draw_vra_curve
from robustcert.certificate.samples import CertifiedSplit, SampleFiles, positive_status
from robustcert.certifiers import Certificates, Certifier, Claim
from robustcert.certifiers.conformal import LabelSets
from robustcert.data import as_numbers
from robustcert.metrics.gradient_ratio import gradient_ratio
from robustcert.network.network import PlainNetwork
from robustcert.runs.attack import attack_samples, verified_of_attacked
from robustcert.runs.console import Row, print_global, print_table, verified
from robustcert.runs.duration import foretold
from robustcert.runs.fallback import decided_by
from robustcert.runs.plane import draw_plane
from robustcert.training.stage import stage

if TYPE_CHECKING:
    from robustcert.runs.certify import _Options, _Prepared
    from robustcert.runs.subject import Subject

log = logging.getLogger(__name__)

# Samples whose gradients say how tight the bound is: enough for a median.
_DIAGNOSED = 200
_AT_ONCE = 16


def claim(certifier: Certifier, network: PlainNetwork, batches: Iterator[torch.Tensor]) -> Claim:
    """What the certifier says beside the radii of samples."""
    return certifier.claim(network, batches)


def certify(
    subject: "Subject", options: "_Options", prepared: "_Prepared", folder: Path
) -> CertifiedSplit:
    """Certify batch after batch, from where an interrupted run stopped, into the folder's files."""
    stored, count = prepared.examples, len(prepared.examples)
    files = SampleFiles(
        folder,
        stored.indices,
        stored.labels,
        stored.inputs.shape[1:],
        stored.inputs.dtype,
        options.batch_size,
        positive_status(prepared.claim.smoothing),
    )
    if files.done:
        log.info("%d of %d samples were certified before: going on", files.done, count)
    batches = subject.parts.in_order(options.split, options.batch_size, files.done, count)
    with stage(f"certifying {count} samples", count) as advance:
        advance(files.done)
        for batch, _ in foretold(batches, count - files.done, subject.trained):
            x = as_numbers(batch.to(options.device), prepared.network.space.kind)
            found = subject.certifier.certify(prepared.network, x)
            names = ("prediction", "radius", "margin", "error", "decided")
            files.append(batch, Certificates(*(getattr(found, name).cpu() for name in names)))
            advance(len(batch))
    return files.split(stored.inputs)


def attack(
    subject: "Subject", options: "_Options", prepared: "_Prepared", result: CertifiedSplit
) -> dict[str, Any]:
    """Attack the network at what was certified of it; a smoothed classifier is another function."""
    started = time.perf_counter()
    settings = options.attack
    if prepared.claim.smoothing is not None:
        settings = replace(settings, samples=0)
    radii = subject.radii(options.radii)
    attacked = attack_samples(
        *(prepared.network, result, radii, settings, options.at_radii),
        *(options.device, options.budget),
    )
    return {**attacked, "took": round(time.perf_counter() - started, 3)}


def write(
    subject: "Subject",
    options: "_Options",
    prepared: "_Prepared",
    result: CertifiedSplit,
    attacked: Mapping[str, Any],
    seconds: float,
    folder: Path,
) -> Row:
    """Write the claim and the pictures beside samples and radii; returns what is said of them."""
    source, network, claim = subject.dataset, subject.network, prepared.claim
    record = {
        **prepared.record,
        "attack": attacked,
        "gradient_over_bound": _tightness(prepared, options, result),
        "seconds": round(seconds, 3),
    }
    written = write_claim(folder, network, claim, result, subject.radii(options.radii), record)
    count = len(result.target)
    draw_vra_curve(
        folder / "vra.png",
        result.curve(),
        accuracy=written["summary"]["correct"] / count,
        empirical=list(zip(attacked["radii"], attacked["accuracy"], strict=True)),
        samples=count,
        attacked=attacked["samples"],
        title=f"{source.name}, {options.split} split",
        label=verified(written),
        units="input units" if network.space.metric is None else "units of u",
    )
    if network.input_shape == (2,) and network.space.kind == "images":
        draw_plane(folder / "levels.png", subject.certifier, network, source)
    decided = decided_by(
        subject.certifier, prepared.network, result, options.batch_size, options.device
    )
    radii = subject.radii(options.radii)
    return Row(written, verified_of_attacked(result, radii, attacked["samples"]), decided)


def tell(row: Row, claim: Claim, folder: Path) -> tuple[Row, dict[str, float]]:
    """Print what was certified; returns it, and its metrics."""
    print_table(row, folder)
    metrics = summarize(row.claim)
    if claim.pairs is not None:
        print_global(claim.pairs)
        metrics["global/eps_bar"] = max(found["eps_bar"] for found in claim.pairs["outputs"])
    return row, metrics


def summarize(claim: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a claim: ``<split>/accuracy`` and ``<split>/vra_<radius>``.

    Without a proof it is ``<split>/smoothed_<radius>``.
    """
    summary, split = claim["summary"], claim["dataset"]["split"]
    name = "smoothed" if "smoothing" in claim["claim"] else "vra"
    metrics = {f"{split}/accuracy": summary["correct"] / summary["samples"]}
    for row in summary["certified"]:
        metrics[f"{split}/{name}_{row['decimal']:.4g}"] = row["count"] / summary["samples"]
    return metrics


def _tightness(
    prepared: "_Prepared", options: "_Options", result: CertifiedSplit
) -> dict[str, float] | None:
    """Gradients over bounds, of as many samples as the time of attacks is left for."""
    network, pairwise = prepared.network, prepared.claim.pairwise
    if pairwise is None:
        return None
    x = as_numbers(result.inputs[:_DIAGNOSED], network.space.kind).double()
    # A gradient for every class: of all samples at once they would be the peak of memory.
    parts = [torch.empty(0, dtype=torch.float64, device="cpu")]
    for part in x.split(_AT_ONCE):
        if options.budget.left <= 0:
            break
        parts.append(gradient_ratio(network, part.to(options.device), pairwise.cpu()).cpu())
    ratio = torch.cat(parts)
    # Logits that overflow have no gradient.
    ratio = ratio[torch.isfinite(ratio)]
    if not len(ratio):
        return None
    return {"median": float(ratio.median()), "max": float(ratio.max()), "samples": len(ratio)}


# In the order of a certification; prediction sets stand between attack and writing.
STEPS = (claim, certify, attack, LabelSets, write, tell)
