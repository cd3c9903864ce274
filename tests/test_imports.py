"""Who imports whom: mathematics is a library, Lightning and Hydra are two skins over it."""

import ast
import doctest
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).parents[1] / "robustcert"
UNITS = sorted({path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")})

# What each part of the library may import of the package. Siblings don't import one another.
LIBRARY: dict[str, set[str]] = {
    "residual": set(),
    "convolution": {"residual"},
    "spectral": {"convolution", "residual"},
    "semidefinite": {"residual", "spectral"},
    "margins": set(),
    "units": set(),
    "quantiles": set(),
    "schedules": set(),
    "settings": set(),
    "known_products": set(),
    "products": {"known_products", "settings"},
    "plain": {"products", "residual", "spectral"},
    "quadric": {"plain", "products"},
    "overrides": set(),
    "lipschitz": {"margins", "overrides", "plain"},
    "agreement": {"lipschitz", "plain", "units"},
    "rounding": {"plain"},
    "activations": {"plain"},
    "layers": {"plain", "lipschitz", "spectral"},
    "models": {"plain", "lipschitz", "margins", "quadric"},
    "objectives": set(),
    "metrics": {"plain", "margins"},
    "attacks": {"plain", "units"},
    "curvature": {"activations", "plain", "rounding", "spectral"},
    "curves": {"activations", "plain"},
    "relaxation": {"activations", "curves", "plain"},
    "twin": {"curves", "plain", "relaxation"},
    "linear_program": {"plain"},
    "interleaved": {"curves", "linear_program", "plain", "relaxation", "twin"},
    "ellipsoids": {"curves", "plain", "relaxation", "residual", "semidefinite"},
    "branch_and_bound": {"attacks", "curves", "plain", "relaxation"},
    "certifiers": {
        "agreement",
        "attacks",
        "interleaved",
        "plain",
        "lipschitz",
        "margins",
        "products",
        "rounding",
        "residual",
        "semidefinite",
        "curvature",
        "ellipsoids",
        "relaxation",
        "quadric",
        "quantiles",
        "settings",
        "spectral",
        "twin",
        "units",
    },
    "data": {"units"},
    "check": set(),
}
# The only parts that may import them.
SKINS = {
    "hydra": {"build", "command_line", "main", "sweep"},
    "omegaconf": {"build", "command_line", "main", "sweep"},
    "lightning": {
        *("build", "callbacks", "checkpoint", "data", "metrics_file", "module", "run", "wandb_run")
    },
    "pytorch_lightning": set(),
    "wandb": {"wandb_run"},
}


def files(unit: str) -> list[Path]:
    path = PACKAGE / f"{unit}.py"
    return [path] if path.is_file() else sorted((PACKAGE / unit).rglob("*.py"))


def imported(unit: str) -> Iterator[str]:
    """Dotted names that a part imports, wherever in its files."""
    for path in files(unit):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                # `from robustcert import plain` names a module, not an attribute.
                yield from (
                    f"{node.module}.{alias.name}" if node.module == "robustcert" else node.module
                    for alias in node.names
                    if node.module
                )


def parts(unit: str) -> set[str]:
    """Other parts of the package that a part imports."""
    names = {name.split(".")[1] for name in imported(unit) if name.startswith("robustcert.")}
    return names & set(UNITS) - {unit}


def test_imports_form_no_cycle() -> None:
    assert set(UNITS) >= set(LIBRARY)
    TopologicalSorter({unit: parts(unit) for unit in UNITS}).prepare()


@pytest.mark.parametrize("unit", LIBRARY)
def test_the_library_imports_what_is_below_it(unit: str) -> None:
    assert parts(unit) <= LIBRARY[unit]


@pytest.mark.parametrize("skin", SKINS)
def test_frameworks_stay_in_their_skins(skin: str) -> None:
    users = {u for u in UNITS if any(name.split(".")[0] == skin for name in imported(u))}
    assert users <= SKINS[skin]


def test_the_checker_shares_no_code() -> None:
    names = {name.split(".")[0] for name in imported("check")}
    assert not names & {"torch", *SKINS}
    assert all(
        name.startswith("robustcert.check")
        for name in imported("check")
        if name.startswith("robustcert")
    )


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
    units = [f"robustcert.{unit}" for unit in LIBRARY if unit != "data"]
    assert not loaded_by(*units) & {"foolbox", *SKINS}


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text()],
    ids=lambda path: path.stem,
)
def test_examples_in_docstrings_run(path: Path) -> None:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    tried = doctest.testmod(import_module(name), extraglobs={"torch": torch})
    assert tried.attempted
    assert not tried.failed
