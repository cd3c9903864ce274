"""The board: what it says is what the checker proved, whatever a folder holds."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.regression import RADII, SAMPLES, Folder, certify, network

from robustcert.board.__main__ import main
from robustcert.board.entry import Entry, Reported, judge
from robustcert.board.folders import MAX_BYTES, MAX_REPORTED, find_folders
from robustcert.board.page import in_html, in_markdown
from robustcert.errors import ReportError

DOCS = Path(__file__).parents[2] / "docs"
DIGITS = DOCS / "pretrained" / "digits"
HOSTILE = "<script>x</script>|[a](javascript:y)`![b](http:c)\n# d"


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(DIGITS, folder / name))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "radii.csv").open() as file:
        return list(csv.DictReader(file))


def share(folder: Path, radius: float) -> float:
    """Verified accuracy, counted in another way."""
    found = rows(folder)
    right = [r for r in found if r["correct"] == "1" and r["radius_hex"] != "inf"]
    return sum(float.fromhex(r["radius_hex"]) > radius for r in right) / len(found)


def test_a_folder_is_proved_and_counted_again(tmp_path: Path) -> None:
    folder = copied("digits", tmp_path)
    said = {"accuracy": 1.0, "verified": {"0.5": 0.9}, "constant": 1, "source": "us"}
    (folder / "reported.json").write_text(json.dumps(said))
    page = tmp_path / "board.md"
    assert main([str(folder), "--exact", "0", "--out", str(page)]) == 0
    (entry,) = json.loads(page.with_suffix(".json").read_text())["entries"]
    assert entry["verified"]
    assert entry["verdict"].startswith("VERIFIED")
    assert entry["proved"]["verified"] == {f"{r}": share(folder, r) for r in (0.25, 0.5, 1.0)}
    assert entry["reported"]["verified"] == {"0.5": 0.9}
    assert entry["reported"]["constant"] == 1
    text = page.read_text()
    assert f"| {share(folder, 0.5):.4f} | 0.9000 |" in text
    assert "python -m robustcert.board" in text


@pytest.mark.slow
def test_errors_of_a_regression_are_counted_again(tmp_path: Path) -> None:
    draw = np.random.RandomState(0)
    inputs, targets = draw.rand(SAMPLES, 3), draw.randn(SAMPLES)
    folders = tmp_path / "in"
    claimed = Folder(certify(folders / "honest", network(), inputs, targets))
    forged = Folder(certify(folders / "narrow", network(), inputs, targets))
    forged.set(0, 3, forged.get(0, 2) - 1e-9)
    forged.recount()
    forged.save()
    said = {"mean_absolute_error": 0.1, "certified": [], "constant": 1}
    (folders / "narrow" / "reported.json").write_text(json.dumps(said))
    page = tmp_path / "board.md"
    assert main([str(folders), "--exact", "0", "--out", str(page)]) == 1
    honest, narrow = json.loads(page.with_suffix(".json").read_text())["entries"]
    assert honest["verified"]
    assert (honest["proved"]["accuracy"], honest["proved"]["verified"]) == (None, {})
    ends = [(float(row[1]), float(row[5]), float(row[6])) for row in claimed.rows]
    found = honest["proved"]["errors"]
    worst = [max(target - low, high - target) for target, low, high in ends]
    assert found["certified"][f"{RADII[1]}"] == pytest.approx(np.mean(worst), rel=1e-12)
    widths = [high - low for _, low, high in ends]
    assert found["width"][f"{RADII[1]}"] == pytest.approx(np.mean(widths), rel=1e-12)
    assert honest["reported"]["errors"] == found
    assert honest["proved"]["constant"] == float.fromhex(claimed.claim["lipschitz"][0])
    assert (narrow["verified"], narrow["proved"]) == (False, None)
    assert narrow["reported"]["errors"]["mean_absolute_error"] == 0.1
    text = page.read_text()
    assert f"| error {np.mean(worst):.5g}, width {np.mean(widths):.5g} |" in text


@pytest.mark.slow
def test_what_the_checker_refuses_has_no_numbers(tmp_path: Path) -> None:
    folder = copied("forged", tmp_path)
    table = (folder / "radii.csv").read_text().splitlines()
    (folder / "radii.csv").write_text("\n".join([table[0], table[2], *table[2:]]) + "\n")
    copied("honest", tmp_path)
    assert main([str(tmp_path), "--out", str(tmp_path / "board.html")]) == 1
    forged, honest = json.loads((tmp_path / "board.json").read_text())["entries"]
    assert not forged["verified"]
    assert forged["proved"] is None
    assert forged["verdict"].startswith(("REFUSED", "UNREADABLE"))
    assert honest["verified"]


def test_a_folder_that_is_partly_checked_has_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "robustcert.board.entry._checked", lambda *_: (3, "PARTLY CHECKED: not run")
    )
    page = tmp_path / "board.md"
    assert main([str(copied("digits", tmp_path)), "--out", str(page)]) == 1
    assert "digits: partly checked, NOT VERIFIED" in capsys.readouterr().out
    (entry,) = json.loads(page.with_suffix(".json").read_text())["entries"]
    assert (entry["verified"], entry["partly"], entry["proved"]) == (False, True, None)
    assert "| digits | partly |" in page.read_text()


def test_links_and_large_files_are_not_read(tmp_path: Path) -> None:
    outside = copied("outside", tmp_path)
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    for name, replace in {
        "claim": lambda f: (f / "certificate.json").symlink_to(outside / "certificate.json"),
        "fifo": lambda f: os.mkfifo(f / "certificate.json"),
        "large": lambda f: os.truncate(_touched(f / "certificate.json"), MAX_BYTES + 1),
        "nothing": lambda f: None,
        "no_json": lambda f: (f / "certificate.json").write_text("{"),
    }.items():
        folder = copied(name, inside)
        (folder / "certificate.json").unlink()
        replace(folder)
    entries = [judge(folder, None, 1.0, 0) for folder in find_folders([inside])]
    assert [e.folder for e in entries] == ["claim", "fifo", "large", "link", "no_json", "nothing"]
    assert not any(e.verified or e.proved or e.reported for e in entries)
    assert all(e.verdict.startswith("UNREADABLE") for e in entries)


def _touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(
    "said",
    [
        "{",
        "[]",
        '{"accuracy": 2}',
        '{"accuracy": true}',
        '{"accuracy": 0.5, "verified": {"a": 1}}',
        '{"accuracy": 0.5, "verified": {"-1": 1}}',
        '{"accuracy": 0.5, "source": ["x"]}',
        "x" * (MAX_REPORTED + 1),
    ],
)
def test_what_authors_report_is_read_strictly(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustcert.board.entry._checked", lambda *_: (1, "REFUSED: not run"))
    folder = copied("digits", tmp_path)
    (folder / "reported.json").write_text(said)
    entry = judge(folder, None, 1.0, 0)
    assert entry.reported is None
    assert "reported" in entry.verdict


def test_names_and_texts_are_escaped() -> None:
    reported = Reported(0.5, {0.5: 0.25}, None, HOSTILE)
    entry = Entry(HOSTILE, False, False, HOSTILE, (HOSTILE,), None, reported)
    page, html = in_markdown([entry], HOSTILE), in_html([entry], HOSTILE)
    assert "<script" not in page.replace(f"`{HOSTILE[:9]}", "")
    assert "<script" not in html
    assert "\n# d" not in page
    for line in page.splitlines():
        if "javascript" in line and not line.startswith("Written by"):
            assert "](" not in line.replace("\\]", "")
    table = [line for line in page.splitlines() if line.startswith("| ") and "0.25" in line]
    assert len(table) == 1
    assert table[0].replace("\\|", "").count("|") == 11


def test_nothing_is_written_for_what_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ReportError):
            find_folders([path])
    assert main([str(tmp_path), "--out", str(tmp_path / "board.md")]) == 2
    assert "holds no certificate folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_published_board_says_what_its_folders_do() -> None:
    entries = json.loads((DOCS / "board.json").read_text())["entries"]
    folders = {p.name: p for room in ("pretrained", "peers") for p in (DOCS / room).glob("*/")}
    folders = {name: p for name, p in folders.items() if p.is_dir()}
    assert {entry["folder"] for entry in entries} == set(folders)
    for entry in entries:
        folder = folders[entry["folder"]]
        record = json.loads((folder / "certificate.json").read_text())
        assert entry["verified"]
        assert entry["proved"]["network"] == record["network"]["digest"]
        for radius, counted in entry["proved"]["verified"].items():
            assert counted == share(folder, float(radius))
    page = (DOCS / "board.md").read_text()
    assert all(entry["proved"]["network"][:12] in page for entry in entries)
