"""A certified regression in use: an output and the interval that holds it on a ball."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.certificate.known_error import KnownError, known_error
from robustcert.certificate.predictor import DTYPES
from robustcert.certificate.restore import read_proved
from robustcert.certificate.space import change_of, units_of
from robustcert.certifiers import IntervalCertifier, LipschitzCertifier, Task
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
        functions: What intervals hold, as keys of a claim's ``functions``.

    Args:
        network: The network.
        dtype: Arithmetic of the forward pass, and so of the deployed network that intervals speak
            of beside the real-valued one.

    Raises:
        UnsoundNetworkError: a bound cannot be proved, or there is more than one output.
        ValueError: the arithmetic is another.
    """

    def __init__(
        self, network: PlainNetwork, *, dtype: Literal["float64", "float32"] = "float64"
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        arithmetic = LipschitzCertifier(dtype)
        self.functions, self.dtype = arithmetic.functions, arithmetic.dtype
        self._certifier = IntervalCertifier(arithmetic)
        self._network = network.owned()
        self.input_shape = tuple(network.input_shape)
        self.digest = network.digest()
        self.units, self.change = units_of(network.space), change_of(network)
        self.lipschitz = float(self._certifier.claim(self._network).lipschitz[0])  # type: ignore[index]

    @property
    def network(self) -> PlainNetwork:
        """A copy of the network, in the regressor's arithmetic."""
        return self._network.to(torch.device("cpu"), self.dtype)

    def known_error(self) -> KnownError:
        """The error of the forward pass, before an input is known."""
        return known_error(self._network, self.dtype)

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


def load_regressor(
    path: str | Path, *, dtype: Literal["float64", "float32"] = "float64"
) -> Regressor:
    """The regressor of a certificate folder, or of the run or the checkpoint that it is of.

    The folder is read as untrusted data and its constants are proved again, as by
    :func:`robustcert.load`.

    Args:
        path: The certificate folder, a run's folder or its checkpoint.
        dtype: As for :class:`Regressor`.

    Raises:
        NotCertifiedError: the run has no certificate yet.
        UnreadableError: the folder is malformed.
        UnsoundNetworkError: a constant is not proved, or the folder is of classes.
    """
    network, _ = read_proved(path, Task.REGRESSION, "robustcert.load")
    return Regressor(network, dtype=dtype)
