r"""The exact l2 distance to the decision boundary of small piecewise linear networks.

Ground truth for certificates, not a certificate itself: what it returns holds up to the rounding of
float64, which is not bounded here. Networks of dense layers with ReLU, MaxMin or absolute values.

References: Wang et al., `Beta-CROWN <https://arxiv.org/abs/2103.06624>`_, NeurIPS 2021 (split
constraints in linear bounds); Lawson and Hanson, Solving Least Squares Problems, ch. 23.
"""

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from robustcert.attacks import ddn
from robustcert.errors import UnsoundNetworkError
from robustcert.network.input_space import Metric
from robustcert.network.linear import Affine, Dense
from robustcert.network.network import PlainNetwork
from robustcert.relaxations.backward import Relaxation, Step, steps_of
from robustcert.relaxations.curves import Curve, Folded

# Nodes evaluated together.
BATCH = 32
# A margin below this share of the largest logit is a tie, up to rounding.
TIE = 1e-10

# Note [branch and bound] (why nothing nearer is missed)
# ~~~~~~~~~~~~~~~~~~~~~~~
# A node is a set of signs of arguments of folds, and stands for the points of the ball that have
# them; the radius of the ball is the distance of the nearest adversarial point so far. On a node,
# linear bounds say that margin >= p(x) for an affine p, and likewise q_k(x) <= s_k v_k for every
# argument v_k with the sign -s_k. Adversarial points of the node have p <= 0 and all q_k <= 0; the
# nearest point to the sample with that (a least-distance programme) is no further than any of them.
# If no fold is open, p and the q_k are exact, and so is the distance. Nodes are taken in the order
# of their distances and split at the fold that loosens p most.


@dataclass(frozen=True)
class Distance:
    """The distance to the boundary, between ``lower`` and ``upper``.

    Attributes:
        lower: No adversarial point is nearer, up to rounding.
        upper: Distance of ``point``.
        point: An input of another prediction, or a tie; None if none was found.
        nodes: Nodes whose bounds were computed.
    """

    lower: float
    upper: float
    point: Tensor | None
    nodes: int


@dataclass(frozen=True)
class Node:
    """Known signs, one of -1, 0 (open) and 1 for every argument of a curve, and what to split."""

    signs: tuple[Tensor, ...]
    split: tuple[int, int] | None


def exact_distance(
    network: PlainNetwork,
    x: Tensor,
    *,
    tolerance: float = 1e-6,
    nodes: int = 200_000,
    reach: float = 1e3,
) -> Distance:
    """The distance from one input to the nearest input of another prediction.

    In a metric S it is that of u in x + S u.

    Args:
        network: The network.
        x: One input, shape ``input_shape``.
        tolerance: Relative gap between lower and upper distance at which the search ends.
        nodes: Largest number of nodes; beyond, ``lower`` stays below ``upper``.
        reach: Radius that is searched where no attack succeeds.

    Raises:
        UnsoundNetworkError: an operation is not covered, or a metric is one of channels; the
            message names it.
    """
    if network.space.metric is not None:
        options = {"tolerance": tolerance, "nodes": nodes, "reach": reach}
        return _in_metric(network, network.space.metric, x.double(), options)
    steps = steps_of(network)
    for step in steps:
        if isinstance(step, Curve) and not (isinstance(step, Folded) and step.kind != "zigzag"):
            raise UnsoundNetworkError(
                "exact distances are known for ReLU, MaxMin and absolute values only"
            )
    search = _Search(network, steps, x.double().flatten(), tolerance, nodes, reach)
    classes = len(search.logits(search.x))
    for rival in range(classes):
        if rival != search.own:
            search.run(rival)
    upper = search.upper if search.point is not None else math.inf
    point = None if search.point is None else search.point.view(network.input_shape)
    return Distance(min(search.lower, upper), upper, point, search.count)


def _in_metric(
    network: PlainNetwork, metric: Metric, x: Tensor, options: dict[str, Any]
) -> Distance:
    """The distance of the network that begins with x + S u, from u = 0."""
    if x.dim() > 1:
        raise UnsoundNetworkError(
            "exact distances in a metric are known for flat inputs: set norm.scale=1 norm.frozen=[]"
        )
    matrix = torch.diag(metric.scale) if isinstance(metric, Affine) else metric.weight
    first = Dense(matrix.to(x), x)
    size = matrix.shape[1]
    around = PlainNetwork((first, *network.operations), (size,))
    found = exact_distance(around, x.new_zeros(size), **options)
    point = None if found.point is None else first(found.point[None])[0]
    return replace(found, point=point)


class _Search:
    def __init__(
        self,
        network: PlainNetwork,
        steps: Sequence[Step],
        x: Tensor,
        tolerance: float,
        nodes: int,
        reach: float,
    ) -> None:
        self.network, self.steps, self.x = network, steps, x
        self.tolerance, self.nodes = tolerance, nodes
        self.own = int(self.logits(x).argmax())
        start = x.view(1, *network.input_shape)
        found, change = ddn(
            network,
            start,
            torch.tensor([self.own], dtype=torch.int64, device="cpu"),
            steps=50,
            restarts=5,
        )
        attacked = math.isfinite(float(found))
        self.point = x + change.flatten() if attacked else None
        self.upper = float(found) if attacked else reach
        self.lower = math.inf
        self.count = 0

    def logits(self, x: Tensor) -> Tensor:
        return self.network(x.view(1, *self.network.input_shape))[0]

    def run(self, rival: int) -> None:
        """Lessen ``upper`` and ``lower`` to the distance at which ``rival`` catches up."""
        order = itertools.count()
        sizes = [len(step.fixed) for step in self.steps if isinstance(step, Curve)]
        root = Node(tuple(self.x.new_zeros(size) for size in sizes), None)
        heap: list[tuple[float, int, Node]] = []
        for bound, node in self.evaluate([root], rival):
            heapq.heappush(heap, (bound, next(order), node))
        while heap and heap[0][0] < self.upper * (1 - self.tolerance):
            if self.count > self.nodes:
                break
            children = []
            for _ in range(min(BATCH, len(heap))):
                bound, _, node = heapq.heappop(heap)
                if node.split is None:
                    # Exact: its nearest point is adversarial, up to rounding.
                    self.lower = min(self.lower, bound)
                else:
                    children += [_child(node, -1), _child(node, 1)]
            for bound, node in self.evaluate(children, rival):
                heapq.heappush(heap, (bound, next(order), node))
        self.lower = min(self.lower, heap[0][0] if heap else math.inf, self.upper)

    def evaluate(self, nodes: list[Node], rival: int) -> list[tuple[float, Node]]:
        """Distances below which a node has no adversarial point; nodes without any are left out."""
        if not nodes:
            return []
        self.count += len(nodes)
        signs = [torch.stack(part) for part in zip(*(n.signs for n in nodes), strict=True)]
        sides = [
            (
                torch.full_like(s, -math.inf).masked_fill(s > 0, 0.0),
                torch.full_like(s, math.inf).masked_fill(s < 0, 0.0),
            )
            for s in signs
        ]
        radius = torch.full(
            (len(nodes),), self.upper * (1 + 1e-9), dtype=torch.float64, device="cpu"
        )
        centre = self.x.expand(len(nodes), -1)
        relaxation = Relaxation(self.steps, centre, radius, sides)
        rows = torch.zeros(1, 1, len(self.logits(self.x)), dtype=torch.float64, device="cpu")
        rows[0, 0, self.own], rows[0, 0, rival] = 1, -1
        trace: list[Tensor] = []
        planes = [relaxation.plane(rows, trace=trace), *relaxation.planes]
        result = []
        for i, node in enumerate(nodes):
            if any((low[i] > high[i]).any() for low, high in relaxation.bounds):
                continue
            keep = [torch.ones(1, dtype=torch.bool, device="cpu")]
            keep += [torch.cat([s[i] < 0, s[i] > 0]) for s in signs]
            normals = torch.cat([p.rows[i][k] for p, k in zip(planes, keep, strict=True)])
            offsets = torch.cat(
                [(p.constant - p.error)[i][k] for p, k in zip(planes, keep, strict=True)]
            )
            bound, delta = least_distance(
                -normals.numpy(), (normals @ self.x + offsets).numpy(), self.upper
            )
            if not bound < self.upper:
                continue
            self.try_point(delta)
            result.append((bound, Node(node.signs, self.choose(relaxation, trace, i, signs))))
        return result

    def choose(
        self, relaxation: Relaxation, trace: list[Tensor], i: int, signs: list[Tensor]
    ) -> tuple[int, int] | None:
        """The open fold whose lines are furthest apart where the margin feels it."""
        best, chosen = 0.0, None
        curves = [step for step in self.steps if isinstance(step, Curve)]
        for k, ((low, high), rows) in enumerate(
            zip(relaxation.bounds, reversed(trace), strict=True)
        ):
            open_ = (signs[k][i] == 0) & ~curves[k].fixed & (low[i] < 0) & (high[i] > 0)
            gap = -low[i] * high[i] / (high[i] - low[i]).clamp(min=1e-300)
            weight = rows.expand(len(low), *rows.shape[1:])[i, 0].abs() + 1e-12
            score = torch.where(open_, gap * weight, 0.0)
            if float(score.max()) > best:
                best, chosen = float(score.max()), (k, int(score.argmax()))
        return chosen

    def try_point(self, delta: NDArray[np.float64]) -> None:
        """Keep a point that is nearer than the last and adversarial."""
        point = self.x + torch.from_numpy(delta)
        size = float((point - self.x).norm())
        logits = self.logits(point)
        rivals = torch.cat([logits[: self.own], logits[self.own + 1 :]])
        ahead = float(logits[self.own] - rivals.max())
        if size < self.upper and not ahead > TIE * float(logits.abs().max()):
            self.upper, self.point = size, point


def _child(node: Node, sign: int) -> Node:
    assert node.split is not None
    curve, unit = node.split
    signs = list(node.signs)
    signs[curve] = signs[curve].clone()
    signs[curve][unit] = sign
    return Node(tuple(signs), None)


def least_distance(
    normals: NDArray[np.float64], least: NDArray[np.float64], limit: float = math.inf
) -> tuple[float, NDArray[np.float64]]:
    r"""The shortest d with ``normals d >= least``, by nonnegative least squares.

    With multipliers u the least value of :math:`|G^\top u|^2 + (h \cdot u - 1)^2` is attained at a
    residual that is proportional to (-d, 1). Any u bounds the distance by
    :math:`h \cdot u / |G^\top u|` from below, which is what is returned.

    Args:
        normals: G, shape ``(k, d)``.
        least: h, shape ``(k,)``.
        limit: A distance beyond which the exact value does not matter.

    Returns:
        The distance, infinite where nothing is feasible, and d.
    """
    size = np.maximum(np.linalg.norm(normals, axis=1), 1e-300)
    # Rows of unit length, and lengths about 1: the answer scales with ``least``.
    normals, least = normals / size[:, None], least / size
    if (least <= 0).all():
        return 0.0, np.zeros(normals.shape[1])
    scale = float(least.max())
    if scale >= limit:
        return math.inf, np.zeros(normals.shape[1])
    system = np.vstack([normals.T, least[None] / scale])
    goal = np.zeros(len(system))
    goal[-1] = 1.0
    multipliers, _ = nnls(system, goal)
    residual = system @ multipliers - goal
    length = float(np.linalg.norm(normals.T @ multipliers))
    value = float(least @ multipliers)
    if length * limit <= value or -residual[-1] < 1e-14:
        return math.inf, np.zeros(normals.shape[1])
    return value / length if length > 0 else 0.0, -residual[:-1] / residual[-1] * scale
