"""How many threads a run computes with on the CPU."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robustcert.training.stage import stage

log = logging.getLogger(__name__)

# Operations of a batch's forward pass below which threads wait for each other more than they help.
MIN_SHARED = 1e9
# Where a number of threads may come from that is not torch's own.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "SLURM_CPUS_PER_TASK")


@contextmanager
def threads(asked: int | None, model: nn.Module, inputs: Sequence[int]) -> Iterator[int]:
    """A context in which torch has as many threads as a run is given, and says so.

    What is asked for counts first, then the environment, then :func:`suitable`.

    Args:
        asked: The setting ``threads``.
        model: The network.
        inputs: Shape of a batch.

    Yields:
        The number of threads. Another number may change a result's last digits, so that it is
        recorded with the run.
    """
    before, reason = torch.get_num_threads(), "as set"
    number = asked or before
    if asked is None and not any(name in os.environ for name in VARIABLES):
        with stage("counting the network's operations"):
            number = suitable(model, inputs)
        reason = "by the network's size and the free cores; threads=N or OMP_NUM_THREADS=N is kept"
    log.info("threads: %d of %d cores, %s", number, cores(), reason)
    torch.set_num_threads(number)
    try:
        yield number
    finally:
        torch.set_num_threads(before)


def suitable(model: nn.Module, inputs: Sequence[int]) -> int:
    """One thread for a small network, as many as there are free cores for another."""
    if operations(model, inputs) < MIN_SHARED:
        return 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(cores(), round((os.cpu_count() or 1) - busy)))


def operations(model: nn.Module, inputs: Sequence[int]) -> float:
    """Multiplications and additions of a forward pass, its weights' constraints included.

    The samples of a batch cost the same each, and a constraint once: two small batches tell both.
    """
    one, two = (_counted(model, (count, *inputs[1:])) for count in (1, 2))
    return float(one + (inputs[0] - 1) * (two - one))


def _counted(model: nn.Module, inputs: Sequence[int]) -> int:
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters(), torch.empty(0, dtype=torch.float32, device="cpu"))
    counter = _Counter()
    try:
        # Products that layers hand to oneDNN are counted as those that they stand for.
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False, allow_tf32=None), counter:
            model.eval()(torch.zeros(inputs, dtype=parameter.dtype, device=parameter.device))
    finally:
        for module, training in modes.items():
            module.training = training
    return counter.total


class _Counter(TorchDispatchMode):
    """Adds up the operations of products and convolutions.

    torch's own counter puts hooks on all modules, with which no network is folded, as one with
    directions is to be evaluated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        found = func(*args, **given)
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += int(count(*args, **given, out_val=found))
        return found


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
