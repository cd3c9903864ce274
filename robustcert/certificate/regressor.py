"""A certified regression in use: an output and the interval that holds it on a ball."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.certificate.restore import read_proved
from robustcert.certificate.space import change_of, units_of
from robustcert.certifiers import IntervalCertifier, Task
from robustcert.network.network import PlainNetwork
from robustcert.network.units import in_units


class Interval(NamedTuple):
    """What a regressor says about N inputs, or about one: then without the shape ``(N,)``.

    Attributes:
        prediction: Output at the input, float64, shape ``(N,)``.
        lower: No output within the radius is below it, shape ``(N,)``.
        upper: No output within the radius is above it, shape ``(N,)``.
    """

    prediction: Tensor
    lower: Tensor
    upper: Tensor


class Regressor:
    """A network with one real output and its proved constant.

    Attributes:
        lipschitz: The constant.
        units: What radii are measured in.
        change: The changes of inputs that radii are about; None for those of any kind, in l2.

    Args:
        network: The network.

    Raises:
        UnsoundNetworkError: a bound cannot be proved, or there is more than one output.
    """

    def __init__(self, network: PlainNetwork) -> None:
        self._certifier = IntervalCertifier()
        self._network = network.owned()
        self.units, self.change = units_of(network.space), change_of(network)
        self.lipschitz = float(self._certifier.claim(self._network).lipschitz[0])  # type: ignore[index]

    def __call__(self, x: Tensor | NDArray[Any], radius: float = 0.0) -> Interval:
        """Outputs at inputs, and intervals that hold those of all inputs within a radius.

        Args:
            x: Inputs of shape ``(N, *input_shape)``, or one of shape ``input_shape``.
            radius: In :attr:`units`, at least 0.

        Raises:
            ValueError: the inputs have another shape or stand for no numbers, or the radius is
                negative.
        """
        if not radius >= 0:
            raise ValueError(f"radius: expected a number of at least 0, got {radius}")
        given = in_units(torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x)
        one = tuple(given.shape) == self._network.input_shape
        found = self._certifier.certify(self._network, given[None] if one else given)
        answer = Interval(found.prediction, *found.interval(radius))
        return Interval(*(part[0] for part in answer)) if one else answer


def load_regressor(path: str | Path) -> Regressor:
    """The regressor of a certificate folder, or of the run or the checkpoint that it is of.

    The folder is read as untrusted data and its constants are proved again, as by
    :func:`robustcert.load`.

    Raises:
        NotCertifiedError: the run has no certificate yet.
        UnreadableError: the folder is malformed.
        UnsoundNetworkError: a constant is not proved, or the folder is of classes.
    """
    network, _ = read_proved(path, Task.REGRESSION, "robustcert.load")
    return Regressor(network)
