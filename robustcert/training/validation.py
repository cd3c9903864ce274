"""How validation certifies: ``best.ckpt`` is chosen by the radii that will be claimed.

``val/vra``, ``val/vra_<radius>``, ``val/acr`` and ``val/rejection`` count these radii:

==================  ==========================================  ================================
``certifier=``      radii of validation                         cost of an epoch
==================  ==========================================  ================================
lipschitz           its own: margins over pairwise constants    one product of norms, shared by
                                                                the processes of a training
lipsdp,             its own: margins over pairwise constants    one semidefinite bound, as long
eclipse_fast                                                    as it takes ``certify.py``
quadratic           its own, of every sample: lipschitz's for   exact distances of the split
                    networks without quadratics
crown,              its own, of the first                       certificates of so many samples
local_lipsdp,       ``validation.samples`` samples; with 0
second_order        lipschitz's of all, a lower bound           one product of norms
a user's own        its own, of the first                       certificates of so many samples
                    ``validation.samples`` samples
global_robustness   lipschitz's, which are those that it gives  one product of norms
                    to samples
smoothing           lipschitz's, which are no bound of its      one product of norms
                    own: they speak of the network itself
==================  ==========================================  ================================

Bounds are :func:`robustcert.norms.quick_bounds`: certification finds smaller ones of large layers,
by 1 in 6,000, and of wide convolutions on short maps by some percent, in several times the time,
and claims larger radii. The device of the training computes them, if its float64 is exact.
Margins over constants are those of float32 logits: their rounding, a matter of 1e-6, is left to
certification. With ``certifier.arithmetic=float32`` that rounding is large, and radii are the
certifier's own of the first ``validation.samples`` samples.
``val/accuracy`` and ``val/loss`` count every sample.
"""

import math
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Protocol

import torch
from torch import Tensor, distributed

from robustcert.certifiers import (
    Certifier,
    CombinedCertifier,
    CROWNCertifier,
    GlobalCertifier,
    LipschitzCertifier,
    LipSDPCertifier,
    LocalLipschitzCertifier,
    QuadricCertifier,
    SmoothingCertifier,
    bounds_on,
    quick_bounds,
    strict_arithmetic,
)
from robustcert.certifiers.base import require_covered_metric
from robustcert.certifiers.lipschitz import PairwiseCertifier
from robustcert.certifiers.second_order.curvature import is_covered
from robustcert.margins import certified_radius
from robustcert.models.scores import TrainingScores
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import zeros
from robustcert.network.quadratics import split_quadratics
from robustcert.network.shared_bounds import Proved, share_bounds

# What is said at the start of training of certifiers whose claim is not validated.
REMARKS: dict[type, str] = {
    SmoothingCertifier: (
        ", which bounds the network itself: SmoothingCertifier speaks of the smoothed classifier "
        "and has no cheap lower bound"
    ),
    GlobalCertifier: (
        ", whose radii GlobalCertifier gives to samples: its bounds of all pairs of inputs are too "
        "expensive to validate"
    ),
}

# Certifiers whose radii are never below the Lipschitz ones.
NEVER_BELOW = (CROWNCertifier, LocalLipschitzCertifier, CombinedCertifier)


class BoundsPairs(Protocol):
    """What a certifier has whose radii are margins over constants of the whole space."""

    def pairwise_bound(self, network: PlainNetwork) -> Tensor:
        """Bounds on the constants of logit i minus logit j, shape ``(C, C)``, float64."""


@dataclass(frozen=True)
class Validated:
    """What validation says of a batch of N samples.

    Attributes:
        prediction: Classes, shape ``(N,)``.
        radius: Radii of the first of them, shape ``(M,)``, M at most N, float64.
        scores: Logits of the folded network with proved constants; None where it has none.
    """

    prediction: Tensor
    radius: Tensor
    scores: TrainingScores | None


class ValidationCertifier:
    """The certifier of the claim, as validation uses it; the module's docstring has the table.

    Args:
        certifier: Certifier of the claim; by default :class:`QuadricCertifier`, whose radii are
            those of :class:`LipschitzCertifier` for networks without quadratics.
        samples: Maximum number of validation samples, over all ranks, that a certifier of single
            samples certifies in an epoch; None for all. With 0 the Lipschitz radii of all samples
            are taken, for certifiers whose own are never below them.
    """

    def __init__(self, certifier: Certifier | None = None, samples: int | None = 128) -> None:
        if samples is not None and samples < 0:
            raise ValueError(
                f"expected at least 0 samples or null, got {samples}: set validation.samples"
            )
        self.certifier: Certifier = certifier or QuadricCertifier()
        self.samples = samples
        self.pairwise: Tensor | None = None
        self._network: PlainNetwork | None = None
        self._by_constants = False
        self._left = 0.0

    def measure(self, network: PlainNetwork) -> str:
        """The radii that are counted; val/vra of two epochs compare only if it is the same."""
        constants = self._constants(network)
        if constants is not None:
            return _call(constants)
        which = "every sample" if math.isinf(self._limit) else f"the first {self.samples} samples"
        return f"{_call(self.certifier)} of {which}"

    def describe(self, network: PlainNetwork) -> str:
        """The same in one line, with what the radii of validation are not."""
        remark = REMARKS.get(type(self.certifier), "")
        if self.samples == 0 and constants_of(self.certifier, network) is None:
            remark = f", a lower bound of {_call(self.certifier)} (validation.samples=0)"
        return self.measure(network) + remark

    def _constants(self, network: PlainNetwork) -> BoundsPairs | None:
        """The certifier whose constants make the radii; None where samples are certified."""
        found = constants_of(self.certifier, network)
        if found is not None or self._limit > 0:
            return found
        if type(self.certifier) not in NEVER_BELOW or getattr(self.certifier, "alone", False):
            raise ValueError(
                f"{_call(self.certifier)} has no cheap lower bound: set validation.samples to at "
                "least 1"
            )
        return LipschitzCertifier()

    @property
    def _limit(self) -> float:
        """Maximum number of samples that are certified one by one."""
        every = self.samples is None or type(self.certifier) is QuadricCertifier
        return math.inf if every or self.samples is None else self.samples

    def check(self, network: PlainNetwork) -> None:
        """Certify one input, to know before training that the certifier covers the network.

        Raises:
            UnsoundNetworkError: it does not.
        """
        require_covered_metric(self.certifier, network)
        self.prepare(network, torch.device("cpu"))
        if not self._by_constants:
            with quick_bounds():
                self.certifier.certify(network, zeros(network.input_shape))
        self.release()

    def prepare(
        self, network: PlainNetwork, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> None:
        """Prove what holds for all samples, once an epoch; every rank does so by itself.

        Args:
            network: The folded network, on the CPU.
            device: Where the samples are, and where bounds are computed if it has the arithmetic.
            rank: This process, from 0; it has the samples rank, rank + world_size, ...
            world_size: Number of processes.

        Raises:
            UnsoundNetworkError: the certifier does not cover the network, or a bound cannot be
                proved.
        """
        constants = self._constants(network)
        self._by_constants = constants is not None
        if constants is None and split_quadratics(network) is None:
            # For the loss alone.
            constants = LipschitzCertifier()
        self.pairwise = None
        if constants is not None:
            with strict_arithmetic(), quick_bounds(), bounds_on(device):
                if type(constants) is LipschitzCertifier and distributed.is_initialized():
                    share_bounds(network, rank, world_size, partial(_gather, world_size))
                self.pairwise = constants.pairwise_bound(network).to(device)
        self._network = network.to(device)
        # The first samples of the split, of which this rank has every world_size-th.
        limit = self._limit
        share = limit if math.isinf(limit) else math.ceil((limit - rank) / world_size)
        self._left = max(0, share)

    def certify(self, x: Tensor) -> Validated:
        """Predictions and radii of the next batch of this epoch, shape ``(N, *input_shape)``."""
        assert self._network is not None, "prepare() comes first"
        if self._by_constants:
            return self._certify_by_constants(self._network(x.float()))
        count = int(min(len(x), self._left))
        self._left -= count
        prediction = torch.empty(0, dtype=torch.int64, device=x.device)
        radius = torch.empty(0, dtype=torch.float64, device=x.device)
        if count:
            with quick_bounds():
                found = self.certifier.certify(self._network, x[:count])
            prediction, radius = found.prediction, found.radius
        if count == len(x) and self.pairwise is None:
            return Validated(prediction, radius, None)
        logits = self._network(x.float())
        prediction = torch.cat([prediction, logits[count:].argmax(1)])
        return Validated(prediction, radius, self._scores(logits))

    def _certify_by_constants(self, logits: Tensor) -> Validated:
        assert self.pairwise is not None
        prediction = logits.argmax(1)
        radius = certified_radius(logits.double(), prediction, self.pairwise)
        return Validated(prediction, radius, self._scores(logits))

    def release(self) -> None:
        """Forget the network of an epoch that has ended."""
        self._network = None

    def _scores(self, logits: Tensor) -> TrainingScores | None:
        if self.pairwise is None:
            return None
        return TrainingScores(lambda target: logits, self.pairwise.float())


def constants_of(certifier: Certifier, network: PlainNetwork) -> BoundsPairs | None:
    """The certifier whose pairwise constants alone make the radii of validation.

    None where a certifier bounds every sample by itself. By exact class: a subclass may do so.
    """
    kind = type(certifier)
    lipschitz: BoundsPairs = LipschitzCertifier()
    if kind in (SmoothingCertifier, GlobalCertifier):
        return lipschitz
    if getattr(certifier, "dtype", torch.float64) != torch.float64:
        return None
    if isinstance(certifier, PairwiseCertifier) and kind in (LipschitzCertifier, LipSDPCertifier):
        return certifier
    # The radii of these are the Lipschitz ones for other networks.
    if kind is QuadricCertifier and split_quadratics(network) is None:
        return lipschitz
    if kind is CombinedCertifier and not is_covered(network):
        return lipschitz
    return None


def _gather(world_size: int, own: Proved) -> list[Proved]:
    # What every process has proved, by rank.
    found: list[Proved] = [own] * world_size
    distributed.all_gather_object(found, own)
    return found


def _call(certifier: object) -> str:
    """A certifier with the options that it keeps, as one would write it."""
    options = [name for name in signature(type(certifier)).parameters if hasattr(certifier, name)]
    given = ", ".join(f"{name}={getattr(certifier, name)!r}" for name in options)
    return f"{type(certifier).__name__}({given})"
