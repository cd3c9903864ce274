"""Nonlinear operations."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, Self

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.network.jacobian import LocalJacobian
from robustcert.network.local_error import smallest_normal
from robustcert.network.operation import Operation, Shape, copied, same


@dataclass(frozen=True)
class Slopes:
    """Between which values the difference quotients of an activation lie, coordinate by coordinate.

    Attributes:
        low: The least.
        high: The greatest.
        pairs: False: every entry of the output is a function of the same entry of the input, and
            the quotients are those of this function. True: the sum of every two neighbouring
            features is kept, and their difference goes through such a function.
    """

    low: float
    high: float
    pairs: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"expected slopes from low to high, got {self.low} to {self.high}")


@dataclass(frozen=True, eq=False)
class Activation(Operation):
    r"""A nonlinearity given by a pure function and its constants.

    Args:
        function: ``function(x, **constants)``, a module-level function; its name is the
            operation's name in files. Tensor constants are cast to the dtype of ``x``.
        constants: Tensors and integers.
        lipschitz: Upper bound on the Lipschitz constant, for these constants.
        jacobian_lipschitz: Upper bound on the Lipschitz constant of the Jacobian in operator norm
            (per input unit); infinite where the function has a kink.
        error: ``(a, b)``: in arithmetic of unit roundoff u, each evaluation is within
            :math:`u (a \lVert z \rVert_2 + b \sqrt{n})` of the real function in the l2 norm, n the
            number of outputs, all orders in u included: see :func:`counted`. ``(0, 0)`` if it
            only selects and negates.
        slopes: What semidefinite bounds may use beside ``lipschitz``; None if it does not act on
            every coordinate by itself.
        squares: Whether inputs are squared, which overflows earlier.
        jump: Further error of every entry of the output in any arithmetic, where what is deployed
            may leave the real function, such as beyond a threshold.
        relaxation: ``relaxation(operation, features)``: the lines around its graph, a
            :class:`robustcert.relaxations.curves.Curve` on so many entries; None: linear bounds
            (CROWN, local Lipschitz constants, global robustness) do not cover it.
        jacobian: ``jacobian(operation, z, error)``: its Jacobian at computed inputs ``z`` whose
            real values are within ``error`` of them, shape ``(N,)``; None: second-order bounds do
            not cover it. Like ``relaxation`` a module-level function that holds nothing of its own,
            so that what it says follows from the constants.
        claimed: Function and constants that all of these bounds were stated for; copies of the
            present ones if None. ``dataclasses.replace`` keeps it: with another function or other
            constants and new bounds, give ``claimed=None`` too.

    Raises:
        TypeError: ``relaxation`` or ``jacobian`` is not a function, or holds values of its own.
    """

    kind = "activation"
    function: Callable[..., Tensor]
    constants: dict[str, Tensor | int]
    lipschitz: float
    jacobian_lipschitz: float = math.inf
    error: tuple[float, float] = (0.0, 0.0)
    slopes: Slopes | None = None
    squares: bool = False
    relaxation: Callable[["Activation", int], object] | None = field(default=None, kw_only=True)
    jacobian: Callable[["Activation", Tensor, Tensor], LocalJacobian] | None = field(
        default=None, kw_only=True
    )
    jump: float = field(default=0.0, kw_only=True)
    claimed: tuple[Callable[..., Tensor], dict[str, Tensor | int]] | None = field(
        default=None, kw_only=True, repr=False
    )

    def __post_init__(self) -> None:
        for name in ("relaxation", "jacobian"):
            _refuse_own_values(self.function.__name__, name, getattr(self, name))
        if self.claimed is None:
            object.__setattr__(self, "claimed", (self.function, copied(self.constants)))

    def check_claims(self) -> None:
        assert self.claimed is not None
        function, constants = self.claimed
        # By the function itself: one that computes something else may have the same name.
        if self.function is not function:
            raise UnsoundNetworkError(
                f"the function {function.__name__} was replaced after its bounds had been stated: "
                "fold the module again",
                self.label,
            )
        # Compared by value: where a conversion rounds a constant, the bounds are of another one.
        pairs = ({k: _wide(v) for k, v in c.items()} for c in (self.constants, constants))
        if not same(*pairs):
            raise UnsoundNetworkError(
                f"the constants of {function.__name__} were changed after its bounds had been "
                "stated: fold the module again",
                self.label,
            )

    def __call__(self, x: Tensor) -> Tensor:
        constants = {k: v.to(x) if isinstance(v, Tensor) else v for k, v in self.constants.items()}
        return self.function(x, **constants)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        return self.lipschitz

    def rounding(self, input_shape: Shape, unit: float) -> tuple[float, float]:
        relative, absolute = self.error
        if relative == absolute == self.jump == 0:
            return 0.0, 0.0
        outputs = math.prod(self.output_shape(input_shape))
        root = math.sqrt(outputs)
        tiny = 8 * smallest_normal(unit) * root
        return relative * unit, (absolute * unit * root + tiny + self.jump * root) * (1 + 1e-12)

    def options(self) -> dict[str, Any]:
        integers = {k: v for k, v in self.constants.items() if not isinstance(v, Tensor)}
        return {"function": self.function.__name__, **integers}

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        moved = {
            k: v.to(device, dtype, copy=True) if isinstance(v, Tensor) else v
            for k, v in self.constants.items()
        }
        return replace(self, constants=moved)

    def tensors(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.constants.items() if isinstance(v, Tensor)}


def check_slopes(activation: Activation) -> None:
    """Refuse an activation whose slopes are not in [0, 1], entry by entry."""
    slopes = activation.slopes
    if slopes is None or slopes.pairs or slopes.low < 0 or slopes.high > 1:
        raise ValueError(
            "this layer is bounded for activations with slopes in [0, 1] only, not for "
            f"{activation.function.__name__}"
        )


def constant_of(operation: Activation, name: str, like: Tensor | None = None) -> Tensor:
    """A tensor constant of an activation, in the dtype and on the device of another tensor.

    Float64 on the CPU without one.
    """
    value = operation.constants[name]
    assert isinstance(value, Tensor)
    return value.to("cpu", torch.float64) if like is None else value.to(like)


def integer_of(operation: Activation, name: str) -> int:
    """An integer constant of an activation."""
    value = operation.constants[name]
    assert isinstance(value, int)
    return value


def _refuse_own_values(activation: str, name: str, value: object) -> None:
    # Bounds are compared with the constants that they were stated for: what a closure or a
    # default holds besides could be changed unseen.
    if value is None:
        return
    if not isinstance(value, FunctionType) or any(
        (value.__closure__, value.__defaults__, value.__kwdefaults__)
    ):
        raise TypeError(
            f"{name} of the activation {activation}: expected a module-level function without "
            f"default values, got {value!r}: let it read the operation's constants"
        )


def _wide(value: Tensor | int) -> Tensor | int:
    return value.detach().to("cpu", torch.float64) if isinstance(value, Tensor) else value
