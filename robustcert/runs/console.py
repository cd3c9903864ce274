"""What a certification prints."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from robustcert.certificate.checking import check_in_words
from robustcert.certificate.space import in_short
from robustcert.certifiers import Proof
from robustcert.runs.fallback import Decided


@dataclass(frozen=True)
class Row:
    """What is said of a certificate.

    Attributes:
        claim: What is in ``certificate.json``.
        attacked: Verified accuracy of the attacked samples by radius.
        decided: Whose radii they are; None of a certifier without a fallback.
    """

    claim: Mapping[str, Any]
    attacked: Mapping[float, float]
    decided: Decided | None = None

    @property
    def shares(self) -> dict[float, float]:
        """Shares of samples by radius, at radius 0 of right predictions."""
        summary = self.claim["summary"]
        counts = {0.0: summary["correct"]}
        counts |= {row["decimal"]: row["count"] for row in summary["certified"]}
        return {radius: count / summary["samples"] for radius, count in counts.items()}

    @property
    def under_attack(self) -> dict[float, float]:
        """Accuracy under attack by radius."""
        attack = self.claim["attack"]
        return dict(zip(attack["radii"], attack["accuracy"], strict=True))


def verified(claim: Mapping[str, Any]) -> str:
    """What a share of samples with radii is called."""
    smoothing = claim["claim"].get("smoothing")
    return f"with confidence {smoothing['confidence']} each" if smoothing else "verified"


# Options of the certifiers whose proofs have other names, which folders keep.
_OPTIONS = {
    Proof.SECOND_ORDER: "second_order",
    Proof.LOCAL_LIPSCHITZ: "local_lipsdp",
    Proof.QUADRIC: "quadratic",
}


def table_of(row: Row) -> Table:
    """What was certified: verified accuracy, and beside an attack that of the attacked samples."""
    claim = row.claim
    summary, attack, dataset = claim["summary"], claim["attack"], claim["dataset"]
    count, proof = summary["samples"], claim["claim"]["proof"]
    by = f"certifier={_OPTIONS.get(proof, proof)}"
    table = Table(title=f"{dataset['name']}, {dataset['split']} split, {count} samples, {by}")
    table.add_column("radius", justify="right")
    table.add_column(verified(claim), justify="right")
    tried = attack["samples"]
    # Of as many samples as there are, the two would be the same.
    some = 0 < tried < count
    if some:
        table.add_column(f"{verified(claim)} of {tried} attacked", justify="right")
    if tried:
        table.add_column(f"under PGD ({tried})", justify="right")
    if summary["undecided"]:
        table.caption = f"{summary['undecided']} right predictions are undecided: rounding"
    for radius, share in row.shares.items():
        beside = [_share(row.attacked.get(radius))] if some else []
        beside += [_share(row.under_attack.get(radius))] if tried else []
        table.add_row(f"{radius:.4g}", f"{share:.4f}", *beside, end_section=radius == 0)
    return table


def side_by_side(rows: Mapping[str, Row]) -> Table:
    """Verified accuracy by certifier and radius.

    Args:
        rows: What each certifier certified, of the same samples at the same radii.
    """
    first = next(iter(rows.values()))
    dataset, samples = first.claim["dataset"], first.claim["summary"]["samples"]
    table = Table(title=f"{dataset['name']}, {dataset['split']} split, {samples} samples")
    table.add_column("radius", justify="right")
    for name, row in rows.items():
        said = verified(row.claim)
        table.add_column(name if said == "verified" else f"{name}, {said}", justify="right")
    # A smoothed classifier is not attacked.
    attacked = max(rows.values(), key=lambda row: row.claim["attack"]["samples"])
    tried = attacked.claim["attack"]["samples"]
    if tried:
        table.add_column(f"under PGD ({tried})", justify="right")
    for radius in first.shares:
        shares = [f"{row.shares[radius]:.4f}" for row in rows.values()]
        shares += [_share(attacked.under_attack.get(radius))] if tried else []
        table.add_row(f"{radius:.4g}", *shares, end_section=radius == 0)
    return table


def print_side_by_side(rows: Mapping[str, Row]) -> None:
    """Print several certificates of the same samples; see :func:`side_by_side`."""
    Console(soft_wrap=True).print(side_by_side(rows))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def print_metric(console: Console, claim: Mapping[str, Any]) -> None:
    """Say what changes of inputs radii are of, if not of any in l2."""
    metric = claim["claim"]["metric"]
    if metric:
        console.print(f"radii r of {in_short(metric['change'])}", highlight=False)


def print_table(row: Row, folder: Path) -> None:
    """Print what was certified, and where it is; see :func:`table_of`."""
    claim = row.claim
    attack = claim["attack"]
    console = Console(soft_wrap=True)
    console.print(table_of(row))
    if row.decided:
        decided, proof = row.decided, claim["claim"]["proof"]
        console.print(
            f"{_OPTIONS.get(proof, proof)} decided {decided.own} of {decided.radii} radii; "
            f"{decided.radii - decided.own} are those of its fallback, {decided.fallback}",
            highlight=False,
        )
    print_metric(console, claim)
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
    print_sets(console, claim)
    print_directions(console, claim)
    print_files(console, folder)


def print_files(console: Console, folder: Path) -> None:
    """Print where a certificate is, and what its check will take."""
    for path in sorted(folder.iterdir()):
        console.print(f"  {path}", highlight=False)
    console.print(f"  {check_in_words(folder)}", highlight=False)


def print_sets(console: Console, claim: Mapping[str, Any]) -> None:
    """Print coverage and size of conformal prediction sets, where there are some."""
    sets = claim.get("conformal")
    if not sets:
        return
    count = sets["calibration"]["samples"]
    attacked = sets["radii"][0]["attacked"]["samples"]
    table = Table(title=f"prediction sets of coverage {sets['coverage']}, from {count} samples")
    under = [f"under attack ({attacked})"] if attacked else []
    for name in ("radius", "holds the target", *under, f"size, {sets['unit']}"):
        table.add_column(name, justify="right")
    for row in sets["radii"]:
        beside = [_share(row["attacked"]["coverage"])] if attacked else []
        size = f"{float(row['size']):.4g}"
        table.add_row(f"{row['radius']:.4g}", f"{row['coverage']:.4f}", *beside, size)
    console.print(table)


def print_directions(console: Console, claim: Mapping[str, Any]) -> None:
    """Print in how many features the network is monotone, where that is claimed."""
    said = claim["claim"].get("monotone")
    if said:
        rising, falling = (said["directions"].count(sign) for sign in (1, -1))
        costs = claim["directions"]
        console.print(
            f"never falls with {rising} features and never rises with {falling}, as a real "
            f"function; Lipschitz constant {costs['constant']:.4g}, without the directions "
            f"{costs['without']:.4g}",
            highlight=False,
        )


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
