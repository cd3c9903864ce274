r"""Intervals that hold the output of a network on the ball around a sample.

Let K bound the Lipschitz constant of the real-valued output f, p be the computed output at a sample
x with :math:`|p - f(x)| \le \alpha`, and :math:`\alpha + \beta r` bound the error of the deployed
network within distance r. For every x' with :math:`\lVert x' - x \rVert_2 \le r`

.. math:: |f(x') - p| \le K r + \alpha, \qquad |\hat f(x') - p| \le K r + 2 \alpha + \beta r,

so that :math:`p \pm (K r + 4 \alpha + \beta r)` holds both; the last :math:`2 \alpha` is room for
whoever evaluates the network again and does not know which of the errors were made here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.base import Certifier, Claim, Proof, Task, moved
from robustcert.certifiers.lipschitz import LipschitzCertifier
from robustcert.errors import UnsoundNetworkError
from robustcert.network.forward_error import forward_error
from robustcert.network.network import PlainNetwork, output_bound
from robustcert.network.units import finite_samples, network_inputs

# Relative allowance for the roundings of a half width, and room for their underflow.
ROUNDING, UNDERFLOW = 2.0**-48, 2.0**-1000


@dataclass(frozen=True, eq=False)
class Outputs:
    """Computed outputs of N samples, with what bounds them on balls.

    Attributes:
        prediction: Shape ``(N,)``, float64.
        error: Bound on the error of the prediction, shape ``(N,)``, float64.
        growth: What the deployed network's error gains per unit of distance.
        reach: Distance within which nothing overflows, shape ``(N,)``, float64.
        moved: How far the arithmetic's precision moved each sample, shape ``(N,)``, float64.
        lipschitz: Bound on the constant of the output.

    Example:
        >>> zero = torch.zeros(1, dtype=torch.float64)
        >>> found = Outputs(zero, zero, 0.0, zero + 9.0, zero, lipschitz=2.0)
        >>> [round(end.item(), 6) for end in found.interval(0.5)]  # 0 - 2 * 0.5 and 0 + 2 * 0.5
        [-1.0, 1.0]
    """

    prediction: Tensor
    error: Tensor
    growth: float
    reach: Tensor
    moved: Tensor
    lipschitz: float

    def interval(self, radius: float, extra: float = 0.0) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, rounded outwards; infinite where a value may overflow.

        Args:
            radius: Of the closed ball around each sample, in input units, at least 0.
            extra: Half width that is added, in units of the output.
        """
        distance = (radius + self.moved) * (1 + ROUNDING)
        half = self.lipschitz * distance + (4 * self.error + self.growth * distance)
        half = (half + extra) * (1 + ROUNDING) + UNDERFLOW
        sound = (distance < self.reach) & torch.isfinite(self.prediction) & torch.isfinite(half)
        infinity = torch.full_like(half, math.inf)
        lower = torch.nextafter(self.prediction - half, -infinity)
        upper = torch.nextafter(self.prediction + half, infinity)
        return torch.where(sound, lower, -infinity), torch.where(sound, upper, infinity)


class IntervalCertifier:
    """Certifies the one output of a network by its Lipschitz constant.

    Args:
        certifier: Names the arithmetic: :class:`LipschitzCertifier`.

    Raises:
        UnsoundNetworkError: the certifier is another, whose proof is about classes.

    Example:
        >>> network = fold_network(torch.nn.Linear(3, 1), (3,))
        >>> found = IntervalCertifier().certify(network, torch.zeros(2, 3))
        >>> lower, upper = found.interval(0.1)
        >>> bool(((lower < found.prediction) & (found.prediction < upper)).all())
        True
    """

    def __init__(self, certifier: Certifier | None = None) -> None:
        found = certifier or LipschitzCertifier()
        if type(found) is not LipschitzCertifier:
            raise UnsoundNetworkError(
                f"{type(found).__name__} proves radii of classes; the output of a regression is "
                "bounded by certifier=lipschitz"
            )
        self.certifier = found

    def lipschitz(self, network: PlainNetwork) -> Tensor:
        """Bounds on the constants of the outputs, shape ``(1,)``, float64.

        Raises:
            UnsoundNetworkError: a bound cannot be proved, or there is more than one output.
        """
        bound = output_bound(network)
        if len(bound) != 1:
            raise UnsoundNetworkError(f"a regression has one output, but this has {len(bound)}")
        return bound

    @strict_arithmetic()
    def claim(self, network: PlainNetwork) -> Claim:
        """What is said of the network beside the intervals of samples."""
        return Claim(
            Proof.LIPSCHITZ,
            self.certifier.functions,
            self.certifier.dtype,
            task=Task.REGRESSION,
            lipschitz=self.lipschitz(network),
        )

    @torch.no_grad()
    @strict_arithmetic()
    def certify(self, network: PlainNetwork, x: Tensor) -> Outputs:
        """Outputs at samples of shape ``(N, *input_shape)``, with what bounds them around.

        Raises:
            UnsoundNetworkError: a bound of the network cannot be proved.
            ValueError: the inputs have another shape than the network's, or stand for no numbers.
        """
        network = network.owned()
        x = network_inputs(x, network.input_shape)
        inputs = x.to(self.certifier.dtype)
        result = forward_error(network, inputs)
        prediction = result.output.double()[:, 0]
        # An operation may lose the NaN or the infinity of an input.
        prediction = torch.where(finite_samples(inputs), prediction, math.nan)
        distance = moved(x, inputs)
        reach = result.reach
        if network.space.metric is not None:
            # Where the input was rounded, the metric's ball is not around the rounded one.
            reach = torch.where(distance == 0, reach, 0.0)
        return Outputs(
            prediction,
            result.centre * (1 + 1e-9),
            result.growth * (1 + 1e-9),
            reach,
            distance,
            float(self.lipschitz(network)[0]),
        )
