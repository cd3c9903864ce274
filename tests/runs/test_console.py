"""The table of a certification: who certified, and what is to be held against the attack."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import compose, run
from rich.console import Console

from robustcert.runs.attack import attacked_rows
from robustcert.runs.certify import certify
from robustcert.runs.commands import several
from robustcert.runs.console import Row, print_metric, print_sets, side_by_side, table_of


def shown(claim: dict[str, Any], attacked: dict[float, float]) -> str:
    """A table as text."""
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table_of(Row(claim, attacked)))
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
    attack = {"samples": 40, "steps": 2, "seconds": 9.0}
    certify(str(tiny_run), output=str(tmp_path / "c"), attack=attack)
    said = capsys.readouterr().out
    with (tmp_path / "c" / "radii.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert f"digits, test split, {len(listed)} samples, certifier=lipschitz" in said
    assert "verified of 40 attacked" in said
    assert said.replace("\n", "").endswith(f"robustcert-check {tmp_path / 'c'}: a few seconds")
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


def test_where_all_are_attacked_there_is_one_column_of_them(claim: dict[str, Any]) -> None:
    count = claim["summary"]["samples"]
    text = shown(claim | {"attack": claim["attack"] | {"samples": count}}, {})
    assert "attacked" not in text
    assert f"under PGD ({count})" in text


def test_what_was_not_attacked_has_no_column_of_attacks(claim: dict[str, Any]) -> None:
    row = Row(claim | {"attack": claim["attack"] | {"samples": 0, "radii": [], "accuracy": []}}, {})
    for table in (table_of(row), side_by_side({"lipschitz": row, "crown": row})):
        names = [str(column.header) for column in table.columns]
        assert not any("attacked" in name or "PGD" in name for name in names)
        assert all(entry for column in table.columns for entry in column.cells)
    untried = {"samples": 0, "coverage": None}
    sets = {
        **{"coverage": 0.9, "unit": "classes", "calibration": {"samples": 9}},
        "radii": [{"radius": 0.0, "coverage": 0.9, "size": 1.0, "attacked": untried}],
    }
    console = Console(width=120, record=True, file=io.StringIO())
    print_sets(console, {"conformal": sets})
    assert "holds the target" in (text := console.export_text())
    assert "attack" not in text


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


@pytest.fixture(scope="module")
def smooth_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network has gradients that second_order can use."""
    folder = tmp_path_factory.mktemp("smooth") / "run"
    run(folder, "activation=smooth", "certify=false")
    return folder


@pytest.mark.slow
def test_certifiers_side_by_side_are_those_of_one_each(
    smooth_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = several(["certifier=[lipschitz,second_order]"])
    nodes = compose(*typed, name="certify")["certifier"]
    assert nodes.pop("_target_") is None
    attack = {"samples": 8, "steps": 2, "seconds": 9.0}
    options: dict[str, Any] = {"samples": 64, "attack": attack}
    found = certify(str(smooth_run), certifier=nodes, output=str(tmp_path / "a"), **options)
    said = capsys.readouterr().out
    table = numbers(said[said.rindex("radius") :])
    radii = {}
    for name, suffix in (("lipschitz", ""), ("second_order", "-second_order")):
        certify(str(smooth_run), certifier=nodes[name], output=str(tmp_path / name), **options)
        with (tmp_path / f"a{suffix}" / "radii.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        with (tmp_path / name / "radii.csv").open(newline="") as file:
            assert rows == list(csv.DictReader(file))
        radii[name] = [float.fromhex(row["radius_hex"]) for row in rows]
        column = list(nodes).index(name)
        for radius, entries in table.items():
            beyond = [r for r, row in zip(radii[name], rows, strict=True) if row["correct"] == "1"]
            count = len(beyond) if radius == 0 else sum(r > radius for r in beyond)
            assert entries[column] == pytest.approx(count / 64, abs=5.1e-5)
            if radius:
                key = "vra" if column == 0 else "second_order/vra"
                assert found[f"test/{key}_{radius:.4g}"] == count / 64
    # Whose radii they are: the certifier's, or those of what it falls back on.
    own = sum(s > f for f, s in zip(radii["lipschitz"], radii["second_order"], strict=True))
    total = sum(s > 0 for s in radii["second_order"])
    assert own > 0
    assert f"second_order decided {own} of {total} radii; {total - own} are those of its fa" in said


def test_lists_of_options_are_typed_as_hydra_takes_them() -> None:
    assert several(["certifier=[crown]", "logger=null", "seed=1"]) == [
        "certifier=crown",
        "~logger",
        "seed=1",
    ]
    config = compose(*several(["logger=[csv,tensorboard]", "lr_schedule=null"]))
    assert list(config["logger"]) == ["csv", "tensorboard"]
    assert "lr_schedule" not in config
    # What is not a list of options stays as it is, for Hydra to judge.
    assert several(["radii=[0.1,0.2]", "logger=[", "logger=[,]"]) == [
        "radii=[0.1,0.2]",
        "logger=[",
        "logger=[,]",
    ]


def test_scales_are_printed_with_four_digits(capsys: pytest.CaptureFixture[str]) -> None:
    change = (
        "any change of age (scale 13.109027822041215) with sqrt(sum (change_i / scale_i)^2) < r"
    )
    print_metric(Console(soft_wrap=True), {"claim": {"metric": {"change": change}}})
    said = "radii r of any change of age (scale 13.11) with sqrt(sum (change_i / scale_i)^2) < r\n"
    assert capsys.readouterr().out == said
