"""The documentation site: its links, its generated reference, and every command that it shows."""

import argparse
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.runs import TINY, compose

import robustcert
import robustcert.check.command
import robustcert.export.__main__
import robustcert.report.__main__
import robustcert.runs.commands
from robustcert.certificate.places import certificate_of
from robustcert.config.command_line import find_mistake, ordered
from robustcert.main import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "site"))
import check_site  # noqa: E402
import configuration  # noqa: E402

# extending.md has a test of its own.
PAGES = [ROOT / "README.md", *sorted(set(DOCS.glob("*.md")) - {DOCS / "extending.md"})]
PROGRAM = re.compile(r"(?:python|robustcert[\w-]*|pip|make)\b")
# Commands are indented or fenced, and may go on after a backslash.
BLOCK = re.compile(r"(?:^(?: {4}.*)?\n)+|^```(?:sh|bash)?\n.*?^```$", re.MULTILINE | re.DOTALL)
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")
SHORT = {
    "train": (*TINY, "++trainer.check_val_every_n_epoch=1", "attack.seconds=1", *QUIET),
    "certify": ("samples=4", "attack.samples=4", "attack.steps=3", "attack.seconds=1", *QUIET),
}
# What a short form leaves out: sweeps run their first job, here; files that are not there.
LEFT_OUT = re.compile(r"-m$|hydra/(launcher|sweeper)|hydra\.(launcher|sweeper)\.|loader\.generated")


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command that a page shows."""
    for block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if PROGRAM.match(line.strip().removeprefix("$ ")):
                words = shlex.split(line.strip().removeprefix("$ "), comments=True)
                if len(words) > 1:
                    yield words


def known(words: list[str]) -> tuple[str, list[str]]:
    """A command by one name, however it is typed, and its arguments."""
    first, *rest = words
    if first == "robustcert":
        return rest[0], rest[1:]
    if first == "python" and rest[0] in ("train.py", "certify.py"):
        return rest[0].removesuffix(".py"), rest[1:]
    if first == "python" and rest[0] in ("-m", "-I"):
        name = rest[rest.index("-m") + 1]
        return name.removeprefix("robustcert."), rest[rest.index("-m") + 2 :]
    return first.removeprefix("robustcert-"), rest


ALL = [(page.name, *known(words)) for page in PAGES for words in commands(page)]


def test_faults_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><p id="here">')
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html#here">a</a><img src="data:x">')
    assert check_site.faults(tmp_path) == []
    (tmp_path / "b.html").write_text(
        '<a href="a.html#gone"></a><a href="c.html"></a><a href="https://example.org"></a>'
        '<script src="https://example.org/x.js"></script><link href="//example.org/y.css">'
    )
    assert [line.split(": ", 1)[1].split()[-1] for line in check_site.faults(tmp_path)] == [
        "page",  # a.html: b.html#there
        "network",
        "page",
        "file",
        "network",
    ]


def test_every_key_that_is_composed_is_in_the_reference() -> None:
    conf = ROOT / "conf"
    (*groups,) = yaml.safe_load((conf / "train.yaml").read_text())["defaults"]
    chosen = [
        conf / group / f"{option}.yaml"
        for each in groups
        if isinstance(each, dict)
        for group, option in each.items()
        if option and not group.startswith("override")
    ]
    told = {k.name for path in (conf / "train.yaml", *chosen) for k in configuration.keys(path)}
    for name in flattened({k: v for k, v in compose().items() if k != "hydra"}):
        assert name in told or any(name.startswith(f"{each}.") for each in told), name


def flattened(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        elif key not in ("_target_", "_partial_"):
            yield prefix + key


def test_keys_are_explained_by_their_comment_or_by_the_class() -> None:
    smooth = {k.name: k for k in configuration.keys(ROOT / "conf" / "activation" / "smooth.yaml")}
    assert smooth["model.activation.temperature"].value == "0.05"
    assert smooth["model.activation.temperature"].meaning == r"Initial :math:`\tau`."
    assert smooth["model.activation.per_feature"].meaning == "true: one temperature for each pair"


def test_every_public_name_of_the_package_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "robustcert.rst").read_text()
    for name in robustcert._PUBLIC:
        assert f"``robustcert.{name}``" in page
    for name in robustcert._MODULES:
        assert f".. automodule:: robustcert.{name}\n" in (
            (DOCS / "reference" / f"{name}.rst").read_text()
        )


def test_rows_of_tables_have_the_cells_of_their_header() -> None:
    # What stands behind one cell too many, a bar in a formula say, is not shown.
    for page in (*PAGES, *DOCS.glob("*/*.md")):
        width = 0
        for number, line in enumerate(page.read_text().splitlines(), 1):
            cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
            assert cells == width or not (cells and width), f"{page.name}:{number}"
            width = cells


def test_every_command_line_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "commands.rst").read_text()
    for name in COMMANDS.keys() - {"version"}:
        assert f".. program-output:: robustcert {name} --help\n" in page


@pytest.mark.slow
def test_every_command_of_the_site_is_one() -> None:
    robustcert.runs.commands.register_resolvers()
    extras = (ROOT / "pyproject.toml").read_text()
    assert len(ALL) > 40
    for page, name, arguments in ALL:
        if "--config-dir" in arguments:
            continue  # names files that the reader has written
        if name in ("train", "certify"):
            # What is neither a value nor a flag is a run, and so is what is resumed.
            values = [a for a in arguments if "=" in a or a.startswith("-")]
            typed = [a.replace("<run>", "a") for a in values if not a.startswith("resume=")]
            words = ordered(robustcert.runs.commands.several(typed))
            assert find_mistake(name, words) is None, (page, arguments)
        elif name == "pip":
            wanted = re.search(r"robustcert\[([\w,]+)\]", " ".join(arguments))
            for extra in wanted[1].split(",") if wanted else ():
                assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), (page, arguments)
        elif name == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:
            assert name in COMMANDS or (ROOT / name.replace(".", "/")).with_suffix(".py").exists()


class Parsed(Exception):
    """Stands for all that a benchmark does after it has read its command line."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    sorted({(name, tuple(rest)) for _, name, rest in ALL if name.startswith("benchmarks.")}),
)
def test_benchmarks_know_the_options_that_the_site_shows(
    name: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(parse: Callable[..., Any]) -> Callable[..., Any]:
        def stop(*args: Any, **kwargs: Any) -> None:
            parse(*args, **kwargs)
            raise Parsed

        return stop

    for method in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, method)
        monkeypatch.setattr(argparse.ArgumentParser, method, stopping(parse))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(Parsed):
        runpy.run_module(name, run_name="__main__")


def shortened(name: str, arguments: list[str], run: Path) -> tuple[str, ...]:
    """The arguments of a command that is done in seconds, on the folder of a finished run."""
    kept = [a.replace("outputs/<run>", str(run)) for a in arguments if not LEFT_OUT.match(a)]
    kept = [re.sub(r"^(model\.width|certifier\.n)=.*", r"\1=32", a) for a in kept]
    if "certifier=global_robustness" in kept:
        kept += ["certifier.seconds=1", "certifier.tries=10"]
    if name == "certify":
        kept = [a.replace("checkpoint=...", f"checkpoint={run}") for a in kept]
        kept += ["output=./again"] * (not any(a.startswith("output=") for a in kept))
    if any(a.startswith("resume=") for a in kept):
        return (*kept, "trainer.max_epochs=3", "attack.seconds=1", *QUIET)
    if name == "train":
        # Of several values the first; of data that are not at hand the digits.
        kept = [re.sub(r"^([\w./]+=[^\[,]+),.*", r"\1", a) for a in kept]
        kept = [a for a in kept if not a.startswith(("dataset=", "dataset."))]
        classes = not any("diabetes" in a for a in kept)
        kept += ["dataset=digits"] * classes + ["hydra.run.dir=short"]
    # Experiments and subspaces have sizes of their own.
    own = any("subspaces" in a or a.startswith("experiment=") for a in kept)
    return (*kept, *(a for a in SHORT.get(name, ()) if not own or a != "capacity=tiny"))


# Marks of commands on files that the reader has: their keys are tested above, and what they do in
# the tests of its room.
OWN_FILES = re.compile(
    r"network=|norm|model\.monotone|.*convnet1d|bronet|OUT$|--data$|--config-dir$"
)
RUN = Path("finished")
RUNNABLE = sorted(
    {
        (name, shortened(name, arguments, RUN))
        for _, name, arguments in ALL
        if name in ("train", "certify", "check", "report", "export")
        and not any(OWN_FILES.match(argument) for argument in arguments)
    }
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"), RUNNABLE, ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60]
)
def test_every_command_of_the_site_works(
    name: str,
    arguments: tuple[str, ...],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (RUN, *(Path("multirun") / job for job in ("a", "b"))):
        shutil.copytree(tiny_run, folder)
    if name == "check":  # as robustcert.main does
        arguments = tuple(certificate_of(a) if Path(a).is_dir() else a for a in arguments)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    main = {
        "train": robustcert.runs.commands.train,
        "certify": robustcert.runs.commands.certify,
        "check": robustcert.check.command.main,
        "report": robustcert.report.__main__.main,
        "export": robustcert.export.__main__.main,
    }[name]
    assert main() in (None, 0)
