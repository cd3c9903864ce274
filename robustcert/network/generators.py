"""The global random number generators of Python, numpy and torch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def states_of_generators() -> tuple[Any, ...]:
    """States of the global random number generators."""
    kind, keys, *rest = np.random.get_state()
    state = torch.random.get_rng_state().numpy().tobytes()
    return random.getstate(), kind, np.asarray(keys).tobytes(), rest, state


@contextmanager
def kept_generators() -> Iterator[None]:
    """Within it, the global random number generators may move; they go on as if they had not."""
    state, state_of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(state_of_numpy)
