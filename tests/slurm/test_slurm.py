"""Sweeps on a real Slurm: arrays of jobs, interruptions of every kind, ranks, a wrong srun."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster import cluster, install

from robustcert.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.slurm

TRAIN = str(Path(__file__).parents[2] / "train.py")
EPOCHS = 60
SHORT = ("capacity=tiny", "attack.samples=8", "attack.steps=2", "dataset=moons")
LONG = (*SHORT, f"trainer.max_epochs={EPOCHS}")
SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=main", "hydra.launcher.timeout_min=10")


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """That of the cluster. A socket's path must be short, which pytest's folders are not."""
    install()
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        cluster(Path(folder)) as environment,
    ):
        yield environment | {"OMP_NUM_THREADS": "1"}


def start(*command: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    with (folder / "output").open("a") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    """The rows of a sweep, by seed."""
    read = [json.loads(path.read_text()) for path in folder.glob("multirun/*/results.json")]
    return {row["config"]["seed"]: row for row in read}


def run_folder(row: dict[str, Any]) -> Path:
    return Path(row["log"]).parent


def assert_same_result(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["metrics"] == other["metrics"]
    for name in ("best", "last"):
        files = (run_folder(row) / "checkpoints" / f"{name}.ckpt" for row in (one, other))
        first, second = (read_checkpoint(file).model_state for file in files)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    radii = [(run_folder(row) / "certificate" / "radii.csv").read_bytes() for row in (one, other)]
    assert radii[0] == radii[1]


def interrupt(folder: Path, environment: dict[str, str], commands: dict[int, str]) -> None:
    """Give each seed's job its command once the job has a checkpoint."""
    waiting = dict(commands)
    deadline = time.monotonic() + 120
    while waiting and time.monotonic() < deadline:
        for seed, row in rows(folder).items():
            if seed in waiting and (run_folder(row) / "checkpoints" / "last.ckpt").exists():
                command = waiting.pop(seed).format(job=row["slurm"]["job"])
                subprocess.run(command.split(), env=environment, check=True, timeout=60)
        time.sleep(0.1)
    assert not waiting, (folder / "output").read_text()


def test_interrupted_jobs_end_with_the_result_of_undisturbed_ones(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    commands = {
        1: "scancel --signal=USR2 {job}",  # what Slurm sends before the time is up
        2: "scancel --signal=USR1 {job}",
        3: "scancel --signal=TERM {job}",  # an announcement
        4: "scontrol requeue {job}",  # preemption: SIGTERM, SIGKILL, and into the queue again
        5: "scancel --signal=KILL {job}",  # an accident, after which Slurm does nothing
    }
    alone, swept = tmp_path / "alone", tmp_path / "swept"
    alone.mkdir()
    swept.mkdir()
    sweep = (sys.executable, TRAIN, "-m", *LONG, "seed=range(1,6)")
    slurm = start(*sweep, *SLURM, folder=swept, environment=environment)
    interrupt(swept, environment, commands)
    local = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    basic = start(*sweep, folder=alone, environment=local | {"OMP_NUM_THREADS": "1"})
    assert slurm.wait(timeout=200) == 1
    output = (swept / "output").read_text()
    (killed,) = re.findall("^(?:ended|failed|still|not started).*: .*", output, re.M)
    assert killed.startswith(f"ended without a result: {' '.join(LONG)} seed=5; log: ")
    assert rows(swept)[5]["status"] == "running"
    # The same command again runs that one.
    again = start(*sweep, *SLURM, folder=swept, environment=environment)
    assert again.wait(timeout=120) == 0, (swept / "output").read_text()
    assert "(4 done before)" in (swept / "output").read_text()
    assert basic.wait(timeout=120) == 0, (alone / "output").read_text()
    expected, found = rows(alone), rows(swept)
    assert expected.keys() == found.keys() == set(range(1, 6))
    for seed, row in found.items():
        assert row["status"] == "complete"
        assert "slurm" not in expected[seed]
        assert_same_result(row, expected[seed])
        log = Path(row["slurm"]["log"])
        assert "samples certified" in log.read_text()
        continued = re.findall(r"continuing after epoch (\d+)", Path(row["log"]).read_text())
        assert len(continued) == (seed in (1, 2, 4, 5)), (seed, Path(row["log"]).read_text())
        assert all(0 < int(epoch) < EPOCHS for epoch in continued)


def test_slurm_starts_the_ranks_of_a_job(tmp_path: Path, environment: dict[str, str]) -> None:
    ranks = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=2", *SHORT)
    sweep = (sys.executable, TRAIN, "-m", *ranks, "seed=7", *SLURM)
    assert start(*sweep, folder=tmp_path, environment=environment).wait(timeout=120) == 0
    (row,) = rows(tmp_path).values()
    assert row["status"] == "complete"
    assert row["ranks"] == 2
    assert Path(row["log"]).read_text().count("samples certified") == 1
    # One task for two devices would train on half of the data.
    wrong = ("srun", "--ntasks=1", sys.executable, TRAIN, *ranks, "hydra.run.dir=wrong")
    assert start(*wrong, folder=tmp_path, environment=environment).wait(timeout=120) != 0
    assert "needs 2 processes, and 1 started" in (tmp_path / "output").read_text()
    assert not (tmp_path / "wrong" / "checkpoints").exists()
