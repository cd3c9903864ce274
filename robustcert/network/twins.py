"""Classes of other packages whose functions are ours, in other words.

A class that chooses by comparisons, or takes roots of sums of squares, is no composition of what
torch's functions are known for, but may be one function that is known here. Its twin is a module
that computes the same by such functions; it is captured in its place, and compared with the module
like everything that is captured (:mod:`robustcert.network.agreement`).
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from robustcert.network.overrides import class_of

# Packages, and the module whose ``state_twins`` is called when one of their classes is met.
PACKAGES = dict.fromkeys(("deel", "orthogonium"), "robustcert.activations.peers")
_TWINS: dict[type[nn.Module], tuple[Any, Callable[[Any], nn.Module]]] = {}


def state_twin(cls: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Give a class its twin, which speaks for the ``forward`` that it has when this is first said.

    Args:
        cls: The class; subclasses are others.
        make: From a module to its twin, which may hold the module's children.
    """
    _TWINS.setdefault(cls, (cls.forward, make))


def with_twins(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module, changed in place, with twins of its parts, or its own twin.

    Args:
        module: A copy that nobody else holds.
        dtype: Precision of the twins' constants.
    """
    made: dict[int, nn.Module] = {}

    def twin(part: nn.Module) -> nn.Module:
        if id(part) not in made:
            make = _maker(part)
            made[id(part)] = part if make is None else make(part).to(dtype).eval()
            for name, child in made[id(part)]._modules.items():
                if child is not None:
                    made[id(part)]._modules[name] = twin(child)
        return made[id(part)]

    return twin(module)


def has_twin(module: nn.Module) -> bool:
    """Whether a module or one inside it has a twin."""
    return any(_maker(part) is not None for part in module.modules())


def _maker(module: nn.Module) -> Callable[[Any], nn.Module] | None:
    cls = class_of(module)
    place = PACKAGES.get(cls.__module__.partition(".")[0])
    if place is None:
        return None
    import_module(place).state_twins()
    forward, make = _TWINS.get(cls, (None, None))
    return make if cls.forward is forward else None
