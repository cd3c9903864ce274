"""From the operations that the checker has read back to a plain network that torch evaluates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustcert import activations
from robustcert.check import KINDS, Operation, slopes_of
from robustcert.layers.pool import norm_pool
from robustcert.network.activation import Activation, Slopes
from robustcert.network.blocks import ResidualBlock, Sandwich
from robustcert.network.linear import Affine, CircularConvolution, Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork, Sum
from robustcert.network.operation import Operation as FoldedOperation
from robustcert.network.quadratics import Quadratics

FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "absolute": activations.absolute.absolute,
    "beta_abs": activations.beta_abs.beta_abs,
    "grafted": activations.grafted.grafted,
    "group_sort": activations.group_sort.group_sort,
    "householder": activations.householder.householder,
    "householder2": activations.householder2.householder2,
    "identity": activations.identity.identity,
    "linear_spline": activations.linear_spline.linear_spline,
    "n_activation": activations.n_activation.n_activation,
    "norm_pair": activations.norm_pair.norm_pair,
    "norm_pool": norm_pool,
    "relu": activations.relu.relu,
    "sin_cos": activations.sin_cos.sin_cos,
    "smooth_abs": activations.smooth_abs.smooth_abs,
    "smooth_householder": activations.smooth_householder.smooth_householder,
    "smooth_maxmin": activations.smooth_maxmin.smooth_maxmin,
    "smooth_n": activations.smooth_n.smooth_n,
    "softplus": activations.softplus.softplus,
    "tanh": activations.tanh.tanh,
}
# The checker counts the roundings of its own formulas. Twice that covers ours (a test compares the
# two), with the last term for constants that ours adds where the checker has none.
_COUNTS, _MORE = 2.0, 1e-12


def restore_network(operations: Sequence[Operation]) -> PlainNetwork:
    """The plain network of operations that the checker has read, which judged every constant.

    Raises:
        ValueError: an activation is known to the checker and not here.
    """
    restored = tuple(_restore(operation) for operation in operations)
    return PlainNetwork(restored, operations[0].input_shape)


def _restore(operation: Operation) -> FoldedOperation:
    name, options = operation.name, operation.options
    tensors = {key: _tensor(array) for key, array in operation.tensors.items()}
    if operation.kind == "sum":
        branches = tuple(tuple(map(_restore, branch)) for branch in operation.branches)
        return Sum(branches, name=name)
    if operation.kind == "activation":
        return _activation(options, tensors, name)
    build = _KINDS[operation.kind]
    if "activation" in options:
        prefix = "activation."
        inner = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        own = {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}
        rest = {key: value for key, value in options.items() if key != "activation"}
        return build(
            **own, **rest, activation=_activation(options["activation"], inner, ""), name=name
        )
    sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    return build(**tensors, **sizes, name=name)


def _activation(options: dict[str, Any], tensors: dict[str, Tensor], name: str) -> Activation:
    function = options["function"]
    if function not in FUNCTIONS:
        raise ValueError(f"the activation {function} is not known")
    integers = {key: value for key, value in options.items() if key != "function"}
    wide = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    error = KINDS[function].rounding(**wide, **integers)
    if error != (0.0, 0.0):
        error = (_COUNTS * error[0], _COUNTS * error[1] + _MORE)
    slopes = slopes_of(function, wide)
    return Activation(
        FUNCTIONS[function],
        {**tensors, **integers},
        # Whatever the checker lets pass is 1-Lipschitz.
        lipschitz=1.0,
        error=error,
        slopes=slopes and Slopes(*slopes),
        name=name,
    )


def _tensor(array: Any) -> Tensor:
    # Copied: the checker's arrays are views of the file that cannot be written to.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


_KINDS: Mapping[str, Callable[..., FoldedOperation]] = {
    "dense": Dense,
    "convolution": Convolution,
    "circular_convolution": CircularConvolution,
    "affine": Affine,
    "flatten": Flatten,
    "quadratics": Quadratics,
    "sandwich": Sandwich,
    "residual_block": ResidualBlock,
}
