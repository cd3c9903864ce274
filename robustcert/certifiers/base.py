"""What certifiers return, and radii from margins."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcert.margins import margins
from robustcert.network.forward_error import ForwardError
from robustcert.network.units import finite_samples


@dataclass(frozen=True)
class Certificates:
    """What a certifier says about a batch.

    Attributes:
        prediction: Class indices, shape ``(N,)``.
        radius: Certified l2 radius in input units, shape ``(N,)``, float64, rounded down: on the
            open ball of this radius the prediction does not change. 0 where nothing is certified.
        margin: Smallest margin over the other classes, shape ``(N,)``, float64.
        error: Bound on the l2 error of the computed logits at the sample, shape ``(N,)``.
        decided: Whether the prediction is proved to be the unique largest logit of the real-valued
            network at the sample, shape ``(N,)``; by default where the radius is above 0 or the
            margin above its own error.
    """

    prediction: Tensor
    radius: Tensor
    margin: Tensor
    error: Tensor
    decided: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.decided is None:
            ahead = (self.radius > 0) | exceeds_error(self.margin, self.error)
            object.__setattr__(self, "decided", ahead)


def exceeds_error(margin: Tensor, error: Tensor) -> Tensor:
    """Whether margins are positive in real arithmetic, logits being off by ``error`` in l2."""
    # The subtraction of two float64 logits rounds once, hence the relative term.
    return margin > math.sqrt(2) * (1 + 1e-9) * error + margin.abs() * 2.0**-52


def certificates(
    result: ForwardError,
    x: Tensor,
    inputs: Tensor,
    distances: Callable[[Tensor, Tensor, float], Tensor],
) -> Certificates:
    """Certificates from logits and a bound on their error.

    Args:
        result: Logits of ``inputs`` with their error.
        x: What is certified, shape ``(N, *input_shape)``.
        inputs: The same in the arithmetic of the network.
        distances: ``distances(prediction, gap, drift)``, see :meth:`LipschitzCertifier.distances`.
    """
    logits = result.output.double()
    prediction = logits.argmax(1)
    margin = margins(logits, prediction)
    # Subtraction of two float64 logits rounds once, hence the relative term.
    alpha = result.centre * (1 + 1e-9)
    allowance = (2 * math.sqrt(2) * (1 + 1e-9)) * alpha[:, None] + margin.abs() * 2.0**-52
    drift = math.sqrt(2) * (1 + 1e-9) * result.growth
    ratio = distances(prediction, margin - allowance, drift)
    ratio = ratio.scatter(1, prediction[:, None], math.inf)
    radius = torch.minimum(ratio.amin(1), result.reach) - moved(x, inputs)
    radius = radius * (1 - 2.0**-50)
    # NaN compares false: whatever is not a positive number is not certified. A radius is
    # infinite only where every other class is a constant distance away, which is true. An operation
    # may lose the NaN or the infinity of an input.
    proved = (radius > 0) & torch.isfinite(logits).all(1) & finite_samples(inputs)
    radius = torch.where(proved, radius, 0.0)
    rivals = margin.scatter(1, prediction[:, None], math.inf)
    return Certificates(prediction, radius, rivals.amin(1), alpha)


def moved(x: Tensor, inputs: Tensor) -> Tensor:
    """How far the conversion to the arithmetic's precision moved each input, rounded up."""
    if x.is_floating_point() and torch.promote_types(x.dtype, inputs.dtype) == inputs.dtype:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return (x.double() - inputs.double()).flatten(1).norm(dim=1) * (1 + 1e-6)
