"""Runs the check in a child process and reports its verdict, or in one line why there is none.

What the child prints is shown only if it has ended by itself: a process that was killed or took too
long has no verdict.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from robustcert.check.isolation import command

# First words of the last line of every complete answer, by exit status; a usage message ends with
# another line.
VERDICTS = {
    0: ("VERIFIED",),
    1: ("REFUSED", "UNPROVED"),
    2: ("UNREADABLE",),
    3: ("PARTLY CHECKED",),
}
# Seconds between two lines that say that the check goes on, and their least share of its time.
MAX_SILENCE = 1.5
MIN_SHARE = 0.05


def main(arguments: Sequence[str]) -> int:
    """Check a folder in a child process, print its output and return its exit status."""
    from robustcert.check.command import parser

    options = parser().parse_args(arguments)
    try:
        printed, status = _run(command("command", [*arguments]), options.folder, options.seconds)
    except subprocess.TimeoutExpired:
        return _nothing(f"the check took more than {options.seconds:g} s: raise --seconds")
    except (OSError, ValueError) as error:
        return _nothing(f"the check could not be started: {error}")
    said = printed.decode("ascii", "backslashreplace")
    last = (said.splitlines() or [""])[-1]
    if last.startswith(VERDICTS.get(status, "?")):
        sys.stdout.write(said)
        return status
    return _nothing(f"the check {_ending(status)}")


def _run(started: Sequence[str], folder: str, seconds: float) -> tuple[bytes, int]:
    """What a process printed, and its status; while it runs, its time is told on stderr."""
    begun = time.monotonic()
    with subprocess.Popen(started, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            while True:
                passed = time.monotonic() - begun
                wait = min(max(MAX_SILENCE, MIN_SHARE * passed), seconds - passed)
                try:
                    printed, _ = process.communicate(timeout=max(0.0, wait))
                    return printed, process.returncode
                except subprocess.TimeoutExpired:
                    passed = time.monotonic() - begun
                    if passed >= seconds:
                        raise
                    sys.stderr.write(f"checking {folder!a}: {passed:.0f} s\n")
        except BaseException:
            process.kill()
            raise


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended without a verdict, with status {status}"
    known = {number.value: number.name for number in signal.Signals}
    name = known.get(-status, f"signal {-status}")
    more = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{more}"


def _nothing(reason: str) -> int:
    sys.stdout.write(f"UNREADABLE, nothing is verified: {reason}\n")
    return 2
