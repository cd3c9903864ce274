"""Global robustness: how far outputs move apart, for all pairs of near inputs of a box."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from robustcert.attacks import largest_changes
from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.base import Certificates, Certifier, Claim
from robustcert.certifiers.global_robustness.twin import Domain, Twin
from robustcert.certifiers.lipschitz import LipschitzCertifier
from robustcert.errors import UnsoundNetworkError
from robustcert.margins import margins
from robustcert.network.forward_error import forward_error
from robustcert.network.input_space import directions
from robustcert.network.network import PlainNetwork, output_bound
from robustcert.network.units import network_inputs
from robustcert.relaxations.backward import (
    SLACK,
    Diagonal,
    Matrix,
    Step,
    linear_step,
    steps_of,
)

METHODS = ("lipschitz", "symbolic", "lp", "exact")
RESTS_ON = {
    "lipschitz": "proved: norms of the layers, with rounding, times the largest l2 distance",
    "symbolic": "proved: linear bounds of all differences, rounded outward",
    "lp": "proved: a solver's multipliers, which need not be trusted, evaluated with rounding",
    "exact": "proved: the highest leaf or open node of a branch and bound, each bounded as in lp",
    "highs": "not proved: HiGHS' dual bound of the mixed-integer programme, in floats",
    "attacked": "no bound: the largest change that was seen",
}
# Maximum share of the time that bounds of hidden neurons take.
HIDDEN = 0.5


@dataclass
class GlobalBounds:
    r"""Bounds on :math:`|a \cdot (f(x') - f(x))|` for some rows a, tensors of shape ``(R,)``.

    Attributes:
        proved: Of the real-valued function, for each method that ran.
        rounding: What the error of float64 adds to any of them; infinite where it is not bounded.
        attacked: The largest changes seen, from below, of the first rows.
        solver: HiGHS' bound of their exact value, in floats and not proved; None if not asked.
        closed: Whether branch and bound ended by itself for a row; empty without it.
        seconds: That each method took beside those before it.

    Example:
        >>> proved = {"lipschitz": torch.tensor([0.5, 1.5]), "lp": torch.tensor([0.75, 1.25])}
        >>> GlobalBounds(proved, rounding=0.0, attacked=torch.tensor([0.25, 1.0])).best
        tensor([0.5000, 1.2500])
    """

    proved: dict[str, Tensor]
    rounding: float
    attacked: Tensor
    solver: Tensor | None = None
    closed: list[bool] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Tensor:
        """The least of the proved bounds."""
        return torch.stack(list(self.proved.values())).amin(0)


class GlobalCertifier(Certifier):
    r"""Bound every output's change over all pairs of near inputs of a box, beside the radii.

    Proves :math:`\bar\epsilon_j` such that for all x and x' of the domain

    .. math:: \lVert x - x' \rVert \le \delta \;\Rightarrow\; |f_j(x) - f_j(x')| \le \bar\epsilon_j,

    by one method and those before it, the least of whose bounds counts. In a metric S of the
    network's inputs it is said of the pairs x and x' = x + S u of the domain with
    :math:`\lVert u \rVert \le \delta`: changes of frozen inputs are not among them, and delta
    counts in the units of u.

    * ``lipschitz``: :math:`K_j \delta` with the Lipschitz bound of the logit, in l2; for linf
      :math:`K_j \sqrt n\, \delta`, n inputs. Any network. In a metric K_j is a constant of
      :math:`u \mapsto f_j(x + S u)` that holds for every x, and n counts the entries of u.
    * ``symbolic``: linear bounds of the differences of all neurons, see Note [twin] of
      :mod:`robustcert.certifiers.global_robustness.twin`. Dense networks.
    * ``lp``: linear programmes with these differences as variables, see Note [twin programme] of
      :mod:`robustcert.certifiers.global_robustness.mip`. For linf, and ReLU, MaxMin or absolute
      values.
    * ``exact``: the same with every unstable neuron decided, by branch and bound; HiGHS' own
      optimum beside.

    All of these are proved with their rounding; of what a solver says only multipliers are used,
    see :func:`robustcert.certifiers.global_robustness.linear_program.dual_bound`. Radii of samples
    are those of
    :class:`LipschitzCertifier`; what is said of pairs goes into ``global.json``. Where the margins
    of a sample exceed the bounds on the differences of logits, no input of the domain within delta
    is predicted otherwise: such samples are counted.

    References: Wang, Huang and Zhu, `Efficient global robustness certification of neural networks
    via interleaving twin-network encoding <https://arxiv.org/abs/2203.14141>`_, DATE 2022; Wang et
    al., `GROCET <https://arxiv.org/abs/2208.07289>`_.

    Args:
        domain: Least and greatest value of every input entry, or a pair for each.
        delta: In input units; in a metric, in those of u.
        norm: ``linf`` or ``l2``.
        method: See above.
        window: Activations that one programme spans; all if None.
        refine: With ``lp``, folding neurons of a programme that are decided rather than relaxed.
        nodes: Linear programmes of one bound.
        seconds: Nothing is begun after so long; with ``exact``, HiGHS gets as much again.
        tries: Pairs that are attacked.
        seed: Of the attack.

    Example:
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(net.weight)
        >>> certifier = GlobalCertifier(domain=[0.0, 1.0], delta=0.25, method="symbolic", tries=10)
        >>> first = certifier.claim(fold_network(net, (2,))).pairs["outputs"][0]
        >>> f"{first['lipschitz']:.4f} {first['symbolic']:.4f} {first['attacked']:.4f}"
        '0.3536 0.2500 0.2500'
    """

    covers_metric = True

    def __init__(
        self,
        domain: list[float] | list[list[float]] | None = None,
        delta: float = 0.01,
        norm: Literal["linf", "l2"] = "linf",
        method: Literal["lipschitz", "symbolic", "lp", "exact"] = "lp",
        window: int | None = None,
        refine: int = 0,
        nodes: int = 20_000,
        seconds: float = 60.0,
        tries: int = 10_000,
        seed: int = 0,
    ) -> None:
        self._samples = LipschitzCertifier()
        self.domain = _ranges(domain)
        if not 0 < delta < math.inf:
            raise ValueError(f"expected a distance above 0, got {delta}: set certifier.delta")
        if norm == "l2" and method in ("lp", "exact"):
            raise ValueError(
                f"{method} is of linf distances, not l2: set certifier.norm=linf or "
                "certifier.method=symbolic"
            )
        least = {"window": (window, 1), "refine": (refine, 0), "nodes": (nodes, 1)}
        for name, (value, bound) in {**least, "tries": (tries, 1)}.items():
            if value is not None and value < bound:
                raise ValueError(f"expected at least {bound}, got {value}: set certifier.{name}")
        if not seconds > 0:
            raise ValueError(f"expected a time above 0, got {seconds}: set certifier.seconds")
        self.delta, self.norm, self.method = float(delta), norm, method
        self.window, self.refine, self.nodes = window, refine, nodes
        self.seconds, self.tries, self.seed = seconds, tries, seed

    def pairs(self, network: PlainNetwork) -> Domain:
        """The pairs of inputs that the claim is about.

        Raises:
            UnsoundNetworkError: the network has another number of inputs than the domain.
        """
        size = math.prod(network.input_shape)
        if len(self.domain) not in (1, size):
            raise UnsoundNetworkError(
                f"expected one range or {size}, one for each input, got {len(self.domain)}: set "
                "certifier.domain"
            )
        ranges = torch.tensor(self.domain, dtype=torch.float64, device="cpu").expand(size, 2)
        low, high = (side.contiguous() for side in ranges.unbind(1))
        return Domain(low, high, self.delta, self.norm, _metric_step(network))

    @torch.no_grad()
    @strict_arithmetic()
    def bounds(
        self, network: PlainNetwork, rows: Tensor, constants: Tensor, compared: int | None = None
    ) -> GlobalBounds:
        r"""Bounds on the changes of :math:`a \cdot f`.

        Args:
            network: The network, on the CPU.
            rows: a, shape ``(R, C)``, float64.
            constants: Lipschitz bounds of these, in l2, shape ``(R,)``.
            compared: Only so many of the first rows are attacked and given to HiGHS.

        Raises:
            UnsoundNetworkError: the method does not cover the network; the message names the key.
        """
        from robustcert.certifiers.global_robustness.mip import (
            Effort,
            change_bounds,
            exactly,
            mixed_change,
            tighten,
        )

        network = network.owned()
        domain = self.pairs(network)
        chosen = METHODS[: METHODS.index(self.method) + 1]
        steps = self._steps(network) if "symbolic" in chosen else []
        clock = _Clock()
        proved = {"lipschitz": constants * domain.distance("l2") * SLACK}
        closed: list[bool] = []
        solver = None
        clock.stop("lipschitz")
        if "symbolic" in chosen:
            proved["symbolic"] = Twin(steps, domain).change(rows)
            clock.stop("symbolic")
        if "lp" in chosen:
            effort = Effort(self.window, self.refine, self.nodes, clock.after(self.seconds))
            hidden = replace(effort, deadline=clock.after(HIDDEN * self.seconds))
            twin = tighten(steps, domain, hidden)
            proved["lp"], _ = change_bounds(twin, rows, effort)
            clock.stop("lp")
        if "exact" in chosen:
            bound, closed = change_bounds(twin, rows, exactly(effort))
            proved["exact"] = torch.minimum(bound, proved["lp"])
            clock.stop("exact")
            # What HiGHS says is for comparison: it gets as much time again.
            first = rows[:compared]
            optima = [mixed_change(twin, row, self.seconds / len(first)) for row in first]
            solver = torch.tensor(
                [found.dual_bound for found in optima], dtype=torch.float64, device="cpu"
            )
            clock.stop("highs")
        sides = domain.low, domain.high, domain.delta, domain.norm
        metric = None if domain.metric is None else _numbers(domain.metric)
        attacked = largest_changes(
            network, *sides, rows[:compared], metric=metric, tries=self.tries, seed=self.seed
        )
        clock.stop("attacked")
        error = _rounding(network, domain)
        return GlobalBounds(proved, error, attacked, solver, closed, clock.seconds)

    def pairwise_bound(self, network: PlainNetwork) -> Tensor:
        """As :meth:`LipschitzCertifier.pairwise_bound`."""
        return self._samples.pairwise_bound(network)

    def certify(self, network: PlainNetwork, x: Tensor) -> Certificates:
        """As :meth:`LipschitzCertifier.certify`."""
        return self._samples.certify(network, x)

    def claim(self, network: PlainNetwork, samples: Iterable[Tensor] = ()) -> Claim:
        """That of :class:`LipschitzCertifier`, and what ``global.json`` says of all pairs."""
        return replace(self._samples.claim(network), pairs=self._claim_pairs(network, samples))

    def _claim_pairs(self, network: PlainNetwork, samples: Iterable[Tensor]) -> dict[str, Any]:
        """Bounds of outputs, what they rest on, and samples that are stable."""
        network = network.owned().to(torch.device("cpu"))
        lengths, pairwise = output_bound(network), self.pairwise_bound(network)
        classes = len(lengths)
        first, second = torch.triu_indices(classes, classes, 1, dtype=torch.int64, device="cpu")
        identity = torch.eye(classes, dtype=torch.float64, device="cpu")
        rows = torch.cat([identity, identity[first] - identity[second]])
        constants = torch.cat([lengths, pairwise[first, second]])
        found = self.bounds(network, rows, constants, compared=classes)
        best = found.best
        apart = torch.zeros(classes, classes, dtype=torch.float64, device="cpu")
        apart[first, second] = apart[second, first] = torch.minimum(
            best[classes:], (best[first] + best[second]) * SLACK
        )
        beside = [] if found.solver is None else ["highs"]
        return {
            "norm": self.norm if network.space.metric is None else f"{self.norm} norm of u",
            "delta": self.delta,
            "domain": self.domain,
            "functions": ["R", "F64"] if math.isfinite(found.rounding) else ["R"],
            "method": self.method,
            "rests_on": {name: RESTS_ON[name] for name in (*found.proved, *beside, "attacked")},
            "outputs": [_output(found, j) for j in range(classes)],
            "differences": [[_up(d, found.rounding) for d in row] for row in apart.tolist()],
            "samples": self._stable(network, apart, found.rounding, samples),
            "seconds": {key: round(value, 3) for key, value in found.seconds.items()},
        }

    @torch.no_grad()
    @strict_arithmetic()
    def _stable(
        self, network: PlainNetwork, apart: Tensor, rounding: float, batches: Iterable[Tensor]
    ) -> dict[str, int]:
        """Samples of the domain whose prediction no other input of it within delta changes.

        In a metric these inputs are those x + S u with u within delta.
        """
        domain, count, inside, stable = self.pairs(network), 0, 0, 0
        for x in batches:
            x = network_inputs(x, network.input_shape).cpu().double()
            flat = x.flatten(1)
            held = ((flat >= domain.low) & (flat <= domain.high)).all(1)
            logits = network(x)
            own = logits.argmax(1)
            margin = margins(logits, own)
            # What rounding may take off a margin at both points, and in the subtraction here.
            room = (apart[own] + rounding) * SLACK + margin.abs() * 2.0**-52
            ahead = (margin > room).scatter(1, own[:, None], True).all(1)
            count, inside = count + len(x), inside + int(held.sum())
            stable += int((held & ahead & torch.isfinite(logits).all(1)).sum())
        return {"samples": count, "inside": inside, "stable": stable}

    def _steps(self, network: PlainNetwork) -> list[Step]:
        from robustcert.certifiers.global_robustness.mip import folds_of

        try:
            steps = steps_of(network)
        except UnsoundNetworkError as error:
            raise UnsoundNetworkError(
                f"certifier.method={self.method} needs dense layers and activations that linear "
                "bounds cover: set certifier.method=lipschitz",
                error.path,
            ) from error
        if self.method in ("lp", "exact"):
            folds_of(steps)
        return steps


class _Clock:
    """Seconds of one thing after the other."""

    def __init__(self) -> None:
        self.begun = self.last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def stop(self, name: str) -> None:
        """What was done since the last stop is ``name``."""
        now = time.monotonic()
        self.seconds[name], self.last = now - self.last, now

    def after(self, seconds: float) -> float:
        """When so many seconds will have passed since the beginning."""
        return self.begun + seconds


def _metric_step(network: PlainNetwork) -> Diagonal | Matrix | None:
    """The metric on flat inputs as a step of linear bounds."""
    metric = network.space.metric
    if metric is None:
        return None
    return linear_step(metric, math.prod(directions(metric, tuple(network.input_shape))))


def _numbers(step: Diagonal | Matrix) -> Tensor:
    return step.weight if isinstance(step, Matrix) else step.scale


def _rounding(network: PlainNetwork, domain: Domain) -> float:
    """What float64 adds to the change of an output, or of a difference of two, in the box."""
    # The box is one of inputs, so its radius and the growth are, whatever the metric is.
    network = replace(network, space=replace(network.space, metric=None))
    result = forward_error(network, domain.centre.view(1, *network.input_shape))
    radius = float(domain.half.norm()) * SLACK + math.sqrt(len(domain.half)) * 2.0**-511
    if not float(result.reach[0]) > radius:
        return math.inf
    error = (float(result.centre[0]) + result.growth * radius) * SLACK
    # Of two points; an entry of a difference of logits is at most root two times the l2 error.
    return 2 * math.sqrt(2) * error * SLACK


def _output(found: GlobalBounds, j: int) -> dict[str, Any]:
    values = {name: _up(float(bound[j]), found.rounding) for name, bound in found.proved.items()}
    least = min(values, key=lambda name: values[name])
    row: dict[str, Any] = {"output": j, "eps_bar": values[least], "by": least, **values}
    if found.solver is not None:
        highs = float(found.solver[j])
        row |= {"closed": found.closed[j], "highs": highs if math.isfinite(highs) else None}
    return {**row, "attacked": float(found.attacked[j])}


def _up(bound: float, rounding: float) -> float:
    """A bound of real numbers as one of what float64 computes, if that is bounded."""
    return (bound + rounding) * (1 + 2.0**-50) if math.isfinite(rounding) else bound


def _ranges(domain: Sequence[float] | Sequence[Sequence[float]] | None) -> list[list[float]]:
    if domain is None:
        raise ValueError("global robustness is of a box of inputs: set certifier.domain=[0,1]")
    nested = [list(r) for r in domain if isinstance(r, Sequence)]
    ranges = nested or [[float(r) for r in domain if not isinstance(r, Sequence)]]
    mixed = nested and len(nested) != len(domain)
    if mixed or not all(len(r) == 2 and -math.inf < r[0] < r[1] < math.inf for r in ranges):
        raise ValueError(
            "expected a least and a greatest value, or such a pair for every input, got "
            f"{list(domain)}: set certifier.domain"
        )
    return [[float(low), float(high)] for low, high in ranges]
