"""The commands as a user types them: what they answer, and what they leave behind."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dashboard_metrics import METRICS
from helpers.runs import TINY

import robustcert.runs.commands
from robustcert.certificate.predictor import load
from robustcert.certificate.samples import read_radii
from robustcert.check import UnreadableError
from robustcert.check.command import main as check
from robustcert.config.command_line import find_mistake, ordered
from robustcert.runs.commands import several

ROOT = Path(__file__).parents[2]
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
Command = Callable[..., str | int | None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in an empty folder, in this process, and return what it exits with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(name: str, *arguments: str) -> str | int | None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, *QUIET])
        try:
            getattr(robustcert.runs.commands, name)()
        except SystemExit as exit:
            return exit.code
        return 0

    return call


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("model.widht=64", "model.widht: no such key; did you mean model.width? model has width, "),
        ("widht=3", "widht: no such key; did you mean model.width? the top level has dataset, "),
        ("width=3", "width: no such key; did you mean model.width? "),
        ("lr=3", "lr: no such key; did you mean optimizer.lr? "),
        ("modle.width=3", "modle.width: no such key; did you mean model.width? "),
        ("model.width.foo=3", "model.width.foo: no such key; model.width is the value 128"),
        ("activation=smoth", "activation=smoth: activation has no 'smoth'; did you mean smooth? "),
        ("precision=16", "precision: no such key; did you mean trainer.precision? the top level"),
        ("accelerator=cpu", "did you mean trainer.accelerator? "),
        ("model.activation=relu", "a class with its options, which activation chooses: write acti"),
        ("model.layer=aol capacity=tiny", "model.layer=aol: model.layer is a class with its opti"),
        ("-m model.activation=relu,maxmin", "chooses: write activation=relu,maxmin"),
        ("activatoin=relu", "activatoin: no such key; did you mean activation? "),
        (
            "experiment=liresnet_plus_cifar10 capacity=tiny",
            "capacity=tiny: experiment=liresnet_plus_cifar10 sets model.width and model.depth "
            "itself: type model.width=64 model.depth=2",
        ),
        ("-m capacity=tiny experiment=cifar10_small model.width=8", "sets model.depth itself"),
        ("activation.temperature=3", "did you mean model.activation.temperature? "),
        ("+activation=relu", "activation is there already: leave the plus sign out"),
        ("+model.width=3", "model.width is there already: leave the plus sign out"),
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs? trainer has max_epochs, "),
        ("trainer.fast_dev_run=true", "write +trainer.fast_dev_run=true; trainer has"),
        ("hydra.run.dri=x", "did you mean hydra.run.dir? hydra.run has dir"),
        ("~foo", "foo: no such key; "),
        ("optimizer=null", "optimizer=null: leave a group out with ~optimizer"),
        ("logger=[csv,tensorbord]", "logger has no 'tensorbord'; did you mean tensorboard? "),
        ("logger=[csv,tensorbord]", "logger=tensorbord: logger has no 'tensorbord'; did you mean"),
        ("lr_schedule.step=2", "step is an option of lr_schedule: write lr_schedule=step, which "),
        ("callbacks.early_stopping.patience=3", "write callbacks=early_stopping, which has patie"),
        (
            "callbacks.early_stopping.pacience=3 callbacks=early_stopping",
            "no such key; did you mean callbacks.early_stopping.patience? callbacks.early_stopping",
        ),
        (
            "normalization=training",
            "normalization has mean, std: write normalization='{mean: training, std: training}'",
        ),
        ("callbacks=early_stoping", "callbacks has no 'early_stoping'; did you mean early_stoppi"),
        ("callbacks=[early_stoping]", "callbacks has no 'early_stoping'; did you mean early_stopp"),
        (
            "callbacks=[gradients,earl]",
            "ks=[gradients,earl]: callbacks has no 'earl'; it has",
        ),
        ("activation=relu,maxmin", "several values are a sweep: add -m"),
        ("epsilon=0,5", "add -m, a fraction is written epsilon=0.5, or write a list as epsilon=["),
        ("radii=0.25,0.5", "add -m, or write a list as radii=[0.25,0.5]"),
        ("certifier=crown,lipsdp", "add -m, or write a list as certifier=[crown,lipsdp]"),
        ("dataset.root=mine.npz", "no such key; it is a key of dataset=cifar10, cifar100, fashion"),
        ("dataset.root=mine.npz", "dataset has none"),
        (
            "model.activation.beta=0.3",
            "it is a key of activation=beta_abs; model.activation has gr",
        ),
        ("model.width=[1", r"model.width=[1: "),
        ("smooth", "smooth: did you mean activation=smooth?"),
        ("foo", "foo: expected key=value, as in seed=1"),
        ("--model.width=64", "--model.width=64: no such flag; values are set without dashes"),
        ("--config-dir /nonexistent", "--config-dir /nonexistent: no such folder"),
        ("resume=/nonexistent", "no such checkpoint; expected <run>/checkpoints/last.ckpt"),
        ("-m resume=/nonexistent", "resume: continues one run: leave out -m"),
        ("-m activation=relu,smoth", "activation=smoth: activation has no 'smoth'; "),
        ("seed=1 -m activation=relu,smoth", "activation=smoth: activation has no 'smoth'; "),
    ],
)
def test_a_typing_error_is_answered_with_what_is_allowed(typed: str, answer: str) -> None:
    robustcert.runs.commands.register_resolvers()
    mistake = find_mistake("train", ordered(several(shlex.split(typed))))
    assert mistake is not None
    assert answer in mistake
    assert "\n" not in mistake


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "activation=smooth model.width=1024",
        "-m activation=relu,maxmin,smooth capacity=tiny,small dataset=digits",
        "experiment=lipnext_cifar10 capacity=lipnext_64m",
        "-m experiment=lipnext_cifar10 capacity=lipnext_64m,lipnext_256m",
        "experiment=cifar10_small capacity=tiny model.width=8 model.depth=1",
        "activation=relu,smooth capacity=tiny -m",
        "-m seed=range(100000) optimizer.lr=interval(0.001,0.1)",
        "dataset=digits -m activation=relu,smooth hydra/launcher=basic",
        "hydra.mode=MULTIRUN activation=relu,smooth",
        "~logger +trainer.fast_dev_run=true model.mean=[0.5]",
        "experiment=mnist_1.58 'hydra.run.dir=a b'",
        "--cfg job --resolve",
        "~logger --cfg job seed=1",
        "model.activation._target_=robustcert.activations.ReLU",
        "--help widht=3",
    ],
)
def test_nothing_is_wrong_with_a_command_that_works(typed: str) -> None:
    robustcert.runs.commands.register_resolvers()
    started = time.process_time()
    assert find_mistake("train", ordered(shlex.split(typed))) is None
    assert time.process_time() - started < 3


def test_a_path_that_is_not_there_is_answered_with_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robustcert.runs.commands.register_resolvers()
    (tmp_path / "first" / "checkpoints").mkdir(parents=True)
    (tmp_path / "first" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "first" / "certificate").mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, word, hint in (
        ("certify", "frist", "frist: no such file or folder; did you mean first? expected a run's"),
        ("certify", "nothere", "nothere: no such file or folder; expected a run's folder, its che"),
        ("train", "resume=first/certificate", "did you mean resume=first? expected <run>/check"),
        ("train", "resume=fisrt", "no such checkpoint; did you mean resume=first? expected"),
        ("train", f"resume={tmp_path / 'empty'}", "empty: no such checkpoint; expected <run>/"),
    ):
        assert hint in str(find_mistake(name, ordered(several([word]))))


def test_certify_names_its_own_keys() -> None:
    robustcert.runs.commands.register_resolvers()
    answer = find_mistake("certify", ["chekpoint=1"])
    assert answer is not None
    assert answer.startswith("chekpoint: no such key; did you mean checkpoint? ")
    assert "optimizer" not in answer
    # Of certifying, datasets are no group.
    answer = find_mistake("certify", ["epsilon=0.3"])
    assert answer is not None
    assert answer.startswith("epsilon: no such key; the top level has certifier, checkpoint, ")


def test_values_after_a_flag_are_found() -> None:
    assert ordered(["seed=1", "-m", "seed=2"]) == ["-m", "seed=1", "seed=2"]
    assert ordered(["-cd", "lab", "a=1", "--cfg", "job"]) == ["-cd", "lab", "--cfg", "job", "a=1"]


@pytest.mark.slow
def test_one_command_trains_and_another_certifies(command: Command, tmp_path: Path) -> None:
    assert command("train", *TINY, "activation=smooth", "model.width=32") == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["command"]["overrides"] == [*TINY, "activation=smooth", "model.width=32"]
    assert results["command"]["choices"]["activation"] == "smooth"
    assert results["config"]["model"]["width"] == 32
    checkpoint = f"checkpoint={folder}/checkpoints/best.ckpt"
    answer = str(command("certify", checkpoint, "radii=[0.1]"))
    assert answer.startswith(f"error: {folder}/certificate holds a certificate of other settings")
    (output,) = re.findall(r"add (output=\S+) ", answer)
    assert output == f"output={folder}/certificate-radii-0.1"
    assert command("certify", checkpoint, "radii=[0.1]", output) == 0
    assert (folder / "certificate-radii-0.1" / "certificate.json").exists()
    replacing = f"output={folder}/certificate"
    assert command("certify", checkpoint, "radii=[0.1]", "attack.samples=4", replacing) == 0
    claim = json.loads((folder / "certificate" / "certificate.json").read_text())
    assert [row["decimal"] for row in claim["summary"]["certified"]] == [0.1]
    # Certifying leaves nothing but the certificate.
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_a_sweep_runs_every_job_and_reports_the_one_that_fails(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = (*TINY, "trainer.max_epochs=1", "certify=false")
    assert command("train", *typed, "-m", "model.width=63,32", "activation=maxmin,relu") == 1
    rows = [json.loads(p.read_text()) for p in (tmp_path / "multirun").glob("*/results.json")]
    # 63 features cannot be sorted in pairs.
    assert sorted((row["config"]["model"]["width"], row["status"]) for row in rows) == [
        (32, "complete"),
        (32, "complete"),
        (63, "complete"),
        (63, "failed"),
    ]
    output, captured = capsys.readouterr()
    assert "sweep: 3 done, 0 running, 1 failed of 4" in output
    assert "Error executing job with overrides: [" in captured
    assert "set model.width to a multiple of 2" in captured
    assert "Traceback" not in captured


@pytest.mark.parametrize(
    ("name", "typed", "answer"),
    [
        ("train", "model.width=abc", "error: model.width: expected int, got 'abc'"),
        ("train", "~dataset", "error: "),
        (
            "train",
            "dataset=diabetes objective=squared norm.frozen=sex",
            "norm.frozen: expected list[str | int], got 'sex': write norm.frozen=[sex]",
        ),
        (
            "train",
            "dataset=diabetes objective=squared norm.frozen=[sxe]",
            "norm.frozen: no column 'sxe'; did you mean sex? the names are age, sex, ",
        ),
        (
            "train",
            "normalization.mean=trainin",
            "normalization.mean: expected a list of numbers, or the word training for those of the",
        ),
        ("train", "optimizer._target_=os.system", "'os.system' is not allowed"),
        ("train", "dataset=npz", "error: dataset.root: a value is needed: set dataset.root=..."),
        (
            "train",
            "logger=wandb logger.project=${oops}",
            "full_key: logger.project",
        ),
        ("certify", "", "error: certify needs a network: python certify.py outputs/<run>, or "),
        ("certify", "checkpoint=/nonexistent", "error: /nonexistent: no such file"),
        (
            "certify",
            "checkpoint=x split=tset",
            "split: expected train or validation or calibration or test",
        ),
        ("certify", "checkpoint=x samples=0", "error: samples: expected a number above 0"),
        ("certify", "checkpoint=x radii=[-1]", "error: radii: expected a list of radii above 0"),
        ("certify", "checkpoint=x radii=[]", "error: radii: expected a list of radii above 0"),
        ("certify", "checkpoint=x device=foo", "error: device: "),
        ("certify", "checkpoint=x certifier._target_=torch.nn.ReLU", "is not allowed"),
    ],
)
def test_a_wrong_value_is_one_line_and_an_exit_code(
    command: Command, tmp_path: Path, name: str, typed: str, answer: str
) -> None:
    code = command(name, *typed.split())
    assert isinstance(code, str)  # which Python prints to stderr, exiting with 1
    assert answer in code
    assert "\n" not in code
    assert not list(tmp_path.glob("outputs/*"))


def test_a_users_groups_and_classes_come_from_their_own_folder(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "lab" / "activation").mkdir(parents=True)
    (tmp_path / "lab" / "activation" / "mine.yaml").write_text(
        "# @package model.activation\n_target_: mylab.Mine\n_partial_: true\n"
    )
    (tmp_path / "mylab.py").write_text(
        "from robustcert.activations import ReLU\n"
        "class Mine(ReLU):\n"
        "    def forward(self, x): return super().forward(x)\n"
        "    def fold(self): return super().fold()\n"
        "    def lipschitz_bound(self): return super().lipschitz_bound()\n"
    )
    typed = (*TINY, "--config-dir", "lab", "activation=mine")
    refused = command("train", *typed)
    assert isinstance(refused, str)
    assert "'mylab.Mine' is not allowed" in refused
    assert "add allow_targets=[mylab] to the command line" in refused
    folder = tmp_path / "run"
    allowed = ("allow_targets=[mylab]", "certify=false", f"hydra.run.dir={folder}")
    assert command("train", *typed, *allowed) == 0
    checkpoint = f"checkpoint={folder}/checkpoints/best.ckpt"
    # The checkpoint was trained with the class, and still may not name it.
    assert "is not allowed" in str(command("certify", checkpoint))
    assert command("certify", checkpoint, "allow_targets=[mylab]", "attack.samples=4") == 0
    assert "did you mean mine?" in str(command("train", "--config-dir", "lab", "activation=mime"))


CERTIFIER = """
from robustcert.certifiers import Certifier, Claim, LipschitzCertifier

class Halved(Certifier):
    def __init__(self, arithmetic: str = "float64") -> None:
        self.whole = LipschitzCertifier(arithmetic)

    def claim(self, network, samples=()):
        return Claim("halved", ("R", "F64"))

    def certify(self, network, x):
        found = self.whole.certify(network, x)
        object.__setattr__(found, "radius", found.radius / 2)
        return found
"""


def test_a_users_certifier_says_what_it_proved_and_the_checker_refuses_it(
    command: Command, tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "halves").mkdir()
    (tmp_path / "halves" / "__init__.py").write_text(CERTIFIER)
    typed = (f"checkpoint={tiny_run}/checkpoints/best.ckpt", "attack.samples=4", "output=./folder")
    own = "certifier._target_=halves.Halved"
    assert "add allow_targets=[halves] to the command line" in str(command("certify", *typed, own))
    assert command("certify", *typed, own, "allow_targets=[halves]") == 0
    claim = json.loads((tmp_path / "folder" / "certificate.json").read_text())
    assert claim["claim"]["proof"] == "halved"
    assert (claim["bounds"], claim["pairwise"], claim["gradient_over_bound"]) == ([], [], None)
    folders = (tiny_run / "certificate", tmp_path / "folder")
    whole, halves = (read_radii(folder / "radii.csv").radius for folder in folders)
    assert torch.equal(halves, whole / 2)
    capsys.readouterr()
    assert check(["folder"]) == 2
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("UNREADABLE, nothing is verified: claim proof: expected one of lips")
    assert said.endswith("got 'halved'")
    with pytest.raises(UnreadableError, match="'halved'"):
        load(tmp_path / "folder")


@pytest.mark.slow
def test_a_users_certifier_certifies_what_was_trained(command: Command, tmp_path: Path) -> None:
    (tmp_path / "quarters").mkdir()
    (tmp_path / "quarters" / "__init__.py").write_text(CERTIFIER)
    typed = (*TINY, "trainer.max_epochs=1", "certifier._target_=quarters.Halved")
    assert "add allow_targets=[quarters]" in str(command("train", *typed))
    folder = tmp_path / "run"
    typed = (*typed, "allow_targets=[quarters]", f"hydra.run.dir={folder}")
    assert command("train", *typed) == 0
    claim = json.loads((folder / "certificate" / "certificate.json").read_text())
    assert claim["claim"]["proof"] == "halved"


@pytest.mark.slow
def test_a_broken_certificate_is_one_line_that_names_the_users_class(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "doubles").mkdir()
    (tmp_path / "doubles" / "__init__.py").write_text(CERTIFIER.replace("radius / 2", "radius * 9"))
    own = ("certifier._target_=doubles.Halved", "allow_targets=[doubles]")
    said = command("train", *TINY, "attack.samples=64", *own, "hydra.run.dir=run")
    assert isinstance(said, str)
    assert re.fullmatch(
        r"error: the certificate of sample \d+ is broken: .*\. What doubles\.Halved says of itself "
        "is taken as it stands: one of its bounds is too small",
        said,
    )
    row = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (row["status"], row["error"]) == ("failed", said.removeprefix("error: "))
    assert row["metrics"]


def test_resuming_writes_into_the_same_folder_and_keeps_its_record(
    command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert command("train", *TINY, "seed=5", "certify=false", f"hydra.run.dir={folder}") == 0
    record = (folder / ".hydra" / "overrides.yaml").read_text()
    resume = f"resume={folder}/checkpoints/last.ckpt"
    assert command("train", resume, "trainer.max_epochs=3", "certify=false") == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["epochs"] == 3
    assert results["config"]["seed"] == 5
    assert (folder / ".hydra" / "overrides.yaml").read_text() == record
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert "stays the same run" in str(command("train", resume, "activation=relu"))


@pytest.mark.slow
def test_weights_and_biases_gets_one_run_for_each_job(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    measured = "trainer.callbacks.0.samples=8", "trainer.callbacks.0.steps=20"
    typed = ("trainer=tightness", *measured, *TINY, "trainer.max_epochs=1", "logger=wandb")
    assert command("train", "-m", "seed=0,1", *typed) == 0
    runs = sorted((tmp_path / "multirun").glob("*/wandb/offline-run-*"))
    assert len({run.parents[1].name for run in runs}) == 2
    assert len({run_id(run) for run in runs}) == 2
    for run in runs:
        records = read_offline(run)
        (begun,) = (r["run"] for r in records if r["type"] == "run")
        assert (begun["run_group"], begun["job_type"]) == ("maxmin-tiny", "digits")
        history = [r["history"]["item"] for r in records if r["type"] == "history"]
        logged = {key for item in history for key in item}
        assert {"val/vra", "val/vra_0.25", "val/acr", "val/lipschitz", "test/vra_0.5"} <= logged
        assert "certificate/vra_curve.path" in logged
        summary = {k for r in records if r["type"] == "summary" for k in r["summary"]["update"]}
        assert logged | summary >= METRICS
        config = {k for r in records if r["type"] == "config" for k in r["config"]["update"]}
        assert {"model", "parameters", "seed"} <= config
        (artifact,) = (r["artifact"] for r in records if r["type"] == "artifact")
        files = {entry["path"] for entry in artifact["manifest"]["contents"]}
        assert {"certificate.json", "radii.csv", "network.safetensors"} <= files


@pytest.mark.slow
def test_weights_and_biases_beside_other_loggers_gets_what_they_get(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    # On the plane there are level sets beside the curve.
    typed = (*TINY, "dataset=moons", "trainer.max_epochs=1", f"hydra.run.dir={folder}")
    assert command("train", *typed, "logger=[csv,wandb,tensorboard]") == 0
    (kept,) = (folder / "wandb").glob("offline-run-*")
    records = read_offline(kept)
    (begun,) = (r["run"] for r in records if r["type"] == "run")
    assert (begun["run_group"], begun["job_type"]) == ("maxmin-tiny", "moons")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    with (folder / "metrics" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {key: float(value) for row in rows for key, value in row.items() if value}
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    sent = {key: value for item in history for key, value in item.items()}
    for key in ("val/vra", "train/loss", "test/accuracy", "test/vra_0.05"):
        assert float(sent[key]) == pytest.approx(numbers[key], rel=1e-6)
        assert events.Scalars(key)[-1].value == pytest.approx(numbers[key], rel=1e-6)
    for name, key in (("vra.png", "vra_curve"), ("levels.png", "level_sets")):
        assert events.Images(f"certificate/{key}")
        (image,) = (kept / "files" / "media" / "images" / "certificate").glob(f"{key}_*.png")
        assert image.read_bytes() == (folder / "certificate" / name).read_bytes()
    assert events.Tensors("certificate/claim/text_summary")
    (artifact,) = (r["artifact"] for r in records if r["type"] == "artifact")
    files = {entry["path"] for entry in artifact["manifest"]["contents"]}
    assert files == {path.name for path in (folder / "certificate").iterdir()}


def run_id(run: Path) -> str:
    """The id of an offline run; its folder's name ends differently if two begin in one second."""
    (file,) = run.glob("run-*.wandb")
    return file.stem.removeprefix("run-")


def read_offline(run: Path) -> list[dict[str, Any]]:
    """The records of an offline run, as W&B's own reader gives them."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_without_a_network_a_run_is_kept_offline_under_its_own_id(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    typed = (*TINY, "trainer.max_epochs=1", "logger=wandb", "logger.offline=false")
    folder = tmp_path / "run"
    wait = "logger.settings.init_timeout=2"
    assert command("train", *typed, wait, "certify=false", f"hydra.run.dir={folder}") == 0
    resume = f"resume={folder}/checkpoints/last.ckpt"
    assert command("train", resume, "trainer.max_epochs=2", "certify=false") == 0
    offline = list((folder / "wandb").glob("offline-run-*"))
    assert len(offline) == 2
    assert len({run_id(path) for path in offline}) == 1


def test_the_help_of_certify_shows_the_groups_that_it_takes() -> None:
    words = [sys.executable, str(ROOT / "certify.py"), "--help"]
    said = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    shown = said.partition("== Groups")[2].partition("== Config")[0].splitlines()[1:]
    found = dict(line.split(": ", 1) for line in shown if line)
    for group in ("certifier", "dataset"):
        names = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
        assert found.pop(group).split(", ") == names
    assert not found


def test_help_is_fast_and_shows_groups_and_examples() -> None:
    code = (
        "import sys, atexit; sys.argv = ['train.py', '--help'];"
        "atexit.register(lambda: print('heavy:', {'torch', 'lightning'} & set(sys.modules)));"
        "from robustcert.main import train; train()"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    after = os.times()
    assert "heavy: set()" in done.stdout
    assert "\nactivation: abs, " in done.stdout
    assert len(re.findall(r"^  python train.py", done.stdout, re.MULTILINE)) == 5
    seconds = after.children_user + after.children_system
    assert seconds - before.children_user - before.children_system < 2


@pytest.mark.slow
def test_every_message_is_printed_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *TINY, "hydra.run.dir=run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=True,
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert sum("run folder" in line for line in lines) == 1
    assert [line[:10] for line in lines if line.startswith("epoch")] == ["epoch 1/2:", "epoch 2/2:"]
    assert not [line for line in lines if "Warning" in line or "litlogger" in line]
    assert "run folder" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.slow
def test_an_interrupt_from_the_keyboard_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    typed = ("trainer.max_epochs=100000", "hydra.run.dir=run")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *TINY, *typed],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        # A shell's background jobs, and their children, ignore the keyboard.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    try:
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert output.splitlines()[-1] == f"interrupted: continue with resume={last}"
    assert "Traceback" not in output
    assert torch.load(last, weights_only=True)["epoch"] >= 0
    assert not (tmp_path / "run" / "certificate").exists()
