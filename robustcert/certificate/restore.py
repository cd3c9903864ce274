"""From the operations that the checker has read back to a folded network that torch evaluates."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustcert.certificate.places import certificate_of
from robustcert.certificate.space import restore_space
from robustcert.certifiers import Task
from robustcert.check import (
    CURVATURES,
    KINDS,
    Operation,
    ProvedNetwork,
    prove_network,
    slopes_of,
)
from robustcert.errors import UnsoundNetworkError
from robustcert.network import torch_activations
from robustcert.network.activation import Activation, Slopes
from robustcert.network.blocks import ResidualBlock, Sandwich
from robustcert.network.branches import Concatenation, Sum
from robustcert.network.circular_shift import circular_shift
from robustcert.network.input_space import IMAGES, InputSpace
from robustcert.network.linear import (
    Affine,
    CircularConvolution,
    Convolution,
    Dense,
    Flatten,
    Gather,
    Reshape,
)
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation as FoldedOperation
from robustcert.network.orthogonal import OrthogonalConvolution
from robustcert.network.quadratics import Quadratics
from robustcert.network.reflection import Reflection
from robustcert.network.skew_series import SkewSeries
from robustcert.network.window_norm import norm_pool

# The checker counts the roundings of its own formulas. Twice that covers ours (a test compares the
# two), with the last term for constants that ours adds where the checker has none.
_COUNTS, _MORE = 2.0, 1e-12


def read_proved(path: str | Path, task: Task, other: str) -> tuple[PlainNetwork, ProvedNetwork]:
    """The folded network of a certificate folder, whose constants the checker has proved again.

    Args:
        path: The folder, a run's folder, or its checkpoint.
        task: What the outputs have to be.
        other: What to call for the outputs of another task.

    Raises:
        NotCertifiedError: the run has no certificate yet.
        UnreadableError: the folder is malformed.
        UnsoundNetworkError: a constant is not proved, or the folder is of another task.
    """
    folder = Path(certificate_of(str(path)))
    proved, report = prove_network(folder)
    if not report.verified:
        reasons = [*report.mismatches, *report.uncovered, *report.untried]
        raise UnsoundNetworkError(f"{folder}: not proved, so not loaded: {reasons[0]}")
    if proved.task != task:
        raise UnsoundNetworkError(f"{folder} is of a {proved.task}: load it by {other}")
    network = restore_network(proved.operations, restore_space(proved.space))
    if network.digest() != proved.digest:
        raise UnsoundNetworkError(f"{folder}: its network cannot be restored as it was")
    return network, proved


def restore_network(operations: Sequence[Operation], space: InputSpace = IMAGES) -> PlainNetwork:
    """The folded network of operations that the checker has read, which judged every constant.

    Raises:
        ValueError: an activation is known to the checker and not here.
    """
    restored = tuple(_restore(operation) for operation in operations)
    return PlainNetwork(restored, operations[0].input_shape, space)


def _restore(operation: Operation) -> FoldedOperation:
    name, options = operation.name, operation.options
    tensors = {key: _tensor(array) for key, array in operation.tensors.items()}
    if operation.branches:
        branches = tuple(tuple(map(_restore, branch)) for branch in operation.branches)
        return _BRANCHED[operation.kind](branches, **options, name=name)
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
    parts = parts_of(function)
    integers = {key: value for key, value in options.items() if key != "function"}
    wide = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    error = KINDS[function].rounding(**wide, **integers)
    if error != (0.0, 0.0):
        error = (_COUNTS * error[0], _COUNTS * error[1] + _MORE)
    slopes = slopes_of(function, wide)
    return Activation(
        parts.function,
        {**tensors, **integers},
        lipschitz=_float_above(KINDS[function].lipschitz(**wide, **integers)),
        jacobian_lipschitz=_steepest(function, wide),
        error=error,
        slopes=slopes and Slopes(*slopes),
        squares=KINDS[function].squares,
        relaxation=parts.relaxation,
        jacobian=parts.jacobian,
        name=name,
    )


def _float_above(bound: float | Fraction) -> float:
    nearest = float(bound)
    return nearest if nearest >= bound else math.nextafter(nearest, math.inf)


class Parts(NamedTuple):
    """What the package knows of an activation by its name: a pure function and its bounds."""

    function: Callable[..., Tensor]
    relaxation: Any = None
    jacobian: Any = None


def parts_of(name: str) -> Parts:
    """The activation of this name: functions ``f``, ``f_relaxation`` and ``f_jacobian`` of a file.

    Those of torch stand in one file, without relaxations and Jacobians.

    Raises:
        ValueError: the package has no file of this name.
    """
    if name in _ELSEWHERE:
        return Parts(_ELSEWHERE[name])
    if name in torch_activations.FUNCTIONS:
        return Parts(torch_activations.FUNCTIONS[name])
    path = f"robustcert.activations.{name}"
    module = import_module(path) if name.isidentifier() and find_spec(path) else None
    function = getattr(module, name, None)
    if function is None:
        raise ValueError(
            f"the activation {name} is not known: expected a function {name} in "
            f"robustcert/activations/{name}.py"
        )
    return Parts(function, *(getattr(module, f"{name}_{k}", None) for k in Parts._fields[1:]))


def _steepest(function: str, constants: dict[str, Any]) -> float:
    """Upper bound on the Lipschitz constant of the Jacobian, infinite where none is known."""
    if function not in CURVATURES:
        return math.inf
    rows = [row for key in sorted(constants) for row in _rows(constants[key])]
    return float(np.max(CURVATURES[function].steepest(*rows))) * (1 + _MORE)


def _rows(value: Any) -> list[Any]:
    return list(value) if value.ndim == 2 else [value]


def _tensor(array: Any) -> Tensor:
    # Copied: the checker's arrays are views of the file that cannot be written to.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _reflection(*, ridge: str, **options: Any) -> Reflection:
    return Reflection(ridge=float.fromhex(ridge), **options)


# Those that no file of robustcert.activations is named after.
_ELSEWHERE: Mapping[str, Callable[..., Tensor]] = {
    "norm_pool": norm_pool,
    "circular_shift": circular_shift,
}
_BRANCHED: Mapping[str, Callable[..., FoldedOperation]] = {
    "sum": Sum,
    "concatenate": Concatenation,
}
_KINDS: Mapping[str, Callable[..., FoldedOperation]] = {
    "dense": Dense,
    "convolution": Convolution,
    "circular_convolution": CircularConvolution,
    "reflection": _reflection,
    "orthogonal_convolution": OrthogonalConvolution,
    "affine": Affine,
    "flatten": Flatten,
    "reshape": Reshape,
    "gather": Gather,
    "quadratics": Quadratics,
    "sandwich": Sandwich,
    "residual_block": ResidualBlock,
    "skew_series": SkewSeries.of,
}
