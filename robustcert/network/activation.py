"""Nonlinear operations."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
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
            (per input unit); infinite where the function has a fold.
        error: ``(a, b)``: in arithmetic of unit roundoff u, each evaluation is within
            :math:`u (a \lVert z \rVert_2 + b \sqrt{n})` of the real function in the l2 norm, n the
            number of outputs, all orders in u included: see :func:`counted`. ``(0, 0)`` if it
            only selects and negates.
        slopes: What semidefinite bounds may use beside ``lipschitz``; None if it does not act on
            every coordinate by itself.
        squares: Whether inputs are squared, which overflows earlier.
        claimed: Constants that ``lipschitz``, ``jacobian_lipschitz``, ``error`` and ``slopes`` were
            stated for; a copy of ``constants`` if None. ``dataclasses.replace`` keeps it: with new
            constants and new bounds, give ``claimed=None`` too.
    """

    kind = "activation"
    function: Callable[..., Tensor]
    constants: dict[str, Tensor | int]
    lipschitz: float
    jacobian_lipschitz: float = math.inf
    error: tuple[float, float] = (0.0, 0.0)
    slopes: Slopes | None = None
    squares: bool = False
    claimed: dict[str, Tensor | int] | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.claimed is None:
            object.__setattr__(self, "claimed", copied(self.constants))

    def check_claims(self) -> None:
        # Compared by value: where a conversion rounds a constant, the bounds are of another one.
        pairs = ({k: _wide(v) for k, v in c.items()} for c in (self.constants, self.claimed or {}))
        if not same(*pairs):
            raise UnsoundNetworkError(
                f"the constants of {self.function.__name__} were changed after its bounds had been "
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
        if relative == absolute == 0:
            return 0.0, 0.0
        outputs = math.prod(self.output_shape(input_shape))
        tiny = 8 * smallest_normal(unit) * math.sqrt(outputs)
        return relative * unit, (absolute * unit * math.sqrt(outputs) + tiny) * (1 + 1e-12)

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


def _wide(value: Tensor | int) -> Tensor | int:
    return value.detach().to("cpu", torch.float64) if isinstance(value, Tensor) else value
