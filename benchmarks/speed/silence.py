"""The longest time that a command says nothing: ``python -m benchmarks.speed.silence COMMAND``."""

import argparse
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Silence:
    """A stretch of time without output.

    Attributes:
        seconds: Its length.
        cpu: Processor time that the command's own process took in it, which other work on the
            machine does not lengthen; NaN where the system does not tell.
        begun: Seconds since the command began.
        after: The last line before it.
    """

    seconds: float
    cpu: float
    begun: float
    after: str


def processor_time(pid: int) -> float:
    """Seconds of user and system time of a process that was not waited for; NaN if not known."""
    try:
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return math.nan
    return (int(after[11]) + int(after[12])) / os.sysconf("SC_CLK_TCK")


def silences(command: list[str]) -> tuple[list[Silence], float, int]:
    """Every silence of a command, the seconds that it took, and its exit status.

    Output is read as it comes, by the byte, from stdout and stderr together, so that a bar that is
    drawn anew counts as well as a line.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    started = last = time.monotonic()
    found, line, spent = [], b"", 0.0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, bufsize=0
    ) as process:
        assert process.stdout is not None
        while True:
            got = process.stdout.read(2**16)
            now = time.monotonic()
            after, used = line.decode(errors="replace").strip(), processor_time(process.pid)
            found.append(Silence(now - last, used - spent, last - started, after))
            if not got:
                break
            last, spent, line = now, used, (got.strip().splitlines() or [line])[-1]
    return found, time.monotonic() - started, process.returncode


def main() -> int:
    """Run the command and print its longest silences; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", type=int, default=5, help="number of silences that are printed")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("needs a command, as in: python train.py trainer.max_epochs=1")
    found, seconds, status = silences(options.command)
    longest = sorted(found, key=lambda silence: -silence.seconds)[: options.show]
    busiest = max(
        (silence.cpu for silence in found if silence.cpu == silence.cpu), default=math.nan
    )
    print(f"{seconds:.1f} s in all; longest silence {longest[0].seconds:.2f} s")
    print(f"most processor time in a silence {busiest:.2f} s")
    for silence in longest:
        print(
            f"  {silence.seconds:6.2f} s ({silence.cpu:.2f} s of the processor), "
            f"from {silence.begun:6.1f} s on, after: {silence.after}"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
