"""The row that a run leaves in ``results.json``, whatever becomes of the run."""

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustcert import __version__
from robustcert.atomic import complete_file

# Name of the table of published results.
FILE = "results.json"


def new_row(
    config: Mapping[str, Any], run_dir: Path, command: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The row of a run that has no result yet.

    ``status`` is ``running`` until the run is ``complete``, ``failed`` or ``interrupted``; a run
    whose process was killed stays ``running``. ``metrics`` is empty until training is done.

    Args:
        config: The run's resolved configuration.
        run_dir: Its folder.
        command: What was typed.
    """
    row: dict[str, Any] = {
        "format": 1,
        "robustcert": __version__,
        "status": "running",
        "command": dict(command or {}),
        "config": {key: value for key, value in config.items() if key != "resume"},
        "log": str(run_dir.resolve() / "train.log"),
    }
    if "SLURM_JOB_ID" in os.environ:
        row["slurm"] = _slurm()
    return {**row, "metrics": {}}


def write_row(run_dir: Path, row: Mapping[str, Any]) -> None:
    """Replace a run's row, completely or not at all."""
    with complete_file(run_dir / FILE) as temporary:
        temporary.write_text(json.dumps(row, indent=1) + "\n")


@contextmanager
def said_if_failed(run_dir: Path, row: Mapping[str, Any]) -> Iterator[None]:
    """Leave the row with what became of a run, if it fails or is interrupted."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        message = " ".join(str(error).split()) or type(error).__name__
        status = "interrupted" if stopped else "failed"
        write_row(run_dir, {**row, "status": status, "error": message})
        raise


def read_row(run_dir: Path) -> dict[str, Any] | None:
    """A run's row, or None if it has none."""
    try:
        row: dict[str, Any] = json.loads((run_dir / FILE).read_text())
    except FileNotFoundError:
        return None
    return row


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _slurm() -> dict[str, str]:
    """The job's number, and where what it prints goes if the launcher said so."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{key}") for key in ("JOB_ID", "TASK_ID"))
    found = {"job": f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]}
    if "submitit" in sys.modules:
        found["log"] = str(sys.modules["submitit"].JobEnvironment().paths.stdout)
    return found
