"""Kill -9 a run at random moments, start it again, and compare with a run that nobody disturbed.

    python -m benchmarks.soundness.kill_runs --folder scratch --kills 20 --seed 0

Each time, a job of a sweep in a folder of its own: a process that is killed, and then the same job
again, which must end. Every second kill comes after a random time, uniform over the length of the
undisturbed run; the others come just before a random one of the run's file operations (opening for
writing, renaming, removing), so that files are caught half-written and folders half-replaced, which
takes too little time to be hit by chance. Afterwards these must be equal bit for bit: the names of
all files, both checkpoints with the optimizer's state, the metrics of every epoch, the certified
radii, the certificate, and the row of results; only times and paths may differ.

The processes are forked from one that has imported torch, or 20 kills would take minutes more.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import hydra
import torch

import robustcert.runs.train  # noqa: F401  before the fork, and so once for all runs
from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION
from robustcert.runs.commands import plain, register_resolvers
from robustcert.runs.job import run_job

# The norms are estimated by power iterations with a state, and images are augmented at random.
RUN = (
    "capacity=tiny",
    "layer=unconstrained",
    "optimizer.lr=0.02",
    "loader.augmentation=[{_target_: robustcert.data.RandomAffine, degrees: 15.0}]",
    "trainer.max_epochs=4",
    "trainer.enable_progress_bar=false",
    "attack.samples=32",
    "attack.steps=5",
)
# Times, and what a resumed run is told apart by: of Lightning's callbacks, the folder.
PASSING = (
    "seconds",
    "processor_seconds",
    "took",
    "log",
    "dirpath",
    "best_model_path",
    "best_k_models",
)
PASSING += ("kth_best_model_path", "last_model_path", "hash")
CHANGES = ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def start(
    config: dict[str, Any], folder: Path, on_change: Callable[[int], None] = lambda count: None
) -> ForkProcess:
    """The job, in a process that counts its file operations in ``folder``."""

    def work() -> None:
        # Threads of the parent's pool are not there after a fork.
        torch.set_num_threads(1)
        changes = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal changes
            writes = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if (writes or event in CHANGES) and str(folder) in str(arguments[0]):
                changes += 1
                on_change(changes)

        sys.addaudithook(hook)
        with (folder.parent / "output").open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        run_job(config, folder)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def compose() -> dict[str, Any]:
    """The configuration of the run."""
    register_resolvers()
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        return plain(hydra.compose("train", list(RUN)))


def phase(folder: Path) -> str:
    """What the run was doing when it was killed, by what it left."""
    if list(folder.glob("checkpoints/.*.tmp")):
        return "writing a checkpoint"
    if list(folder.glob("*certificate*")):
        return "certification"
    if list(folder.glob(".*.tmp")):
        return "writing the row"
    if (folder / "checkpoints" / "last.ckpt").exists():
        return "training"
    return "start and first epoch"


def lasting(value: Any) -> Any:
    """A value without the times and paths in it, comparable by ``==``."""
    if isinstance(value, dict):
        return {str(k): lasting(v) for k, v in value.items() if k not in PASSING}
    if isinstance(value, list | tuple):
        return [lasting(v) for v in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.numpy().tobytes()
    return value


def content(folder: Path) -> dict[str, Any]:
    """The files of a run by name; pictures and logs only by their being there."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".ckpt":
            found[name] = lasting(torch.load(path, weights_only=True))
        elif path.suffix == ".json":
            found[name] = lasting(json.loads(path.read_text()))
            if path.name == "certificate.json":
                best = (folder / "checkpoints" / "best.ckpt").read_bytes()
                named = found[name]["checkpoint"]
                named["sha256"] = named["sha256"] == hashlib.sha256(best).hexdigest()
        elif path.suffix in (".csv", ".safetensors", ".yaml"):
            found[name] = path.read_bytes()
        else:
            found[name] = None
    return found


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two contents differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        return [d for k in keys for d in differences(one.get(k), other.get(k), f"{name}/{k}")]
    return [] if one == other and type(one) is type(other) else [name]


def kill_once(
    config: dict[str, Any],
    folder: Path,
    chance: random.Random,
    seconds: float,
    changes: int | None,
) -> str:
    """Start a run and kill it; what it was doing, or that it had ended before."""
    at = chance.randint(1, changes) if changes else None

    def on_change(count: int) -> None:
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    process = start(config, folder, on_change)
    process.join(None if changes else chance.uniform(0, seconds))
    process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{folder}: the run failed: {(folder.parent / 'output').read_text()}")
    row = folder / "results.json"
    done = row.exists() and json.loads(row.read_text())["status"] == "complete"
    return "the end" if done else phase(folder)


def main() -> None:
    """Kill, start again, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = (options.folder / "kills").resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    chance = random.Random(options.seed)
    counter = root / "changes"
    counter.touch()
    config = compose()
    straight = root / "straight" / "run"
    straight.parent.mkdir()
    began = time.monotonic()

    def note(count: int) -> None:
        counter.write_text(str(count))

    undisturbed = start(config, straight, note)
    undisturbed.join()
    took = time.monotonic() - began
    if undisturbed.exitcode != 0:
        raise SystemExit((straight.parent / "output").read_text())
    changes, expected = int(counter.read_text()), content(straight)
    print(f"undisturbed: {took:.1f} s, {changes} file operations, {len(expected)} files")
    phases: Counter[str] = Counter()
    different = 0
    for k in range(options.kills):
        folder = root / str(k) / "run"
        folder.parent.mkdir()
        where = kill_once(config, folder, chance, took, changes if k % 2 else None)
        phases[where] += 1
        again = start(config, folder)
        again.join()
        if again.exitcode != 0:
            raise SystemExit((folder.parent / "output").read_text())
        found = differences(expected, content(folder))
        different += bool(found)
        print(f"kill {k + 1:2d} during {where}: {', '.join(found) or 'the same result'}")
        if not found:
            shutil.rmtree(folder.parent)
    for where, count in phases.most_common():
        print(f"{count:3d} during {where}")
    print(f"{different} of {options.kills} results differ from the undisturbed one")
    if different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
