"""The contract between a module and its certificate: folding, estimates, bounds.

A module is known if torch defines it and it is listed here, or if the class that defines its
``forward`` also defines ``fold`` (its plain operations), beside it. Everything else is refused: a
certificate cannot assume a constant of 1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustcert import plain
from robustcert.errors import UnknownLipschitz, UnsoundNetworkError
from robustcert.margins import row_distances
from robustcert.overrides import class_of, override_of, own_method
from robustcert.plain import Operation, PlainNetwork, Shape


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
    _refuse_overrides(module)
    if getattr(parametrize, "_cache_enabled", 0):
        # Torch keeps weights by the module that was parametrized first, of which others are copies.
        raise UnsoundNetworkError(
            "torch.nn.utils.parametrize.cached() is in force, under which a deep copy of a "
            "parametrized module has the weight of the original: leave it before folding"
        )
    with torch.no_grad(), _full_precision(module), _evaluating(module):
        handler = _TORCH_FOLDS.get(class_of(module))
        if handler is not None:
            return handler(module)
        own = own_method(module, "fold")
        if own is None:
            raise _unknown(module, "the class that defines its forward does not define fold()")
        folded = own()
        return [folded] if isinstance(folded, Operation) else list(folded)


def fold_children(*named: tuple[str, nn.Module]) -> list[Operation]:
    """Operations of children that are applied in turn, each under its name."""
    operations = []
    for name, child in named:
        try:
            folded = fold(child)
        except UnsoundNetworkError as error:
            error.path = plain.join_path(name, error.path)
            raise
        operations += [replace(op, name=plain.join_path(name, op.name)) for op in folded]
    return operations


def fold_network(module: nn.Module, input_shape: Shape) -> PlainNetwork:
    """The plain network of a classifier for inputs of shape ``(N, *input_shape)``."""
    return PlainNetwork(tuple(fold(module)), tuple(input_shape))


def lipschitz_bound(module: nn.Module, input_shape: Shape) -> float:
    r"""Upper bound on the :math:`\ell_2` Lipschitz constant of a module, rounding included."""
    return plain.sequence_bound(fold(module), tuple(input_shape))


def lipschitz_estimate(module: nn.Module) -> Tensor:
    r"""Differentiable estimate of the :math:`\ell_2` Lipschitz constant, for training only.

    It may be below the true constant (power iteration) or rest on a constraint that holds up to
    rounding; a certificate uses :func:`lipschitz_bound`.

    Returns:
        A scalar tensor.

    Raises:
        UnknownLipschitz: the module, or one inside it, is not known.
    """
    _refuse_overrides(module)
    own = own_method(module, "lipschitz_estimate") or own_method(module, "lipschitz_bound")
    cls = class_of(module)
    with _full_precision(module):
        if own is not None:
            return _scalar(own())
        if cls is nn.Sequential:
            return estimate_children(*_children(module))
        if cls is nn.Linear:
            return torch.linalg.matrix_norm(module.weight, 2)
    if cls in (nn.ReLU, nn.Flatten, nn.Identity):
        return _scalar(1.0)
    raise _unknown(module, "the class that defines its forward does not define lipschitz_estimate")


def estimate_children(*named: tuple[str, nn.Module]) -> Tensor:
    """Product of the estimates of children that are applied in turn."""
    product = _scalar(1.0)
    for name, child in named:
        try:
            # A constant lives on the CPU; as a scalar it combines with any device.
            product = lipschitz_estimate(child) * product
        except UnsoundNetworkError as error:
            error.path = plain.join_path(name, error.path)
            raise
    return product


def pairwise_lipschitz_estimate(module: nn.Module) -> Tensor:
    r"""Differentiable estimates of :math:`K_{ij} = L_{backbone} \lVert w_i - w_j \rVert_2`.

    Args:
        module: A model of this package, or a ``torch.nn.Sequential`` that ends in a dense layer.

    Returns:
        Shape ``(C, C)``, zero on the diagonal.

    Raises:
        UnknownLipschitz: the module, or one inside it, is not known.
    """
    _refuse_overrides(module)
    own = own_method(module, "pairwise_lipschitz_estimate")
    children = _children(module) if class_of(module) is nn.Sequential else []
    weight = getattr(children[-1][1], "weight", None) if children else None
    with _full_precision(module):
        if own is not None:
            return own()
        if weight is None or weight.dim() != 2:
            raise _unknown(module, "expected a torch.nn.Sequential that ends in a dense layer")
        return estimate_children(*children[:-1]) * row_distances(weight)


def _scalar(value: Tensor | float) -> Tensor:
    # A constant in float32, which as a scalar takes on the dtype and the device of others.
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    # Not named_children(), which leaves out a module that is used a second time.
    return [(name, child) for name, child in module._modules.items() if child is not None]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


def _unknown(module: nn.Module, why: str) -> UnknownLipschitz:
    cls = class_of(module)
    return UnknownLipschitz(
        f"no Lipschitz bound is known for {cls.__module__}.{cls.__qualname__}: {why}. "
        "A certificate cannot assume 1"
    )


def _full_precision(module: nn.Module) -> torch.autocast:
    # Constraints, norms and distances of rows need all digits: no autocast.
    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    return torch.autocast(device, enabled=False)


def _refuse_overrides(module: nn.Module) -> None:
    if reason := override_of(module):
        raise _unknown(module, reason)


def _fold_linear(module: Any) -> list[Operation]:
    bias = None if module.bias is None else plain.constant(module.bias)
    return [plain.Dense(plain.constant(module.weight), bias)]


def _fold_conv(module: Any) -> list[Operation]:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        what = f"padding={module.padding!r}, padding_mode={module.padding_mode!r}"
        raise _unknown(module, f"only zero padding given as a number is covered, not {what}")
    return [
        plain.Convolution(
            plain.constant(module.weight),
            None if module.bias is None else plain.constant(module.bias),
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
        )
    ]


def _fold_flatten(module: Any) -> list[Operation]:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise _unknown(module, "only Flatten(start_dim=1, end_dim=-1) is covered")
    return [plain.Flatten()]


_TORCH_FOLDS: dict[type[nn.Module], Callable[[Any], list[Operation]]] = {
    nn.Sequential: lambda module: fold_children(*_children(module)),
    nn.Linear: _fold_linear,
    nn.Conv2d: _fold_conv,
    nn.Flatten: _fold_flatten,
    nn.ReLU: lambda module: [
        plain.Activation(torch.relu, {}, lipschitz=1.0, slopes=plain.Slopes(0.0, 1.0))
    ],
    nn.Identity: lambda module: [],
}
