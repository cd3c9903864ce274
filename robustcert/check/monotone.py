r"""Directions in which a network never falls or never rises, proved from its operations.

Where the operations are a sum of two branches, g and a dense map w.x of one output each, and K is
the proved constant of g, moving feature i up by t changes g by at least -K t and w.x by w_i t: the
sum never falls if w_i >= K, and never rises if w_i <= -K. A dense map with the rows (-a) and a,
a > 0, may follow: then logit 1 minus logit 0 is 2 a times the sum. An affine map with a positive
scale for every feature may come first: it keeps their order. This is about the real function.
"""

import math
from fractions import Fraction
from typing import Any

from robustcert.check.network.operation import Operation
from robustcert.check.norms.scalars import round_up
from robustcert.check.reader import fail, items, keys, whole
from robustcert.check.report import Report

# The words of a claim about directions.
MONOTONE = (
    "For every feature with the direction 1 or -1, function R never falls or never rises when this "
    "feature grows and the others stay, anywhere in R^d; with two logits this is said of the "
    "second minus the first."
)


def leave_uncovered(claim: dict[str, Any], report: Report) -> None:
    """Say that claimed directions were not proved here."""
    if "monotone" in claim["claim"]:
        report.uncovered.append("monotone directions are not re-proved by the verified checker")


def check_directions(
    claim: dict[str, Any],
    operations: tuple[Operation, ...],
    proved: dict[str, Fraction],
    report: Report,
) -> None:
    """Prove the directions that a claim names, if it names any.

    Args:
        claim: certificate.json, whose ``claim.monotone.directions`` has +1, -1 or 0 for every
            feature.
        operations: Operations, applied in turn.
        proved: Proved norms by path.
        report: Where to note the outcome.
    """
    if "monotone" not in claim["claim"]:
        return
    claimed = keys(claim["claim"]["monotone"], "claim monotone", {"statement", "directions"}, set())
    if claimed["statement"] != MONOTONE:
        raise fail("claim monotone statement", repr(MONOTONE), claimed["statement"])
    listed = items(claimed["directions"], "claim monotone directions")
    said = [whole(sign, "claim monotone directions", -1, 1) for sign in listed]
    features = math.prod(operations[0].input_shape)
    if len(said) != features:
        raise fail("claim monotone", f"{features} directions", len(said))
    found = _slopes(operations, proved)
    report.expect(found is not None, "claim monotone: the network has no such form")
    if found is None:
        return
    constant, slopes = found
    for feature, (sign, slope) in enumerate(zip(said, slopes, strict=True)):
        enough = sign == 0 or sign * slope >= constant
        report.expect(enough, f"claim monotone: direction {sign} of feature {feature} is unproved")
    marked = sum(map(abs, said))
    report.note("monotone", f"{marked} of {features} features, for function R, in rationals")


def _slopes(
    operations: tuple[Operation, ...], proved: dict[str, Fraction]
) -> tuple[Fraction, list[Fraction]] | None:
    # The constant of g, and w; None for networks of another form.
    start = 1 if len(operations) > 1 and _is_increasing(operations[0]) else 0
    first, *rest = operations[start:]
    if first.kind != "sum" or len(first.branches) != 2 or first.output_shape != (1,):
        return None
    branch, line = first.branches
    if len(line) != 1 or line[0].kind != "dense" or len(first.input_shape) != 1:
        return None
    if rest and not (len(rest) == 1 and _is_difference(rest[0])):
        return None
    constant = Fraction(1)
    for operation in branch:
        constant = round_up(constant * proved[operation.path])
    return constant, [Fraction(float(w)) for w in line[0].wide("weight")[0]]


def _is_increasing(operation: Operation) -> bool:
    # Whether an operation scales every feature by a positive number of its own.
    return operation.kind == "affine" and bool((operation.wide("scale") > 0).all())


def _is_difference(operation: Operation) -> bool:
    # Whether an operation has the rows (-a) and (a), a > 0, and no bias.
    if operation.kind != "dense" or "bias" in operation.tensors:
        return False
    weight = operation.wide("weight")
    return weight.shape == (2, 1) and float(weight[1, 0]) == -float(weight[0, 0]) > 0
