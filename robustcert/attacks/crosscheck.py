"""Try to break certificates: attacks strictly inside the certified radius."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from robustcert.attacks.budget import Budget, OutOfTime
from robustcert.attacks.ddn import ddn
from robustcert.attacks.gradient import (
    Function,
    breaks,
    changed,
    gradient_dtype,
    lengths,
    margin_gradient,
    shortened,
)
from robustcert.attacks.margin import margin_attack
from robustcert.errors import BrokenCertificate
from robustcert.margins import smallest_margin
from robustcert.network.network import PlainNetwork
from robustcert.network.units import in_units

# Attacks go this close to the radius; the rounding of an attack's own norm is far below it.
INSIDE = 1 - 1e-6
# Factors on an adversarial perturbation that float32 found, until it is one in float64.
STRETCHES = (1.0, 1 + 1e-6, 1 + 1e-4, 1 + 1e-2)


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
    device: torch.device | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Attack certificates by the margin attack just inside the radius, then by restarted DDN.

    A third have the least slack, a third the largest radii, the rest are random. Nothing is
    clipped; in a metric it is u that is searched. Gradients are float32, see
    :func:`robustcert.attacks.gradient.gradient_dtype`; what is found is evaluated in float64.

    Args:
        network: The certified network, on ``device``.
        x: Inputs, shape ``(N, *input_shape)``.
        prediction: Certified classes, shape ``(N,)``.
        radius: Their radii, shape ``(N,)``.
        samples: Number of certificates to attack.
        margin_steps: Steps of the margin attack.
        ddn_steps: Steps of each start of DDN.
        ddn_restarts: Starts of DDN.
        seconds: No evaluation of the network begins after so long.
        seed: Of the selection and the random starts.
        device: Where to compute; the CPU by default.
        advance: Called with the number of certificates that an attack has tried more; twice for
            each.

    Returns:
        Counts, steps, least and median quotient of DDN's distance over the radius; None without.
        ``samples`` counts the margin attack's, ``ddn.samples`` those that DDN tried as well.

    Raises:
        BrokenCertificate: an attack succeeded.
    """
    started, place = time.monotonic(), device or torch.device("cpu")
    attack = _Attack(network, x, prediction, radius, place, Budget(seconds), seed)
    rows = attack.stratified(samples)
    near = attack.by_margin(rows, margin_steps, advance)
    quotients = attack.by_ddn(rows[:near], ddn_steps, ddn_restarts, advance)
    return {
        "requested": len(rows),
        "samples": near,
        "broken": 0,
        "clipped": False,
        "found": int(torch.isfinite(quotients).sum()),
        "least_distance_over_radius": _finite(quotients.min()) if len(quotients) else None,
        "median_distance_over_radius": _finite(quotients.median()) if len(quotients) else None,
        "margin_steps": margin_steps,
        "ddn": {"samples": len(quotients), "steps": ddn_steps, "restarts": ddn_restarts},
        "seconds": round(time.monotonic() - started, 2),
    }


@dataclass(frozen=True, eq=False)
class _Attack:
    """Certificates, and the time in which they may be attacked."""

    network: PlainNetwork
    x: Inputs
    prediction: Tensor
    radius: Tensor
    device: torch.device
    budget: Budget
    seed: int

    def by_margin(self, rows: Tensor, steps: int, advance: Callable[[int], None]) -> int:
        """How many of the rows the margin attack tried in vain."""
        tried = 0
        for part in self.budget.share(0.5).parts(rows, self._gradient, steps + 1):
            f, searched, start = self._functions(part)
            label, size = self._certified(part)
            try:
                _, delta = margin_attack(
                    searched, start, label, size * INSIDE, steps=steps, seed=self.seed
                )
                self._require(part, f, delta)
            except OutOfTime:
                break
            tried += len(part)
            advance(len(part))
        return tried

    def by_ddn(
        self, rows: Tensor, steps: int, restarts: int, advance: Callable[[int], None]
    ) -> Tensor:
        """Distances over radii of the rows that DDN tried, infinite where it found nothing."""
        empty = torch.empty(0, dtype=torch.float64, device="cpu")
        quotients = [empty]
        # Pulling back takes half as long as so many gradients.
        for part in self.budget.parts(rows, self._gradient, restarts * (steps + 12)):
            f, searched, start = self._functions(part)
            label, size = self._certified(part)
            try:
                distance, delta = ddn(
                    searched,
                    start,
                    label,
                    steps=steps,
                    restarts=restarts,
                    initial_norm=size,
                    seed=self.seed,
                )
                self._require(part, f, delta)
                found = self._confirmed(part, delta, torch.isfinite(distance))
            except OutOfTime:
                break
            quotients.append((found / size).cpu())
            advance(len(part))
        return torch.cat(quotients)

    def _gradient(self, rows: Tensor) -> object:
        """Margins at rows, for the time that their gradient takes."""
        _, searched, start = self._functions(rows)
        return margin_gradient(searched, start, self._certified(rows)[0])[0].sum().item()

    def _inputs(self, rows: Tensor) -> Tensor:
        return in_units(self.x[rows]).double().to(self.device)

    def _certified(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.prediction[rows].to(self.device), self.radius[rows].to(self.device)

    def _functions(self, rows: Tensor) -> tuple[tuple[Function, Tensor], Function, Tensor]:
        """The function in float64 with its inputs, and both in the arithmetic of gradients."""
        x = self._inputs(rows)
        dtype = gradient_dtype(self.network, float(self.radius[rows].max()))
        f, centre = self.network.around(x)
        searched, start = self.network.around(x.to(dtype))
        return (self.budget.guarded(f), centre), self.budget.guarded(searched), start

    def _require(self, rows: Tensor, exact: tuple[Function, Tensor], delta: Tensor) -> None:
        """Raise if a perturbation breaks a certificate, after it is moved into the radius."""
        label, size = self._certified(rows)
        f, centre = exact
        # Only what float32 has rounded out of the radius is moved.
        delta = delta.double()
        rounded = lengths(delta).flatten() <= size * (1 + 1e-6)
        kept = torch.where(rounded, size * INSIDE, torch.inf)
        broken = breaks(f, centre, label, shortened(delta, kept), size)
        if broken.any():
            raise BrokenCertificate(
                f"the certificate of sample {int(rows[broken.cpu()][0])} is broken: an attack "
                "changes its prediction inside the certified radius"
            )

    def _confirmed(self, rows: Tensor, delta: Tensor, tried: Tensor) -> Tensor:
        """Lengths at which perturbations change the prediction in float64, else infinite."""
        label, _ = self._certified(rows)
        found = torch.full(label.shape, torch.inf, dtype=torch.float64, device=self.device)
        for stretch in STRETCHES:
            left = (tried & found.isinf()).nonzero()[:, 0]
            if not len(left):
                break
            # A function around inputs is that of these inputs alone.
            (f, centre), _, _ = self._functions(rows[left.cpu()])
            longer = delta[left].double() * stretch
            with torch.no_grad():
                margin = smallest_margin(f(centre + longer), label[left])
            length = torch.where(changed(margin), lengths(longer).flatten(), torch.inf)
            found = found.index_copy(0, left, length)
        return found

    def stratified(self, samples: int) -> Tensor:
        """Rows of the certificates that are attacked: steep ones, large ones and random ones."""
        # Infinite radii (constant networks) have no sphere to attack.
        radius = self.radius
        certified = ((radius > 0) & torch.isfinite(radius)).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self.seed)
        certified = certified[
            torch.randperm(len(certified), generator=generator, dtype=torch.int64, device="cpu")
        ]
        if len(certified) <= samples:
            return certified
        third = samples // 3
        # The slope is taken on a random part only: a gradient for each of 10,000 samples would
        # cost more than the certificates.
        pool = certified[: 8 * samples]
        steepness = self._steepness(pool)
        chosen = [pool[steepness.argsort(descending=True)[:third]]]
        chosen.append(certified[radius[certified].argsort(descending=True)[:third]])
        taken = torch.cat(chosen).unique()
        rest = certified[~torch.isin(certified, taken)]
        # Mixed, so that what there is time for is of all three.
        rows = torch.cat([taken, rest[: samples - len(taken)]])
        order = torch.randperm(len(rows), generator=generator, dtype=torch.int64, device="cpu")
        return rows[order]

    def _steepness(self, pool: Tensor) -> Tensor:
        """Slope of the margin times radius over margin, of as many rows as there is time for."""
        empty = torch.empty(0, dtype=torch.float64, device="cpu")
        found = [empty]
        budget = self.budget.share(0.1)
        for part in budget.parts(pool, self._gradient, 1):
            _, searched, start = self._functions(part)
            label, size = self._certified(part)
            try:
                margin, gradient = margin_gradient(searched, start, label)
            except OutOfTime:
                break
            found.append((lengths(gradient).flatten() * size / margin).double().cpu())
        return torch.cat(found)


def _finite(value: Tensor) -> float | None:
    """A number, or None of what is infinite: nothing was found."""
    return float(value) if math.isfinite(value) else None
