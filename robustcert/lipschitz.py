"""The contract of a module: differentiable estimates of its constant, and its bound.

What a module folds into stands in :mod:`robustcert.network.fold`.
"""

import torch
from torch import Tensor, nn

from robustcert.errors import UnknownLipschitz, UnsoundNetworkError
from robustcert.margins import row_distances
from robustcert.network.bounds import sequence_bound
from robustcert.network.fold import (
    child_modules,
    fold,
    fold_children,
    fold_for,
    fold_network,
    full_precision,
    refuse_overrides,
    unknown,
)
from robustcert.network.frozen import freeze
from robustcert.network.operation import Shape, join_path
from robustcert.network.overrides import class_of, own_method

__all__ = [
    "UnknownLipschitz",
    "estimate_children",
    "fold",
    "fold_children",
    "fold_network",
    "freeze",
    "lipschitz_bound",
    "lipschitz_estimate",
    "pairwise_lipschitz_estimate",
]


def lipschitz_bound(module: nn.Module, input_shape: Shape) -> float:
    r"""Upper bound on the :math:`\ell_2` Lipschitz constant of a module, rounding included."""
    return sequence_bound(fold_for(module, tuple(input_shape)), tuple(input_shape))


def lipschitz_estimate(module: nn.Module) -> Tensor:
    r"""Differentiable estimate of the :math:`\ell_2` Lipschitz constant, for training only.

    It may be below the true constant (power iteration) or rest on a constraint that holds up to
    rounding; a certificate uses :func:`lipschitz_bound`.

    Returns:
        A scalar tensor.

    Raises:
        UnknownLipschitz: the module, or one inside it, is not known.
    """
    refuse_overrides(module)
    own = own_method(module, "lipschitz_estimate") or own_method(module, "lipschitz_bound")
    cls = class_of(module)
    with full_precision(module):
        if own is not None:
            return _scalar(own())
        if cls is nn.Sequential:
            return estimate_children(*child_modules(module))
        if cls is nn.Linear:
            return torch.linalg.matrix_norm(module.weight, 2)
    if cls in (nn.ReLU, nn.Flatten, nn.Identity):
        return _scalar(1.0)
    raise unknown(module, "the class that defines its forward does not define lipschitz_estimate")


def estimate_children(*named: tuple[str, nn.Module]) -> Tensor:
    """Product of the estimates of children that are applied in turn."""
    product = _scalar(1.0)
    for name, child in named:
        try:
            # A constant lives on the CPU; as a scalar it combines with any device.
            product = lipschitz_estimate(child) * product
        except UnsoundNetworkError as error:
            error.path = join_path(name, error.path)
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
    refuse_overrides(module)
    own = own_method(module, "pairwise_lipschitz_estimate")
    children = child_modules(module) if class_of(module) is nn.Sequential else []
    weight = getattr(children[-1][1], "weight", None) if children else None
    with full_precision(module):
        if own is not None:
            return own()
        if weight is None or weight.dim() != 2:
            raise unknown(module, "expected a torch.nn.Sequential that ends in a dense layer")
        return estimate_children(*children[:-1]) * row_distances(weight)


def _scalar(value: Tensor | float) -> Tensor:
    # A constant in float32, which as a scalar takes on the dtype and the device of others.
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float32, device="cpu")
