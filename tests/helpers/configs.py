"""Objects from the files of conf/, without Hydra: a new file is tested by being there."""

from collections.abc import Container, Iterable
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"


def names(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def layered_models() -> list[str]:
    """Models that are made of layers, activations and a linear head."""
    return [
        name for name in names("model") if {"width", "rank"} & {*read("model", name)} == {"width"}
    ]


def read(group: str, name: str) -> dict[str, Any]:
    """One option as plain values, nothing resolved."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def slow_but(cases: Iterable[Any], fast: Container[Any]) -> list[Any]:
    """Parameters of which those in ``fast`` belong to the fast tests."""
    return [pytest.param(case, marks=() if case in fast else pytest.mark.slow) for case in cases]


def proving_certifiers() -> list[str]:
    """Certifiers whose radii are proved and speak of the network itself."""
    return [name for name in names("certifier") if name != "smoothing"]


def build(group: str, name: str, **options: Any) -> Any:
    """The object that an option describes, with some of its values replaced."""
    return _instantiate(read(group, name) | options)


def input_shape(model: str) -> tuple[int, ...]:
    """What a model takes: an image of two channels, or the same numbers as a signal of two."""
    return (2, 64) if model in SIGNALS else (2, 8, 8)


def build_model(name: str, layer: str, activation: str, **options: Any) -> Any:
    """A small network for inputs of :func:`input_shape`, normalised, with three classes."""
    sizes: dict[str, Any] = {
        "input_shape": input_shape(name),
        "num_classes": 3,
        "width": 8,
        "depth": 2,
        "layer": build("layer", layer),
        "activation": build("activation", activation),
        "mean": [0.4, 0.6],
        "std": [0.5, 0.25],
    }
    return build("model", name, **sizes | options)


def build_any(name: str) -> Any:
    """A small network of any model, with layers of its own paper, or AOL, where it takes some."""
    if "width" not in read("model", name):
        return build("model", name, input_shape=input_shape(name), num_classes=3, rank=2)
    ranks = {"rank": 2} if "rank" in read("model", name) else {}
    layer = PUBLISHED.get(name, ("aol",))[0]
    return build_model(name, layer, "maxmin", **ranks)


def crossed(*groups: str) -> list[Any]:
    """Parameters for combinations of a layer, an activation and other groups' options.

    Models without layers are left out. In the MLP and the ConvNet every layer meets every
    activation: there a pair of them is folded and bounded next to one another, dense and
    convolutional, strided or not. The other models put the same pairs into other places, and a
    bound is composed operation by operation, so they meet every layer with MaxMin, and every
    activation with one layer of their own papers; a third crossing of all with all would repeat
    what the two have shown. Of all these, the fast tests are those with free layers or with MaxMin
    in the MLP and the ConvNet, and those with MaxMin and published layers in the others.
    """
    found = []
    options_of = {"model": layered_models()}
    for chosen in product(*(options_of.get(group, names(group)) for group in groups)):
        options = {"activation": "maxmin", **dict(zip(groups, chosen, strict=True))}
        model, layer = options.get("model"), options["layer"]
        sorted_pairs = options["activation"] == "maxmin"
        fast = layer == "unconstrained" or sorted_pairs
        if model in PUBLISHED:
            if not sorted_pairs and layer != PUBLISHED[model][0]:
                continue
            fast = sorted_pairs and layer in PUBLISHED[model]
        found.append(pytest.param(*chosen, marks=() if fast else pytest.mark.slow))
    return found


# Models of signals (C, T).
SIGNALS = ("convnet1d",)
# Layers of the other models' own papers, or some of them.
PUBLISHED = {
    "convnet1d": ("aol", "bcop", "cayley_conv"),
    "lip_convnet": ("aol",),
    "lipnext": ("manifold",),
    "liresnet": ("lires", "chord", "bronet"),
    "residual_mlp": ("unconstrained", "cholesky_residual"),
}


def _instantiate(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    arguments = {k: _instantiate(v) for k, v in node.items() if k not in ("_target_", "_partial_")}
    module, name = node["_target_"].rsplit(".", 1)
    target = getattr(import_module(module), name)
    return partial(target, **arguments) if node.get("_partial_") else target(**arguments)
