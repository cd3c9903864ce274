"""``robustcert`` as it is typed: its commands, what they take, and how they name themselves."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import TINY

import robustcert
from robustcert import main as program
from robustcert.certificate.places import certificate_of, checkpoint_of
from robustcert.errors import NotCertifiedError, typed

ROOT = Path(__file__).parents[1]
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")
SMALL = ("samples=8", "attack.samples=2", "attack.steps=1", *QUIET)
Command = Callable[..., str | int | None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Type ``robustcert ...`` in an empty folder, in this process; returns its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "orig_argv", ["python", "bin/robustcert"])

    def call(*arguments: str) -> str | int | None:
        monkeypatch.setattr(sys, "argv", ["bin/robustcert", *arguments])
        try:
            program.main()
        except SystemExit as end:
            return end.code or 0
        return 0

    return call


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script, as an installer writes it."""
    path = tmp_path_factory.mktemp("bin") / "robustcert"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nfrom robustcert.main import main\nsys.exit(main())\n"
    )
    path.chmod(0o755)
    return path


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, cwd=cwd, env=environment
    )


def places(run: Path) -> list[str]:
    """A run, its certificate and its checkpoint: what a user may name."""
    return [str(run), f"{run}/certificate", f"{run}/checkpoints/best.ckpt"]


def test_the_command_lists_its_commands(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ((), ("--help",), ("help",)):
        assert command(*arguments) == 0
        said = capsys.readouterr().out
        assert re.findall(r"^  (\w+)  ", said, re.MULTILINE) == list(program.COMMANDS)
    assert command("version") == command("--version") == 0
    assert capsys.readouterr().out == f"robustcert {robustcert.__version__}\n" * 2


@pytest.mark.parametrize("name", ["train", "certify"])
def test_a_command_says_that_it_runs_before_it_loads_anything(name: str, tmp_path: Path) -> None:
    stopped = (
        "import sys, runpy\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('hydra', 'torch', 'numpy'): sys.exit('and loads')\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"runpy.run_path({str(ROOT / f'{name}.py')!r}, run_name='__main__')"
    )
    said = f"robustcert {robustcert.__version__}: reading the configuration\n"
    assert run(sys.executable, "-c", stopped, cwd=tmp_path).stderr == f"{said}and loads\n"
    # Where the answer is all that is wanted, it is all that is printed.
    asked = run(sys.executable, "-c", stopped, "--cfg", "job", cwd=tmp_path)
    assert asked.stderr == "and loads\n"


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("trian", "error: trian: no such command; did you mean robustcert train? there are train"),
        ("activation=relu", "did you mean robustcert train activation=relu? there are train, "),
        ("frobnicate", "error: frobnicate: no such command; there are train, certify, check, "),
    ],
)
def test_a_command_that_is_none_is_answered_with_those_that_are(
    command: Command, capsys: pytest.CaptureFixture[str], typed: str, answer: str
) -> None:
    assert command(typed) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.slow
def test_one_command_trains_certifies_reports_and_goes_on(command: Command, tmp_path: Path) -> None:
    assert command("train", *TINY, *QUIET, "trainer.max_epochs=1") == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    run = str(folder.relative_to(tmp_path))
    assert command("certify", run, *SMALL, "output=again") == 0
    # Beside the run's own certificate, wherever the command is typed.
    claim = json.loads((folder / "again" / "certificate.json").read_text())
    assert not (tmp_path / "again").exists()
    assert claim["checkpoint"]["file"] == "best.ckpt"
    assert claim["summary"]["samples"] == 8
    assert command("report", f"{run}/checkpoints/best.ckpt", "--out", "page") == 0
    assert (tmp_path / "page" / "report.html").is_file()
    resume = (f"resume={run}", "trainer.max_epochs=2", "certify=false", *QUIET)
    assert command("train", *resume) == 0
    assert json.loads((folder / "results.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("place", range(3))
def test_a_run_its_certificate_and_its_checkpoint_name_one_another(
    tiny_run: Path, place: int
) -> None:
    named = places(tiny_run)[place]
    assert certificate_of(named) == f"{tiny_run}/certificate"
    assert checkpoint_of(named) == f"{tiny_run}/checkpoints/best.ckpt"


def test_a_place_that_is_none_of_these_is_left_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").touch()
    for path in ("nowhere", str(tmp_path), ""):
        assert certificate_of(path) == checkpoint_of(path) == path
    # A checkpoint outside a run has its certificate beside it.
    with pytest.raises(NotCertifiedError, match=f"expected {tmp_path}/certificate; "):
        certificate_of(f"{tmp_path}/best.ckpt")
    assert checkpoint_of(f"{tmp_path}/best.ckpt") == f"{tmp_path}/best.ckpt"


def test_a_folder_that_is_no_run_is_answered_with_what_one_holds(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep" / "a").mkdir(parents=True)
    for arguments in (("check", "sweep"), ("export", "sweep", "model.onnx")):
        assert command(*arguments) in (1, 2)
        said = "".join(capsys.readouterr())
        assert "sweep: neither a run nor a certificate: expected a folder with certificate" in said


def test_an_onnx_model_is_exported_from_whatever_names_the_certificate(
    command: Command, tiny_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    for path in places(tiny_run):
        assert command("export", path, "model.onnx") == 0
        assert (tmp_path / "model.onnx").stat().st_size
        (tmp_path / "model.onnx").unlink()


@pytest.mark.parametrize("place", range(3))
def test_the_checker_finds_the_certificate_of_a_run(
    script: Path, tiny_run: Path, tmp_path: Path, place: int
) -> None:
    pytest.importorskip("flint")
    done = run(script, "check", places(tiny_run)[place], "--exact", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("VERIFIED")


def test_files_beside_the_user_are_not_executed_by_the_checker(
    script: Path, tiny_run: Path, tmp_path: Path
) -> None:
    for name in ("importlib", "json", "robustcert", "difflib", "argparse", "numpy", "pathlib"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'w').close()\n")
    run(script, "check", tiny_run / "certificate", "--help", cwd=tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("typed", ["--help", "--frobnicate", "--exact=-1 nowhere"])
def test_the_checker_names_itself_as_it_was_typed(script: Path, tmp_path: Path, typed: str) -> None:
    done = run(script, "check", *typed.split(), cwd=tmp_path)
    assert (done.stdout + done.stderr).startswith("usage: robustcert check [-h]")
    done = run(sys.executable, "-m", "robustcert.check", *typed.split(), cwd=ROOT)
    assert (done.stdout + done.stderr).startswith("usage: robustcert-check [-h]")


def test_what_has_no_certificate_says_how_to_write_one(
    command: Command, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(tiny_run / "checkpoints", tmp_path / "run" / "checkpoints")
    for word in ("run", "run/checkpoints/best.ckpt"):
        remedy = f"{word}: no certificate yet: expected run/certificate; write it by robustcert "
        for arguments in (("check", word), ("report", word), ("export", word, "model.onnx")):
            assert command(*arguments) in (1, 2)
            said = "".join(capsys.readouterr())
            assert f"{remedy}certify {word}\n" in said, arguments
    assert "outputs/<run>, or set checkpoint=" in str(command("certify", *QUIET))


@pytest.mark.parametrize(
    ("started", "certify", "report"),
    [
        ("python train.py", "python certify.py", "python -m robustcert.report"),
        ("python /home/me/certify.py a", "python certify.py", "python -m robustcert.report"),
        ("python -I /venv/bin/robustcert-train", "robustcert-certify", "robustcert report"),
        ("python /venv/bin/robustcert report", "robustcert certify", "robustcert report"),
        (r"python C:/bin/robustcert.exe report", "robustcert certify", "robustcert report"),
        ("python -m robustcert.report", "robustcert certify", "python -m robustcert.report"),
        ("python notebook", "robustcert certify", "python -m robustcert.report"),
    ],
)
def test_messages_name_commands_as_they_were_typed(
    monkeypatch: pytest.MonkeyPatch, started: str, certify: str, report: str
) -> None:
    monkeypatch.setattr(sys, "orig_argv", started.split())
    monkeypatch.setattr(sys, "argv", ["elsewhere"])
    assert typed("certify") == certify
    assert typed("report") == report


def test_help_names_the_command_and_loads_no_torch(script: Path, tmp_path: Path) -> None:
    heavy = "import sys; sys.modules.update(torch=None, lightning=None, numpy=None)\n"
    lines = script.read_text().splitlines(keepends=True)
    light = script.with_name("light") / "robustcert"
    light.parent.mkdir(exist_ok=True)
    light.write_text(lines[0] + heavy + "".join(lines[1:]))
    light.chmod(0o755)
    for name in ("train", "certify"):
        done = run(light, name, "--help", cwd=tmp_path)
        assert f"\n  robustcert {name}" in done.stdout, done.stderr
        assert ".py" not in done.stdout.partition("== Groups")[0]
        assert "\ncertifier: crown, " in done.stdout
    for name in ("report", "export", "convert", "dashboard"):
        done = run(light, name, "--help", cwd=tmp_path)
        assert done.stdout.startswith(f"usage: robustcert {name} "), done.stderr


@pytest.mark.parametrize("typed", ["--help", "train --help", "certify --help", "train --cfg job"])
def test_output_that_is_cut_short_leaves_no_traceback(
    script: Path, tmp_path: Path, typed: str
) -> None:
    # A reader that leaves at once.
    words = f"{{ {script} {typed}; echo $? >&2; }} | true"
    done = run("bash", "-c", words, cwd=tmp_path)
    assert done.stderr.splitlines() == ["0"]
