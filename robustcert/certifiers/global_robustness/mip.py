r"""Two copies of a network as one mixed-integer programme, with the differences as variables.

Exact for dense networks with ReLU, MaxMin and absolute values; relaxed, and over a few layers at a
time, for larger ones.

Reference: Wang, Huang and Zhu, `Efficient global robustness certification of neural networks via
interleaving twin-network encoding <https://arxiv.org/abs/2203.14141>`_, DATE 2022.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from robustcert.certifiers.global_robustness.linear_program import (
    Branched,
    Floats,
    LinearProgram,
    MixedOptimum,
    branch,
    mixed_optimum,
)
from robustcert.certifiers.global_robustness.twin import Domain, Known, Twin
from robustcert.errors import UnsoundNetworkError
from robustcert.relaxations.backward import Linear, Matrix, Step
from robustcert.relaxations.curves import Curve, Folded

Places = NDArray[np.int64]

# Note [twin programme] (why the programme holds of every pair)
# ~~~~~~~~~~~~~~~~~~
# Variables are z and d = z' - z before every step, in the boxes that Twin proves. Coefficients are
# the weights, halves and bounds themselves, so that no row is rounded.
#  * Input: low <= z, z + d <= high, |d| <= delta. In a metric diag(s) |d_i| <= s_i delta, rounded
#    up; in a matrix S, d = S u with variables |u| <= delta of their own.
#  * Linear step: w = M z + b, e = M d.
#  * Activation s(y) = max(y, p y) with p = 0 (ReLU) or -1 (absolute value), where l < 0 < u: for
#    both (y, x) and (y + d, x + e), with a variable t of its own, 0 or 1,
#        x >= y,   x >= p y,   x <= y - (1 - p) l (1 - t),   x <= p y + (1 - p) u t.
#    t = 1 says y >= 0 and t = 0 says y <= 0. With t anywhere in [0, 1] this is the triangle under
#    the chord. Where l >= 0, x = y and e = d; where u <= 0, x = p y and e = p d.
#  * One copy says where the other is: t = 0 says y + d <= D and t = 1 says y + d >= -D, whence
#        x + e <= p (y + d) + (1 - p) (D + (u - D) t)   and
#        x + e <= y + d + (1 - p) (D + (-l - D) (1 - t)),   and
#    the same with the copies exchanged; u - D and -l - D are rounded up and at least 0.
#  * The difference: |e - m d| <= h D with |d| <= D, m = (1 + p) / 2 and h = (1 - p) / 2. With whole
#    t this follows from the rest; relaxed, it is what keeps a small difference small.
# A window begins at the arguments of an activation a few layers before, of which only their boxes
# are known: a relaxation, since the true values are among those.


@dataclass(frozen=True, eq=False)
class Unstable:
    """The unstable neurons of an activation, on both sides of its kink, by their variables.

    Attributes:
        neurons: Which of the activation's they are.
        left: p.
        change: D.
        y: Places of the arguments.
        d: Of their changes.
        e: Of the changes of the values.
        signs: Of both t, shape ``(k, 2)``.
    """

    neurons: Places
    left: Floats
    change: Floats
    y: Places
    d: Places
    e: Places
    signs: Places

    def error(self, point: Floats) -> Floats:
        """How far the relaxation's changes of values are from those of the activation."""
        before, after = point[self.y], point[self.y] + point[self.d]
        before, after = (np.maximum(v, self.left * v) for v in (before, after))
        return np.abs(point[self.e] - (after - before))


@dataclass(frozen=True)
class Effort:
    """How much is spent on the bounds of a network.

    Attributes:
        window: Activations that one programme spans, at most; all if None.
        refine: Folding neurons of a programme that are decided rather than relaxed; all if None.
        nodes: Linear programmes of one maximum, at most.
        deadline: :func:`time.monotonic` after which nothing is begun: what is proved then stands.
    """

    window: int | None = None
    refine: int | None = 0
    nodes: int = 1000
    deadline: float = math.inf


def folds_of(steps: Sequence[Step]) -> list[Folded]:
    """The curves of a network, if each has one kink, at 0.

    Raises:
        UnsoundNetworkError: one does not.
    """
    curves = [step for step in steps if isinstance(step, Curve)]
    for curve in curves:
        if not isinstance(curve, Folded) or curve.kind == "zigzag":
            raise UnsoundNetworkError(
                "the twin encoding knows ReLU, MaxMin and absolute values only: set "
                "certifier.method=symbolic"
            )
    return [curve for curve in curves if isinstance(curve, Folded)]


class Encoding:
    """The programme of the steps from ``start`` to ``stop``: Note [twin programme].

    Args:
        twin: Bounds of the network.
        start: Step before which the programme begins: 0 or a curve.
        stop: Step before which it ends.

    Attributes:
        blocks: Places of z and of d before every step from ``start`` to ``stop``.
        unstable: The unstable neurons of every activation.
    """

    def __init__(self, twin: Twin, start: int, stop: int) -> None:
        self.twin = twin
        self._low: list[Floats] = []
        self._high: list[Floats] = []
        self._count = 0
        self._rows: list[tuple[Places, Places, Floats]] = []
        self._equal: list[tuple[Places, Places, Floats]] = []
        self._most: list[Floats] = []
        self._value: list[Floats] = []
        self._sizes: list[Floats | None] = []
        self.unstable: list[Unstable] = []
        self._curve = sum(isinstance(step, Curve) for step in twin.steps[:start])
        z, d = self._begin(start)
        self.blocks = [(z, d)]
        for t in range(start, stop):
            step = twin.steps[t]
            if isinstance(step, Linear):
                z, d = self._linear(step, z, d, t)
            else:
                assert isinstance(step, Folded)
                z, d = self._fold(step, z, d)
            self.blocks.append((z, d))

    @property
    def values(self) -> Places:
        """Places of z before ``stop``."""
        return self.blocks[-1][0]

    @property
    def changes(self) -> Places:
        """Places of d before ``stop``."""
        return self.blocks[-1][1]

    def importance(self, row: Floats) -> list[Floats]:
        """How much the outputs of every activation's unstable neurons may weigh in ``row . z``."""
        found, size, unstable = [], np.abs(row), list(self.unstable)
        for matrix in reversed(self._sizes):
            if matrix is None:
                found.append(size[unstable.pop().neurons])
            else:
                size = size @ matrix
        return found[::-1]

    def program(self) -> LinearProgram:
        """The relaxation, with t anywhere in [0, 1]."""
        most, value = (np.concatenate([np.zeros(0), *p]) for p in (self._most, self._value))
        return LinearProgram(
            self._matrix(self._rows, len(most)),
            most,
            self._matrix(self._equal, len(value)),
            value,
            np.concatenate(self._low),
            np.concatenate(self._high),
        )

    def _matrix(self, parts: list[tuple[Places, Places, Floats]], height: int) -> csr_array:
        rows, columns, entries = (
            np.concatenate([np.zeros(0), *(part[i] for part in parts)]) for i in range(3)
        )
        places = (rows.astype(np.int64), columns.astype(np.int64))
        return csr_array(coo_array((entries, places), shape=(height, self._count)))

    def _new(self, low: Floats, high: Floats) -> Places:
        places = np.arange(self._count, self._count + len(low))
        self._count += len(low)
        self._low.append(low)
        self._high.append(high)
        return places

    def _at_most(self, most: Floats, *terms: tuple[Places, Floats | float]) -> None:
        """Rows ``sum of coefficient * variable <= most``, entry by entry."""
        self._add(self._rows, self._most, most, terms)

    def _equals(self, value: Floats, *terms: tuple[Places, Floats | float]) -> None:
        self._add(self._equal, self._value, value, terms)

    def _add(
        self,
        parts: list[tuple[Places, Places, Floats]],
        sides: list[Floats],
        side: Floats,
        terms: Sequence[tuple[Places, Floats | float]],
    ) -> None:
        start = sum(map(len, sides))
        rows = np.arange(start, start + len(side))
        for places, entries in terms:
            parts.append((rows, places, np.broadcast_to(np.asarray(entries, float), len(side))))
        sides.append(side)

    def _begin(self, start: int) -> tuple[Places, Places]:
        if start == 0:
            domain = self.twin.domain
            low, high, change = (t.numpy() for t in (domain.low, domain.high, domain.shift))
        else:
            low, high, change = _numbers(self.twin.known[self._curve])
        z, d = self._new(low, high), self._new(-change, change)
        self._inside(z, d, low, high)
        if start == 0 and isinstance(self.twin.domain.metric, Matrix):
            most = self.twin.domain.spread.numpy()
            weight = self.twin.domain.metric.weight.numpy()
            self._image(d, weight, self._new(-most, most), np.zeros(len(d)))
        return z, d

    def _image(self, new: Places, matrix: Floats, old: Places, value: Floats) -> None:
        """Rows ``new - matrix old = value``."""
        start = sum(map(len, self._value))
        self._equals(value, (new, 1.0))
        i, j = np.nonzero(matrix)
        self._equal.append((i + start, old[j], -matrix[i, j]))

    def _inside(self, z: Places, d: Places, low: Floats, high: Floats) -> None:
        self._at_most(high, (z, 1.0), (d, 1.0))
        self._at_most(-low, (z, -1.0), (d, -1.0))

    def _linear(self, step: Linear, z: Places, d: Places, t: int) -> tuple[Places, Places]:
        # Of the rows of the identity every product is with 0 or 1: nothing is rounded.
        after = self.twin.values.sizes[t + 1].shape[1]
        matrix, bias = step.pull(torch.eye(after, dtype=torch.float64, device="cpu")[None])
        weight = matrix[0].numpy()
        shift = bias[0].numpy() if isinstance(bias, Tensor) else np.full(after, bias)
        low, high, change = self._box(t + 1)
        w, e = self._new(low, high), self._new(-change, change)
        for new, old, value in ((w, z, shift), (e, d, np.zeros(after))):
            self._image(new, weight, old, value)
        self._sizes.append(np.abs(weight))
        return w, e

    def _box(self, t: int) -> tuple[Floats, Floats, Floats]:
        """Bounds of values and changes before step t."""
        steps = self.twin.steps
        if t < len(steps) and isinstance(steps[t], Curve):
            curve = sum(isinstance(step, Curve) for step in steps[:t])
            return _numbers(self.twin.known[curve])
        size, change = (part.numpy() for part in self.twin.sizes(t))
        return -size, size, change

    def _fold(self, fold: Folded, y: Places, d: Places) -> tuple[Places, Places]:
        low, high, change = _numbers(self.twin.known[self._curve])
        self._curve += 1
        p = np.where(fold.fixed.numpy(), 1.0, 0.0 if fold.kind == "relu" else -1.0)
        size = np.maximum(np.abs(low), np.abs(high))
        x = self._new(np.where(p < 1, np.maximum(low, 0.0), low), np.maximum(high, size * (p != 0)))
        e = self._new(-change, change)
        self._inside(y, d, low, high)
        line = np.where(low >= 0, 1.0, p)
        known = (p == 1) | (low >= 0) | (high <= 0)
        for out, argument in ((x[known], y[known]), (e[known], d[known])):
            self._equals(np.zeros(known.sum()), (out, 1.0), (argument, -line[known]))
        y, d, x_open, e_open = y[~known], d[~known], x[~known], e[~known]
        low, high, change, p = low[~known], high[~known], change[~known], p[~known]
        none, rise = np.zeros(len(p)), 1 - p
        one, other = (self._new(none, none + 1) for _ in range(2))
        # x and y of each copy, as terms of (variable, coefficient).
        copies = (
            ([(x_open, 1.0)], [(y, 1.0)], one, other),
            ([(x_open, 1.0), (e_open, 1.0)], [(y, 1.0), (d, 1.0)], other, one),
        )
        for out, argument, t, twin in copies:
            for slope, free, sign in ((1.0, -low, -1.0), (p, high, 1.0)):
                # What is left of x - slope y where t lets it be: (1 - p) free, and beside it near.
                excess = [*out, *((v, -slope * c) for v, c in argument)]
                self._at_most(none, *((v, -c) for v, c in excess))
                offset = rise * free if sign < 0 else none
                self._at_most(offset, *excess, (t, -sign * rise * free))
                near = rise * np.maximum(np.nextafter(free - change, np.inf), 0.0)
                base = rise * change
                if sign < 0:
                    base = np.nextafter(base + near, np.inf)
                self._at_most(base, *excess, (twin, -sign * near))
        for sign in (1.0, -1.0):
            middle = -sign * (1 + p) / 2
            self._at_most(rise / 2 * change, (e_open, sign), (d, middle))
        signs = np.stack([one, other], 1)
        self.unstable.append(Unstable(np.flatnonzero(~known), p, change, y, d, e_open, signs))
        self._sizes.append(None)
        return x, e


def _numbers(known: Known) -> tuple[Floats, Floats, Floats]:
    return known.low.numpy(), known.high.numpy(), known.change.numpy()


def tighten(steps: Sequence[Step], domain: Domain, effort: Effort) -> Twin:
    """Bounds of values and differences by linear programmes, layer by layer.

    The first layer's are exact already. Every programme spans ``effort.window`` activations; its
    maximum is proved, see :func:`robustcert.certifiers.global_robustness.linear_program.branch`.

    Raises:
        UnsoundNetworkError: an activation is not covered.
    """
    folds_of(steps)
    twin = Twin(steps, domain)
    places = [t for t, step in enumerate(steps) if isinstance(step, Curve)]
    known = twin.known[:1]
    for k, place in enumerate(places[1:], 1):
        own = twin.known[k]
        open_ = ~steps[place].fixed & (own.low < 0) & (own.high > 0)  # type: ignore[union-attr]
        encoding = Encoding(twin, _start(places, k, effort.window), place)
        solver = _Solver(encoding, effort)
        low, high, change = own.low.clone(), own.high.clone(), own.change.clone()
        for i in open_.nonzero()[:, 0].tolist():
            row = np.eye(1, len(low), i)[0]
            change[i] = min(float(change[i]), solver.maximum(row, encoding.changes).bound)
            high[i] = min(float(high[i]), solver.maximum(row, encoding.values).bound)
            low[i] = max(float(low[i]), -solver.maximum(-row, encoding.values).bound)
        known.append(Known(low, high, change))
        twin = Twin(steps, domain, known)
    return twin


def change_bounds(twin: Twin, rows: Tensor, effort: Effort) -> tuple[Tensor, list[bool]]:
    r"""Proved bounds on :math:`|a \cdot (f(x') - f(x))|` for rows a of shape ``(R, C)``.

    Args:
        twin: From :func:`tighten`.
        rows: a, float64.
        effort: For all of them; the time is shared out evenly.

    Returns:
        The bounds, shape ``(R,)``, and whether the search for each ended by itself.
    """
    places = [t for t, step in enumerate(twin.steps) if isinstance(step, Curve)]
    encoding = Encoding(twin, _start(places, len(places), effort.window), len(twin.steps))
    found, closed = [], []
    for i, row in enumerate(rows.numpy()):
        now = time.monotonic()
        share = now + (effort.deadline - now) / (len(rows) - i)
        result = _Solver(encoding, replace(effort, deadline=share)).maximum(row, encoding.changes)
        found.append(result.bound)
        closed.append(result.closed)
    return torch.minimum(
        twin.change(rows), torch.tensor(found, dtype=torch.float64, device="cpu")
    ), closed


def mixed_change(twin: Twin, row: Tensor, seconds: float = math.inf) -> MixedOptimum:
    """HiGHS' optimum of the whole encoding for one row, in floats: nothing of it is proved."""
    encoding = Encoding(twin, 0, len(twin.steps))
    goal = np.zeros(len(encoding.program().low))
    goal[encoding.changes] = row.numpy()
    binary = np.concatenate([np.zeros(0, np.int64), *(f.signs.ravel() for f in encoding.unstable)])
    return mixed_optimum(encoding.program(), goal, binary, seconds)


def _start(places: Sequence[int], k: int, window: int | None) -> int:
    """Where a programme about the arguments of curve k begins."""
    return 0 if window is None or window >= k else places[k - window]


class _Solver:
    def __init__(self, encoding: Encoding, effort: Effort) -> None:
        self.encoding, self.program, self.effort = encoding, encoding.program(), effort

    def maximum(self, row: Floats, places: Places) -> Branched:
        """Of ``row`` times the variables at ``places``; infinite after the deadline.

        The neurons that are decided are those whose relaxed change may cost most; of these the one
        is next whose change is most wrong at the solver's point, both weighed by their importance.
        """
        if time.monotonic() > self.effort.deadline:
            return Branched(math.inf, False, 0, None)
        goal = np.zeros(len(self.program.low))
        goal[places] = row
        unstable, weights = self.encoding.unstable, self.encoding.importance(row)
        cost = [(1 - f.left) * f.change * w for f, w in zip(unstable, weights, strict=True)]
        chosen = np.argsort(-np.concatenate([np.zeros(0), *cost]), kind="stable")
        chosen = chosen[: self.effort.refine]
        signs = np.concatenate([np.zeros((0, 2), np.int64), *(f.signs for f in unstable)])

        def score(point: Floats) -> Floats:
            wrong = [f.error(point) * w for f, w in zip(unstable, weights, strict=True)]
            return np.concatenate([np.zeros(0), *wrong])[chosen].repeat(2)

        nodes, deadline = self.effort.nodes, self.effort.deadline
        return branch(
            self.program, goal, signs[chosen].ravel(), nodes=nodes, deadline=deadline, score=score
        )


def exactly(effort: Effort) -> Effort:
    """The same budget with every unstable neuron of the whole network decided."""
    return replace(effort, window=None, refine=None)
