"""Attacks on what was certified: what is proved from below, seen from above."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from robustcert.attacks import Budget, cross_check, pgd_survivors
from robustcert.attacks.clipping import limits
from robustcert.certificate.samples import CertifiedSplit
from robustcert.config.schema import check_call
from robustcert.data import Stream, as_numbers
from robustcert.errors import BrokenCertificate, ConfigError
from robustcert.network.network import PlainNetwork
from robustcert.training.stage import stage

log = logging.getLogger(__name__)

# Share of the seconds of training, and least seconds, that attacks take unless a setting says else.
SHARE_OF_TRAINING = 0.1
MIN_SECONDS = 60.0


@dataclass(frozen=True)
class Attack:
    """How much of a split is attacked, to see from above what is proved from below.

    Args:
        samples: Samples attacked at every radius, and certificates attacked inside their own
            radius; 0 for none.
        steps: Gradient steps of the attack at every radius.
        seconds: No attack goes on after so long, all attacks of a certification together. By
            default a tenth of the seconds of training, and at least :data:`MIN_SECONDS`.
    """

    samples: int = 256
    steps: int = 40
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.samples < 0 or self.steps < 1 or not (self.seconds is None or self.seconds >= 0):
            raise ConfigError(
                "attack: expected samples of at least 0, steps of at least 1 and seconds of at "
                f"least 0 or null, got {self}"
            )

    def limited(self, training: float, certificates: int) -> "Attack":
        """The same with the seconds that attacks on each of several certificates may take.

        Args:
            training: Seconds of training.
            certificates: Number of certificates of the same samples.
        """
        seconds = self.seconds
        if seconds is None:
            seconds = max(MIN_SECONDS, SHARE_OF_TRAINING * training)
        return replace(self, seconds=seconds / certificates)

    def budget(self) -> Budget:
        """The time of :meth:`limited`, from now on."""
        return Budget(MIN_SECONDS if self.seconds is None else self.seconds)


def build_attack(options: Mapping[str, Any]) -> Attack:
    """The attack's options, checked."""
    check_call(Attack, options, "attack")
    return Attack(**options)


@dataclass(frozen=True, eq=False)
class _Unit:
    """Rows of inputs, read when they are asked for, as float32."""

    inputs: torch.Tensor | Stream
    kind: Literal["images", "columns"]

    def __getitem__(self, rows: torch.Tensor, /) -> torch.Tensor:
        return as_numbers(self.inputs[rows], self.kind)


def attacked_rows(count: int, samples: int) -> torch.Tensor:
    """Which of a split's samples are attacked: always the same random ones, shape ``(M,)``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")[:samples]


def verified_of_attacked(
    result: CertifiedSplit, radii: Sequence[float], samples: int
) -> dict[float, float]:
    """Verified accuracy of the attacked samples, at radius 0 the share of right predictions.

    It is the number to hold against the accuracy under attack: of all samples, the verified
    accuracy may be above that of the attacked ones.

    Args:
        result: The certified split.
        radii: At which samples are counted.
        samples: Number of samples attacked.
    """
    rows = attacked_rows(len(result.target), samples)
    correct, radius = result.correct[rows], result.certificates.radius[rows]
    shares = {r: float((correct & (radius > r)).double().mean()) for r in radii}
    return {0.0: float(correct.double().mean()), **shares} if len(rows) else {}


class RadiusAttack:
    """PGD at every radius, made once for all certifiers of the same network and samples."""

    def __init__(self) -> None:
        self._survivors: torch.Tensor | None = None

    def __call__(
        self,
        network: PlainNetwork,
        x: torch.Tensor,
        target: torch.Tensor,
        radii: Sequence[float],
        steps: int,
        seconds: float,
    ) -> torch.Tensor:
        """See :func:`robustcert.attacks.pgd_survivors`."""
        if self._survivors is None:
            said = f"attacking {len(x)} samples at {len(radii)} radii, at most {seconds:.3g} s"
            with stage(said, len(x)) as advance:
                self._survivors = pgd_survivors(
                    network, x, target, radii, steps=steps, seconds=seconds, advance=advance
                ).cpu()
        return self._survivors


def attack_samples(
    network: PlainNetwork,
    result: CertifiedSplit,
    radii: Sequence[float],
    attack: Attack,
    at_radii: RadiusAttack,
    device: torch.device,
    budget: Budget,
) -> dict[str, Any]:
    """Attack a split at every radius, and certificates inside their own radius.

    Args:
        network: The network, on ``device``.
        result: The certified split.
        radii: Of the table.
        attack: How much is attacked.
        at_radii: PGD, shared by several certificates.
        device: Where to compute.
        budget: Time of these attacks and those that follow: a third is for PGD, half of the rest
            for attacks inside the radii.
    """
    kind = network.space.kind
    rows = attacked_rows(len(result.target), attack.samples)
    record: dict[str, Any] = {
        "method": f"foolbox L2PGD, one random start, {limits(network)}",
        **in_words(asdict(attack)),
        "samples": 0,
        "radii": [],
        "accuracy": [],
        "inside": None,
    }
    if len(rows) == 0:
        return record
    x = as_numbers(result.inputs[rows], kind).double().to(device)
    target, seconds = result.target[rows].to(device), budget.left / 3
    survivors = at_radii(network, x, target, radii, attack.steps, seconds)
    asked, rows = len(rows), rows[: survivors.shape[1]]
    if len(rows):
        record |= {
            "samples": len(rows),
            "radii": list(radii),
            "accuracy": [float(s.double().mean()) for s in survivors],
        }
    _require_consistent(result, rows, radii, survivors)
    record["inside"] = inside = _attack_inside(network, result, attack, asked, device, budget)
    done = inside["samples"], inside["ddn"]["samples"]
    if len(rows) < asked or min(done) < inside["requested"]:
        log.info(
            "attack.seconds=%.3g: %d of %d samples were attacked at every radius; of %d "
            "certificates, %d inside their radius, %d of them by DDN as well",
            *(attack.seconds, len(rows), asked, inside["requested"], *done),
        )
    return record


def _attack_inside(
    network: PlainNetwork,
    result: CertifiedSplit,
    attack: Attack,
    asked: int,
    device: torch.device,
    budget: Budget,
) -> dict[str, Any]:
    """Attack certificates inside their own radius, in half of the time that is left."""
    seconds = budget.left / 2
    said = f"attacking {asked} samples inside their radii, at most {seconds:.3g} s"
    # By two attacks each.
    with stage(said, 2 * asked, "attacks") as advance:
        return cross_check(
            network,
            _Unit(result.inputs, network.space.kind),
            result.certificates.prediction,
            result.certificates.radius,
            samples=attack.samples,
            seconds=seconds,
            device=device,
            advance=advance,
        )


def _require_consistent(
    result: CertifiedSplit, rows: torch.Tensor, radii: Sequence[float], survivors: torch.Tensor
) -> None:
    """Raise if an attack of a radius changed a prediction that is certified beyond it."""
    # The attack may overshoot its radius by its own rounding.
    reach = torch.tensor(radii, dtype=torch.float64, device="cpu")[:, None] * (1 + 1e-6)
    certified = result.certificates.radius[rows] > reach
    broken = certified & result.correct[rows] & ~survivors
    if broken.any():
        index = int(result.indices[rows][broken.any(0)][0])
        raise BrokenCertificate(
            f"the certificate of sample {index} is broken: PGD changes its prediction inside the "
            "certified radius"
        )


def in_words(value: Any) -> Any:
    """Plain values, with what JSON has no number for as text: ``"inf"``, ``"nan"``."""
    if isinstance(value, Mapping):
        return {key: in_words(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [in_words(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
