"""What a certificate says of its inputs and of their distance, written and restored."""

import re
from typing import Any

import torch
from torch import Tensor

from robustcert.check import (
    INPUTS,
    METRIC_NORM,
    UNITS,
    VALUES,
    Space,
    change_in_words,
)
from robustcert.network.input_space import InputSpace, Kind, factor, scaling
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork, composed_bounds


def metric_tensors(space: InputSpace) -> dict[str, Tensor]:
    """S as ``metric.safetensors`` holds it: ``scale`` or ``matrix``, float64; empty without one."""
    metric = space.metric
    if metric is None:
        return {}
    if isinstance(metric, Dense):
        return {"matrix": metric.weight.cpu().contiguous()}
    return {"scale": metric.scale.cpu().contiguous()}


def in_short(change: str) -> str:
    """The words of a change with four digits of each scale; a claim has them all."""
    return re.sub(r"\(scale ([^)]+)\)", lambda found: f"(scale {float(found[1]):.4g})", change)


def units_of(space: InputSpace) -> str:
    """What radii are measured in."""
    return UNITS[next(iter(metric_tensors(space)), space.kind)]


def change_of(network: PlainNetwork) -> str | None:
    """The changes of inputs that radii are about, in a sentence; None for those of any kind."""
    for kind, values in metric_tensors(network.space).items():
        shape = tuple(network.input_shape)
        return change_in_words(network.space.names, kind, values.numpy(), shape)
    return None


def space_record(network: PlainNetwork) -> dict[str, Any]:
    """The entries of a claim about inputs and their distance."""
    space = network.space
    kind = next(iter(metric_tensors(space)), None)
    return {
        "norm": "l2" if kind is None else METRIC_NORM,
        "metric": None if kind is None else _metric_record(network, kind),
        "units": units_of(space),
        "domain": {
            "kind": space.kind,
            "names": None if space.names is None else list(space.names),
            "values": VALUES[space.kind],
        },
        "inputs": INPUTS[space.kind],
    }


def _metric_record(network: PlainNetwork, kind: str) -> dict[str, Any]:
    bounds = [bound.hex() for bound in composed_bounds(network.owned())]
    return {"kind": kind, "change": change_of(network), "bounds": bounds}


def restore_space(space: Space) -> InputSpace:
    """The space of inputs that the checker has read."""
    metric = None
    if space.metric is not None:
        build, key = (factor, "weight") if space.metric.kind == "dense" else (scaling, "scale")
        # Copied: the checker's arrays are views of the file that cannot be written to.
        values = space.metric.tensors[key]
        metric = build(torch.from_numpy(values.astype(values.dtype.newbyteorder("="))))
    kind: Kind = "columns" if space.kind == "columns" else "images"
    return InputSpace(kind, space.names, metric)
