"""The notebooks run, and what is stored in them is what they print and draw."""

import os
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
# Of all pictures of a notebook, so that a clone stays small.
MAX_BYTES = 500_000

nbformat = pytest.importorskip("nbformat")


def said(cell: dict[str, object]) -> list[str]:
    """Kinds of a cell's outputs and their text, but for words with digits: numbers and hashes."""
    kinds = []
    for output in cell.get("outputs", []):
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        kinds.append("image" if "image/png" in output.get("data", {}) else text)
    # Streams may arrive in pieces; a busy machine says how far it is.
    text = re.sub(r"(?m)^.*: \d+ s\s*$", "", " ".join(kinds))
    return re.sub(r"\S*\d\S*|\s+", " ", text).split()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_is_stored_small_executed_and_with_pictures(path: Path) -> None:
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    assert path.stat().st_size < MAX_BYTES
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image" in said(cell) for cell in cells) >= 2
    assert str(Path.home()) not in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_runs_and_says_what_is_stored(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # The commands that a notebook types are those of this environment.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored, book = nbformat.read(path, 4), nbformat.read(path, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
    for before, now in zip(stored.cells, book.cells, strict=True):
        assert said(now) == said(before), before.source
    assert not list(tmp_path.iterdir())
