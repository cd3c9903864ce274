"""Certify, load, check and export in many environments: the very same radii, or a refusal.

    python -m benchmarks.soundness.environments --folder scratch --cells 20000 --processes 400
    --seed 0

A process has settings of its own (variables of the environment, -O, a locale, an address space, a
working folder that holds modules named like those that Python imports, a folder that it cannot
write, workers that flush subnormal numbers, a processor with reduced products); in it, cells have
settings within the process (default dtype and device, matmul precision, threads, flush-to-zero,
autocast, deterministic algorithms, another thread that changes settings) and one operation each.
Every cell must end with the very same labels and radii, bit by bit, as without any setting, or with
an error of this package that names the setting. Besides, every certificate is compared with exact
arithmetic: its label with the real network's, its radius with the distance of an input of another
class. Some processes are commands of their own: certify.py and the checker.

Outcomes are lines of ``cells.jsonl`` in the folder; run again, the benchmark goes on where it was.
Exits with 1 if anything failed. ``--python`` names another interpreter, whose robustcert is tested.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soundness.environment_cells import THREADS, limit_memory, operations

SCRIPT = Path(__file__).with_name("environment_cells.py")
# Of torch's address space as it starts: 0.95 GB here, and of NumPy's.
TORCH_MEMORY, CHECK_MEMORY = 1100, 500
MODES = ("BF16", "F16", "TF32", "ANY")
# Modules that Python and this package import, as a hostile folder has them.
MODULES = ("numpy", "torch", "json", "argparse", "typing", "safetensors")
MARKER = "executed"
HOSTILE = f"open({{folder!r}} + '/{MARKER}', 'w').close()\nraise SystemExit('executed')\n"
# Settings within a process; each cell has one to three of them.
SETTINGS: dict[str, Sequence[Any]] = {
    "dtype": ("float64", "bfloat16", "float16"),
    "precision": ("high", "medium"),
    "flush": (True,),
    "autocast": ("bfloat16", "float16"),
    "deterministic": ("error", "warn"),
    "device": ("meta",),
    "meanwhile": ("precision", "dtype", "certify"),
}
# Settings of a process; each has one or two of them.
PROCESS: dict[str, Sequence[Any]] = {
    "variables": [
        {f"{library}_DEFAULT_FPMATH_MODE": mode} for library in ("ONEDNN", "DNNL") for mode in MODES
    ],
    "optimise": (True,),
    "locale": ("de_DE.UTF-8", "C"),
    "memory": (TORCH_MEMORY,),
    "hostile": (True,),
    "read_only": (True,),
    "workers_flush": (True,),
    "hash_seed": (0, 1, 12345),
}
# Relative frequency of operations that cost a second rather than milliseconds.
RARE = {"certify.py": 0.3}


@dataclass
class Tally:
    """Counts over all cells."""

    outcomes: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    certificates: int = 0
    false: int = 0
    processes: int = 0

    @property
    def cells(self) -> int:
        """Cells that ended in some way."""
        return sum(self.outcomes.values())


def draw(rng: random.Random, axes: dict[str, Sequence[Any]], most: int) -> dict[str, Any]:
    """One to ``most`` of the axes, each with one of its values."""
    chosen = rng.sample(sorted(axes), rng.randint(1, most))
    return {key: rng.choice(axes[key]) for key in chosen}


def plan(seed: int, processes: int, count: int) -> list[dict[str, Any]]:
    """What every process does: one in five is a command; the others share the cells."""
    commands = processes // 5
    workers = max(1, processes - commands)
    share = -(-(count - commands) // workers)
    jobs = []
    for i in range(processes):
        rng = random.Random(f"{seed} {i}")
        kind = "command" if commands and i % 5 == 4 else "cells"
        axes = PROCESS
        # Every setting of a process occurs in a plan of few processes.
        key = sorted(axes)[i % len(axes)]
        process = draw(rng, axes, 1) | {key: axes[key][i // len(axes) % len(axes[key])]}
        # A processor with reduced products matters where they are asked for.
        if "variables" in process or rng.random() < 0.3:
            process["processor"] = "reduced"
        job = {"number": i, "kind": kind, "process": process}
        if kind == "command":
            jobs.append(job | {"command": draw_command(rng, process)})
        else:
            cells = [draw_cell(rng, threads="memory" not in process) for _ in range(share)]
            jobs.append(job | {"cells": cells})
    return jobs


def draw_cell(rng: random.Random, *, threads: bool) -> dict[str, Any]:
    """An operation with settings within the process; ``threads``: whether it may have several."""
    found = operations()
    weights = [RARE.get(operation, 1.0) for operation, _ in found]
    ((operation, network),) = rng.choices(found, weights)
    settings = draw(rng, SETTINGS, 3) if rng.random() < 0.9 else {}
    # What another thread changes is not set besides.
    if "meanwhile" in settings:
        settings = {"meanwhile": settings["meanwhile"]} if threads else {}
    settings["threads"] = rng.choice(THREADS) if threads else 1
    return {"operation": operation, "network": network, "settings": settings}


def draw_command(rng: random.Random, process: dict[str, Any]) -> str:
    """The checker on an honest or a forged folder, from a safe or a hostile place; certify.py."""
    # What belongs to torch alone leaves the checker as it is.
    if "read_only" in process or "workers_flush" in process or rng.random() < 0.2:
        return "certify.py"
    if "hostile" in process and rng.random() < 0.5:
        return "check not isolated"
    return rng.choice(("check honest", "check forged"))


class Runner:
    """Processes over one folder.

    Args:
        folder: Where references and outcomes are; made if it is not there.
        python: The interpreter.
    """

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder, self.python = folder.resolve(), python
        self.reference, self.locales = self.folder / "reference", self.folder / "locales"
        self.hostile, self.scratch = self.folder / "hostile", self.folder / "scratch"
        for path in (self.reference, self.hostile, self.scratch, self.locales):
            path.mkdir(parents=True, exist_ok=True)
        (self.reference / "read-only").mkdir(exist_ok=True)
        for name in MODULES:
            (self.hostile / f"{name}.py").write_text(HOSTILE.format(folder=str(self.hostile)))

    def prepare(self) -> None:
        """Train the checkpoint and compute the references, unless that has been done."""
        if (self.reference / "reference.json").exists():
            return
        shutil.rmtree(self.reference)
        (self.reference / "read-only").mkdir(parents=True)
        code = "import sys; from robustcert.main import train; sys.argv[0] = 'train.py'; train()"
        tiny = ("capacity=tiny", "dataset=digits", "trainer.max_epochs=2", "attack.samples=0")
        quiet = ("trainer.enable_progress_bar=false", f"hydra.run.dir={self.reference / 'run'}")
        self._run([self.python, "-c", code, *tiny, *quiet], {}, check=True)
        job = {"kind": "reference", "process": {}, "folder": str(self.reference)}
        path = self.scratch / "reference.json"
        path.write_text(json.dumps(job))
        self._run([self.python, str(SCRIPT), str(path)], {}, check=True)
        # In glibc, a locale is a folder that a variable names.
        if shutil.which("localedef"):
            place = str(self.locales / "de_DE.UTF-8")
            command = ["localedef", "-i", "de_DE", "-f", "UTF-8", place]
            subprocess.run(command, capture_output=True, check=False)

    def run(self, job: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        """Outcomes of one process, whatever becomes of it."""
        (self.hostile / MARKER).unlink(missing_ok=True)
        if job["kind"] == "command":
            lines = [self._command(job, seconds)]
        else:
            lines = self._cells(job, seconds)
        if (self.hostile / MARKER).exists():
            why = "a module of the working folder was executed"
            lines.append({"outcome": "failed", "why": why, "cell": job.get("command")})
        return lines

    def _cells(self, job: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        output = self.scratch / f"{job['number']}.jsonl"
        output.write_text("")
        path = self.scratch / f"{job['number']}.json"
        places = {"folder": self.reference, "target": self.scratch, "output": output}
        path.write_text(json.dumps(job | {key: str(place) for key, place in places.items()}))
        flags = ["-O"] if job["process"].get("optimise") else []
        done = self._run([self.python, *flags, str(SCRIPT), str(path)], job["process"], seconds)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        path.unlink()
        output.unlink()
        skip = next((line["skip"] for line in lines if "skip" in line), None)
        started, memory = any("started" in line for line in lines), job["process"].get("memory")
        if skip is None and memory and not started:
            skip = f"torch did not start in {memory} MB"
        if skip is not None:
            return [{"outcome": "skipped", "why": skip} for _ in job["cells"]]
        lines = [line for line in lines if "cell" in line]
        if len(lines) < len(job["cells"]):
            cell, rest = job["cells"][len(lines)], len(job["cells"]) - len(lines) - 1
            ended = "hung" if done is None else f"ended with status {done.returncode}"
            why = f"the process {ended}: {'' if done is None else done.stderr[-400:]}"
            # Libraries may end the process where there is too little memory, and say so.
            short = "memory" in job["process"] and re.search("memory|alloc", why, re.IGNORECASE)
            lines.append({"cell": cell, "outcome": "refused" if short else "failed", "why": why})
            lines += [{"outcome": "skipped", "why": "after a process had ended"}] * rest
        return lines

    def _command(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        process = dict(job["process"])
        flags = ["-O"] if process.get("optimise") else []
        output = self.scratch / "command"
        shutil.rmtree(output, ignore_errors=True)
        if job["command"] == "certify.py":
            process.pop("memory", None)
            code = "import sys; from robustcert.main import certify; sys.argv[0] = 'certify.py'; "
            checkpoint = self.reference / "run" / "checkpoints" / "best.ckpt"
            options = ["samples=64", "attack.samples=0", f"checkpoint={checkpoint}"]
            started = ["-P", "-c", code + "certify()", *options, f"output={output}"]
            status = {0}
        else:
            kind = job["command"].split()[-1]
            place = self.reference / f"relu-{kind if kind == 'forged' else 'honest'}"
            process["memory"] = process.get("memory") and CHECK_MEMORY + 1
            isolated = [] if kind == "isolated" else ["-I"]
            started = [*isolated, "-m", "robustcert.check", str(place), "--exact", "16"]
            status = {"forged": {1}, "isolated": {0, 2}}.get(kind, {0})
        done = self._run([self.python, *flags, *started], process, seconds)
        cell = {"command": job["command"], "process": job["process"]}
        if done is None:
            return {"cell": cell, "outcome": "failed", "why": "hung"}
        said = f"{done.stdout[-300:]} {done.stderr[-300:]}"
        if done.returncode not in status or "Traceback" in said:
            return {"cell": cell, "outcome": "failed", "why": f"{done.returncode}: {said}"}
        if done.returncode == 2:
            return {"cell": cell, "outcome": "refused", "why": said}
        if job["command"] == "certify.py":
            return {"cell": cell} | self._compare(output / "radii.csv")
        return {"cell": cell, "outcome": "same", "certificates": 0, "false": 0}

    def _compare(self, path: Path) -> dict[str, Any]:
        from benchmarks.soundness.environment_cells import Reference
        from robustcert.certificate.samples import read_radii

        found = read_radii(path)
        radii = [r.hex() for r in found.radius.tolist()]
        result = {"labels": found.prediction.tolist(), "radii": radii}
        key = Reference.key("certify.py", "run", 0, 1)
        why, certified, false = Reference(self.reference).compare(key, result)
        outcome = "failed" if why else "same"
        return {"outcome": outcome, "why": why, "certificates": certified, "false": false}

    def _run(
        self,
        command: list[str],
        process: dict[str, Any],
        seconds: float | None = None,
        check: bool = False,
    ) -> "subprocess.CompletedProcess[str] | None":
        kept = ("PATH", "HOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
        variables = {key: os.environ[key] for key in kept if key in os.environ}
        # Threads that wait leave the processors to others.
        variables |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        variables |= process.get("variables", {})
        if "hash_seed" in process:
            variables["PYTHONHASHSEED"] = str(process["hash_seed"])
        if "locale" in process:
            variables["LC_ALL"] = process["locale"]
            if process["locale"] != "C":
                variables["LOCPATH"] = str(self.locales)
        memory = process.get("memory")
        limit: Callable[[], None] | None = None
        # A process of cells limits itself, as soon as Python runs.
        if memory and str(SCRIPT) not in command:
            limit = lambda: limit_memory(memory)  # noqa: E731
        try:
            return subprocess.run(
                command,
                env=variables,
                cwd=self.hostile if process.get("hostile") else self.scratch,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=check,
                preexec_fn=limit,
            )
        except subprocess.TimeoutExpired:
            return None


def sweep(
    runner: Runner, jobs: list[dict[str, Any]], seconds: float = 300.0, *, progress: bool = False
) -> Tally:
    """Run the processes that have no line in ``cells.jsonl`` yet, and count all that do."""
    runner.prepare()
    path = runner.folder / "cells.jsonl"
    tally, known = Tally(), {}
    for record in _records(path):
        # Of a file that another plan has left, nothing counts.
        known[json.dumps(record["job"], sort_keys=True)] = record
    started = time.monotonic()
    with path.open("a") as file:
        for job in jobs:
            key = json.dumps(job, sort_keys=True)
            record = known.get(key)
            if record is None:
                record = {"job": job, "lines": runner.run(job, seconds)}
                file.write(json.dumps(record) + "\n")
                file.flush()
            _count(record, tally)
            if progress:
                took = time.monotonic() - started
                print(f"{tally.processes} processes, {took:.0f} s: {_summary(tally)}", flush=True)
    return tally


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:  # The line that an interrupted run was writing.
            continue


def _count(record: dict[str, Any], tally: Tally) -> None:
    tally.processes += 1
    for line in record["lines"]:
        tally.outcomes[line["outcome"]] += 1
        tally.certificates += line.get("certificates", 0)
        tally.false += line.get("false", 0)
        if line["outcome"] == "skipped":
            tally.skips[line["why"]] += 1
        if line["outcome"] == "failed":
            tally.failures.append(line | {"process": record["job"]["process"]})


def _summary(tally: Tally) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in sorted(tally.outcomes.items()))
    return f"{tally.cells} cells ({counts}); {tally.certificates} certificates, {tally.false} false"


def main() -> int:
    """Run the benchmark; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300.0, help="after which a process hangs")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    runner = Runner(options.folder, options.python)
    jobs = plan(options.seed, options.processes, options.cells)
    tally = sweep(runner, jobs, options.seconds, progress=True)
    for failure in tally.failures:
        print("FAILED", json.dumps(failure))
    for why, count in tally.skips.most_common():
        print(f"skipped {count}: {why}")
    print(f"{tally.processes} processes, {_summary(tally)}")
    return 1 if tally.failures or tally.false else 0


if __name__ == "__main__":
    sys.exit(main())
