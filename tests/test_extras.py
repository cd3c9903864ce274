"""What is installed with the package, what is an extra, and how its absence is answered."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.runs import TINY, compose

from robustcert.config.build import COMMAND_LINE_TARGETS, check
from robustcert.config.command_line import find_mistake
from robustcert.data.dataset import DatasetError
from robustcert.data.image_files import import_pillow
from robustcert.data.tables import Phishing
from robustcert.errors import ConfigError
from robustcert.export.graph import require_onnx
from robustcert.export.runtime import check_runtime
from robustcert.report.dashboard import main as save_dashboard

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {k: v for k, v in PROJECT["optional-dependencies"].items() if k != "dev"}
# Packages whose modules are named otherwise.
MODULES = {
    "deel-torchlip": "deel",
    "hydra-core": "hydra",
    "hydra-joblib-launcher": "hydra_plugins",
    "hydra-optuna-sweeper": "hydra_plugins",
    "hydra-submitit-launcher": "hydra_plugins",
    "pillow": "PIL",
    "python-flint": "flint",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "wandb-workspaces": "wandb_workspaces",
}


def modules(requirements: list[str]) -> set[str]:
    names = [requirement.partition(">")[0] for requirement in requirements]
    return {MODULES.get(name, name) for name in names}


CORE = modules(PROJECT["dependencies"])
OPTIONAL = {module: extra for extra, named in EXTRAS.items() for module in modules(named)}


def answer(extra: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is said where an extra is used, each use in its own words."""
    if extra in ("slurm", "sweeps"):
        typed = {"slurm": ["launcher=slurm"], "sweeps": ["launcher=parallel", "sweeper=search"]}
        return [str(find_mistake("train", ["-m", f"hydra/{word}"])) for word in typed[extra]]
    if extra == "dashboard":
        assert save_dashboard(["me/mine"]) == 2
        return [capsys.readouterr().err]
    if extra == "check":
        from robustcert.check.fixed_point import flint

        return [refusal(flint, ImportError)]
    if extra == "images":
        return [refusal(import_pillow, DatasetError)]
    if extra == "tables":
        return [refusal(lambda: Phishing().read("train"), DatasetError)]
    if extra == "export":
        return [
            refusal(require_onnx, ConfigError),
            refusal(lambda: check_runtime(ROOT / "none.onnx"), ConfigError),
        ]
    if extra == "tensorboard":
        node = compose("logger=tensorboard")["logger"]
        return [refusal(lambda: check(node, "logger", COMMAND_LINE_TARGETS), ConfigError)]
    names = ("muon", "nadam_lookahead", "schedule_free")
    nodes = [compose(f"optimizer={name}")["optimizer"] for name in names]
    return [
        refusal(lambda n=n: check(n, "optimizer", COMMAND_LINE_TARGETS), ConfigError) for n in nodes
    ]


def refusal(call: object, error: type[Exception]) -> str:
    assert callable(call)
    with pytest.raises(error) as raised:
        call()
    return str(raised.value)


# No command needs what `make docs` does; bridges bring classes of others, none of which we import.
@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"bridges", "docs"}))
def test_the_absence_of_an_extra_is_answered_with_the_command(
    extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        ours = name.startswith(("robustcert.training.optimizers.", "robustcert.training.tensorb"))
        if name.partition(".")[0] in modules(EXTRAS[extra]) or ours:
            monkeypatch.delitem(sys.modules, name)
    for name in modules(EXTRAS[extra]):
        monkeypatch.setitem(sys.modules, name, None)
    for line in answer(extra, capsys):
        assert line.count(f"pip install 'robustcert[{extra}]'") == 1
        assert len(line.strip().splitlines()) == 1


def imports(tree: ast.AST, *, deep: bool) -> Iterator[str]:
    """First names of what is imported when a file is, or, deep, by anything in it."""
    for node in ast.walk(tree) if deep else getattr(tree, "body", []):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_every_package_that_is_imported_is_declared_and_extras_only_where_they_are_used() -> None:
    known = {"robustcert", "lightning_utilities", "mpl_toolkits", *sys.stdlib_module_names}
    for path in (ROOT / "robustcert").rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert set(imports(tree, deep=True)) <= CORE | OPTIONAL.keys() | known, path
        assert not set(imports(tree, deep=False)) & OPTIONAL.keys(), path


def test_every_core_dependency_is_used() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "robustcert").rglob("*.py")]
    used = {name for tree in trees for name in imports(tree, deep=True)}
    assert CORE - used == {"pytest"}


def test_everything_is_installed_for_development() -> None:
    (own,) = [r for r in PROJECT["optional-dependencies"]["dev"] if r.startswith("robustcert")]
    assert set(own.partition("[")[2].removesuffix("]").split(",")) == set(EXTRAS)


@pytest.mark.slow
def test_the_demo_needs_no_extra(tmp_path: Path) -> None:
    # matplotlib brings Pillow; scipy looks for Sphinx's name among the modules, and needs none.
    missing = sorted(OPTIONAL.keys() - {"PIL", "hydra_plugins", "sphinx"})
    code = (
        "import sys\n"
        f"sys.modules |= dict.fromkeys({missing})\n"
        f"sys.argv = ['train.py', 'hydra.run.dir=run', *{TINY}]\n"
        "from robustcert.runs.commands import train\n"
        "train()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path / "run" / "certificate" / "certificate.json").is_file()
