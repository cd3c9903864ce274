"""The statements that a certificate may make, word by word, and the functions they are about."""

import math
from dataclasses import dataclass
from typing import Any

from robustcert.check.arithmetic import FLOAT32, FLOAT64, Arithmetic
from robustcert.check.network.metric import change_in_words, read_metric, read_names
from robustcert.check.network.operation import Operation, Shape
from robustcert.check.reader import METRIC, Array, fail, hex_float, items, keys, whole

# Version of the format of certificate.json.
FORMAT = 3
# How a claim names its distance: that of inputs, and that of u in a metric S.
L2_NORM, METRIC_NORM = "l2", "l2 norm of u"
# The words of a claim that can be proved, by its task and its distance; one without a task is about
# classes.
STATEMENTS = {
    "classification": {
        L2_NORM: (
            "For every sample listed as certified with radius r, every input at l2 distance less "
            "than r from the sample gets the listed prediction, as the unique largest logit."
        ),
        METRIC_NORM: (
            "For every sample x listed as certified with radius r, every input x + S u with u of "
            "l2 norm less than r gets the listed prediction, as the unique largest logit."
        ),
    },
    "regression": {
        L2_NORM: (
            "For every listed sample and every radius r of the table, the output of the network at "
            "every input at l2 distance of at most r from the sample is at least the lower and at "
            "most the upper end listed for r."
        ),
        METRIC_NORM: (
            "For every listed sample x and every radius r of the table, the output of the network "
            "at every input x + S u with u of l2 norm of at most r is at least the lower and at "
            "most the upper end listed for r."
        ),
    },
}
# What inputs are, by the kind of the domain.
INPUTS = {
    "images": "float32 values; a uint8 pixel p stands for float32(p / 255)",
    "columns": "float32 values, each in the units of its column",
}
VALUES = {
    "images": "in [0, 1]; the claim is about all of R^d, no clipping",
    "columns": "any finite ones; the claim is about all of R^d, no clipping",
}
# What radii are measured in, by the kind of the domain, or by that of the metric.
UNITS = {
    "images": "input units: distances between inputs with values in [0, 1]",
    "columns": "input units: those of the columns",
    "scale": "units of u: the change of a column or channel over its scale",
    "matrix": "units of u, which S takes to changes of inputs",
}
# The functions that a claim may be about: the real one and its deployments.
FUNCTIONS = {
    "R": "the real-valued function that the float constants of the network define",
    "F64": "the network evaluated in IEEE float64, summed in any order",
    "F32": "the network evaluated in IEEE float32, summed in any order, without TF32",
}
# The words of a claim about randomised smoothing, which is about another function and not proved.
SMOOTHED = (
    "Not proved: for every sample listed with radius r, with the confidence stated beside it, "
    "every input at l2 distance less than r from the sample gets the listed prediction from the "
    "smoothed classifier."
)
SMOOTHED_FUNCTION = (
    "the classifier that returns the most probable class of the network under Gaussian noise of "
    "standard deviation sigma, in real arithmetic"
)
# Keys of the parameters of smoothing.
SMOOTHING = {"sigma", "n0", "n", "alpha", "confidence", "seed"}
# What radii may rest on, by the names that folders give it.
PROOFS = ("lipschitz", "lipsdp", "second-order", "crown", "local-lipschitz", "quadric")
# Proofs whose radii rest on more than pairwise bounds, which this checker does not prove again.
NOT_COVERED = ("crown", "local-lipschitz")
# Keys of certificate.json that the checker reads.
CLAIMS = {"format", "robustcert", "claim", "network", "bounds", "pairwise", "summary", "files"}
# Minimum number of outputs of a network of each task.
MIN_OUTPUTS = {"classification": 2, "regression": 1}


def task_of(claim: Any) -> str:
    """The task that a claim names."""
    task = claim.get("task", "classification") if isinstance(claim, dict) else "classification"
    if not isinstance(task, str) or task not in STATEMENTS:
        raise fail("claim task", f"one of {', '.join(STATEMENTS)}", task)
    return task


def check_statement(claim: Any) -> tuple[list[Arithmetic], str]:
    """Check the statement of a claim; returns the arithmetics that it is about, and its proof."""
    smoothed = isinstance(claim, dict) and claim.get("proof") == "smoothing"
    own = {"smoothing"} if smoothed else set()
    about = {"statement", "norm", "units", "domain", "inputs", "metric", "functions"}
    keys(claim, "claim", about | own, {"proof", "task", "monotone"})
    if smoothed and claim["metric"] is not None:
        raise fail("claim metric", "null for a smoothed classifier", claim["metric"])
    norm = L2_NORM if claim["metric"] is None else METRIC_NORM
    words = SMOOTHED if smoothed else STATEMENTS[task_of(claim)][norm]
    statement = {"norm": norm, "statement": words}
    for key, known in statement.items():
        if claim[key] != known:
            raise fail(f"claim {key}", repr(known), claim[key])
    if smoothed:
        functions = keys(claim["functions"], "claim functions", {"smoothed"}, set())
        if functions["smoothed"] != SMOOTHED_FUNCTION:
            raise fail("claim functions", repr(SMOOTHED_FUNCTION), functions["smoothed"])
        return [], "smoothing"
    functions = keys(claim["functions"], "claim functions", {"R"}, {"F64", "F32"})
    for key, value in functions.items():
        if value != FUNCTIONS[key]:
            raise fail(f"claim functions {key}", repr(FUNCTIONS[key]), value)
    proof = claim.get("proof", "lipschitz")
    if not isinstance(proof, str) or proof not in PROOFS:
        raise fail("claim proof", f"one of {', '.join(PROOFS)}", proof)
    deployed = {"F64": FLOAT64, "F32": FLOAT32}
    return [arithmetic for key, arithmetic in deployed.items() if key in functions], proof


@dataclass(frozen=True)
class Space:
    """What the inputs of a claim are, and how their distance is measured.

    Attributes:
        kind: ``images`` or ``columns``.
        names: Names of the columns or channels; None if they have none.
        metric: S as an operation on u; None for the l2 distance of inputs.
        bounds: Claimed norms of S and of its compositions with the first operations.
    """

    kind: str
    names: tuple[str, ...] | None
    metric: Operation | None
    bounds: tuple[float, ...] = ()


def check_space(claim: dict[str, Any], tensors: dict[str, Array] | None, shape: Shape) -> Space:
    """Check what a claim says of inputs and distances.

    Args:
        claim: The claim.
        tensors: Those of ``metric.safetensors``; None where the claim has no metric.
        shape: Of one input.
    """
    domain = keys(claim["domain"], "claim domain", {"kind", "names", "values"}, set())
    kind = domain["kind"]
    if not isinstance(kind, str) or kind not in INPUTS:
        raise fail("claim domain kind", f"one of {', '.join(INPUTS)}", kind)
    said = {"values": (domain["values"], VALUES[kind]), "inputs": (claim["inputs"], INPUTS[kind])}
    names, metric, measured = read_names(domain["names"], shape), None, kind
    bounds: tuple[float, ...] = ()
    if claim["metric"] is not None:
        record = keys(claim["metric"], "claim metric", {"kind", "change", "bounds"}, set())
        measured = record["kind"]
        if measured not in ("scale", "matrix") or tensors is None:
            raise fail("claim metric kind", f"scale or matrix, with {METRIC}", measured)
        metric = read_metric(tensors, measured, shape)
        change = change_in_words(names, measured, tensors[measured], shape)
        listed = items(record["bounds"], "claim metric bounds")
        bounds = tuple(hex_float(bound, "claim metric bounds") for bound in listed)
        said["metric change"] = (record["change"], change)
    said["units"] = (claim["units"], UNITS[measured])
    for key, (found, known) in said.items():
        if found != known:
            raise fail(f"claim {key}", repr(known), found)
    return Space(kind, names, metric, bounds)


def status(claim: dict[str, Any], proof: str) -> str:
    """The status that radii.csv has to give a row with a positive radius."""
    if proof != "smoothing":
        return "certified"
    said = keys(claim["smoothing"], "claim smoothing", SMOOTHING, set())
    for key in ("n0", "n", "seed"):
        whole(said[key], f"claim smoothing {key}")
    for key, most in (("sigma", math.inf), ("alpha", 1), ("confidence", 1)):
        if type(said[key]) not in (int, float) or not 0 < said[key] < most:
            raise fail(f"claim smoothing {key}", f"a number between 0 and {most}", said[key])
    if said["confidence"] != 1 - said["alpha"]:
        raise fail("claim smoothing confidence", f"{1 - said['alpha']}", said["confidence"])
    return f"confidence {said['confidence']}"
