"""The time and the processes that a check may take; what does not fit into them is not tried."""

import math
import os
import time
from dataclasses import dataclass, replace

# Time of a check by default, in seconds.
SECONDS = 3600.0
# Share of that time after which no work is begun, so that the report is printed before its end.
WORKING_SHARE = 0.9
# Maximum share of the time left that is kept for what comes after the norms.
MAX_KEPT = 0.5
# Seconds that tell nothing about how busy a machine is.
TOO_SHORT = 0.5


class NotTriedError(Exception):
    """A proof was not tried, or not to its end: neither is its claim proved, nor does it fail."""


@dataclass(frozen=True)
class Effort:
    """How long, and on how many processes, a check may work.

    Attributes:
        until: Time, by ``time.monotonic``, after which no work is begun.
        processes: Maximum number of processes that prove one norm, or evaluate rows in integers.
        begun: Time by the clock, and of processors, when the check began; None for no comparison.
    """

    until: float = math.inf
    processes: int = 1
    begun: tuple[float, float] | None = None

    @property
    def wait(self) -> float:
        """Time by the clock over that of processors so far: above 1 on a machine that is busy."""
        if self.begun is None:
            return 1.0
        clock, worked = time.monotonic() - self.begun[0], _worked() - self.begun[1]
        return max(1.0, (clock + TOO_SHORT) / (worked + TOO_SHORT))

    def allows(self, seconds: float) -> bool:
        """Whether what takes so many seconds by the clock, begun now, ends in time."""
        return time.monotonic() + seconds <= self.until

    def require(self, seconds: float) -> None:
        """Begin work of about so many seconds of one processor.

        Raises:
            NotTriedError: it does not fit into what is left of the time.
        """
        if not self.allows(seconds * self.wait):
            left = max(0.0, self.until - time.monotonic())
            raise NotTriedError(f"about {seconds:.1f} s of work, of {left:.1f} s left")

    def keeping(self, seconds: float) -> "Effort":
        """The same effort, ended earlier by so many seconds, or by half of what is left."""
        if math.isinf(self.until):
            return self
        left = max(0.0, self.until - time.monotonic())
        return replace(self, until=self.until - min(seconds, MAX_KEPT * left))


class Pace:
    """Rows that are worked on batch by batch, each as fast as those before it.

    Args:
        seconds: Time of one processor for a row, until the time by the clock is measured.
        effort: When no further batch is begun.
        processes: How many work at the same time; where there are several, the end of a batch has
            to be told.
    """

    def __init__(self, seconds: float, effort: Effort, processes: int = 1) -> None:
        self.seconds, self.effort, self.processes = seconds * effort.wait, effort, processes
        self._start, self._begun, self._ended = time.monotonic(), 0, 0

    def begins(self, rows: int) -> bool:
        """Whether there is time for so many rows more, one process having done those before."""
        if self.processes == 1:
            self._ended = self._begun
        if self._ended:
            # Of the rows that others work on, half is done, about.
            worked = self._ended + (self.processes - 1) / 2
            self.seconds = (time.monotonic() - self._start) * self.processes / worked
        waiting = self._begun - self._ended + rows
        self._begun += rows
        return self.effort.allows(self.seconds * max(rows, waiting / self.processes))

    def end(self, rows: int) -> None:
        """Say that so many rows have been done."""
        self._ended += rows


def _worked() -> float:
    # Time of processors that this process and those that it has waited for have had.
    return sum(os.times()[:4])


# Whatever it takes, in this process.
UNLIMITED = Effort()


def effort_of(seconds: float, processes: int = 1) -> Effort:
    """The effort of a check that begins now and is to end within so many seconds."""
    now = time.monotonic()
    return Effort(now + WORKING_SHARE * seconds, processes, (now, _worked()))
