r"""How affine features move in a metric on inputs.

Features :math:`A x + b` of inputs :math:`x + S u` are those of x moved by M u, :math:`M = A S`. So
any function q of the features is :math:`u \mapsto q(y + M u)` around x, whose gradient is
:math:`M^T \nabla q`, and no inverse of S is taken.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcert.arithmetic.products import linear
from robustcert.network.input_space import composed
from robustcert.network.linear import Affine, Dense
from robustcert.network.local_error import absolute_norm
from robustcert.network.network import PlainNetwork
from robustcert.norms.scalars import round_up

# Norms of |M| whose squares are far from overflow and underflow, and the maximum number of entries
# of u for each feature: the checker knows no others.
LEAST_STRETCH, MAX_STRETCH, MAX_DIRECTIONS = 1e-30, 1e30, 2


@dataclass(frozen=True, eq=False)
class FeatureMoves:
    r"""M, as it was computed, on the device of the quadratics.

    Attributes:
        operation: M as an operation, on the CPU.
        weight: Its entries, float64: ``(D, k)``, or ``(D,)`` where it is diagonal.
        loss: Bound on the norm of the difference from the exact A S.
        constant: Bound on the norm of A S.
        stretch: Bound on the norm of :math:`\lvert M \rvert`.
    """

    operation: Affine | Dense
    weight: Tensor
    loss: float
    constant: float
    stretch: float

    def __call__(self, u: Tensor) -> Tensor:
        """M u for u of shape ``(N, k)``."""
        return u * self.weight if self.weight.dim() == 1 else linear(u, self.weight)

    def back(self, gradient: Tensor) -> Tensor:
        """Gradients with respect to u of those with respect to features, shape ``(*, D)``."""
        return gradient * self.weight if self.weight.dim() == 1 else gradient @ self.weight

    def norm_after(self, frame: Tensor) -> float:
        """Bound on the norm of W M, for W of shape ``(m, D)``."""
        *_, last = composed(self.operation, (Dense(frame),), (len(self.weight),))
        return last.bound


def moves_of(network: PlainNetwork, device: torch.device) -> FeatureMoves | None:
    """M of a network of features; None without a metric, and where features are not affine."""
    metric = network.space.metric
    if metric is None:
        return None
    parts = list(composed(metric, network.operations, network.input_shape))
    whole = parts[-1].operation
    if len(parts) != len(network.operations) + 1 or not isinstance(whole, Affine | Dense):
        return None
    weight = whole.weight if isinstance(whole, Dense) else whole.scale
    stretch = absolute_norm(weight) if weight.dim() == 2 else float(weight.abs().max())
    wide = weight.dim() == 2 and weight.shape[1] > MAX_DIRECTIONS * len(weight)
    if wide or not LEAST_STRETCH < stretch < MAX_STRETCH:
        return None
    loss = round_up(parts[-1].loss)
    return FeatureMoves(whole, weight.to(device), loss, parts[-1].bound, stretch)
