"""Sweeps on one machine: what is done is not done again, and a job dies alone."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import hydra
import pytest
from helpers.runs import TINY, WANDB, compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from robustcert.atomic import remove_leftovers
from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION, find_mistake, sweep_jobs
from robustcert.errors import ConfigError, JobError
from robustcert.runs import job
from robustcert.runs.job import job_key, run_job
from robustcert.runs.results import read_row
from robustcert.runs.sweep import count_jobs, describe

ROOT = Path(__file__).parents[2]
SHORT = (*TINY, "trainer.max_epochs=1", "dataset=moons", "certify=false")


def test_a_job_is_known_by_what_decides_its_result() -> None:
    key = job_key(compose("seed=3"))
    assert key == job_key(compose("seed=3", *WANDB))
    assert key == job_key(json.loads(json.dumps(compose("seed=3"))))
    others = [compose(), compose("seed=3", "activation=relu"), compose("seed=3", "radii=[0.1]")]
    assert len({key, *map(job_key, others)}) == 4


def test_a_done_job_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(*SHORT)
    score = run_job(config, tmp_path)
    row = read_row(tmp_path)
    assert row
    assert row["status"] == "complete"
    assert row["metrics"]["val/vra"] == score
    monkeypatch.setattr(
        "robustcert.runs.train.train", lambda *_, **__: pytest.fail("trained again")
    )
    assert run_job(config, tmp_path) == score
    assert read_row(tmp_path) == row
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        run_job(compose(*SHORT, "seed=1"), tmp_path)
    assert read_row(tmp_path) == row


def test_a_job_that_fails_leaves_a_row_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(*SHORT, "optimizer.lr=1e30")
    with pytest.raises(ValueError, match="diverged"):
        run_job(config, tmp_path)
    row = read_row(tmp_path)
    assert row
    assert (row["status"], row["metrics"]) == ("failed", {})
    assert "diverged in epoch 1" in row["error"]
    assert row["log"] == str(tmp_path / "train.log")
    assert row["config"] == {k: v for k, v in config.items() if k != "resume"}
    monkeypatch.setattr("robustcert.runs.train.train", lambda *_, **__: pytest.fail("tried again"))
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        run_job(config, tmp_path)


def test_an_interrupted_job_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "robustcert.runs.train.train", lambda *_, **__: sys.exit("interrupted: why")
    )
    with pytest.raises(SystemExit):
        run_job(compose(*SHORT), tmp_path)
    row = read_row(tmp_path)
    assert row
    assert (row["status"], row["error"]) == ("interrupted", "interrupted: why")


def test_a_job_that_is_killed_is_an_error_in_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustcert.runs.train.train", _die)
    with pytest.raises(JobError, match="the process was killed"):
        run_job(compose(*SHORT), tmp_path, own_process=True)
    row = read_row(tmp_path)
    assert row
    assert row["status"] == "failed"


def _die(*_: Any, **__: Any) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def test_a_job_is_not_run_twice_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, begun, finish, trained = compose(*SHORT), threading.Event(), threading.Event(), []

    def train(*_: Any, **__: Any) -> float:
        trained.append(1)
        begun.set()
        assert finish.wait(20)
        job.write_row(tmp_path, job.new_row(config, tmp_path) | {"status": "complete"})
        return 0.5

    monkeypatch.setattr("robustcert.runs.train.train", train)
    threads = [threading.Thread(target=run_job, args=(config, tmp_path)) for _ in range(2)]
    threads[0].start()
    assert begun.wait(20)
    assert job.is_running(tmp_path)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    finish.set()
    for thread in threads:
        thread.join(20)
    assert trained == [1]
    assert not job.is_running(tmp_path)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".certificate.12.old").mkdir()
    (tmp_path / ".certificate.12.old" / "radii.csv").touch()
    for name in ("checkpoints/.last.ckpt.12.tmp", "checkpoints/last.ckpt", ".hydra", ".x.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"checkpoints", "checkpoints/last.ckpt", ".hydra", ".x.tmp"}


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        ((), 1),
        (("activation=relu,smooth", "seed=range(3)", "model.width=32"), 6),
        (("hydra/sweeper=search", "hydra.sweeper.n_trials=7", "seed=1"), 7),
    ],
)
def test_the_jobs_of_a_sweep_are_counted(typed: tuple[str, ...], count: int) -> None:
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        composed = [o for o in typed if "," not in o and "range" not in o]
        config = hydra.compose("train", composed, return_hydra_config=True)
    config.hydra.overrides.task = [o for o in typed if not o.startswith("hydra")]
    assert count_jobs(config) == count


def test_the_jobs_of_a_sweep_are_those_that_hydra_makes() -> None:
    typed = ["activation=relu,smooth", "+x.y=range(3)", "radii=[0.1,0.2],[1]", "~lr_schedule"]
    typed += ["dataset.root='a,b'", "seed=choice(4,5)", "resume=null", "activation=maxmin,relu"]
    parsed = OverridesParser.create().parse_overrides(typed)
    jobs = [tuple(job) for job in BasicSweeper.split_arguments(parsed, None)[0]]
    assert sweep_jobs(typed) == jobs
    assert len(jobs) == 2 * 3 * 2 * 2
    assert sweep_jobs([]) == [()]
    with pytest.raises(ValueError, match="no viable alternative"):
        sweep_jobs(["seed=range(", "model.width=3"])


def test_the_progress_line_estimates_from_the_jobs_that_were_run() -> None:
    counts = Counter(before=5, done=2, running=2, failed=1)
    line = describe(counts, 14, 60.0)
    assert line == (
        "sweep: 7 done, 2 running, 1 failed of 14 (5 done before); 0:01:00 so far, "
        "about 0:02:00 left"
    )
    assert describe(Counter(running=1), 3, 3700.0).endswith("failed of 3; 1:01:40 so far")


@pytest.mark.parametrize(
    ("typed", "extra"),
    [
        ("hydra/launcher=parallel", "sweeps"),
        ("hydra/sweeper=search", "sweeps"),
        ("hydra/launcher=slurm", "slurm"),
    ],
)
def test_a_missing_plugin_is_answered_with_what_to_install(
    typed: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_mistake("train", ["-m", typed]) is None
    monkeypatch.setattr("robustcert.config.command_line._plugin_path", list)
    expected = f"{typed}: is optional: pip install 'robustcert[{extra}]'"
    assert find_mistake("train", ["-m", typed]) == expected


@pytest.mark.slow
def test_each_of_several_jobs_takes_a_gpu_of_its_own() -> None:
    code = (
        "import os; from robustcert.runs.devices import take_gpu; take_gpu(); "
        "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    )
    first, second, third = f"test{os.getpid()}-4", f"test{os.getpid()}-7", "unused"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": f"{first},{second}"}
    jobs = []
    try:
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            jobs.append(process)
            assert process.stdout
            third = process.stdout.readline().strip()
            assert third == (first, second)[len(jobs) - 1]
    finally:
        for process in jobs:
            process.communicate("\n", timeout=20)


def sweep(folder: Path, *typed: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", *typed],
        cwd=folder,
        # Without OMP_NUM_THREADS, to see that jobs share the cores.
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("multirun/*/results.json")]


@pytest.mark.slow
def test_a_parallel_sweep_again_runs_only_what_is_new_or_failed(tmp_path: Path) -> None:
    typed = (*SHORT, "hydra/launcher=parallel", "hydra.launcher.n_jobs=2", "model.width=63,64")
    code, output = sweep(tmp_path, *typed, "seed=0")
    assert code == 1
    assert re.search("^failed: .* model.width=63 seed=0; .*split 63.*; log: ", output, re.M)
    assert "1 done, 0 running, 1 failed of 2" in output
    code, output = sweep(tmp_path, *typed, "seed=0,1,2")
    assert code == 1
    assert "3 done, 0 running, 3 failed of 6 (1 done before)" in output
    rows = results(tmp_path)
    assert Counter(row["status"] for row in rows) == {"complete": 3, "failed": 3}
    cores = len(os.sched_getaffinity(0))
    assert {r["threads"] for r in rows if "threads" in r} == {max(1, cores // 2)}
    assert not list(tmp_path.glob("multirun/.sweep*"))
    for row in rows:
        assert Path(row["log"]).read_text()


@pytest.mark.slow
def test_a_search_started_again_goes_on_where_it_was(tmp_path: Path) -> None:
    typed = (*SHORT, "hydra/sweeper=search")
    assert sweep(tmp_path, *typed, "hydra.sweeper.n_trials=2")[0] == 0
    first = {row["config"]["optimizer"]["lr"] for row in results(tmp_path)}
    code, output = sweep(tmp_path, *typed, "hydra.sweeper.n_trials=3")
    assert code == 0
    assert "3 done, 0 running, 0 failed of 3 (2 done before)" in output
    rates = {row["config"]["optimizer"]["lr"] for row in results(tmp_path)}
    assert len(first) == 2
    assert len(rates) == 3
    assert first < rates
