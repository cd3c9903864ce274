"""One job of a sweep: skipped if done, continued if begun, and never run twice at once.

A job is known by its configuration: its folder is named by :func:`job_key`, so that the same
command, or one with more seeds, finds what an earlier one has done.
"""

import fcntl
import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from robustcert import __version__
from robustcert.atomic import remove_leftovers
from robustcert.errors import ConfigError, JobError
from robustcert.runs.results import FILE, new_row, read_row, said_if_failed, write_row

log = logging.getLogger(__name__)

# How a run is written down, and where it was continued from, make it no other run.
_NOT_IDENTITY = ("logger", "resume", "threads")
# Name of the file that a running job holds locked.
_LOCK = ".lock"


def job_key(config: Mapping[str, Any]) -> str:
    """The name of a job: a hash of what decides its result, in 16 hexadecimal digits.

    Args:
        config: The resolved configuration; ``logger``, ``resume`` and ``threads`` do not count.
    """
    parts = {key: value for key, value in config.items() if key not in _NOT_IDENTITY}
    text = json.dumps([__version__, parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_job(
    config: dict[str, Any],
    folder: Path,
    *,
    command: Mapping[str, Any] | None = None,
    own_process: bool = False,
) -> float:
    """Do what is left of a job, and leave a row in ``results.json`` whatever happens.

    Args:
        config: The resolved configuration.
        folder: The job's.
        command: What was typed, for the row.
        own_process: Fork a process for it, so that its death is not the death of this one; what it
            prints goes to ``<folder>/train.log``.

    Returns:
        The best score, ``val/vra`` of classes, of this run of the job or of the one that had
        completed it.

    Raises:
        ConfigError: the folder belongs to another configuration.
        JobError: the job failed in its own process.
    """
    from robustcert.runs.train import train
    from robustcert.training.checkpoint import score_of

    first = is_first_rank()
    with _locked(folder) if first else _nothing():
        row = read_row(folder)
        if row and job_key(row["config"]) != job_key(config):
            raise ConfigError(
                f"{folder} holds a run of another configuration: set hydra.sweep.dir to another "
                "folder, and leave hydra.sweep.subdir as it is"
            )
        if row and row["status"] == "complete":
            log.info("done already: %s", folder)
            return score_of(row["metrics"])
        _follow_slurm()
        attempt = partial(train, config, folder, multirun=True, command=command)
        if not first:
            return attempt()
        remove_leftovers(folder)
        row = new_row(config, folder, command)
        write_row(folder, row)
        with said_if_failed(folder, row):
            score = _in_own_process(attempt, folder) if own_process else attempt()
        if (read_row(folder) or {}).get("status") != "complete":
            (folder / FILE).unlink()  # a fast development run leaves nothing
        return score


def is_first_rank() -> bool:
    """Whether this is the only process of a job, or the first that a scheduler started for it."""
    return all(int(os.environ.get(key, 0)) == 0 for key in ("RANK", "SLURM_PROCID"))


def is_running(folder: Path) -> bool:
    """Whether some process runs a job, as far as file locks tell."""
    try:
        with (folder / _LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The kernel gives a lock back with the process's death, however it dies.
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process runs this job: waiting for it: %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s: no file locks here (%s): start a job only once", folder, error)
        yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _follow_slurm() -> None:
    # submitit answers SIGUSR2 by putting the job back into the queue; other tools send SIGUSR1.
    requeue = signal.getsignal(signal.SIGUSR2)
    if "SLURM_JOB_ID" in os.environ and callable(requeue):
        signal.signal(signal.SIGUSR1, requeue)
    if "SLURM_CPUS_PER_TASK" in os.environ:
        import torch

        torch.set_num_threads(int(os.environ["SLURM_CPUS_PER_TASK"]))


def _in_own_process(attempt: Callable[[], float], folder: Path) -> float:
    # Forked, so that a worker imports torch once for all its jobs; it has computed nothing itself.
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        try:
            return pool.submit(_aside, attempt, folder / "train.log").result()
        except BrokenProcessPool:
            raise JobError("the process was killed, for want of memory perhaps") from None


def _aside(attempt: Callable[[], float], path: Path) -> float:
    from robustcert.runs.devices import take_gpu

    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    take_gpu()
    try:
        return attempt()
    except Exception as error:
        log.exception("the job failed")
        raise JobError(str(error) or type(error).__name__) from None
