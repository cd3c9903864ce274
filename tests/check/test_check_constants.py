"""The constants of the checker: each has one owner, and says what it is."""

import ast
import re
from collections import Counter
from pathlib import Path

import robustcert.check

FILES = sorted(Path(robustcert.check.__file__).parent.rglob("*.py"))


def constants(path: Path) -> dict[str, int]:
    """Names in capitals that a file assigns, with the lines where it does."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (part.id for part in ast.walk(ast.Tuple(targets)) if isinstance(part, ast.Name))
            found |= dict.fromkeys(
                filter(re.compile("[A-Z][A-Z0-9_]+").fullmatch, names), node.lineno
            )
    return found


def test_a_name_has_one_owner() -> None:
    owners = Counter(name for path in FILES for name in constants(path))
    assert not [name for name, count in owners.items() if count > 1]


def test_a_constant_or_its_group_says_what_it_is() -> None:
    for path in FILES:
        blocks = path.read_text().splitlines()
        for name, line in constants(path).items():
            above = line - 1
            while above and blocks[above - 1].strip():
                above -= 1
            assert any(text.startswith("#") for text in blocks[above : line - 1]), f"{path}: {name}"
