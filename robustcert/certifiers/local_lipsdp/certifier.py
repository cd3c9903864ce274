"""Certified radii from Lipschitz bounds that hold on balls around the samples."""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from robustcert.certifiers.base import Proof
from robustcert.certifiers.lipschitz import PairwiseCertifier
from robustcert.certifiers.lipsdp import search, semidefinite
from robustcert.certifiers.local_lipsdp.ellipsoids import (
    Chain,
    Slopes,
    chain_of,
    image,
    improved,
    proved,
    row_lengths,
)
from robustcert.errors import NormBoundError, UnsoundNetworkError
from robustcert.margins import least_of_rivals
from robustcert.network.network import PlainNetwork
from robustcert.relaxations.backward import Relaxation, chunks, steps_of
from robustcert.relaxations.curves import Curve

# Maximum number of entries of a tensor of a pass.
MAX_ENTRIES = 2**22
# Of the search for the multipliers of the whole space, from which those of the balls start.
ITERATIONS = 100


class LocalLipschitzCertifier(PairwiseCertifier):
    r"""Lipschitz radii, or larger ones from constants of balls around the samples.

    On the ball of radius s around a sample the arguments of every activation lie in intervals, and
    so its slopes do. LipSDP with these slopes bounds the constants :math:`K_{cj}(s)` of the
    differences of logits on this ball. On the way from the sample to a point at distance r the
    margin over j falls by at most

    .. math:: \int_0^r K_{cj}(s)\,ds \le \sum_i K_{cj}(s_i)\,(s_i - s_{i-1}),

    which is less than :math:`K_{cj}(r)\, r`: constants are proved on one ball after another, as far
    as the margin lasts. All of it is vectorised over samples and proved in float64 with its
    rounding, see Note [images] of :mod:`robustcert.certifiers.local_lipsdp.ellipsoids`.

    Covered are the networks of :class:`robustcert.certifiers.CROWNCertifier`, whose intervals these
    are.

    References: see :mod:`robustcert.certifiers.local_lipsdp.ellipsoids`.

    Args:
        rounds: Number of balls, at least 1.
        iterations: Steps of the search for multipliers on every ball; 0 keeps those of the whole
            space.
        arithmetic: As in :class:`robustcert.certifiers.LipschitzCertifier`.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        >>> steeper = [[[1.0], [1.0]], [0.0, -4.0], [[1.0, 3.0], [0.0, 0.0]], [0.0, 0.0]]
        >>> for parameter, value in zip(net.parameters(), steeper):  # slope 1, and 4 from 4 on
        ...     parameter.data = torch.tensor(value)
        >>> network, x = fold_network(net, (1,)), torch.tensor([[1.0]])
        >>> for certifier in (LipSDPCertifier(), LocalLipschitzCertifier()):
        ...     print(f"{certifier.certify(network, x).radius.item():.4f}")  # the distance is 1
        0.2500
        0.9993
    """

    proof = Proof.LOCAL_LIPSCHITZ

    def __init__(
        self,
        rounds: int = 12,
        iterations: int = 4,
        arithmetic: Literal["float64", "float32"] = "float64",
    ) -> None:
        super().__init__(arithmetic)
        for name, value, least in (("rounds", rounds, 1), ("iterations", iterations, 0)):
            if value < least:
                raise ValueError(f"expected at least {least}, got {value}: set certifier.{name}")
        self.rounds, self.iterations = rounds, iterations

    def distances(
        self,
        network: PlainNetwork,
        inputs: Tensor,
        prediction: Tensor,
        gap: Tensor,
        pairwise: Tensor,
        drift: float,
    ) -> Tensor:
        """Distances within which the prediction stays ahead of each class, shape ``(N, C)``."""
        first_order = super().distances(network, inputs, prediction, gap, pairwise, drift)
        known = least_of_rivals(first_order, prediction)
        found = torch.zeros_like(known)
        rows = ((known > 0) & (known < math.inf)).nonzero()[:, 0]
        chain, _ = _prepared(network.owned())
        widest = max(max(linear.values.shape) for linear in (*chain.maps, chain.head))
        for part in chunks(len(rows), max(1, MAX_ENTRIES // (2 * widest * widest))):
            some = rows[part]
            balls = Balls(network, inputs[some].double().flatten(1), prediction[some])
            found[some] = self._march(balls, gap[some], known[some], drift)
        return torch.maximum(first_order, found[:, None])

    def _march(self, balls: "Balls", gap: Tensor, probe: Tensor, drift: float) -> Tensor:
        """Radii reached from 0 on, the first ball being that of ``probe``."""
        gap = gap.scatter(1, balls.own[:, None], math.inf)
        reached, best = torch.zeros_like(probe), torch.zeros_like(probe)
        for left in reversed(range(self.rounds)):
            rate = balls.constants(probe, gap, self.iterations) + drift
            stride = probe - reached
            rest = (gap / rate).amin(1) * (1 - 1e-12)
            # Within the ball, whether or not the margin lasts as far as its sphere. NaN is nowhere.
            at = torch.minimum(probe, reached + rest) * (1 - 2.0**-50)
            best = torch.where(at > best, at, best)
            ahead = gap - rate * stride[:, None] * (1 + 1e-12) - gap.abs() * 2.0**-50
            passed = ahead.amin(1) > 0
            gap = torch.where(passed[:, None], ahead, gap)
            reached = torch.where(passed, probe, reached)
            # Equal strides for what is left, as if the constants stayed; shorter ones if they grew.
            further = (gap / rate).amin(1) * 2 / max(2, left)
            shorter = (rest * stride).sqrt()
            stride = torch.where(passed, further, torch.where(shorter > 0, shorter, stride / 4))
            probe = reached + stride
        return best


class Balls:
    """Bounds on constants around samples.

    Args:
        network: The network.
        centre: Samples, flat, shape ``(N, d)``, float64.
        own: Logits to compare with the others, shape ``(N,)``.
    """

    def __init__(self, network: PlainNetwork, centre: Tensor, own: Tensor) -> None:
        network = network.owned()
        chain, start = _prepared(network)
        self.steps, self.chain = steps_of(network, centre.device), chain.to(centre.device)
        self.curves = [step for step in self.steps if isinstance(step, Curve)]
        self.start = [g.to(centre.device).expand(len(own), -1) for g in start]
        self.centre, self.own, self.multipliers = centre, own, self.start

    def constants(self, radius: Tensor, gap: Tensor, iterations: int) -> Tensor:
        """Bounds on the constants of logit ``own`` minus every logit on balls, ``(N, C)``.

        Args:
            radius: Shape ``(N,)``.
            gap: What they are to be small against, shape ``(N, C)``; infinite for ``own``.
            iterations: Steps of the search, from the multipliers that were found last.
        """
        bounds = Relaxation(self.steps, self.centre, radius).bounds
        slopes = [
            Slopes.between(*curve.slopes(*b)) for curve, b in zip(self.curves, bounds, strict=True)
        ]
        if iterations and slopes:
            starts = [self.multipliers, self.start]
            self.multipliers = improved(self.chain, slopes, starts, self.own, gap, iterations)
        chain, ellipsoid = self.chain, None
        for linear, slope, g in zip(chain.maps, slopes, self.multipliers, strict=True):
            gram = chain.gram if ellipsoid is None else image(linear, ellipsoid)
            ellipsoid = proved(gram, slope, g)
        exponent = sum(linear.exponent for linear in (*chain.maps, chain.head))
        lengths = row_lengths(ellipsoid, chain.head, self.own)
        return torch.ldexp(lengths, lengths.new_tensor(exponent))


@lru_cache(maxsize=4)
def _prepared(network: PlainNetwork) -> tuple[Chain, list[Tensor]]:
    """Maps on the CPU, with multipliers that are good for all inputs."""
    steps = steps_of(network)
    chain = chain_of(steps, math.prod(network.input_shape))
    curves = [step for step in steps if isinstance(step, Curve)]
    layers = chain.layers(curves)
    try:
        found = search.search(layers, chain.head.values, ITERATIONS) if layers else []
    except NormBoundError as error:
        raise UnsoundNetworkError(f"no multipliers: {error}. Use certifier=lipschitz") from error
    start = []
    for depth, (layer, diagonal) in enumerate(zip(layers, found, strict=True), start=1):
        free = layer.radius > 0
        multipliers = torch.ones_like(layer.radius)
        # The best may lie on the boundary of what is feasible.
        margin = (1 + semidefinite.MARGIN) ** depth
        multipliers[free] = diagonal / layer.radius[free] * margin
        start.append(multipliers)
    return chain, start
