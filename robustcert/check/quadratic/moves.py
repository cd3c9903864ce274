r"""How features that are affine in the input move in a metric on inputs.

With features A x + b and the ball :math:`\{x + S u : |u| < r\}`, those of x + S u are y + A S u.
Let M be the product A S as it is computed here, and l bound the norm of the difference. A quadratic
q of the features is :math:`u \mapsto q(y + M u)`: its gradient is :math:`M^T \nabla q`, and
:math:`|W M|` takes the place of :math:`|W|` in its Hessian. Let y be the features computed here,
within D_0 of the real ones at x, and :math:`D + \beta r` the error of deployed ones at distance r.
Then all features, real or deployed, of an input at u are within :math:`D_0 + D + (\beta + l) r` of
y + M u.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from robustcert.check.arithmetic import SLACK, norm
from robustcert.check.fixed_point import Floats, Integers, to_integers
from robustcert.check.forward.linear import absolute_norm
from robustcert.check.network.operation import Operation
from robustcert.check.norms.metric import composition
from robustcert.check.norms.operation import find

# Norms of |M| that are far from overflow and underflow when they are squared.
LEAST_STRETCH, MAX_STRETCH = 1e-30, 1e30
# Maximum number of entries of u for each feature.
MAX_DIRECTIONS = 2


@dataclass(frozen=True, eq=False)
class Moves:
    """M, with bounds.

    Attributes:
        operation: M as an operation: a dense one, or scales.
        loss: Bound on the norm of what M lacks of A S.
        stretch: Bound on the norm of the matrix of the magnitudes of M.
    """

    operation: Operation
    loss: float
    stretch: float

    @property
    def weight(self) -> Floats:
        """M, ``(D, k)``, or its diagonal ``(D,)``."""
        return self.operation.wide("scale" if self.operation.kind == "affine" else "weight")

    def __call__(self, u: Floats) -> Floats:
        """M u for u of shape ``(N, k)``."""
        return u * self.weight if self.weight.ndim == 1 else u @ self.weight.T

    def back(self, gradient: Floats) -> Floats:
        """Gradients in u of those among features, shape ``(*, D)``."""
        return gradient * self.weight if self.weight.ndim == 1 else gradient @ self.weight

    def norm_after(self, frame: Floats) -> float:
        """A proved bound on the norm of W M, W of shape ``(m, D)``; NaN if none is found."""
        dense = Operation("dense", "", "", {}, {"weight": frame}, frame.shape[1:], frame.shape[:1])
        found = composition(self.operation, [dense])
        assert found is not None
        product, loss = found
        norm = find(product) if product.wide("weight").any() else 0.0
        return math.nextafter(norm + _above(loss), math.inf)

    def place(self, x: Floats, u: Floats) -> tuple[Floats, Floats]:
        """``x + M u``, and bounds on the norms of all that is summed in it."""
        return x + self(u), (norm(x) + self.stretch * norm(u)) * SLACK

    def place_exactly(self, x: Floats, u: Floats) -> tuple[Integers, int]:
        """``x + M u`` for vectors, as integers with places."""
        (start, a), (step, b), (weight, c) = map(to_integers, (x, u, self.weight))
        moved = weight * step if weight.ndim == 1 else weight @ step
        places = max(a, b + c)
        return (start << (places - a)) + (moved << (places - b - c)), places

    def back_exactly(self, gradient: Integers, places: int) -> tuple[Integers, int]:
        """The gradient in u of one among features, both as integers with places."""
        weight, more = to_integers(self.weight)
        found = gradient * weight if weight.ndim == 1 else gradient @ weight
        return found, places + more


def moves_of(metric: Operation | None, operations: Sequence[Operation]) -> Moves | None:
    """M of the operations before quadratics; None without a metric, or if they are not affine."""
    whole = None if metric is None else composition(metric, operations)
    if whole is None or whole[0].kind not in ("affine", "dense"):
        return None
    operation, loss = whole
    found = Moves(operation, _above(loss), _stretch(operation))
    wide = found.weight.ndim == 2 and found.weight.shape[1] > MAX_DIRECTIONS * len(found.weight)
    return found if LEAST_STRETCH < found.stretch < MAX_STRETCH and not wide else None


def _stretch(operation: Operation) -> float:
    if operation.kind == "affine":
        return float(abs(operation.wide("scale")).max())
    return absolute_norm(operation)


def _above(value: Fraction) -> float:
    return math.nextafter(float(value), math.inf)
