"""Time that attacks may take, and the parts of a batch that fit into it."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from torch import Tensor

from robustcert.attacks.gradient import Function

# Samples that are attacked at once: the first size of which two parts fit into the time.
SIZES = (128, 32, 8, 2, 1)


class OutOfTime(Exception):
    """An attack was to evaluate a network after its time was over; never leaves an attack."""


class Budget:
    """Seconds from now on, after which attacks stop at their next evaluation.

    Args:
        seconds: At most so long; infinite for no limit.

    Example:
        >>> Budget(60.0).share(0.5).left <= 30.0
        True
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, negative when it is over."""
        return self._end - time.monotonic()

    def share(self, part: float) -> "Budget":
        """A budget of this part of what is left."""
        return Budget(part * self.left)

    def guarded(self, function: Function) -> Function:
        """The function, which raises :class:`OutOfTime` once the time is over."""

        def evaluate(x: Tensor) -> Tensor:
            if self.left <= 0:
                raise OutOfTime
            return function(x)

        return evaluate

    def parts(
        self, rows: Tensor, gradient: Callable[[Tensor], object], evaluations: int
    ) -> Iterator[Tensor]:
        """Parts of rows for as long as there is time, as large as it permits.

        A part in which :class:`OutOfTime` was raised does not count; whoever iterates stops there.

        Args:
            rows: Indices of samples, shape ``(N,)``.
            gradient: Takes a gradient at the samples of some rows, to see how long that lasts.
            evaluations: Number of gradients that an attack takes at a sample.
        """
        size = self._size(rows, gradient, evaluations)
        while size and len(rows) and self.left > 0:
            started = time.monotonic()
            yield rows[:size]
            took = time.monotonic() - started
            rows = rows[size:]
            while size and took > self.left:
                size, took = size // 4, took / 4

    def _size(self, rows: Tensor, gradient: Callable[[Tensor], object], evaluations: int) -> int:
        """Number of samples that are attacked at once; 0 where there is no time for one."""
        if not len(rows) or self.left <= 0:
            return 0
        # A first evaluation prepares what later ones find.
        one = min(_seconds(gradient, rows[:1]), _seconds(gradient, rows[:1]))
        for size in SIZES:
            if size == 1:
                return int(one * evaluations <= self.left)
            # Not tried where its own trial could take much of the time.
            if size * one <= self.left / 10:
                several = _seconds(gradient, rows[:size])
                if 2 * several * evaluations <= self.left:
                    return size
        raise AssertionError("the last size is 1")


def _seconds(gradient: Callable[[Tensor], object], rows: Tensor) -> float:
    started = time.monotonic()
    with suppress(OutOfTime):
        gradient(rows)
    return time.monotonic() - started
