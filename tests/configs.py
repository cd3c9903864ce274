"""Objects from the files of conf/, without Hydra: a new file is tested by being there."""

from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"


def names(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def read(group: str, name: str) -> dict[str, Any]:
    """One option as plain values, nothing resolved."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def proving_certifiers() -> list[str]:
    """Certifiers whose radii are proved and speak of the network itself."""
    return [name for name in names("certifier") if build("certifier", name).deterministic]


def build(group: str, name: str, **options: Any) -> Any:
    """The object that an option describes, with some of its values replaced."""
    return _instantiate(read(group, name) | options)


def build_model(name: str, layer: str, activation: str, **options: Any) -> Any:
    """A small network for inputs of shape (2, 8, 8), normalised, with three classes."""
    sizes: dict[str, Any] = {
        "input_shape": (2, 8, 8),
        "num_classes": 3,
        "width": 8,
        "depth": 2,
        "layer": build("layer", layer),
        "activation": build("activation", activation),
        "mean": [0.4, 0.6],
        "std": [0.5, 0.25],
    }
    return build("model", name, **sizes | options)


def crossed(*groups: str) -> list[Any]:
    """Parameters for every combination of a layer, an activation and other groups' options.

    In the fast tests every layer meets MaxMin, and every activation meets unconstrained layers, in
    the small models; the others meet MaxMin with the layers that they were published with.
    """
    found = []
    for chosen in product(*map(names, groups)):
        options = {"activation": "maxmin", **dict(zip(groups, chosen, strict=True))}
        sorted_pairs = options["activation"] == "maxmin"
        plain = options["layer"] == "unconstrained" or sorted_pairs
        if options.get("model") in PUBLISHED:
            plain = sorted_pairs and options["layer"] in PUBLISHED[options["model"]]
        found.append(pytest.param(*chosen, marks=() if plain else pytest.mark.slow))
    return found


# Layers of the larger models' own papers, or one of them.
PUBLISHED = {
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
