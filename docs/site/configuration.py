"""The directive ``configuration``: every group, option and key of conf/, read when it is built."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

CONF = Path(__file__).parents[2] / "conf"
PACKAGE = re.compile(r"# @package (\S+)")
# An entry of a docstring's section Args, continued by lines that are indented further.
ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


class Key(NamedTuple):
    """A value that can be set on the command line."""

    name: str
    value: str
    meaning: str


class Configuration(SphinxDirective):
    """Sections for the two commands' own keys and for every group."""

    def run(self) -> list[nodes.Node]:
        """The sections' nodes."""
        text = [command(name) for name in ("train", "certify")]
        for group in groups():
            text += [heading(name_of(group), "-")]
            text += [option(path) for path in sorted(group.glob("*.yaml"))]
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def groups() -> list[Path]:
    """The folders whose files are options: those of Hydra are how jobs are run and found."""
    own = [path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"]
    return [*sorted(own), CONF / "hydra" / "launcher", CONF / "hydra" / "sweeper"]


def name_of(group: Path) -> str:
    """A group as the command line knows it."""
    return group.relative_to(CONF).as_posix()


def heading(title: str, mark: str) -> str:
    """A title with the line below it."""
    return f"\n{title}\n{mark * len(title)}\n"


def command(name: str) -> str:
    """The groups of a command, each with its option by default, and its own keys."""
    path = CONF / f"{name}.yaml"
    groups = ", ".join(f"``{choice}``" for choice in choices(path))
    return f"{heading(name, '-')}\nComposed with {groups}.\n{table(keys(path))}"


def choices(path: Path) -> list[str]:
    """The options that a file is composed with."""
    root = yaml.safe_load(path.read_text())
    chosen = root.get("defaults", []) if isinstance(root, dict) else []
    return [
        f"{group.removeprefix('override ').removeprefix('/')}={option}"
        for each in chosen
        if isinstance(each, dict)
        for group, option in each.items()
        if option and "hydra/" not in group
    ]


def option(path: Path) -> str:
    """What one file of a group offers: its comment, what it builds, and its keys."""
    said = [plain(line[2:]) for line in comment(path) if not PACKAGE.match(line)]
    built = [f"* :class:`{name}`" for name in targets(path)]
    title = heading(f"{name_of(path.parent)}={path.stem}", "^")
    chosen = ", ".join(f"``{choice}``" for choice in choices(path))
    composed = f"\nComposed with {chosen}.\n" if chosen else ""
    return "\n".join([title, *said, "", *built, composed, table(keys(path))])


def comment(path: Path) -> list[str]:
    """The lines of comments at the top of a file."""
    lines = path.read_text().splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:first]


def plain(text: str) -> str:
    """Text in which no character marks anything up."""
    return re.sub(r"([*`|_\\])", r"\\\1", text)


def targets(path: Path) -> list[str]:
    """Classes of this package that a file names."""
    return [*dict.fromkeys(re.findall(r"_target_: (robustcert\S+)", path.read_text()))]


def keys(path: Path) -> list[Key]:
    """Every key of a file, under the name that the command line knows."""
    text = path.read_text()
    declared = PACKAGE.match(text)
    package = declared[1] if declared else name_of(path.parent).replace("/", ".")
    root = yaml.compose(text)
    prefix = "" if package == "_global_" or path.parent == CONF else f"{package}."
    return [*walk(root, prefix, text)] if isinstance(root, yaml.MappingNode) else []


def walk(node: yaml.MappingNode, prefix: str, text: str) -> Iterator[Key]:
    """The keys below a mapping, with their values as they are written."""
    entries = {key.value: value for key, value in node.value}
    target = entries.pop("_target_", None)
    told = arguments(target.value) if target is not None else {}
    for name in ("_partial_", "defaults", "hydra"):
        entries.pop(name, None)
    for name, value in entries.items():
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from walk(value, f"{prefix}{name}.", text)
        else:
            # A list of several lines is written in one, without their comments.
            written = text[value.start_mark.index : value.end_mark.index]
            written = " ".join(re.sub(r"(^|\s)#.*", "", written).split())
            rest = text[value.end_mark.index :].partition("\n")[0]
            said = plain(rest.partition("#")[2].strip())
            yield Key(prefix + name, written, said or told.get(name, ""))


def arguments(target: str) -> dict[str, str]:
    """What the docstring of a class says of each argument."""
    module, _, name = target.rpartition(".")
    if not module.startswith("robustcert"):
        return {}
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        found = getattr(getattr(importlib.import_module(module.rpartition(".")[0]), name), name)
    section = (inspect.getdoc(found) or "").partition("Args:\n")[2]
    return {name: " ".join(said.split()) for name, said in ARGUMENT.findall(section)}


def table(found: list[Key]) -> str:
    """A table of keys; nothing where there are none."""
    if not found:
        return ""
    rows = "".join(
        f"   * - ``{key.name}``\n     - ``{key.value}``\n     - {key.meaning}\n" for key in found
    )
    return (
        "\n.. list-table::\n   :header-rows: 1\n   :widths: 40 20 40\n\n"
        f"   * - Key\n     - Value\n     - \n{rows}"
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("configuration", Configuration)
    return {"parallel_read_safe": True}
