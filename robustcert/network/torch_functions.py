"""Functions of torch as operations: what a captured module may call.

A rule has the arguments of its function and gives the operations that it is on one input. Functions
are known by themselves and not by their names.
"""
# Every rule has the arguments of torch's function.
# ruff: noqa: ARG001

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.errors import UnsoundNetworkError
from robustcert.network import torch_activations as activations
from robustcert.network import torch_convolutions as convolutions
from robustcert.network import torch_linear as rules
from robustcert.network import torch_sorting as sorting
from robustcert.network.operation import Operation
from robustcert.network.torch_indices import read
from robustcert.network.torch_linear import Joined

Rule = Callable[..., list[Operation]]
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def operations_of(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], known: list[Tensor], output: Any
) -> list[Joined | None]:
    """What is made of the values that depend on the input, for every tensor of an output.

    None is what depends on the input and is no function of it that has a constant.

    Args:
        func: What was called.
        args: Its arguments.
        kwargs: Its named arguments.
        known: Those of its arguments that depend on the input, in their order.
        output: The tensors that it returned.

    Raises:
        UnsoundNetworkError: it is not known, or not with these arguments.
    """
    try:
        return _by_rule(func, args, kwargs, known, output)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        if isinstance(error, UnsoundNetworkError):
            raise
        raise UnsoundNetworkError(f"is not covered with these arguments: {error}") from error


def _by_rule(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], known: list[Tensor], output: Any
) -> list[Joined | None]:
    if reason := UNBOUNDED.get(func):
        raise UnsoundNetworkError(f"is refused: {reason}")
    if not any(func in table for table in (SUMS, RULES, JOINS, READS)):
        raise UnsoundNetworkError(
            "is not known to the certifier: compute it by functions that are (docs/methods.md), or "
            "give a module of yours that calls it a fold()"
        )
    numbers = output[:1] if func in RANKS else output
    if any(not isinstance(t, Tensor) or t.dtype != known[0].dtype for t in numbers):
        raise UnsoundNetworkError("returns numbers of another type than its input")
    if func in SUMS:
        return [Joined(SUMS[func](known, *_bound(SUMS[func], (known, *args), kwargs)[1:]))]
    if func in JOINS:
        made = JOINS[func](*_bound(JOINS[func], (known, *args), kwargs))
        return [made, *(None for _ in output[1:])]
    if len(known) != 1 or known[0] is not (args[0] if args else kwargs.get("input")):
        raise UnsoundNetworkError("combines values that depend on the input other than by a sum")
    if func in READS:
        return [Joined([steps]) for steps in read(func, args, kwargs, known[0])]
    return [Joined([RULES[func](*_bound(RULES[func], args, kwargs))])]


def _bound(rule: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Arguments in the order of a rule's, its defaults included."""
    positional = [*args, *([kwargs["input"]] if "input" in kwargs else [])]
    named = {key: value for key, value in kwargs.items() if key != "input"}
    try:
        bound = inspect.signature(rule).bind(*positional, **named)
    except TypeError as error:
        raise UnsoundNetworkError(f"is not covered with these arguments: {error}") from error
    bound.apply_defaults()
    return list(bound.arguments.values())


# Activations.


def _relu(x: Tensor, inplace: bool = False) -> list[Operation]:
    return [activations.relu_activation()]


def _absolute(x: Tensor) -> list[Operation]:
    return [activations.absolute_activation()]


def _leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> list[Operation]:
    return [activations.leaky_relu_activation(rules.number(negative_slope, x))]


def _rrelu(
    x: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> list[Operation]:
    if training:
        raise UnsoundNetworkError("draws random numbers in training mode")
    return _leaky_relu(x, (lower + upper) / 2)


def _prelu(x: Tensor, weight: Tensor) -> list[Operation]:
    return [activations.leaky_relu_activation(weight if weight.numel() > 1 else weight.sum())]


def _elu(x: Tensor, alpha: float = 1.0, inplace: bool = False) -> list[Operation]:
    return [activations.elu_activation(rules.number(alpha, x), rules.number(1, x))]


def _celu(x: Tensor, alpha: float = 1.0, inplace: bool = False) -> list[Operation]:
    return [activations.elu_activation(rules.number(alpha, x), rules.number(alpha, x))]


def _selu(x: Tensor, inplace: bool = False) -> list[Operation]:
    return [*_elu(x, SELU_ALPHA), *rules.scaled(x, SELU_SCALE)]


def _silu(x: Tensor, inplace: bool = False) -> list[Operation]:
    return [activations.silu_activation()]


def _gelu(x: Tensor, approximate: str = "none") -> list[Operation]:
    by_tanh = approximate == "tanh"
    return [activations.gelu_tanh_activation() if by_tanh else activations.gelu_activation()]


def _hardtanh(
    x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> list[Operation]:
    return [activations.hardtanh_activation(rules.number(min_val, x), rules.number(max_val, x))]


def _relu6(x: Tensor, inplace: bool = False) -> list[Operation]:
    return _hardtanh(x, 0.0, 6.0)


def _clamp(x: Tensor, min: Any = None, max: Any = None) -> list[Operation]:
    if min == 0 and max is None:
        return _relu(x)
    return _hardtanh(x, min, max)


def _sigmoid(x: Tensor) -> list[Operation]:
    return [activations.sigmoid_activation()]


def _tanh(x: Tensor) -> list[Operation]:
    return [activations.tanh_activation()]


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> list[Operation]:
    return [activations.smooth_relu_activation(rules.number(beta, x), threshold)]


def _log_sigmoid(x: Tensor) -> list[Operation]:
    return [activations.log_sigmoid_activation()]


def _softsign(x: Tensor) -> list[Operation]:
    return [activations.softsign_activation()]


def _hardsigmoid(x: Tensor, inplace: bool = False) -> list[Operation]:
    return [*rules.scaled(x, 1 / 6), *rules.shifted(x, 0.5), *_hardtanh(x, 0.0, 1.0)]


def _hardswish(x: Tensor, inplace: bool = False) -> list[Operation]:
    return [activations.hardswish_activation()]


def _softshrink(x: Tensor, lambd: float = 0.5) -> list[Operation]:
    return [activations.softshrink_activation(rules.number(lambd, x))]


def _tanhshrink(x: Tensor) -> list[Operation]:
    return [activations.tanhshrink_activation()]


def _dropout(
    x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> list[Operation]:
    if training:
        raise UnsoundNetworkError("draws random numbers in training mode: give training=False")
    return []


def _same(x: Tensor, *_: Any, **__: Any) -> list[Operation]:
    return []


# In-place forms end in an underscore and are the same functions.
_BY_NAME: dict[Rule, tuple[str, ...]] = {
    rules.neg: ("neg", "neg_", "negative", "negative_", "__neg__"),
    rules.linear: ("linear",),
    rules.matmul: ("matmul", "mm", "__matmul__"),
    convolutions.conv1d: ("conv1d",),
    convolutions.conv2d: ("conv2d",),
    convolutions.conv_transpose1d: ("conv_transpose1d",),
    convolutions.conv_transpose2d: ("conv_transpose2d",),
    convolutions.avg_pool1d: ("avg_pool1d",),
    convolutions.avg_pool2d: ("avg_pool2d",),
    convolutions.adaptive_avg_pool2d: ("adaptive_avg_pool2d",),
    convolutions.max_pool1d: ("max_pool1d",),
    convolutions.max_pool2d: ("max_pool2d",),
    convolutions.lp_pool2d: ("lp_pool2d",),
    rules.mean_over: ("mean",),
    rules.sum_over: ("sum",),
    _relu: ("relu", "relu_"),
    _absolute: ("abs", "abs_", "absolute", "absolute_", "__abs__"),
    _leaky_relu: ("leaky_relu", "leaky_relu_"),
    _rrelu: ("rrelu", "rrelu_"),
    _prelu: ("prelu",),
    _elu: ("elu", "elu_"),
    _celu: ("celu", "celu_"),
    _selu: ("selu", "selu_"),
    _silu: ("silu",),
    _gelu: ("gelu",),
    _hardtanh: ("hardtanh", "hardtanh_"),
    _relu6: ("relu6",),
    _clamp: ("clamp", "clamp_", "clip", "clip_"),
    _sigmoid: ("sigmoid", "sigmoid_"),
    _tanh: ("tanh", "tanh_"),
    _softplus: ("softplus",),
    _log_sigmoid: ("logsigmoid",),
    _softsign: ("softsign",),
    _hardsigmoid: ("hardsigmoid",),
    _hardswish: ("hardswish",),
    _softshrink: ("softshrink",),
    _tanhshrink: ("tanhshrink",),
    _dropout: (
        *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
        "feature_alpha_dropout",
    ),
    # The precision of the output is compared with that of the input.
    _same: ("contiguous", "clone", "detach", "to", "float", "double", "type_as", "cpu"),
}
_SUMS_BY_NAME: dict[Any, tuple[str, ...]] = {
    rules.add: ("add", "add_", "__add__", "__radd__", "__iadd__"),
    rules.sub: ("sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__"),
    rules.rsub: ("rsub", "__rsub__"),
    rules.mul: ("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"),
    rules.div: ("div", "div_", "divide", "divide_", "true_divide", "__truediv__", "__itruediv__"),
}


def _cat(known: list[Tensor], tensors: Any, dim: int = 0) -> Joined:
    return rules.joined(known, tensors, dim, stack=False)


def _stack(known: list[Tensor], tensors: Any, dim: int = 0) -> Joined:
    return rules.joined(known, tensors, dim, stack=True)


def _hstack(known: list[Tensor], tensors: Any) -> Joined:
    return rules.joined(known, tensors, 1, stack=False)


# What only reads entries.
_READS_BY_NAME = (
    *("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten", "view_as", "reshape_as"),
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "adjoint"),
    *("flip", "fliplr", "flipud", "roll", "rot90", "narrow", "select", "index_select"),
    *("__getitem__", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "hsplit"),
    *("expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "unfold"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
)
_WITHOUT_BOUND = {
    "its slope grows without bound where the variance of an input is small": (
        *("layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"),
        *("normalize", "native_layer_norm"),
    ),
    "it multiplies values that depend on the input, which has no finite Lipschitz constant": (
        *("scaled_dot_product_attention", "multi_head_attention_forward", "bmm", "einsum", "glu"),
        "bilinear",
    ),
    "it has no finite Lipschitz constant": (
        *("square", "pow", "__pow__", "exp", "log", "sqrt", "rsqrt", "reciprocal", "__rdiv__"),
    ),
    "it jumps": ("hardshrink", "threshold", "round", "floor", "ceil", "sign"),
}


def _everywhere(name: str) -> list[Any]:
    """What torch calls by a name: functions, and methods of tensors."""
    places = (torch, F, Tensor)
    return [f for place in places if callable(f := getattr(place, name, None))]


RULES: dict[Any, Rule] = {
    **{f: rule for rule, names in _BY_NAME.items() for name in names for f in _everywhere(name)},
    # Others of these names have other arguments.
    F.batch_norm: rules.batch_norm,
    F.pad: rules.pad,
    F.interpolate: convolutions.interpolate,
}
SUMS: dict[Any, Callable[..., list[Any]]] = {
    f: rule for rule, names in _SUMS_BY_NAME.items() for name in names for f in _everywhere(name)
}
JOINS: dict[Any, Callable[..., Joined]] = {
    f: rule
    for rule, names in (
        (_cat, ("cat", "concat", "concatenate")),
        (_stack, ("stack",)),
        (_hstack, ("hstack",)),
        (sorting.sort, ("sort",)),
        (partial(sorting.extreme, sorting.SMALLEST), ("min", "minimum")),
        (partial(sorting.extreme, sorting.LARGEST), ("max", "maximum")),
        (partial(sorting.along, sorting.SMALLEST), ("amin",)),
        (partial(sorting.along, sorting.LARGEST), ("amax",)),
    )
    for name in names
    for f in _everywhere(name)
}
# What returns places of entries besides, which jump.
RANKS = {f for name in ("sort", "min", "max") for f in _everywhere(name)}
READS = {
    *(f for name in _READS_BY_NAME for f in _everywhere(name)),
    *(getattr(Tensor, name).__get__ for name in ("mT", "mH")),
}
UNBOUNDED = {
    f: why for why, names in _WITHOUT_BOUND.items() for name in names for f in _everywhere(name)
}
# Constants of the shape or the type of a value.
CONSTANTS = {
    f
    for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
    for f in _everywhere(name)
}
# What a value says of itself without its entries.
QUESTIONS = {
    *(f for name in ("size", "dim", "ndimension", "numel", "nelement") for f in _everywhere(name)),
    *(f for name in ("is_floating_point", "is_contiguous") for f in _everywhere(name)),
    *(Tensor.__len__, Tensor.get_device, Tensor.element_size, Tensor.stride),
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout")),
    *(getattr(Tensor, name).__get__ for name in ("requires_grad", "is_cuda", "is_leaf")),
}
# What makes Python's numbers of entries.
DATA = {
    *(getattr(Tensor, f"__{name}__") for name in ("bool", "int", "float", "index", "complex")),
    *(Tensor.__array__, Tensor.__contains__, Tensor.__iter__),
    *(f for name in ("item", "tolist", "numpy", "equal", "allclose") for f in _everywhere(name)),
    *_everywhere("is_nonzero"),
}
