r"""Norms in a metric S: of S, and of S followed by the first operations of the network.

The ball of radius r around x is :math:`\{x + S u : |u| < r\}`. With h_k the first k operations,
the constant of :math:`u \mapsto h_k(x + S u)` is at most the norm of the matrix of h_k times S
while h_k is linear, and the next proved norm times more with every operation after that.

The composition is computed in float64 as a single operation. Let M be the exact composition so far,
M~ the computed one with :math:`|M - M~| \le d`, A the next map and P the computed product of A and
M~. Then A M is within :math:`|A| d + e` of P, e being the rounding of the product: two unit
roundoffs of :math:`\lVert |P| \rVert` where one factor is diagonal, and :math:`\gamma_{n+1}
|A|_F |M~|_F` where none is.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from robustcert.check.arithmetic import FLOAT64, UNIT
from robustcert.check.effort import Effort, NotTriedError
from robustcert.check.fixed_point import Floats
from robustcert.check.forward.linear import absolute_norm
from robustcert.check.network.operation import Operation
from robustcert.check.norms.convolution import prove_convolution
from robustcert.check.norms.dense import frobenius, prove_dense
from robustcert.check.norms.scalars import UNDERFLOW, round_up
from robustcert.check.reader import fail
from robustcert.check.report import Report


@dataclass(frozen=True)
class Metric:
    """A metric S, with proved constants.

    Attributes:
        operation: S as an operation: a dense one, or scales of channels.
        constants: Upper bounds on the constants of u to the output of the first k operations at
            x + S u, one for each k from 0 on.
    """

    operation: Operation
    constants: tuple[float, ...]


@dataclass(frozen=True)
class _Composed:
    # Linear operations as a single one, and a bound on the norm of what rounding changed.
    operation: Operation
    loss: Fraction

    def has_norm(self, bound: Fraction, effort: Effort) -> bool:
        """Whether the norm of the exact composition is proved to be at most a number.

        Raises:
            NotTriedError: it is too large, or the time too short, to try.
        """
        limit = bound - self.loss
        if limit <= 0:
            return False
        if self.operation.kind == "affine":
            return _largest(self.operation.wide("scale")) <= limit
        if self.operation.kind == "dense":
            return bool(prove_dense(self.operation.wide("weight"), limit, effort).method)
        return bool(prove_convolution(self.operation, limit, effort).method)


def prefixes(
    metric: Operation,
    operations: Sequence[Operation],
    claimed: Sequence[float],
    proved: Mapping[str, Fraction],
    effort: Effort,
    report: Report,
) -> list[Fraction]:
    """The constants of :class:`Metric`, as exact numbers.

    Args:
        metric: S.
        operations: Operations of the network.
        claimed: Norms of S and of its compositions, which are proved here.
        proved: Proved norms of the operations by path.
        effort: How long may be tried; what does not fit is noted as not tried.
        report: Where to note the outcome.
    """
    parts = list(_compose(metric, operations))
    if len(claimed) != len(parts):
        raise fail("claim metric bounds", f"{len(parts)} numbers", len(claimed))
    found: list[Fraction] = []
    for k, (part, bound) in enumerate(zip(parts, map(Fraction, claimed), strict=True)):
        by_product = k > 0 and found[k - 1] * proved[operations[k - 1].path] <= bound
        what = f"claim metric bounds: {claimed[k]!r} is not proved to be an upper bound"
        found.append(bound)
        try:
            report.expect(by_product or part.has_norm(bound, effort), what)
        except NotTriedError as error:
            report.untried.append(f"claim metric bounds: {claimed[k]!r}: {error}")
    for operation in operations[len(found) - 1 :]:
        found.append(round_up(found[-1] * proved[operation.path]))
    report.note("metric", f"norms of S and of {len(parts) - 1} compositions with it")
    return found


def composition(
    metric: Operation, operations: Sequence[Operation]
) -> tuple[Operation, Fraction] | None:
    """S followed by all operations as a single one, with its loss, if they are linear."""
    parts = list(_compose(metric, operations))
    if len(parts) != len(operations) + 1:
        return None
    return parts[-1].operation, parts[-1].loss


def affine_head(
    metric: Operation, operations: Sequence[Operation]
) -> tuple[Floats, Fraction] | None:
    """The head's matrix after S with its loss, if nothing but affine maps is before the head."""
    whole = composition(metric, operations)
    if operations[-1].kind != "dense" or whole is None:
        return None
    return whole[0].wide("weight"), whole[1]


def composed(metric: Operation, operations: Sequence[Operation]) -> list[Operation]:
    """The operations whose norms :func:`prefixes` proves."""
    return [part.operation for part in _compose(metric, operations)]


def _compose(metric: Operation, operations: Sequence[Operation]) -> Iterator[_Composed]:
    found: _Composed | None = _Composed(metric, Fraction(0))
    for operation in operations:
        assert found is not None
        yield found
        found = _then(found, operation)
        if found is None:
            return
        if operation.kind in ("dense", "convolution"):
            break
    if found is not None:
        yield found


def _then(before: _Composed, operation: Operation) -> _Composed | None:
    diagonal = before.operation.kind == "affine"
    inner = before.operation.wide("scale" if diagonal else "weight")
    if operation.kind == "flatten":
        scale = inner.repeat(math.prod(operation.input_shape) // len(inner)) if diagonal else inner
        return _single(before, scale, before.loss)
    if operation.kind == "affine":
        scale = operation.wide("scale")
        carried = _largest(scale) * before.loss
        product = inner * scale if diagonal else inner * scale[:, None]
        return _rounded(_single(before, product, carried))
    if operation.kind == "dense" and len(operation.input_shape) == 1:
        weight = operation.wide("weight")
        carried = Fraction(absolute_norm(operation)) * before.loss
        if diagonal:
            return _rounded(_Composed(_dense(weight * inner), carried))
        gamma = Fraction(FLOAT64.gamma(weight.shape[1] + 1))
        error = gamma * frobenius(weight) * frobenius(inner) + UNDERFLOW
        return _Composed(_dense(weight @ inner), carried + error)
    if operation.kind == "convolution" and diagonal:
        weight = operation.wide("weight")
        groups = operation.options["groups"]
        rows = weight.reshape(groups, -1, *weight.shape[1:])
        product = (rows * inner.reshape(groups, 1, -1, 1, 1)).reshape(weight.shape)
        carried = Fraction(absolute_norm(operation)) * before.loss
        return _rounded(_Composed(replace(operation, tensors={"weight": product}), carried))
    return None


def _single(before: _Composed, values: Floats, loss: Fraction) -> _Composed:
    # The same kind of operation with other values.
    if before.operation.kind == "dense":
        return _Composed(_dense(values), loss)
    tensors = {"scale": values, "shift": np.zeros_like(values)}
    return _Composed(replace(before.operation, tensors=tensors), loss)


def _dense(weight: Floats) -> Operation:
    shape = weight.shape
    return Operation("dense", "", "metric", {}, {"weight": weight}, shape[1:], shape[:1])


def _rounded(product: _Composed) -> _Composed:
    # Every entry was rounded once, and may have been lost to underflow.
    if product.operation.kind == "affine":
        size = _largest(product.operation.wide("scale"))
    else:
        size = Fraction(absolute_norm(product.operation))
    return replace(product, loss=product.loss + 2 * Fraction(UNIT) * size + UNDERFLOW)


def _largest(scale: Floats) -> Fraction:
    return Fraction(float(abs(scale).max()))
