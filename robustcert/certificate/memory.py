"""What a certification takes of memory at least, and how many samples it certifies at once."""

import ctypes
import gc
import math
from contextlib import suppress
from typing import NamedTuple

import torch

from robustcert.certifiers import Certifier, LipschitzCertifier
from robustcert.check import Free, free_memory
from robustcert.errors import ConfigError
from robustcert.network.branches import walk
from robustcert.network.network import PlainNetwork
from robustcert.network.shared_bounds import leaves

# Maximum number of samples that are certified at once by default, and of bytes of the largest value
# of all of them, in float64; several such values exist at the same time.
MAX_BATCH, MAX_VALUE_BYTES = 1024, 2**30


def constants_bytes(network: PlainNetwork) -> int:
    """Bytes of the constants of a folded network."""
    constants = (t for _, tensors in walk(network.operations) for t in tensors.values())
    return sum(t.numel() * t.element_size() for t in constants)


def largest_value(network: PlainNetwork) -> int:
    """Number of entries of the largest value that a network has of a sample, inputs included."""
    values = leaves(network.operations, network.input_shape)
    return max(
        math.prod(network.input_shape),
        *(math.prod(operation.output_shape(shape)) for operation, shape in values),
    )


def default_batch(network: PlainNetwork) -> int:
    """How many samples are certified at once: a power of two, by the network's shapes alone.

    The last digits of radii may depend on it, so that it must not depend on the machine.
    """
    fitting = MAX_VALUE_BYTES // (8 * largest_value(network))
    return min(MAX_BATCH, 1 << max(0, fitting.bit_length() - 1))


class Need(NamedTuple):
    """Bytes that a certification takes in any case, beside the network that is there.

    Attributes:
        fixed: However many samples there are.
        each: For each sample of a batch.
    """

    fixed: int
    each: int

    def of(self, batch: int) -> int:
        """Of a batch."""
        return self.fixed + batch * self.each


def certification_need(network: PlainNetwork, certifier: Certifier) -> Need:
    """Copies of the constants, on the device and for remembered bounds, and the largest value.

    The value is that of every sample; of other certifiers than by norms, of one.
    """
    value = largest_value(network) * getattr(certifier, "dtype", torch.float32).itemsize
    constants = 2 * constants_bytes(network)
    if type(certifier) is LipschitzCertifier:
        return Need(constants, value)
    return Need(constants + value, 0)


def require_certification(need: Need, batch: int, device: torch.device) -> None:
    """Refuse a batch that certainly does not fit into the memory of a device.

    Raises:
        ConfigError: it does not fit; the message names a batch that does, if there is one.
    """
    left = free_for(need.of(batch), device).bytes - need.fixed
    fitting = left // need.each if need.each else 0
    remedy = (
        f"set batch_size={fitting} or less" if fitting > 0 else "certify it where there is more"
    )
    require_memory(need.of(batch), device, f"certifying {batch} samples at once", remedy)


def require_memory(need: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse what certainly takes more memory than is free, before it is tried.

    Raises:
        ConfigError: it takes more; the message has both numbers, and what to set.
    """
    lacking = free_for(need, device).lacks(need)
    if lacking is not None:
        raise ConfigError(f"{what}: {lacking}: {remedy}")


def free_for(need: int, device: torch.device) -> Free:
    """Memory that is free on a device; if it does not suffice, after nothing is kept in vain."""
    free = _free_on(device)
    if free.lacks(need) is None:
        return free
    gc.collect()
    if device.type == "cpu":
        _give_back()
    return _free_on(device)


def _free_on(device: torch.device) -> Free:
    if device.type == "cpu":
        return free_memory()
    if device.type == "cuda":
        # What torch keeps for later tensors counts as used there.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Free(torch.cuda.mem_get_info(device)[0] + kept, f"on {device}")
    return Free(2**62, f"{device} does not tell")


def _give_back() -> None:
    """Have the C library give pages back that it keeps for later, where it can."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
