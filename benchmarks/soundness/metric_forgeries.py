"""Forgeries of the metric of a certificate folder: what S is, what is said of it, and of columns.

The networks are :data:`benchmarks.soundness.forgeries.METRICS`. A smaller S makes a weaker claim,
which is true as well, so that a forger makes S larger: longer scales, and frozen columns that move.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.soundness.forgeries import METRICS, Corruption, Folder
from robustcert.check import change_in_words

EVERY = " ".join(METRICS)
SCALES = " ".join(kind for kind in METRICS if not kind.startswith("mahalanobis"))
MATRICES = " ".join(kind for kind in METRICS if kind.startswith("mahalanobis"))
# Kinds with a column or channel that is frozen.
FROZEN = " ".join(kind for kind in METRICS if kind not in ("scaled-maxmin", "scaled-quadric"))


# The corruptions, by kind of network and name.
OF_METRICS: dict[tuple[str, str], Corruption] = {}


def somewhere(kinds: str, name: str) -> Callable[[Corruption], Corruption]:
    """A corruption of some of the networks."""

    def add(function: Corruption) -> Corruption:
        for kind in kinds.split():
            OF_METRICS[kind, f"{name}, in a metric"] = function
        return function

    return add


def say_again(folder: Folder) -> None:
    """Put the sentence right."""
    for kind, values in folder.metric.items():
        shape = tuple(folder.claim["network"]["input_shape"])
        names = folder.claim["claim"]["domain"]["names"]
        folder.claim["claim"]["metric"] |= {
            "kind": kind,
            "change": change_in_words(names, kind, values, shape),
        }


def metric(kinds: str, name: str) -> Callable[[Corruption], Corruption]:
    """A corruption of the metric, after which the sentence is right again."""

    def add(function: Corruption) -> Corruption:
        def corrupt(folder: Folder) -> None:
            function(folder)
            say_again(folder)

        return somewhere(kinds, name)(corrupt)

    return add


for times in (1.001, 1.1, 10.0, 1e6):

    @metric(EVERY, f"a metric times {times:g}")
    def _(folder: Folder, times: float = times) -> None:
        for values in folder.metric.values():
            values *= times


@metric(EVERY, "a larger metric, under the old digest")
def _(folder: Folder) -> None:
    for values in folder.metric.values():
        values *= 2
    folder.claim["network"]["digest"] = "0" * 64
    folder.kept_digest = "0" * 64


for slack in (1e-6, 0.5, 1.0):

    @metric(EVERY, f"a bound of the metric lowered by {slack:g}")
    def _(folder: Folder, slack: float = slack) -> None:
        bounds = folder.claim["claim"]["metric"]["bounds"]
        bounds[-1] = (float.fromhex(bounds[-1]) * (1 - slack)).hex()


@metric(EVERY, "a bound of the metric too few")
def _(folder: Folder) -> None:
    folder.claim["claim"]["metric"]["bounds"].pop()


@metric(FROZEN, "a frozen column that moves")
def _(folder: Folder) -> None:
    for values in folder.metric.values():
        still = np.flatnonzero(~(values != 0).reshape(len(values), -1).any(1))
        values[still[0]] = 30.0


@metric(MATRICES, "a matrix with one direction more")
def _(folder: Folder) -> None:
    matrix = folder.metric["matrix"]
    folder.metric["matrix"] = np.concatenate([matrix, np.full((len(matrix), 1), 9.0)], axis=1)


@metric(SCALES, "a negative scale")
def _(folder: Folder) -> None:
    folder.metric["scale"][0] *= -1


for label, value in {"NaN": np.nan, "infinity": np.inf}.items():

    @somewhere(EVERY, f"a metric with {label}")
    def _(folder: Folder, value: float = value) -> None:
        for values in folder.metric.values():
            values.flat[0] = value


@somewhere(EVERY, "a metric of zeros")
def _(folder: Folder) -> None:
    for values in folder.metric.values():
        values *= 0


@somewhere(EVERY, "a metric in float32")
def _(folder: Folder) -> None:
    folder.metric = {k: v.astype(np.float32) for k, v in folder.metric.items()}


@somewhere(EVERY, "a metric of another shape")
def _(folder: Folder) -> None:
    folder.metric = {k: np.concatenate([v, v]) for k, v in folder.metric.items()}


@somewhere(SCALES, "scales that are called a matrix")
def _(folder: Folder) -> None:
    folder.metric = {"matrix": np.diag(folder.metric["scale"])}


@somewhere(MATRICES, "a matrix that is called scales")
def _(folder: Folder) -> None:
    folder.claim["claim"]["metric"]["kind"] = "scale"


@somewhere(EVERY, "two metrics")
def _(folder: Folder) -> None:
    folder.metric["more"] = np.ones(3)


@somewhere(EVERY, "a metric that the claim does not name")
def _(folder: Folder) -> None:
    folder.claim["claim"]["metric"] = None


@somewhere(EVERY, "the l2 distance of inputs in place of the metric")
def _(folder: Folder) -> None:
    claim = folder.claim["claim"]
    claim["statement"] = (
        "For every sample listed as certified with radius r, every input at l2 distance less than r"
        " from the sample gets the listed prediction, as the unique largest logit."
    )
    claim |= {"metric": None, "norm": "l2"}
    images = claim["domain"]["kind"] == "images"
    claim["units"] = (
        "input units: distances between inputs with values in [0, 1]"
        if images
        else "input units: those of the columns"
    )
    del folder.claim["files"]["metric.safetensors"]
    (folder.path / "metric.safetensors").unlink()
    folder.metric = {}
    for row in range(len(folder.rows)):
        folder.set_radius(row, float.fromhex(folder.rows[row][6]) * 40)
    folder.recount()


for label, change in {
    "other units": {"units": "input units"},
    "another norm": {"norm": "l2"},
    "the statement of plain balls": {"statement": "every input at l2 distance less than r"},
    "no change": {"metric": {"kind": "scale", "change": "any change at all", "bounds": []}},
    "a sentence less": {"metric": {"kind": "scale", "bounds": []}},
    "columns of images": {"domain": {"kind": "pictures", "names": None, "values": "any"}},
    "a domain of words": {"domain": "all of R^d, no clipping"},
}.items():

    @somewhere(EVERY, f"a claim with {label}")
    def _(folder: Folder, change: dict[str, Any] = change) -> None:
        folder.claim["claim"] |= change


for label, names in {
    "too few": ["a"],
    "the same twice": ["a"] * 6,
    "empty": [""] * 6,
    "long": ["n" * 1000, "b", "c", "d", "e", "f"],
    "numbers": [1, 2, 3, 4, 5, 6],
    "others": ["a", "b", "c", "d", "e", "f"],
}.items():

    @somewhere("scaled mahalanobis", f"names that are {label}")
    def _(folder: Folder, names: list[Any] = names) -> None:
        folder.claim["claim"]["domain"]["names"] = names


@somewhere("scaled mahalanobis", "columns that are called images")
def _(folder: Folder) -> None:
    claim = folder.claim["claim"]
    claim["domain"] |= {
        "kind": "images",
        "values": "in [0, 1]; the claim is about all of R^d, no clipping",
    }
    claim["inputs"] = "float32 values; a uint8 pixel p stands for float32(p / 255)"


@somewhere("scaled-convnet scaled-maxmin", "images that are called columns")
def _(folder: Folder) -> None:
    claim = folder.claim["claim"]
    claim["domain"] |= {
        "kind": "columns",
        "values": "any finite ones; the claim is about all of R^d, no clipping",
    }
    claim["inputs"] = "float32 values, each in the units of its column"


@somewhere("scaled mahalanobis", "columns with a missing value")
def _(folder: Folder) -> None:
    folder.samples["inputs"][3, 0] = np.nan


@somewhere("scaled mahalanobis", "columns of bytes")
def _(folder: Folder) -> None:
    folder.samples["inputs"] = folder.samples["inputs"].clip(0, 255).astype(np.uint8)
