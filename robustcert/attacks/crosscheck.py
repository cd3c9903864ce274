"""Try to break certificates: attacks strictly inside the certified radius."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from robustcert.attacks.ddn import ddn
from robustcert.attacks.gradient import breaks, lengths, margin_gradient
from robustcert.attacks.margin import margin_attack
from robustcert.errors import BrokenCertificate
from robustcert.network.network import PlainNetwork
from robustcert.network.units import in_units

# Attacks go this close to the radius; the rounding of an attack's own norm is far below it.
INSIDE = 1 - 1e-6
_CHUNK = 64


class Inputs(Protocol):
    """A tensor of inputs, or what reads rows of it when it is indexed."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Inputs of the given rows, see :func:`robustcert.network.units.in_units`."""


def cross_check(
    network: PlainNetwork,
    x: Inputs,
    prediction: Tensor,
    radius: Tensor,
    *,
    samples: int = 256,
    margin_steps: int = 20,
    ddn_steps: int = 50,
    ddn_restarts: int = 10,
    seconds: float = 60.0,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Attack certificates by the margin attack just inside the radius and by restarted DDN.

    A third have the least slack, a third the largest radii, the rest are random. Nothing is
    clipped; in a metric it is u that is searched. What is found is evaluated again.

    Args:
        network: The certified network.
        x: Inputs, shape ``(N, *input_shape)``.
        prediction: Certified classes, shape ``(N,)``.
        radius: Their radii, shape ``(N,)``.
        samples: Number of certificates to attack.
        margin_steps: Steps of the margin attack.
        ddn_steps: Steps of each start of DDN.
        ddn_restarts: Starts of DDN.
        seconds: No new attack begins after so long.
        seed: Of the selection and the random starts.
        advance: Called with the number of certificates that were attacked more.

    Returns:
        Counts, budget, least and median quotient of DDN's distance over the radius; None without.

    Raises:
        BrokenCertificate: an attack succeeded.
    """
    rows = _stratified(network, x, prediction, radius, samples, seed)
    started, quotients = time.monotonic(), []
    steps = margin_steps, ddn_steps, ddn_restarts
    for chunk in rows.split(_CHUNK):
        if time.monotonic() - started >= seconds:
            break
        inputs, size = in_units(x[chunk]).double(), radius[chunk]
        distance, broken = _attack(network, inputs, prediction[chunk], size, *steps, seed)
        if broken.any():
            raise BrokenCertificate(
                f"the certificate of sample {int(chunk[broken][0])} is broken: an attack changes "
                "its prediction inside the certified radius"
            )
        quotients.append(distance / size)
        advance(len(chunk))
    return {
        "requested": len(rows),
        **_summary(quotients),
        "margin_steps": margin_steps,
        "ddn": {"steps": ddn_steps, "restarts": ddn_restarts},
        "seconds": round(time.monotonic() - started, 2),
    }


def _attack(
    network: PlainNetwork,
    x: Tensor,
    label: Tensor,
    radius: Tensor,
    margin_steps: int,
    ddn_steps: int,
    ddn_restarts: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Distances that DDN found, and whether it or the margin attack breaks a certificate."""
    f, x = network.around(x)
    _, near = margin_attack(f, x, label, radius * INSIDE, steps=margin_steps, seed=seed)
    distance, far = ddn(
        f, x, label, steps=ddn_steps, restarts=ddn_restarts, initial_norm=radius, seed=seed
    )
    broken = breaks(f, x, label, near, radius) | breaks(f, x, label, far, radius)
    return distance, broken


def _summary(quotients: list[Tensor]) -> dict[str, Any]:
    """Counts, and minimum and median of the distances over the radii."""
    empty = torch.empty(0, dtype=torch.float64, device="cpu")
    quotient = torch.cat(quotients) if quotients else empty
    return {
        "samples": len(quotient),
        "broken": 0,
        "clipped": False,
        "found": int(torch.isfinite(quotient).sum()),
        "least_distance_over_radius": _finite(quotient.min()) if len(quotient) else None,
        "median_distance_over_radius": _finite(quotient.median()) if len(quotient) else None,
    }


def _finite(value: Tensor) -> float | None:
    """A number, or None of what is infinite: nothing was found."""
    return float(value) if torch.isfinite(value) else None


def _stratified(
    network: PlainNetwork, x: Inputs, prediction: Tensor, radius: Tensor, samples: int, seed: int
) -> Tensor:
    # Infinite radii (constant networks) have no sphere to attack.
    certified = ((radius > 0) & torch.isfinite(radius)).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    certified = certified[
        torch.randperm(len(certified), generator=generator, dtype=torch.int64, device="cpu")
    ]
    if len(certified) <= samples:
        return certified
    third = samples // 3
    # The slope is taken on a random part only: a gradient for each of 10,000 samples would cost
    # more than the certificates.
    pool = certified[: 8 * samples]
    steepness = []
    for chunk in pool.split(_CHUNK):
        f, centre = network.around(in_units(x[chunk]).double())
        margin, gradient = margin_gradient(f, centre, prediction[chunk])
        steepness.append(lengths(gradient).flatten() * radius[chunk] / margin)
    chosen = [pool[torch.cat(steepness).argsort(descending=True)[:third]]]
    chosen.append(certified[radius[certified].argsort(descending=True)[:third]])
    taken = torch.cat(chosen).unique()
    rest = certified[~torch.isin(certified, taken)]
    return torch.cat([taken, rest[: samples - len(taken)]])
