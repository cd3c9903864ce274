"""How close bounds come to norms: as a certificate has them, or in less time, for validation."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Closeness:
    """What a bound may cost. It is proved whatever these are, and larger where they are less.

    Attributes:
        steps: Maximum number of Lanczos steps of a first estimate.
        gain: It stops before where the last few steps raised it by no more than this, relative to
            it.
        raises: What the square of an estimated norm is raised by, relative to it, until it has a
            proof.
        worth: Another bound of the square is looked for only where it promises to be less by more
            than this, relative to it.
        by_map: Whether wide convolutions on short maps are bounded by the map, too, which takes
            several times as long.
    """

    steps: int
    gain: float
    raises: tuple[float, ...]
    worth: float
    by_map: bool


CLOSE = Closeness(64, 0.0, (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), 1e-6, True)
QUICK = Closeness(40, 7e-5, (3e-4, 3e-4, 3e-3, 3e-2, 0.3, 3.0, 30.0), 2e-3, False)

_CLOSENESS: ContextVar[Closeness] = ContextVar("closeness", default=CLOSE)


def closeness() -> Closeness:
    """The one that holds here."""
    return _CLOSENESS.get()


@contextmanager
def quick_bounds() -> Iterator[None]:
    """Within it, bounds of norms take less time, and may be larger.

    Of matrices of more than 256 rows and columns, and of convolutions with so many along one
    dimension, by 1 in 6,000, or 1 in 1,000 where the other dimension is left out; of wide
    convolutions on short maps by some percent. They are bounds all the same, and remembered for
    their operations like others.
    """
    token = _CLOSENESS.set(QUICK)
    try:
        yield
    finally:
        _CLOSENESS.reset(token)
