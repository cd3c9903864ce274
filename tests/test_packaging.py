"""The wheel works by itself, in a fresh environment, from an empty folder."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.runs import TINY

import robustcert

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ".")
    run(sys.executable, *build, cwd=ROOT)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, its dependencies borrowed from ours."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    site = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    )
    # A line in a .pth file is added to sys.path, and .pth files there are not followed, so that our
    # own editable installation stays out.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = ("install", "--no-deps", "--no-index", "--quiet", "--force-reinstall", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    assert str(site) in run(
        python, "-c", "import robustcert; print(robustcert.__file__)", cwd=folder
    )
    return folder / "bin"


def test_the_wheel_carries_configuration_types_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"robustcert/conf/{path.relative_to(ROOT / 'conf')}" in names
    for path in (ROOT / "docs" / "pretrained").glob("*/*"):
        assert f"robustcert/pretrained/{path.parent.name}/{path.name}" in names
    assert "robustcert/py.typed" in names
    information = f"robustcert-{robustcert.__version__}.dist-info"
    assert {f"{information}/licenses/LICENSE", f"{information}/METADATA"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"robustcert", information}


def test_the_description_passes_the_index_and_names_only_versions_that_are_tested(
    wheel: Path,
) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, cwd=ROOT)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = re.compile(r"Programming Language :: Python :: (3\.\d+)")
    tested = [m[1] for c in project["classifiers"] if (m := version.fullmatch(c))]
    assert tested == [f"{sys.version_info.major}.{sys.version_info.minor}"]


def test_released_networks_load_by_name(environment: Path, tmp_path: Path) -> None:
    code = "import robustcert; print(robustcert.load('digits').num_classes)"
    assert run(environment / "python", "-c", code, cwd=tmp_path).splitlines()[-1] == "10"


def test_the_scripts_train_and_certify_from_an_empty_folder(
    environment: Path, tmp_path: Path
) -> None:
    output = run(environment / "robustcert-train", *TINY, "hydra.run.dir=run", cwd=tmp_path)
    assert "verified" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    checkpoint = "checkpoint=run/checkpoints/best.ckpt"
    output = run(environment / "robustcert-certify", checkpoint, "attack.samples=16", cwd=tmp_path)
    assert "run/certificate/certificate.json" in output
    run(environment / "robustcert-check", "run/certificate", cwd=tmp_path)
    run(environment / "robustcert", "check", "run", cwd=tmp_path)


def test_the_scripts_take_a_users_own_groups_and_classes(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "lab" / "optimizer").mkdir(parents=True)
    (tmp_path / "lab" / "optimizer" / "mine.yaml").write_text(
        "# @package optimizer\n_target_: mylab.Mine\n_partial_: true\n"
    )
    (tmp_path / "mylab.py").write_text("from torch.optim import SGD\nclass Mine(SGD):\n    pass\n")
    typed = ("--config-dir", "lab", "optimizer=mine", "allow_targets=[mylab]", "hydra.run.dir=run")
    run(environment / "robustcert-train", *TINY, *typed, cwd=tmp_path)
    assert (tmp_path / "run" / "certificate" / "certificate.json").exists()


@pytest.mark.parametrize("name", ["train", "certify"])
def test_the_scripts_are_the_two_files(environment: Path, tmp_path: Path, name: str) -> None:
    script = run(environment / f"robustcert-{name}", "--help", cwd=tmp_path)
    command = run(environment / "robustcert", name, "--help", cwd=tmp_path)
    file = run(sys.executable, ROOT / f"{name}.py", "--help", cwd=tmp_path)
    # But for their own name.
    assert f"  python {name}.py" in file
    assert script == file.replace(f"python {name}.py", f"robustcert-{name}")
    assert command == file.replace(f"python {name}.py", f"robustcert {name}")
