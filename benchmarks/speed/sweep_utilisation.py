"""How busy a parallel sweep keeps the cores.

    python -m benchmarks.speed.sweep_utilisation --folder scratch --jobs 24 --cores 2

Runs ``train.py -m hydra/launcher=parallel`` once, from the start of the command to its end, with a
job for each core at a time, and prints the processor time of all its processes over cores times
elapsed time: importing, composing and certifying count, waiting does not. Other work on these cores
takes from it: the share of them that was idle is printed beside it.
"""

import argparse
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

TRAIN = Path(__file__).parents[2] / "train.py"
PR_SET_CHILD_SUBREAPER = 36


def spent() -> float:
    """Seconds of processor time of all processes that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def idle(cores: set[int]) -> float:
    """Seconds that these cores had nothing to do, since the machine was started."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            ticks += int(values[3]) + int(values[4])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Sweep and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("overrides", nargs="*", default=["capacity=small", "dataset=digits"])
    options = parser.parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[: options.cores])
    os.sched_setaffinity(0, cores)
    # Workers that outlive the command are waited for here, and so counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    folder = options.folder / "utilisation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    typed = ["hydra/launcher=parallel", f"hydra.launcher.n_jobs={len(cores)}"]
    command = [sys.executable, str(TRAIN), "-m", *typed, *options.overrides]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    before, began = idle(cores), time.monotonic()
    with (folder / "output").open("w") as output:
        done = subprocess.run(
            [*command, f"seed=range({options.jobs})"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    elapsed = time.monotonic() - began
    unused = idle(cores) - before
    if done.returncode:
        raise SystemExit((folder / "output").read_text())
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    rows = [json.loads(path.read_text()) for path in folder.glob("multirun/*/results.json")]
    complete = sum(row["status"] == "complete" for row in rows)
    threads = sorted({row["threads"] for row in rows})
    available = len(cores) * elapsed
    print(f"{complete} jobs on {len(cores)} cores, threads per job {threads}: {elapsed:.1f} s")
    print(f"busy with the sweep {spent() / available:.1%}, idle {unused / available:.1%}")


if __name__ == "__main__":
    main()
