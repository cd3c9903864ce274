"""The table of a certification: who certified, and what is to be held against the attack."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import compose
from rich.console import Console

from robustcert.runs.attack import attacked_rows
from robustcert.runs.certify import certify
from robustcert.runs.console import table_of


def shown(claim: dict[str, Any], attacked: dict[float, float]) -> str:
    """A table as text."""
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table_of(claim, attacked))
    return capture.get()


def numbers(text: str) -> dict[float, list[float]]:
    """The rows of a table by their radius."""
    rows = [line.strip("\u2502 ").split("\u2502") for line in text.splitlines() if "\u2502" in line]
    found = [[float(entry) for entry in row if entry.strip()] for row in rows]
    return {row[0]: row[1:] for row in found}


@pytest.fixture
def claim(tiny_run: Path) -> dict[str, Any]:
    claim: dict[str, Any] = json.loads((tiny_run / "certificate/certificate.json").read_text())
    return claim


def test_the_attacked_samples_have_a_verified_accuracy_of_their_own(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = {"samples": 40, "steps": 2, "seconds": 0.0}
    certify(str(tiny_run), output=str(tmp_path / "c"), attack=attack)
    said = capsys.readouterr().out
    with (tmp_path / "c" / "radii.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert f"digits, test split, {len(listed)} samples, certifier=lipschitz" in said
    assert "verified of 40 attacked" in said
    table = numbers(said)
    assert list(table) == [0, 0.25, 0.5, 1]
    some = [listed[row] for row in attacked_rows(len(listed), 40)]
    for radius, entries in table.items():
        for rows, entry in zip((listed, some), entries, strict=False):
            right = [row for row in rows if row["correct"] == "1"]
            beyond = [row for row in right if float.fromhex(row["radius_hex"]) > radius]
            share = len(beyond if radius else right) / len(rows)
            assert entry == pytest.approx(share, abs=5.1e-5)
        # What is proved of these samples, no attack on them undoes.
        assert all(entries[1] <= under for under in entries[2:])
    # The two columns differ, which is why there are two.
    assert any(entries[0] != entries[1] for entries in table.values())


def test_where_all_or_none_are_attacked_there_is_one_column(claim: dict[str, Any]) -> None:
    count = claim["summary"]["samples"]
    for samples in (0, count):
        text = shown(claim | {"attack": claim["attack"] | {"samples": samples}}, {})
        assert "attacked" not in text
        assert f"under PGD ({samples})" in text


@pytest.mark.parametrize("option", ["lipsdp", "second_order", "local_lipsdp", "quadratic", "crown"])
def test_the_table_names_the_certifier_as_it_is_typed(claim: dict[str, Any], option: str) -> None:
    target = compose(f"certifier={option}")["certifier"]["_target_"].rpartition(".")[2]
    proofs = {
        "LipSDPCertifier": "lipsdp",
        "CombinedCertifier": "second-order",
        "LocalLipschitzCertifier": "local-lipschitz",
        "QuadricCertifier": "quadric",
        "CROWNCertifier": "crown",
    }
    text = shown(claim | {"claim": claim["claim"] | {"proof": proofs[target]}}, {})
    assert f"certifier={option}" in text
