"""Runs the check in a child process and reports its verdict, or in one line why there is none.

What the child prints is shown only if it has ended by itself: a process that was killed or took too
long has no verdict.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence

from robustcert.check.isolation import command

# First words of the last line of every complete answer, by exit status; a usage message ends with
# another line.
VERDICTS = {0: ("VERIFIED",), 1: ("REFUSED", "UNPROVED"), 2: ("UNREADABLE",)}


def main(arguments: Sequence[str]) -> int:
    """Check a folder in a child process, print its output and return its exit status."""
    from robustcert.check.command import parser

    options = parser().parse_args(arguments)
    try:
        done = subprocess.run(
            command("command", [*arguments]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=options.seconds,
        )
    except subprocess.TimeoutExpired:
        return _nothing(f"the check took more than {options.seconds:g} s: raise --seconds")
    except (OSError, ValueError) as error:
        return _nothing(f"the check could not be started: {error}")
    said = done.stdout.decode("ascii", "backslashreplace")
    last = (said.splitlines() or [""])[-1]
    if last.startswith(VERDICTS.get(done.returncode, "?")):
        sys.stdout.write(said)
        return done.returncode
    return _nothing(f"the check {_ending(done.returncode)}")


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
