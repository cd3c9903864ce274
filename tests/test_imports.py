"""Who imports whom: rooms, the floors that they stand on, and the arrows between them.

A room is a folder of the package, or a file at its root; a floor is the longest way down from a
room; an arrow says that a room imports another, wherever in its files.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from robustcert import check

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "robustcert"
MAX_ROOMS, MAX_FLOORS, MAX_ARROWS = 30, 10, 105
MAX_ROOT_FILES, MAX_SHIM_LINES = 8, 10

# Old public paths, which only import again: no rooms.
SHIMS = {"dashboard", "spectral"}
# What each room may import of the others.
ROOMS: dict[str, set[str]] = {
    # For editors only; at run time it loads nothing.
    "__init__": {
        *("activations", "certificate", "certifiers", "layers", "lipschitz", "models", "network"),
        *("objectives", "runs"),
    },
    "arithmetic": set(),
    "atomic": set(),
    "board": {"atomic", "check", "errors"},
    "check": set(),
    "errors": set(),
    "margins": set(),
    "objectives": {"margins"},
    "norms": {"errors"},
    "network": {"arithmetic", "errors", "norms"},
    "activations": {"errors", "network", "relaxations"},
    "attacks": {"errors", "margins", "network"},
    "data": {"network"},
    "layers": {"network", "norms"},
    "lipschitz": {"errors", "margins", "network"},
    "metrics": {"arithmetic", "errors", "margins", "network"},
    "models": {"lipschitz", "margins", "network"},
    "relaxations": {"errors", "network", "norms"},
    "certifiers": {
        *("arithmetic", "attacks", "errors", "margins", "network", "norms", "relaxations"),
    },
    "ground_truth": {"attacks", "errors", "network", "relaxations"},
    "certificate": {
        *("arithmetic", "certifiers", "check", "data", "errors", "network"),
    },
    "training": {
        *("activations", "atomic", "attacks", "certifiers", "data", "errors", "layers"),
        *("lipschitz", "margins", "metrics", "models", "network"),
    },
    "config": {"certifiers", "data", "errors", "models", "training"},
    "export": {"arithmetic", "atomic", "certificate", "errors", "network", "runs"},
    "runs": {
        *("atomic", "attacks", "certificate", "certifiers", "config", "data", "errors"),
        *("metrics", "models", "network", "training"),
    },
    "convert": {"config", "data", "errors", "training"},
    "report": {"atomic", "certificate", "check", "config", "data", "errors", "runs", "training"},
    # The command starts rooms by their names, as console scripts do.
    "main": {"certificate", "errors", "runs"},
}
# The mathematics: rooms that load no framework.
LIBRARY = (
    *("activations", "arithmetic", "attacks", "certifiers", "errors", "ground_truth", "layers"),
    *("lipschitz", "margins", "metrics", "models", "network", "norms", "objectives"),
    "relaxations",
)
# The only rooms that may import them.
SKINS = {
    "hydra": {"config", "runs"},
    "omegaconf": {"config", "runs"},
    "lightning": {"config", "data", "runs", "training"},
    "pytorch_lightning": set(),
    "wandb": {"training"},
}


def files(room: str) -> list[Path]:
    path = PACKAGE / f"{room}.py"
    return [path] if path.is_file() else sorted((PACKAGE / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # `from robustcert import norms` names a module, not an attribute.
            yield from (
                f"{node.module}.{alias.name}" if node.module == "robustcert" else node.module
                for alias in node.names
                if node.module
            )


@cache
def names(room: str) -> frozenset[str]:
    return frozenset(name for path in files(room) for name in imported(path))


def arrows(room: str) -> set[str]:
    """Other rooms that a room imports."""
    found = {name.split(".")[1] for name in names(room) if name.startswith("robustcert.")}
    return found & set(ROOMS) - {room}


def floor(room: str) -> int:
    return 1 + max(map(floor, arrows(room)), default=0)


def test_every_room_is_named() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    root = {path.stem for path in PACKAGE.glob("*.py")}
    assert folders | root == {*ROOMS, *SHIMS}
    assert len(root) <= MAX_ROOT_FILES


def test_imports_form_no_circle() -> None:
    TopologicalSorter({room: arrows(room) for room in ROOMS}).prepare()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_is_below_it(room: str) -> None:
    assert arrows(room) <= ROOMS[room]
    assert not {name for name in names(room) if name.split(".")[-1] in SHIMS - {"dashboard"}}


def test_the_house_stays_small() -> None:
    assert len(ROOMS) <= MAX_ROOMS
    assert max(map(floor, ROOMS)) <= MAX_FLOORS
    assert sum(len(arrows(room)) for room in ROOMS) <= MAX_ARROWS


@pytest.mark.parametrize("shim", sorted(SHIMS))
def test_an_old_path_only_imports_again(shim: str) -> None:
    text = (PACKAGE / f"{shim}.py").read_text()
    assert len(text.splitlines()) <= MAX_SHIM_LINES
    assert not [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.ClassDef)
    ]
    assert import_module(f"robustcert.{shim}")


def test_public_names_are_where_they_were() -> None:
    import robustcert

    assert robustcert.certify
    assert robustcert.load
    for module, public in {
        "spectral": ("conv_norm_bound", "dense_norm_bound"),
        "main": ("certify", "train"),
        "dashboard": ("main",),
        "lipschitz": ("fold", "fold_children", "fold_network", "lipschitz_bound"),
        "activations": ("ReLU", "GroupSort"),
        "layers": ("AOLLinear",),
        "models": ("MLP",),
        "objectives": ("CrossEntropy",),
    }.items():
        for name in public:
            assert getattr(import_module(f"robustcert.{module}"), name)


@pytest.mark.parametrize("skin", SKINS)
def test_frameworks_stay_in_their_skins(skin: str) -> None:
    users = {room for room in ROOMS if any(n.split(".")[0] == skin for n in names(room))}
    assert users <= SKINS[skin]


def test_the_checker_shares_no_code() -> None:
    assert not {name.split(".")[0] for name in names("check")} & {"torch", *SKINS}
    own = [name for name in names("check") if name.startswith("robustcert")]
    assert all(name.startswith("robustcert.check") for name in own)


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"check"}))
def test_the_package_takes_from_the_checker_what_it_names(room: str) -> None:
    for path in files(room):
        taken = [
            {alias.name for alias in node.names}
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module == "robustcert.check"
        ]
        assert set().union(*taken) <= set(check.__all__), path
        # Neither a module of the checker nor the checker as a whole.
        found = [name for name in imported(path) if name.startswith("robustcert.check")]
        assert found == ["robustcert.check"] * sum(map(len, taken)), path


def test_the_checker_has_what_it_names() -> None:
    assert sorted(check._MODULES) == sorted(check.__all__)
    for name in check.__all__:
        owner = import_module(f"robustcert.check.{check._MODULES[name]}")
        assert getattr(check, name) is getattr(owner, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        check.nothing  # noqa: B018


def loaded_by(*modules: str) -> set[str]:
    """What is in memory after an import in a process of its own."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_the_package_itself_loads_nothing() -> None:
    loaded = loaded_by("robustcert")
    assert not {name for name in loaded if name.startswith("robustcert.")}
    assert not loaded & {"torch", "numpy", *SKINS}


def test_the_checker_loads_nothing_but_itself() -> None:
    loaded = loaded_by("robustcert.check")
    own = {name for name in loaded if name.startswith("robustcert.")}
    assert all(name.startswith("robustcert.check") for name in own)
    assert not loaded & {"torch", *SKINS}


def test_the_library_loads_no_framework() -> None:
    modules = [module(path) for room in LIBRARY for path in files(room)]
    # Nor torch's compiler, whose import takes as long as that of torch.
    assert not loaded_by(*modules) & {"foolbox", "torch._dynamo", *SKINS}


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_test_module_imports_another() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        taken = {name.split(".")[-1] for name in imported(path)}
        assert not {name for name in taken if name.startswith("test_")}, path


def test_public_names_are_listed_and_loaded_when_they_are_asked_for() -> None:
    import robustcert

    public = [name for name in dir(robustcert) if not name.startswith("_")]
    assert {"certify", "load", "load_module", "Certificates", "layers", "activations"} <= {*public}
    listed = "import sys, robustcert; dir(robustcert); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True)
    assert not set(done.stdout.split()) & {"torch", "numpy", "typing_extensions"}
    for name in {*public} & {*robustcert._PUBLIC, *robustcert._MODULES}:
        assert getattr(robustcert, name) is not None
    # What editors read is what is there.
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    told = {a.asname for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert told == {*robustcert._PUBLIC, *robustcert._MODULES}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        robustcert.nothing  # noqa: B018
