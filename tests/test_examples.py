"""Examples in docstrings: every public class has one, and what it shows is what comes out."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# What a reader is told to begin with.
(PREAMBLE,) = re.findall(
    r"^```python\n(.*?)^```",
    (ROOT / "docs" / "reference" / "index.md").read_text(),
    re.DOTALL | re.MULTILINE,
)
MODULES = re.findall(r"from (robustcert\.\w+) import \*", PREAMBLE)
FILES = [path for path in sorted((ROOT / "robustcert").rglob("*.py")) if ">>>" in path.read_text()]


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_examples_run(path: Path) -> None:
    names: dict[str, object] = {}
    exec(PREAMBLE, names)
    failed = tried = 0
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(import_module(module(path)), extraglobs=names):
        torch.manual_seed(0)
        result = runner.run(example)
        failed, tried = failed + result.failed, tried + result.attempted
    assert tried
    assert not failed


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_has_an_example(name: str) -> None:
    room = import_module(name)
    classes = {each: getattr(room, each) for each in room.__all__}
    without = [
        each
        for each, found in classes.items()
        if isinstance(found, type)
        and not issubclass(found, Exception)
        and ">>>" not in (found.__doc__ or "")
    ]
    assert without == []
