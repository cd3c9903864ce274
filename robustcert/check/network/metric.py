"""The metric of a folder, read as untrusted data, and the changes of inputs that it measures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustcert.check.network.operation import MAX_SIDE, Operation, Shape
from robustcert.check.reader import METRIC, Array, UnreadableError, fail, keys, show, text

# Maximum number of columns that are named in a sentence.
MAX_NAMED = 24
# Maximum number of characters of the name of a column.
MAX_NAME = 100
# Smallest size of a number of a metric that is not 0; the largest is its reciprocal.
MIN_SCALE = 2.0**-300


def read_metric(tensors: dict[str, Array], kind: str, shape: Shape) -> Operation:
    """S as an operation on u: ``scale`` one value for each channel, ``matrix`` one row for each.

    Args:
        tensors: Those of ``metric.safetensors``.
        kind: ``scale`` or ``matrix``, as the claim has it.
        shape: Of one input.
    """
    keys(tensors, METRIC, {kind}, set())
    values = tensors[kind]
    if values.dtype != np.float64 or not np.isfinite(values).all() or not values.any():
        raise UnreadableError(f"{METRIC}: expected finite float64 numbers, not all of them 0")
    sizes = abs(values[values != 0])
    if sizes.min() < MIN_SCALE or sizes.max() > 1 / MIN_SCALE:
        raise fail(f"{METRIC} {kind}", f"sizes from {MIN_SCALE:g} to {1 / MIN_SCALE:g}", "others")
    if kind == "scale":
        if values.shape != shape[:1] or (values < 0).any():
            raise fail(f"{METRIC} scale", f"{shape[0]} numbers of at least 0", values.shape)
        pair = {"scale": values, "shift": np.zeros_like(values)}
        return Operation("affine", "metric", "metric", {}, pair, shape, shape)
    if values.ndim != 2 or (values.shape[0],) != shape or not 1 <= values.shape[1] <= MAX_SIDE:
        raise fail(f"{METRIC} matrix", f"a matrix of {show(shape)} rows", values.shape)
    weight = {"weight": values}
    return Operation("dense", "metric", "metric", {}, weight, values.shape[1:], shape)


def read_names(names: Any, shape: Shape) -> tuple[str, ...] | None:
    """Names of the columns or channels of the claim's domain; None without any."""
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != shape[0]:
        raise fail("claim domain names", f"{shape[0]} names, or null", names)
    found = tuple(text(name, "claim domain names") for name in names)
    # In a sentence of the claim no name may begin another sentence.
    legible = all(name.isprintable() and not {";", "<"} & {*name} for name in found)
    sized = all(0 < len(name) <= MAX_NAME for name in found)
    if len({*found}) != len(found) or not (legible and sized):
        expected = f"different ones of 1 to {MAX_NAME} printable characters without ; and <"
        raise fail("claim domain names", expected, names)
    return found


def change_in_words(names: Sequence[str] | None, kind: str, values: Array, shape: Shape) -> str:
    """The changes of inputs that the claim is about, in a sentence.

    Args:
        names: Names of the columns or channels, if they have any.
        kind: ``scale`` or ``matrix``.
        values: S, ``(C,)`` or ``(D, k)``; whatever has a row of zeros cannot change.
        shape: Of one input.
    """
    what = "channel" if len(shape) > 1 else "column"
    named = names or [f"{what} {i}" for i in range(shape[0])]
    moving = (values != 0).reshape(len(values), -1).any(1)
    scales = [f" (scale {v!r})" for v in values.tolist()] if kind == "scale" else [""] * len(values)
    free = [n + s for n, s, moves in zip(named, scales, moving, strict=True) if moves]
    frozen = [name for name, moves in zip(named, moving, strict=True) if not moves]
    if kind == "scale":
        said = f"any change of {_list(free, what)} with sqrt(sum (change_i / scale_i)^2) < r"
    else:
        said = f"any change S u of {_list(free, what)} with |u| < r"
    if not frozen:
        return said
    return f"{said}; {_list(frozen, what)} {'does' if len(frozen) == 1 else 'do'} not change"


def _list(names: Sequence[str], what: str) -> str:
    if len(names) > MAX_NAMED:
        return f"{len(names)} {what}s"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
