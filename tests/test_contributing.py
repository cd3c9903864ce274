"""What contributors are told is what is there."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
TARGET = re.compile(r"^(\w[\w-]*):.*\n((?:\t.*\n)+)", re.MULTILINE)


def recipes() -> dict[str, list[str]]:
    """What every target of the Makefile runs."""
    text = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    return {name: body.replace("\t", "").splitlines() for name, body in TARGET.findall(text)}


def test_hooks_run_what_make_lint_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    hooks = repository["hooks"]
    assert [hook["entry"] for hook in hooks] == recipes()["lint"]
    assert len(hooks) == 4
    assert all(h["language"] == "system" and h["pass_filenames"] is False for h in hooks)


def test_the_guide_is_short_and_names_what_exists() -> None:
    assert len(GUIDE.splitlines()) <= 80
    for target in re.findall(r"\bmake (test[\w-]*|lint|demo)\b", GUIDE):
        assert target in recipes()
    for path in re.findall(r"`((?:tests|benchmarks|docs|\.ci)/[\w./-]*)`", GUIDE):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+)\)", GUIDE):
        assert (ROOT / path).exists(), path


def test_the_guide_names_every_room() -> None:
    (table,) = re.findall(r"^\| room \|.*?\n\n", GUIDE, re.DOTALL | re.MULTILINE)
    named = re.findall(r"`(\w+)/`", table)
    rooms = {path.parent.name for path in (ROOT / "robustcert").glob("*/__init__.py")}
    assert sorted(named) == sorted(rooms)
