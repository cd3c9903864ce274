"""An activation is one file and one yaml: that of docs/own_network.md in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A file on the page: an indented block whose first line is its path.
FILE = re.compile(r"`((?:robustcert|conf)/\S*/hinge_abs\.\S+)`,\n\n((?:    .*\n|\n)+)")
# Tests of the new activation by name, and those that walk conf/activation in a loop.
WALKS = "hinge_abs or deep_copy or constants_of_activations or test_readme"
TINY = (
    *("capacity=tiny", "trainer.max_epochs=2", "trainer.enable_progress_bar=false"),
    *("attack.samples=4", "attack.steps=3"),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is tracked, with the two files of the page."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, which knows the files of the project")
    copy = tmp_path_factory.mktemp("project")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    files = FILE.findall((ROOT / "docs" / "own_network.md").read_text())
    assert [Path(name).name for name, _ in files] == ["hinge_abs.py", "hinge_abs.yaml"]
    for name, block in files:
        assert not (copy / name).exists()
        (copy / name).write_text(textwrap.dedent(block))
    return copy


def python(project: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output of Python in the copy, which it imports."""
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_it_passes_the_tests_that_walk_the_activations(project: Path) -> None:
    status, output = python(project, "-m", "pytest", "-q", "-k", WALKS, "tests")
    assert status == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed
    assert int(passed[1]) > 40
    assert "failed" not in output


def test_it_trains_and_certifies_and_what_it_lacks_is_said_in_a_line(project: Path) -> None:
    run, checkpoint = project / "run", "checkpoint=run/checkpoints/best.ckpt"
    status, output = python(
        project, "train.py", *TINY, "activation=hinge_abs", f"hydra.run.dir={run}"
    )
    assert status == 0, output
    assert (run / "certificate" / "certificate.json").is_file()
    for expected, said, *arguments in (
        (
            1,
            "linear bounds do not cover the activation hinge_abs: its fold() states no relaxation",
            *("certify.py", checkpoint, "certifier=crown", "output=crown"),
        ),
        (
            0,
            "second-order bounds do not cover the activation hinge_abs, whose networks get their",
            *(
                "certify.py",
                checkpoint,
                "certifier=second_order",
                "attack.samples=4",
                "output=second",
            ),
        ),
        (
            2,
            "unknown activation 'hinge_abs', of which nothing is proved here",
            *("-m", "robustcert.check", "run/certificate"),
        ),
        (
            1,
            "unknown activation 'hinge_abs', of which nothing is proved here",
            *("-m", "robustcert.export", "run", "model.onnx"),
        ),
    ):
        status, output = python(project, *arguments)
        assert sum(said in line for line in output.splitlines()) == 1, output
        assert "Traceback" not in output
        assert status == expected, output
