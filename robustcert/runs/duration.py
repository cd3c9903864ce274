"""How long a certification will take, said before hours of it."""

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from robustcert.errors import typed
from robustcert.network.network import PlainNetwork
from robustcert.runs.attack import MIN_SECONDS, SHARE_OF_TRAINING
from robustcert.training.nominal import proof_seconds, radii_seconds

log = logging.getLogger(__name__)

# Fewer samples than these say little of a network.
MIN_SAMPLES = 1000


def unremarkable(trained: float) -> float:
    """Seconds of bounds and radii of which nothing is said: a tenth of training, at least a minute.

    Args:
        trained: Seconds of training.
    """
    return max(MIN_SECONDS, SHARE_OF_TRAINING * trained)


def tell_beforehand(
    network: PlainNetwork, path: Path, samples: int, trained: float, *, accelerated: bool
) -> None:
    """Say what bounds and radii take at nominal rates, where it is much, and how it would be less.

    All samples are certified in any case: a share of a part of them is another number, and what a
    machine has time for would decide which.

    Args:
        network: What is certified.
        path: File that it is from.
        samples: How many are certified.
        trained: Seconds of training.
        accelerated: Whether both run on an accelerator.
    """
    bounds = proof_seconds(network, accelerated=accelerated)
    allowed = unremarkable(trained)
    radii = radii_seconds(network, samples, accelerated=accelerated)
    if bounds + radii <= allowed:
        return
    fitting = int(samples * max(0.0, allowed - bounds) / radii) if radii else samples
    fewer = min(samples, max(MIN_SAMPLES, fitting))
    advice = (
        f"; {typed('certify')} {path} samples={fewer} certifies the first {fewer} alone"
        if fewer < samples
        else ""
    )
    log.info(
        "certifying takes about %s for bounds and %s for the radii of %d samples by norms, at "
        "nominal rates, and attacks besides%s",
        *(in_words(bounds), in_words(radii), samples, advice),
    )


def foretold(
    batches: Iterable[tuple[Tensor, Tensor]], left: int, trained: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches; after the first one, what the others will take is said where it is much.

    Args:
        batches: Inputs and labels.
        left: Number of samples in all of them.
        trained: Seconds of training.
    """
    took = per_sample = 0.0
    for number, batch in enumerate(batches):
        if number == 1 and (rest := per_sample * left) > unremarkable(trained):
            log.info(
                "certifying the other %d samples takes about %s, if they take as long as the "
                "first; what is certified is kept if it is interrupted",
                *(left, in_words(rest)),
            )
        started = time.perf_counter()
        yield batch
        took += time.perf_counter() - started
        left -= len(batch[0])
        per_sample = took / len(batch[0])


def in_words(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
