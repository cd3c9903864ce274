"""One run's certificate on one page: what is proved, what is not, and what it is worth."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustcert.certificate.space import in_short
from robustcert.report.calibration import Calibration, calibrate
from robustcert.report.claim import Claim, read_claim
from robustcert.report.measures import at_radius, average_radius, by_class
from robustcert.report.page import write_page, write_pictures
from robustcert.report.pictures import Picture
from robustcert.report.run_figures import (
    draw_bracket,
    draw_reliability,
    draw_separation,
    draw_tradeoff,
    thumbnail,
)
from robustcert.training.stage import stage

if TYPE_CHECKING:
    from torch import Tensor

    from robustcert.data import Examples
    from robustcert.report.separation import Separation

# Number of samples that are shown.
_SHOWN = 8
# What a certificate does not promise.
NOT_COVERED = (
    "norms other than l2, and changes that are large in l2 though people see none: shifts, "
    "rotations, another lighting",
    "whether the label is right, and whether the prediction is: a wrong prediction can have a "
    "radius as well",
    "inputs that are not in this split: the shares are of these samples, not of what will come",
    "a deployment that computes in another arithmetic than the functions named above",
    "preprocessing before the network's input, hardware faults, and who wrote this folder",
)


@dataclass(frozen=True)
class Shown:
    """A sample among the least or most certified ones."""

    picture: bytes | None
    index: int
    label: str
    prediction: str
    radius: float


def write_run_page(
    folder: Path,
    out: Path | None = None,
    formats: Sequence[str] = (),
    *,
    allow_targets: Sequence[str] = (),
) -> list[Path]:
    """Write the page of a certificate folder beside it.

    Args:
        folder: What ``certify.py`` wrote.
        out: Folder to write into; that of the run by default.
        formats: What pictures are written as for papers, beside the page: ``pdf``, ``svg``.
        allow_targets: Packages of the user's whose classes network and dataset may have.

    Returns:
        The page: ``report.html``, or ``report-<rest>.html`` for ``certificate-<rest>``; and
        the pictures.

    Raises:
        ReportError: the folder is no certificate, or is damaged.
        ConfigError: its network has classes of a package that is not allowed.
    """
    with stage(f"reading {folder}"):
        claim = _claim(folder, allow_targets)
        train, names, reason = _train_split(claim, allow_targets)
    separation = _separation(claim, train)
    calibrations = _calibrations(claim)
    attack = claim.record.get("attack") or {}
    tried = dict(zip(attack.get("radii") or [], attack.get("accuracy") or [], strict=True))
    attacked = _attacked(claim)
    rows = [at_radius(claim.correct, claim.radius, r, tried.get(r), attacked) for r in claim.radii]
    run, name = folder.resolve().parent, folder.resolve().name
    rest = name.removeprefix("certificate").strip("-")
    pictures = {
        "bracket": draw_bracket(claim, attacked, separation),
        "tradeoff": draw_tradeoff(claim, _epochs(run / "metrics" / "metrics.csv")),
        "reliability": draw_reliability(calibrations),
        "separation_picture": draw_separation(claim, separation) if separation else None,
    }
    page = write_page(
        (out or run) / (f"report-{rest}.html" if rest else "report.html"),
        "run.html.j2",
        name=f"{run.name}/{name}",
        claim=claim,
        record=claim.record,
        change=in_short(claim.metric["change"]) if claim.metric else None,
        rows=rows,
        at=min(rows, key=lambda row: abs(row.radius - claim.epsilon)),
        attack=attack,
        accuracy=float(claim.correct.mean()),
        undecided=int((claim.prediction == claim.labels).sum() - claim.correct.sum()),
        acr=average_radius(claim.correct, claim.radius),
        median=_median(claim.radius[claim.correct]),
        classes=by_class(claim.labels, claim.prediction, claim.radius, claim.radii),
        names=names,
        constants=_constants(claim),
        **pictures,
        levels=_levels(folder),
        samples=_samples(claim, names),
        separation=separation,
        reason=reason,
        separated=_separated(claim, separation),
        calibrations=calibrations,
        not_covered=NOT_COVERED,
    )
    drawn = [picture for picture in pictures.values() if picture]
    return [page, *write_pictures(drawn, out or run, formats)]


def _claim(folder: Path, allow_targets: Sequence[str]) -> Claim:
    from robustcert.runs.own_classes import naming_packages, own_subject

    subject = own_subject(folder, allow_targets)
    if subject is not None:
        network = subject.network
        return read_claim(folder, lambda inputs: network(_tensor(inputs)).numpy())
    with naming_packages(folder):
        return read_claim(folder)


def _attacked(claim: Claim) -> NDArray[np.int64]:
    """Which samples were attacked."""
    from robustcert.runs.attack import attacked_rows

    samples = int((claim.record.get("attack") or {}).get("samples") or 0)
    return attacked_rows(len(claim.labels), samples).numpy()


def _train_split(
    claim: Claim, allow_targets: Sequence[str]
) -> tuple["Examples | None", list[str], str]:
    # The folder holds the samples; the training split is only needed for their neighbours.
    count = claim.logits.shape[1]
    numbers = [str(i) for i in range(count)]
    if not claim.config.get("dataset"):
        return None, numbers, "the certificate names no dataset"
    from robustcert.config.build import CHECKPOINT_TARGETS, build_dataset

    try:
        source = build_dataset(claim.config, (*CHECKPOINT_TARGETS, *allow_targets))
        names = list(source.class_names or numbers)
        return source.read("train"), names if len(names) == count else numbers, ""
    except (ValueError, OSError) as error:
        return None, numbers, " ".join(str(error).split())


def _separation(claim: Claim, train: "Examples | None") -> "Separation | None":
    from torch import Tensor

    from robustcert.report.separation import Separation, affordable, half_distances

    if claim.metric is not None:
        return None
    count, samples = len(claim.labels), _tensor(claim.inputs)
    labels = _tensor(claim.labels)
    if train is None or not isinstance(train.inputs, Tensor):
        others, other_labels = samples, labels
        where = f"the {count:,} samples of the {claim.split} split itself"
    else:
        others, other_labels = train.inputs, train.labels
        where = f"the whole train split ({len(train):,} samples)"
    if len(other_labels.unique()) < 2:
        return None
    rows = affordable(count, len(others), others[0].numel())
    with stage("searching for the nearest of another class", rows) as advance:
        half = half_distances(samples[:rows], labels[:rows], others, other_labels, advance)
    return Separation(half, where + (f", for the first {rows:,} samples" if rows < count else ""))


def _separated(claim: Claim, separation: "Separation | None") -> dict[str, Any]:
    from robustcert.report.separation import affordable, largest_overlap

    if claim.metric is not None:
        # Balls of a metric may be flat, and distances between samples are of another length.
        return {}
    count = affordable(len(claim.labels), len(claim.labels), int(np.prod(claim.inputs.shape[1:])))
    x, own, reach = (_tensor(v[:count]) for v in (claim.inputs, claim.prediction, claim.radius))
    with stage("comparing radii with distances", count) as advance:
        overlap = largest_overlap(x, own, reach, advance)
    found: dict[str, Any] = {"overlap": overlap, "overlap_count": count}
    if separation is not None:
        half = separation.half
        radius, correct = claim.radius[: len(half)], claim.correct[: len(half)]
        usable = correct & np.isfinite(half) & (half > 0)
        found |= {
            "median": _median(half),
            "least": float(half.min()),
            "share": [(r, float((half > r).mean())) for r in claim.radii],
            "used": _median(radius[usable] / half[usable]),
            "beyond": int((radius[usable] > half[usable]).sum()),
        }
    return found


def _tensor(values: NDArray[Any]) -> "Tensor":
    import torch

    # A copy: what was read from a file is not writable, which torch does not know.
    return torch.tensor(values)


def _calibrations(claim: Claim) -> list[Calibration]:
    # An objective that divides its logits by a temperature trains that softmax, not the plain one.
    trained = (claim.config.get("objective") or {}).get("temperature")
    temperatures = [1.0]
    if isinstance(trained, int | float) and trained > 0 and trained != 1:
        temperatures.append(float(trained))
    return [calibrate(claim.logits, claim.labels, t) for t in temperatures]


def _samples(claim: Claim, names: Sequence[str]) -> dict[str, list[Shown]]:
    order = np.argsort(claim.radius, kind="stable")
    correct, wrong = order[claim.correct[order]], order[~claim.correct[order]]
    return {
        "Least certified, predicted correctly": [_show(claim, names, i) for i in correct[:_SHOWN]],
        "Most certified, predicted correctly": [
            _show(claim, names, i) for i in correct[::-1][:_SHOWN]
        ],
        "Most certified, and wrong": [_show(claim, names, i) for i in wrong[::-1][:_SHOWN]],
    }


def _show(claim: Claim, names: Sequence[str], i: int) -> Shown:
    return Shown(
        thumbnail(claim.unit_inputs(slice(i, i + 1))[0]),
        int(claim.indices[i]),
        names[claim.labels[i]],
        names[claim.prediction[i]],
        float(claim.radius[i]),
    )


def _constants(claim: Claim) -> dict[str, float] | None:
    rows = [[float.fromhex(k) for k in row] for row in claim.record["pairwise"]]
    pairs = [k for i, row in enumerate(rows) for j, k in enumerate(row) if i != j]
    return {"least": min(pairs), "largest": max(pairs)} if pairs else None


def _epochs(path: Path) -> list[tuple[int, float, float]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/vra")]
    return [(int(r["epoch"]), float(r["val/accuracy"]), float(r["val/vra"])) for r in rows]


def _levels(folder: Path) -> Picture | None:
    path = folder / "levels.png"
    if not path.is_file():
        return None
    png = path.read_bytes()
    caption = "Certified radius over the unit square, as certify.py drew it, and predicted classes."
    return Picture("levels", "Level sets of the certified radius", caption, False, png, png)


def _median(values: NDArray[Any]) -> float | None:
    return float(np.median(values)) if len(values) else None
