"""The statements that a certificate may make, word by word, and the functions they are about."""

import math
from typing import Any

from robustcert.check.arithmetic import FLOAT32, FLOAT64, Arithmetic
from robustcert.check.reader import fail, keys, whole

# Version of the format of certificate.json.
FORMAT = 2
# The words of every claim that can be proved.
STATEMENT = {
    "statement": (
        "For every sample listed as certified with radius r, every input at l2 distance less than r"
        " from the sample gets the listed prediction, as the unique largest logit."
    ),
    "norm": "l2",
    "units": "input units: distances between inputs with values in [0, 1]",
    "domain": "all of R^d, no clipping",
    "inputs": "float32 values; a uint8 pixel p stands for float32(p / 255)",
}
# The words of a claim about a regression.
INTERVALS = (
    "For every listed sample and every radius r of the table, the output of the network at every "
    "input at l2 distance of at most r from the sample is at least the lower and at most the upper "
    "end listed for r."
)
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
# What the claim of each task says in words of its own; one that names none is about classes.
TASKS: dict[str, dict[str, str]] = {
    "classification": {},
    "regression": {"task": "regression", "statement": INTERVALS},
}
# Minimum number of outputs of a network of each task.
MIN_OUTPUTS = {"classification": 2, "regression": 1}


def task_of(claim: Any) -> str:
    """The task that a claim names."""
    task = claim.get("task", "classification") if isinstance(claim, dict) else "classification"
    if not isinstance(task, str) or task not in TASKS:
        raise fail("claim task", f"one of {', '.join(TASKS)}", task)
    return task


def check_statement(claim: Any) -> tuple[list[Arithmetic], str]:
    """Check the statement of a claim; returns the arithmetics that it is about, and its proof."""
    smoothed = isinstance(claim, dict) and claim.get("proof") == "smoothing"
    own = {"smoothing"} if smoothed else set()
    words = TASKS[task_of(claim)]
    keys(claim, "claim", {*STATEMENT, *words, "functions", *own}, {"proof", "monotone"})
    statement = STATEMENT | words | ({"statement": SMOOTHED} if smoothed else {})
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
