"""What a certification prints."""

from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def verified(claim: Mapping[str, Any]) -> str:
    """What a share of samples with radii is called."""
    smoothing = claim["claim"].get("smoothing")
    return f"with confidence {smoothing['confidence']} each" if smoothing else "verified"


def print_table(claim: Mapping[str, Any], folder: Path) -> None:
    """Print what was certified."""
    summary, attack, dataset = claim["summary"], claim["attack"], claim["dataset"]
    count = summary["samples"]
    empirical = dict(zip(attack["radii"], attack["accuracy"], strict=True))
    table = Table(title=f"{dataset['name']}, {dataset['split']} split, {count} samples")
    table.add_column("radius", justify="right")
    table.add_column(verified(claim), justify="right")
    table.add_column(f"under PGD ({attack['samples']})", justify="right")
    table.add_row("0", f"{summary['correct'] / count:.4f}", "", end_section=True)
    if summary["undecided"]:
        table.caption = f"{summary['undecided']} right predictions are undecided: rounding"
    for row in summary["certified"]:
        under = empirical.get(row["decimal"])
        table.add_row(
            f"{row['decimal']:.4g}",
            f"{row['count'] / count:.4f}",
            "" if under is None else f"{under:.4f}",
        )
    console = Console(soft_wrap=True)
    console.print(table)
    smoothing = claim["claim"].get("smoothing")
    if smoothing:
        console.print(
            f"not proved: each radius is true with probability {smoothing['confidence']} or more, "
            f"of the classifier smoothed by noise of {smoothing['sigma']}, "
            f"from {smoothing['n']} draws",
            highlight=False,
        )
    ratio = claim["gradient_over_bound"]
    if ratio:
        console.print(
            f"gradient over Lipschitz bound: median {ratio['median']:.3f}, largest "
            f"{ratio['max']:.3f} (1: no global bound can be tighter)",
            highlight=False,
        )
    inside = attack["inside"]
    if inside and inside["samples"]:
        least = inside["least_distance_over_radius"]
        nearest = (
            "no adversarial input was found at any distance"
            if least is None
            else f"nearest adversarial input at {least:.3f} times the radius"
        )
        console.print(
            f"{inside['samples']} certificates attacked inside their radius, "
            f"{inside['broken']} broken; {nearest}",
            highlight=False,
        )
    for path in sorted(folder.iterdir()):
        console.print(f"  {path}", highlight=False)


def _digits(value: float | None, name: str) -> str:
    """Five digits, on the safe side: what was seen is rounded down, a bound up."""
    rounding = ROUND_FLOOR if name == "attacked" else ROUND_CEILING
    return "" if value is None else f"{Context(5, rounding).create_decimal_from_float(value):g}"


def print_global(pairs: Mapping[str, Any]) -> None:
    """Print the largest changes of the outputs."""
    names = list(pairs["rests_on"])
    table = Table(title=f"largest change of an output within {pairs['delta']} in {pairs['norm']}")
    for name in ("output", *names):
        table.add_column(name, justify="right")
    for row in pairs["outputs"]:
        table.add_row(str(row["output"]), *(_digits(row[name], name) for name in names))
    console = Console(soft_wrap=True)
    console.print(table)
    for name, basis in pairs["rests_on"].items():
        console.print(f"  {name}: {basis}", highlight=False)
    samples = pairs["samples"]
    console.print(
        f"{samples['stable']} of the {samples['inside']} samples in the domain keep their "
        "prediction at every input of it within this distance",
        highlight=False,
    )
