"""A regression's certificate on one page: errors that are certified, and how wide intervals are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustcert.certificate.space import in_short
from robustcert.certificate.style import BLUE, GREEN, RED
from robustcert.check import (
    INTERVAL_FILES,
    IntervalRow,
    Means,
    means,
    parse_intervals,
    parse_safetensors,
)
from robustcert.report.claim import Folder, read_files, read_record, refusing
from robustcert.report.page import write_page, write_pictures
from robustcert.report.pictures import Picture, render
from robustcert.training.stage import stage

# Maximum number of samples that are drawn.
MAX_DRAWN = 400
# What intervals do not promise.
NOT_COVERED = (
    "where the target is: an interval holds the outputs of the network, however wrong they are; "
    "only prediction sets speak of targets, on average and of data like the calibration's",
    "norms other than l2, and changes of columns that mean little though they are large",
    "inputs that are not in this split: the means are of these samples, not of what will come",
    "a deployment that computes in another arithmetic than the functions named above",
    "preprocessing before the network's input, hardware faults, and who wrote this folder",
)


@dataclass(frozen=True)
class Intervals(Folder):
    """What a certificate folder says of the outputs at N samples.

    Attributes:
        rows: Target, prediction and interval at each radius, of every sample.
        found: Their means, computed again.
        lipschitz: Constant of the output, as the folder says.
    """

    rows: list[IntervalRow]
    found: Means
    lipschitz: float

    @property
    def at(self) -> int:
        """Position of the radius of the table that is nearest to the trained one."""
        return min(range(len(self.radii)), key=lambda k: abs(self.radii[k] - self.epsilon))


@dataclass(frozen=True)
class AtRadius:
    """Means at one radius.

    Attributes:
        radius: The radius.
        error: Mean absolute error that is certified within it.
        attacked: The largest one that an attack found, of the attacked samples; None without.
        width: Mean width of the intervals.
        seen: Mean distance of the outputs that the attack found; None without.
    """

    radius: float
    error: float
    attacked: float | None
    width: float
    seen: float | None


def read_intervals(folder: Path) -> Intervals:
    """Read the certificate folder of a regression by the checker's reader; nothing is proved.

    Raises:
        ReportError: a file is missing, damaged, changed since, or of another format.
    """
    with refusing(folder):
        record = read_record(folder)
        content = read_files(folder, record, INTERVAL_FILES)
        samples = parse_safetensors(content["samples.safetensors"], "samples.safetensors")
        radii = [float.fromhex(entry["radius"]) for entry in record["summary"]["certified"]]
        rows = parse_intervals(content["intervals.csv"], len(samples["targets"]), radii)
        constant = float.fromhex(record["lipschitz"][0])
        return Intervals(folder, record, rows, means(rows, len(radii)), constant)


def write_regression_page(
    folder: Path,
    out: Path | None = None,
    formats: Sequence[str] = (),
    *,
    allow_targets: Sequence[str] = (),
) -> list[Path]:
    """Write the page of a regression's certificate folder beside it, as ``write_run_page`` does.

    Args:
        folder: What ``certify.py`` wrote.
        out: Folder to write into; that of the run by default.
        formats: What pictures are written as for papers, beside the page: ``pdf``, ``svg``.
        allow_targets: Not needed: no class of the network is built to read its outputs.

    Raises:
        ReportError: the folder is no certificate, or is damaged.
    """
    del allow_targets
    with stage(f"reading {folder}"):
        claim = read_intervals(folder)
    run, name = folder.resolve().parent, folder.resolve().name
    rest = name.removeprefix("certificate").strip("-")
    table = rows_of(claim)
    pictures = {"bracket": _draw_errors(claim, table), "outputs": _draw_outputs(claim)}
    page = write_page(
        (out or run) / (f"report-{rest}.html" if rest else "report.html"),
        "regression.html.j2",
        name=f"{run.name}/{name}",
        claim=claim,
        record=claim.record,
        change=in_short(claim.metric["change"]) if claim.metric else None,
        rows=table,
        at=table[claim.at],
        attack=claim.record.get("attack") or {},
        sets=claim.record.get("conformal"),
        directions=claim.record["claim"].get("monotone"),
        costs=claim.record.get("directions"),
        constants=None,
        not_covered=NOT_COVERED,
        **pictures,
    )
    return [page, *write_pictures(list(pictures.values()), out or run, formats)]


def rows_of(claim: Intervals) -> list[AtRadius]:
    """What the page's table says at each radius."""
    attack = claim.record.get("attack") or {}
    tried = attack.get("radii") or []
    worst, seen = (
        dict(zip(tried, attack.get(key) or [], strict=True))
        for key in ("mean_absolute_error", "width")
    )
    return [
        AtRadius(radius, error, worst.get(radius), width, seen.get(radius))
        for radius, error, width in zip(
            claim.radii, claim.found.worst, claim.found.widths, strict=True
        )
    ]


def _draw_errors(claim: Intervals, rows: Sequence[AtRadius]) -> Picture:
    tried = [(row.radius, row.attacked) for row in rows if row.attacked is not None]
    radii = [0.0, *claim.radii]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.plot(
            radii, [claim.found.error, *claim.found.worst], "-o", color=GREEN, label="certified"
        )
        if tried:
            axes.plot(*zip(*tried, strict=True), "s", color=RED, label="under attack")
        axes.axvline(claim.epsilon, color="0.5", lw=0.8)
        axes.set(xlabel=f"radius ({claim.units})", ylabel="mean absolute error")
        axes.legend()

    return render(
        "bracket",
        draw,
        alt="Certified mean absolute error and the error under attack against radius",
        caption="The mean of the worst error within each radius is not above what is certified, "
        "and, of the attacked samples, not below what was found. The vertical line is the radius "
        "trained for.",
    )


def _draw_outputs(claim: Intervals) -> Picture:
    step = -(-len(claim.rows) // MAX_DRAWN)
    rows = [row for row in claim.rows[::step] if np.isfinite(row.ends[claim.at]).all()]
    target, prediction = (
        np.array([getattr(row, key) for row in rows]) for key in ("target", "prediction")
    )
    ends = np.array([row.ends[claim.at] for row in rows]).reshape(-1, 2).T
    radius = claim.radii[claim.at]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.vlines(target, *ends, color=BLUE, lw=1, alpha=0.6)
        axes.plot(target, prediction, ".", color=BLUE, ms=4)
        axes.axline((0, 0), slope=1, color="0.5", lw=0.8)
        axes.set(xlabel="target", ylabel=f"output, and where it stays within {radius:.4g}")

    return render(
        "outputs",
        draw,
        alt="Outputs with their intervals against targets",
        caption=f"{len(rows)} of {len(claim.rows)} samples: the output, and the interval that "
        f"holds it at every input within {radius:.4g}. On the line it is right.",
    )
