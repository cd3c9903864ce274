"""A module with constant weights: every parametrized tensor has the value that it has now."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from robustcert.errors import UnsoundNetworkError
from robustcert.network.overrides import class_of


def freeze(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parametrized tensors are constants.

    A parametrization that goes on computing in evaluation, such as a power iteration that moves its
    vector at every call, makes a module another function at every call, for which there is no
    certificate. The copy is one function; what is certified and deployed is the copy.

    Args:
        module: Any module; it is left as it was.

    Raises:
        UnsoundNetworkError: the class of a parametrized module is not as torch made it.
    """
    frozen = copy.deepcopy(module).eval()
    for part in list(frozen.modules()):
        if parametrize.is_parametrized(part):
            _freeze(part)
    return frozen


def _freeze(part: nn.Module) -> None:
    # Torch's own removal changes the class, which the copy has in common with its original.
    written = class_of(part)
    if written is type(part):
        raise UnsoundNetworkError(
            f"the class {written.__qualname__} of a parametrized module was changed after torch "
            "made it: parametrize a module of the class anew"
        )
    with torch.no_grad():
        names = [*part.get_submodule("parametrizations")._modules]
        values = {name: getattr(part, name).detach().clone() for name in names}
    part.__class__ = written
    del part._modules["parametrizations"]
    for name, value in values.items():
        part.register_parameter(name, nn.Parameter(value, requires_grad=False))
