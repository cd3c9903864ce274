r"""Linear programmes over boxes, their maxima bounded from above with every rounding included.

A solver's optimum is a float that nobody proved. Its multipliers need not be trusted: any of them
give a bound, see :func:`dual_bound`.

References: Neumaier and Shcherbina, `Safe bounds in linear and mixed-integer linear programming
<https://doi.org/10.1007/s10107-003-0433-3>`_, Mathematical Programming 2004; Huangfu and Hall,
HiGHS, Mathematical Programming Computation 2018 (the solver, through scipy).
"""

import heapq
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, hstack, identity, vstack

from robustcert.network.local_error import gamma
from robustcert.norms.scalars import UNIT_ROUNDOFF
from robustcert.relaxations.backward import FLOOR, SLACK

Floats = NDArray[np.float64]

# A binary variable this near to 0 or 1 is one.
WHOLE = 1e-7


@dataclass(frozen=True, eq=False)
class LinearProgram:
    """The points v with ``low <= v <= high``, ``rows v <= most`` and ``equal v = value``.

    Attributes:
        rows: Shape ``(k, n)``.
        most: Shape ``(k,)``.
        equal: Shape ``(m, n)``.
        value: Shape ``(m,)``.
        low: Shape ``(n,)``, finite.
        high: Shape ``(n,)``, finite.
    """

    rows: csr_array
    most: Floats
    equal: csr_array
    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Maximum:
    """A proved upper bound of the maximum, -inf if there is no point, and the solver's point."""

    bound: float
    point: Floats | None


def dual_bound(program: LinearProgram, goal: Floats, rows: Floats, equal: Floats) -> float:
    r"""An upper bound of ``goal . v`` from multipliers of the rows, whatever they are.

    For :math:`\lambda \ge 0` and any :math:`\mu`, with
    :math:`r = c - A^\top \lambda - E^\top \mu`,

    .. math:: c \cdot v \le b \cdot \lambda + f \cdot \mu
        + \sum_j \max(r_j \mathrm{low}_j, r_j \mathrm{high}_j),

    since :math:`c \cdot v = r \cdot v + \lambda \cdot A v + \mu \cdot E v`. r is computed with an
    error of at most :math:`\gamma (|c| + |A|^\top \lambda + |E|^\top |\mu|)`, which costs that
    times the magnitude of v, and the sums are charged likewise.

    Args:
        program: What holds of v.
        goal: c, shape ``(n,)``.
        rows: Multipliers of the inequalities; negative ones are taken as 0.
        equal: Multipliers of the equalities.
    """
    rows = np.maximum(rows, 0.0)
    counted = len(goal) + len(rows) + len(equal) + 16
    g = gamma(counted, UNIT_ROUNDOFF)
    size = np.maximum(np.abs(program.low), np.abs(program.high))
    with np.errstate(all="ignore"):
        rest = goal - program.rows.T @ rows - program.equal.T @ equal
        parts = np.abs(goal) + abs(program.rows).T @ rows + abs(program.equal).T @ np.abs(equal)
        error = g * parts * SLACK + FLOOR
        best = np.maximum(rest * program.low, rest * program.high)
        total = program.most @ rows + program.value @ equal + best.sum()
        magnitude = np.abs(program.most) @ rows + np.abs(program.value) @ np.abs(equal)
        magnitude += np.abs(rest) @ size
        charged = (error @ size + g * magnitude + FLOOR * (1 + size.sum())) * SLACK
        found = float(total + charged)
    # One rounding of the last sum.
    return found + abs(found) * 2 * UNIT_ROUNDOFF if math.isfinite(found) else math.inf


def maximum(program: LinearProgram, goal: Floats) -> Maximum:
    """The maximum of ``goal . v``, bounded from above; -inf only where infeasibility is proved."""
    box = dual_bound(program, goal, np.zeros(len(program.most)), np.zeros(len(program.value)))
    found = _solve(program, goal)
    if found.status == 0:
        multipliers = -found.ineqlin.marginals, -found.eqlin.marginals
        return Maximum(min(box, dual_bound(program, goal, *multipliers)), found.x)
    if found.status == 2 and _infeasible(program):
        return Maximum(-math.inf, None)
    return Maximum(box, None)


def _solve(program: LinearProgram, goal: Floats) -> Any:
    return linprog(
        -goal,
        A_ub=program.rows,
        b_ub=program.most,
        A_eq=program.equal,
        b_eq=program.value,
        bounds=np.stack([program.low, program.high], 1),
        method="highs",
    )


def _infeasible(program: LinearProgram) -> bool:
    """Whether it is proved that there is no point: multipliers that bound 0 below 0.

    They are those of the least sum of violations, which has points whatever the programme is.
    """
    k, m, n = len(program.most), len(program.value), len(program.low)
    rows = hstack([program.rows, -identity(k), csr_array((k, 2 * m))])
    equal = hstack([program.equal, csr_array((m, k)), identity(m), -identity(m)])
    zero = np.zeros(k + 2 * m)
    elastic = LinearProgram(
        csr_array(rows),
        program.most,
        csr_array(equal),
        program.value,
        np.concatenate([program.low, zero]),
        np.concatenate([program.high, zero + np.inf]),
    )
    found = _solve(elastic, np.concatenate([np.zeros(n), zero - 1]))
    if found.status != 0:
        return False
    nothing = np.zeros(n)
    return dual_bound(program, nothing, -found.ineqlin.marginals, -found.eqlin.marginals) < 0


@dataclass(frozen=True)
class Branched:
    """What :func:`branch` found.

    Attributes:
        bound: Proved upper bound.
        closed: Whether no open node is above every leaf by more than the tolerance.
        nodes: Linear programmes solved.
        point: The solver's point of the highest leaf; None without a leaf.
    """

    bound: float
    closed: bool
    nodes: int
    point: Floats | None


def branch(
    program: LinearProgram,
    goal: Floats,
    binary: NDArray[np.int64],
    *,
    nodes: int,
    tolerance: float = 1e-7,
    deadline: float = math.inf,
    score: Callable[[Floats], Floats] | None = None,
) -> Branched:
    """The maximum of ``goal . v`` with some variables 0 or 1, by branch and bound.

    Every node is bounded by :func:`maximum`, and a node without points is left out only if that is
    proved: the bound is that of the highest leaf or open node, and proved whenever the search ends.

    Args:
        program: Its relaxation, with these variables anywhere in [0, 1].
        goal: Shape ``(n,)``.
        binary: Places of the variables.
        nodes: Largest number of programmes.
        tolerance: Relative gap between leaves and open nodes at which it ends.
        deadline: :func:`time.monotonic` after which it ends.
        score: Of a solver's point, how much it would help to decide each of these variables; those
            that are furthest from whole numbers come first where it says nothing.
    """
    order = itertools.count()
    leaf, point, count = -math.inf, None, 1
    root = maximum(program, goal)
    heap = [(-root.bound, next(order), program, root.point)]
    while heap and not -heap[0][0] <= leaf + tolerance * abs(leaf):
        if count >= nodes or time.monotonic() > deadline:
            return Branched(-heap[0][0], False, count, point)
        negative, _, here, found = heapq.heappop(heap)
        chosen = _fractional(here, found, binary, score)
        if chosen is None:
            leaf, point = max((leaf, point), (-negative, found), key=lambda best: best[0])
            continue
        for side in (0.0, 1.0):
            low, high = here.low.copy(), here.high.copy()
            low[chosen] = high[chosen] = side
            child = LinearProgram(here.rows, here.most, here.equal, here.value, low, high)
            solved = maximum(child, goal)
            count += 1
            if solved.bound > -math.inf:
                bound = min(solved.bound, -negative)
                heapq.heappush(heap, (-bound, next(order), child, solved.point))
    return Branched(max(leaf, -heap[0][0] if heap else -math.inf), True, count, point)


def _fractional(
    program: LinearProgram,
    point: Floats | None,
    binary: NDArray[np.int64],
    score: Callable[[Floats], Floats] | None,
) -> int | None:
    """The binary variable to decide next; None at a leaf."""
    free = program.low[binary] < program.high[binary]
    if point is None:
        return int(binary[free][0]) if free.any() else None
    away = np.abs(point[binary] - np.round(point[binary])) * free
    wanted = np.zeros(len(binary)) if score is None else score(point)
    order = np.lexsort((away, wanted * (away > WHOLE), away > WHOLE))
    return int(binary[order[-1]]) if len(order) and away[order[-1]] > WHOLE else None


@dataclass(frozen=True)
class MixedOptimum:
    """HiGHS' word on a mixed-integer programme, in floats: nothing of it is proved.

    Attributes:
        value: Of the best point that it found; NaN if it found none.
        dual_bound: Above which it says there is nothing; infinite if it does not say.
        point: The best point.
    """

    value: float
    dual_bound: float
    point: Floats | None


def mixed_optimum(
    program: LinearProgram, goal: Floats, binary: NDArray[np.int64], seconds: float = math.inf
) -> MixedOptimum:
    """The same maximum by HiGHS' branch and cut."""
    integrality = np.zeros(len(goal))
    integrality[binary] = 1
    matrix = vstack([program.rows, program.equal])
    below = np.concatenate([np.full(len(program.most), -np.inf), program.value])
    above = np.concatenate([program.most, program.value])
    found = milp(
        -goal,
        integrality=integrality,
        bounds=Bounds(program.low, program.high),
        constraints=LinearConstraint(matrix, below, above),
        options={"mip_rel_gap": 0.0} | ({"time_limit": seconds} if seconds < math.inf else {}),
    )
    dual = getattr(found, "mip_dual_bound", None)
    return MixedOptimum(
        math.nan if found.x is None else -float(found.fun),
        math.inf if dual is None else -float(dual),
        found.x,
    )
