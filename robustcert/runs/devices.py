"""One GPU for each of several jobs on one machine."""

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

# Open files, and with them their locks, for as long as the process lives.
_held: list[IO[str]] = []


def take_gpu() -> None:
    """Leave this process one of the visible GPUs: the first that no other job has taken.

    To be called before CUDA is. Jobs beyond the number of GPUs are spread by process number; with
    one GPU or none nothing is changed.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if named == "" or len(gpus) < 2:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = next(filter(_take, gpus), gpus[os.getpid() % len(gpus)])


def _take(gpu: str) -> bool:
    file = (Path(tempfile.gettempdir()) / f"robustcert-{os.getuid()}-gpu-{gpu}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _held.append(file)
    return True
