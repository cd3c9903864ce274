"""Where bounds of norms are computed: on the CPU, or on a device that the caller names."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass
class Place:
    """A device, and what is known of it.

    Attributes:
        device: Where Gram matrices, factors, residuals and estimates are.
        failed: Whether it could not compute a bound, which was said.
    """

    device: torch.device
    failed: bool = False


# Which never fails.
_HOME = Place(CPU)
_PLACE: ContextVar[Place] = ContextVar("place", default=_HOME)


@contextmanager
def computed_on(device: torch.device) -> Iterator[Place]:
    """Within it, what grows with the cube of a matrix is computed on a device.

    Scalars, scaled weights and waves stay on the CPU. The device's float64 has to be that of Note
    [arithmetic] in ``norms/proof.py``, as :func:`robustcert.certifiers.bounds_on` tests. Bounds
    differ by what the order of sums makes of estimates, and are remembered for their operations
    like others.

    Yields:
        The device, and whether it failed.
    """
    place = Place(device)
    token = _PLACE.set(place)
    try:
        yield place
    finally:
        _PLACE.reset(token)


def named_device() -> torch.device:
    """The device that computes here."""
    return _PLACE.get().device


def placed(array: NDArray[Any]) -> Tensor:
    """An array on the device that computes; on the CPU it is the array's own memory."""
    return torch.from_numpy(array).to(named_device())


def or_on_the_cpu(bound: Callable[P, T]) -> Callable[P, T]:
    """A bound that the CPU proves where the device fails, for lack of memory say.

    The first failure within :func:`computed_on` is said in a line; a proof needs no device.
    """

    @wraps(bound)
    def proved(*args: P.args, **kwargs: P.kwargs) -> T:
        place = _PLACE.get()
        if place.device.type == "cpu":
            return bound(*args, **kwargs)
        try:
            return bound(*args, **kwargs)
        except RuntimeError as error:
            if not place.failed:
                reason = str(error).partition("\n")[0]
                log.warning(
                    "%s failed in a bound; the CPU proves what it cannot: %s", place.device, reason
                )
            place.failed = True
        # Behind the handler, whose error holds the device's tensors.
        with computed_on(CPU):
            return bound(*args, **kwargs)

    return proved
