"""docs/extending.md as a reader follows it: files are written, commands and code are run."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY

import robustcert.check.command
import robustcert.runs.commands
from robustcert.config.command_line import find_mistake, ordered

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
# The comment that says where a block is kept; Hydra wants its own line first.
PLACE = re.compile(r"(?:# @package \S+\n)?# (\S+\.(?:py|yaml))\n")
# What makes a command of the page short.
SHORT = {
    "robustcert-train": (*TINY, "hydra/job_logging=none", "hydra/hydra_logging=none"),
    "robustcert-certify": ("attack.samples=16", "attack.steps=3", "hydra/job_logging=none"),
    "robustcert-check": (),
}


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *typed = shlex.split(line)
    if name == "robustcert-check":
        assert robustcert.check.command.main(typed) == 0
        return
    monkeypatch.setattr(sys, "argv", [name, *typed, *SHORT[name]])
    getattr(robustcert.runs.commands, name.removeprefix("robustcert-"))()


def write(folder: Path, text: str) -> str:
    """Keep a block under the name that its comment gives; empty where it has none."""
    place = PLACE.match(text)
    if place is None:
        return ""
    path = folder / place[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return place[1]


def execute(name: str, code: str) -> dict[str, object]:
    found: dict[str, object] = {"__name__": name}
    exec(compile(code, f"{PAGE}: {name}", "exec"), found)
    return found


def forget() -> None:
    """Take the user's modules out of Python's memory, whatever test they are from."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that a user works in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    forget()
    yield tmp_path
    forget()


def test_the_page_is_made_of_what_this_test_runs() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "yaml", "sh"}
    titles = set(re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE))
    assert {"A layer", "An objective", "A dataset", "A certifier"} <= titles


def test_every_file_and_piece_of_code_works(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for language, text in BLOCKS:
        name = write(folder, text)
        if language == "python" and (not name or name.startswith("test_")):
            torch.manual_seed(0)
            for key, test in execute(name or "script", text).items():
                if key.startswith("test_"):
                    assert callable(test)
                    test()
    shown = re.search(r"verified at 0\.05: (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert shown is not None
    assert float(shown[1]) > 0.9


def test_every_command_is_one(folder: Path) -> None:
    robustcert.runs.commands.register_resolvers()
    for language, text in BLOCKS:
        write(folder, text)
        for line in text.splitlines() if language == "sh" else ():
            name, *typed = shlex.split(line)
            if name != "robustcert-check":
                assert find_mistake(name.removeprefix("robustcert-"), ordered(typed)) is None


@pytest.mark.slow
def test_every_command_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for language, text in BLOCKS:
        write(folder, text)
        for line in text.splitlines() if language == "sh" else ():
            run(line, monkeypatch)
    written = {path.parent.name for path in folder.glob("*/certificate")}
    assert written >= {"plain", "qr", "rings"}


def test_without_permission_the_class_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for language, text in BLOCKS:
        if language == "yaml":
            write(folder, text)
    with pytest.raises(SystemExit, match=r"add allow_targets=\[mylab\] to the command line"):
        run("robustcert-train --config-dir my_conf layer=qr", monkeypatch)
