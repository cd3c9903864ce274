"""From a module to its operations: constraints folded into constant weights.

A module is known if torch defines it and it is listed here, or if the class that defines its
``forward`` also defines ``fold``. Everything else is captured for one input shape, by what it calls
(:mod:`robustcert.network.capture`), or refused: a certificate cannot assume a constant of 1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from robustcert.errors import UnknownLipschitz, UnsoundNetworkError
from robustcert.network.activation import Activation, Slopes
from robustcert.network.capture import capture
from robustcert.network.input_space import IMAGES, InputSpace
from robustcert.network.linear import Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation, Shape, constant, join_path
from robustcert.network.overrides import class_of, override_of, own_method


def fold(module: nn.Module) -> list[Operation]:
    """The plain operations of a module, with its constraints folded into constant weights.

    A module's own ``fold`` method calls this for its children, usually through
    :func:`fold_children`.

    Args:
        module: Any module made of known ones; read in evaluation mode and left as it was.

    Raises:
        UnknownLipschitz: the module, or one inside it, is not known.
        UnsoundNetworkError: a weight is NaN or infinite.
    """
    refuse_overrides(module)
    _refuse_cached_weights()
    with torch.no_grad(), full_precision(module), _evaluating(module):
        handler = _TORCH_FOLDS.get(class_of(module))
        if handler is not None:
            return handler(module)
        own = own_method(module, "fold")
        if own is None:
            raise unknown(module, "the class that defines its forward does not define fold()")
        folded = own()
        return [folded] if isinstance(folded, Operation) else list(folded)


def _refuse_cached_weights() -> None:
    if getattr(parametrize, "_cache_enabled", 0):
        # Torch keeps weights by the module that was parametrized first, of which others are copies.
        raise UnsoundNetworkError(
            "torch.nn.utils.parametrize.cached() is in force, under which a deep copy of a "
            "parametrized module has the weight of the original: leave it before folding"
        )


def fold_children(*named: tuple[str, nn.Module]) -> list[Operation]:
    """Operations of children that are applied in turn, each under its name."""
    operations = []
    for name, child in named:
        try:
            folded = fold(child)
        except UnsoundNetworkError as error:
            error.path = join_path(name, error.path)
            raise
        operations += [replace(op, name=join_path(name, op.name)) for op in folded]
    return operations


def fold_network(module: nn.Module, input_shape: Shape, space: InputSpace = IMAGES) -> PlainNetwork:
    """The folded network of a classifier for inputs of shape ``(N, *input_shape)``."""
    return PlainNetwork(tuple(fold_for(module, input_shape)), tuple(input_shape), space)


def fold_for(module: nn.Module, input_shape: Shape) -> list[Operation]:
    """The operations of a module on inputs of shape ``(N, *input_shape)``.

    A module that :func:`fold` knows gives them itself; any other is captured
    (:mod:`robustcert.network.capture`).

    Raises:
        UnknownLipschitz: what it computes is not known; the line is named.
        UnsoundNetworkError: a weight is NaN or infinite, or the module does not run.
    """
    if _states_operations(module):
        return fold(module)
    _refuse_cached_weights()
    return capture(module, input_shape, fold)


def _states_operations(module: nn.Module) -> bool:
    cls = class_of(module)
    if cls is nn.Sequential:
        return all(_states_operations(child) for _, child in child_modules(module))
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return False
    if isinstance(module, nn.Conv2d) and (
        isinstance(module.padding, str) or module.padding_mode != "zeros"
    ):
        return False
    return cls in _TORCH_FOLDS or own_method(module, "fold") is not None


def child_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children in the order of application, also those that are used twice."""
    # Not named_children(), which leaves out a module that is used a second time.
    return [(name, child) for name, child in module._modules.items() if child is not None]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [m for m in module.modules() if m.training]
    # Within another fold there are none.
    if training:
        module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


def unknown(module: nn.Module, why: str) -> UnknownLipschitz:
    """The error for a module whose constant is not known."""
    cls = class_of(module)
    return UnknownLipschitz(
        f"no Lipschitz bound is known for {cls.__module__}.{cls.__qualname__}: {why}. "
        "A certificate cannot assume 1"
    )


def full_precision(module: nn.Module) -> torch.autocast:
    """A context without autocast on the module's device."""
    # Constraints, norms and distances of rows need all digits: no autocast.
    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    return torch.autocast(device, enabled=False)


def refuse_overrides(module: nn.Module) -> None:
    """Refuse a module whose output is not what its class computes.

    Not while a training step is compiled, of which nothing is proved; folding the network comes
    before and after.
    """
    if torch.compiler.is_compiling():
        return
    if reason := override_of(module):
        raise unknown(module, reason)


def _fold_linear(module: Any) -> list[Operation]:
    bias = None if module.bias is None else constant(module.bias)
    return [Dense(constant(module.weight), bias)]


def _fold_conv(module: Any) -> list[Operation]:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        what = f"padding={module.padding!r}, padding_mode={module.padding_mode!r}"
        raise unknown(module, f"only zero padding given as a number is covered, not {what}")
    return [
        Convolution(
            constant(module.weight),
            None if module.bias is None else constant(module.bias),
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
        )
    ]


def _fold_flatten(module: Any) -> list[Operation]:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise unknown(module, "only Flatten(start_dim=1, end_dim=-1) is covered")
    return [Flatten()]


_TORCH_FOLDS: dict[type[nn.Module], Callable[[Any], list[Operation]]] = {
    nn.Sequential: lambda module: fold_children(*child_modules(module)),
    nn.Linear: _fold_linear,
    nn.Conv2d: _fold_conv,
    nn.Flatten: _fold_flatten,
    nn.ReLU: lambda module: [Activation(torch.relu, {}, lipschitz=1.0, slopes=Slopes(0.0, 1.0))],
    nn.Identity: lambda module: [],
}
