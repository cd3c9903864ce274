"""The error of evaluating a network, bounded before any input is known."""

from dataclasses import dataclass, replace

import torch

from robustcert.certifiers import strict_arithmetic
from robustcert.network.forward_error import forward_error
from robustcert.network.input_space import IMAGES
from robustcert.network.network import PlainNetwork, prefix_bounds


@dataclass(frozen=True)
class KnownError:
    r"""At an input of l2 norm s, outputs are wrong by at most :math:`\alpha + \beta s`.

    Attributes:
        alpha: Error at the origin.
        beta: What the error gains per unit of l2 distance of inputs.
        reach: Distance from the origin within which nothing overflows.
        lipschitz: Bound on the constant of the network, in input units.
        stretch: Bound on the l2 norm of the change of an input, per unit of radius; 1 unless radii
            are in a metric.
    """

    alpha: float
    beta: float
    reach: float
    lipschitz: float
    stretch: float

    @property
    def growth(self) -> float:
        """What the error gains per unit of radius."""
        return self.beta if self.stretch == 1.0 else self.beta * self.stretch * (1 + 1e-9)


@torch.no_grad()
@strict_arithmetic()
def known_error(network: PlainNetwork, dtype: torch.dtype) -> KnownError:
    """The error of a network that is evaluated in an arithmetic.

    Raises:
        UnsoundNetworkError: it cannot be bounded, or float32 would round the constants.
    """
    origin = torch.zeros(1, *network.input_shape, dtype=dtype, device="cpu")
    # Of the l2 distance of inputs, whatever the metric is.
    error = forward_error(replace(network, space=IMAGES), origin)
    stretch = 1.0 if network.space.metric is None else prefix_bounds(network)[0]
    return KnownError(
        float(error.centre), error.growth, float(error.reach), error.lipschitz, stretch
    )
