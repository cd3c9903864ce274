"""A module with constant weights: every parametrized tensor has the value that it has now."""

import copy

from torch import nn
from torch.nn.utils import parametrize


def freeze(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parametrized tensors are constants.

    A parametrization that goes on computing in evaluation, such as a power iteration that moves its
    vector at every call, makes a module another function at every call, for which there is no
    certificate. The copy is one function; what is certified and deployed is the copy.

    Args:
        module: Any module; it is left as it was.
    """
    frozen = copy.deepcopy(module).eval()
    for part in list(frozen.modules()):
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    return frozen
