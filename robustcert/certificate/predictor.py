"""A certified network in use: label, certified radius and abstention for one forward pass."""

import math
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.arithmetic.products import tested_products
from robustcert.certificate.known_error import known_error
from robustcert.certificate.places import named_certificate
from robustcert.certificate.restore import read_proved
from robustcert.certificate.space import change_of, in_short, units_of
from robustcert.certifiers import Task, float64_products_are_strict, strict_arithmetic
from robustcert.certifiers.base import Proof, described, moved, rounded_down
from robustcert.errors import UnsoundNetworkError, typed
from robustcert.network.activation import Activation
from robustcert.network.forward_error import ForwardError
from robustcert.network.linear import Affine, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.network.units import network_inputs

DTYPES = {"float64": torch.float64, "float32": torch.float32}
# Of the error at the centre: one half is spent there, the other at the point, as in `certificates`.
ALLOWANCE = 2 * math.sqrt(2) * (1 + 1e-8)
# Of a norm, for the rounding of 2^31 squares and their sum, with what follows.
LENGTH = (1 + 2.0**-22) * (1 + 1e-9)

# Note [fused] (the radius of `certificates` in few operations)
# ~~~~~~~~~~~~
# With a batch of 256 every small operation costs microseconds. The constants K + drift of every
# class are inverted once, rounded down; a product with 2^-48 less than the quotient is below it
# after all roundings, and where a margin is not positive, neither is the product. The own class
# gets 0 times its gap plus infinity. Of the margin, which one subtraction rounds, 2^-50 is taken
# off; the sum with the allowance is rounded once more, relatively, which the 2^-48 covers. The
# largest logit and its class come from one operation; which of several largest does not matter,
# because then a margin is 0. Where nothing overflows within `reach`, logits are finite; besides, 0
# times their sum is added, which is NaN where one of them is not. NaN becomes 0. What `evaluate`
# grants is affine in the norm of the input; LENGTH and ALLOWANCE hold its factors and
# roundings.


# What is given: tensors for tensors, arrays for arrays.
Given = TypeVar("Given", bound=Tensor | NDArray[Any])


class Prediction(NamedTuple, Generic[Given]):
    """What a predictor says about a batch, or about one sample: then without the shape ``(N,)``.

    Attributes:
        label: The largest logit's class, shape ``(N,)``.
        radius: Certified radius in the predictor's units, float64, shape ``(N,)``; 0 for ties, NaN
            and whatever else is not certified.
        abstained: Whether the radius is 0, or not above the least one asked for, shape ``(N,)``.
    """

    label: Given
    radius: Given
    abstained: Given

    def __repr__(self) -> str:
        label, radius, abstained = map(torch.as_tensor, self)
        if radius.dim():
            return f"Prediction({described(radius)}; {int(abstained.sum())} abstained from)"
        shown = f"label={int(label)}, radius={rounded_down(float(radius))}"
        return f"Prediction({shown}, abstained={bool(abstained)})"


class Predictor:
    r"""A classifier that knows how far each of its answers holds.

    The radius is that of :class:`robustcert.certifiers.LipschitzCertifier`, except that the
    rounding of the forward pass is not measured at each input but known beforehand: with
    :math:`\alpha + \beta s` the error within s of the origin, bounded once, an input x is evaluated
    within :math:`\alpha + \beta \lVert x \rVert`, and every point within r of it within
    :math:`\alpha + \beta (\lVert x \rVert + r)`. So

    .. math:: r = \min_{j \ne c} \frac{m_j - 2 \sqrt 2\, (\alpha + \beta \lVert x \rVert)}
        {K_{cj} + \sqrt 2\, \beta},

    which costs a norm of the input beside the forward pass. In a metric S, r is that of u in
    x + S u, and :math:`\lVert S \rVert r` stands for r among the errors.

    Attributes:
        units: What radii are measured in.
        change: The changes of inputs that radii are about; None for those of any kind, in l2.
        error: Error of the forward pass.

    Args:
        network: The network.
        pairwise: Proved bounds on the constants of logit i minus logit j, shape ``(C, C)``.
        least_radius: Where the radius is not above this, the predictor abstains, in its units.
        dtype: Arithmetic of the forward pass. With float64, the radius speaks of the real-valued
            network and of its evaluation in float64; with float32, of the real-valued network and
            of its evaluation in float32, whose worst case often leaves nothing.
        device: Where to compute.

    Raises:
        UnsoundNetworkError: a bound cannot be proved, or float32 would round the constants.
        ValueError: ``least_radius`` is no number of at least 0, or the arithmetic is another.
    """

    def __init__(
        self,
        network: PlainNetwork,
        pairwise: Tensor,
        *,
        least_radius: float = 0.0,
        dtype: Literal["float64", "float32"] = "float64",
        device: str | torch.device = "cpu",
    ) -> None:
        if not least_radius >= 0:
            raise ValueError(f"least_radius: expected a number of at least 0, got {least_radius}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        self.least_radius = least_radius
        self.functions = ("R", "F64") if dtype == "float64" else ("R", "F32")
        self.dtype = DTYPES[dtype]
        self.device = torch.device(device)
        # The bounds are of these constants, which the caller's network need not keep.
        network = network.owned()
        self.input_shape = tuple(network.input_shape)
        self.error = known_error(network, self.dtype)
        self.alpha, self.beta = self.error.alpha, self.error.beta
        self.reach, self.lipschitz = self.error.reach, self.error.lipschitz
        self._stretch, self._growth = self.error.stretch, self.error.growth
        self.digest = network.digest()
        self.space = network.space
        self.units, self.change = units_of(network.space), change_of(network)
        self._network = network.to(self.device, self.dtype)
        dense = all(type(op) in (Dense, Affine, Flatten, Activation) for op in network.operations)
        # Settings of torch do not reach float64. Another thread may switch those of float32 and
        # back again unseen, except in a strict region, where the library that heeds them is off.
        settled = self.device.type == "cpu" and self.dtype == torch.float64
        self._needs_no_region = dense and settled
        self._pairwise = pairwise.to(self.device, torch.float64, copy=True)
        drift = self.drift
        # Rounded down, also for the roundings of what is multiplied by it.
        inverse = (1 - 2.0**-48) / (self._pairwise + drift)
        own = torch.zeros_like(inverse).fill_diagonal_(math.inf)
        self._inverse = torch.cat([inverse.fill_diagonal_(0.0), own], dim=1)
        tiny = math.prod(self.input_shape) * 2.0**-511
        self._per_norm = -ALLOWANCE * self.beta * LENGTH
        self._offset = -ALLOWANCE * (self.alpha + self.beta * tiny)
        self._room = (self.reach - tiny) * (1 - 2.0**-40)

    @property
    def drift(self) -> float:
        """What rounding may take off a margin within a ball, per unit of its radius."""
        return math.sqrt(2) * (1 + 1e-9) * self._growth

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.input_shape))
        units = "input units" if self.change is None else f"units of u ({in_short(self.change)})"
        return (
            f"Predictor(inputs of shape ({shape}), {self.num_classes} classes, l2 radii of "
            f"{' and '.join(self.functions)} in {units}, abstains up to {self.least_radius:g}, "
            f"network {self.digest[:12]})"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self._pairwise)

    @property
    def network(self) -> PlainNetwork:
        """A copy of the network, on the predictor's device and in its arithmetic."""
        return self._network.to(self.device)

    @property
    def pairwise(self) -> Tensor:
        """A copy of the bounds, shape ``(C, C)``, float64."""
        return self._pairwise.clone()

    @overload
    def __call__(self, x: Tensor) -> Prediction[Tensor]: ...

    @overload
    def __call__(self, x: NDArray[Any]) -> Prediction[NDArray[Any]]: ...

    def __call__(self, x: Tensor | NDArray[Any]) -> Prediction[Any]:
        """Classify inputs of shape ``(N, *input_shape)``, or one of shape ``input_shape``.

        Args:
            x: Floating point, in the units of training, or uint8, of which p stands for
                float32(p / 255). A tensor is answered with tensors on the predictor's device, a
                NumPy array with arrays.

        Raises:
            ValueError: the inputs have another shape, or are neither bytes nor floats.
        """
        if isinstance(x, np.ndarray):
            return Prediction(*(found.cpu().numpy()[()] for found in self(_tensor(x))))
        if isinstance(x, Tensor) and tuple(x.shape) == self.input_shape:
            return Prediction(*(found[0] for found in self._classify(x[None])))
        return self._classify(x)

    @torch.no_grad()
    def _classify(self, x: Tensor) -> Prediction[Tensor]:
        """What ``certificates`` says of a batch, in strict arithmetic."""
        if self.space.kind == "columns" and isinstance(x, Tensor) and x.dtype == torch.uint8:
            raise ValueError("expected floating-point columns in their own units, got uint8 pixels")
        x = network_inputs(x, self.input_shape).to(self.device)
        if self._needs_no_region and float64_products_are_strict():
            with tested_products():
                prediction = self._predict(x)
            # Another thread may have changed a setting meanwhile.
            if float64_products_are_strict():
                return prediction
        with strict_arithmetic(), torch.autocast(self.device.type, enabled=False):
            return self._predict(x)

    def _predict(self, x: Tensor) -> Prediction[Tensor]:
        """What ``certificates`` says, see Note [fused]."""
        inputs = x.to(self.dtype)
        norm = torch.linalg.vector_norm(inputs.flatten(1).double(), dim=1)
        logits = self._network(inputs).double()
        top, label = logits.max(1, keepdim=True)
        label = label[:, 0]
        allowance = norm[:, None] * self._per_norm + self._offset
        gap = torch.add(allowance, top - logits, alpha=1 - 2.0**-50)
        inverse, own = self._inverse[label].chunk(2, dim=1)
        room = torch.rsub(norm, self._room, alpha=LENGTH)
        if self._stretch != 1.0:
            room = room / self._stretch * (1 - 2.0**-50)
        radius = torch.minimum(torch.addcmul(own, gap, inverse).amin(1), room)
        if inputs is not x:
            gone = moved(x, inputs)
            radius = (radius - gone) * (1 - 2.0**-50)
            if self.space.metric is not None:
                # Where the input was rounded, the metric's ball is not around the rounded one.
                radius = torch.where(gone == 0, radius, 0.0)
        radius = torch.add(radius, logits.sum(1) * 0.0)
        radius = radius.clamp_(min=0).nan_to_num_(0.0, posinf=math.inf)
        return Prediction(label, radius, radius <= self.least_radius)

    @strict_arithmetic()
    def evaluate(self, inputs: Tensor) -> ForwardError:
        """Logits with the error that is known beforehand; inputs in the predictor's arithmetic."""
        # The factor covers the rounding of 2^31 squares and their sum; the last term, their
        # underflow.
        flat = inputs.flatten(1).double()
        distance = (
            torch.linalg.vector_norm(flat, dim=1) * (1 + 2.0**-22) + flat.shape[1] * 2.0**-511
        )
        centre = (self.alpha + self.beta * distance) * (1 + 1e-9)
        reach = self.reach - distance
        lipschitz = self.lipschitz
        if self.space.metric is not None:
            reach, lipschitz = reach / self._stretch, lipschitz * self._stretch * (1 + 1e-9)
        return ForwardError(self._network(inputs), centre, self._growth, lipschitz, reach)


def _tensor(x: NDArray[Any]) -> Tensor:
    """A copy of an array, whatever its strides and its order of bytes."""
    try:
        return torch.from_numpy(x.astype(x.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise ValueError(
            f"expected inputs of type uint8, where p stands for p / 255, or floating point, got an "
            f"array of {x.dtype}"
        ) from error


def load(
    path: str | Path,
    *,
    least_radius: float = 0.0,
    dtype: Literal["float64", "float32"] = "float64",
    device: str | torch.device = "cpu",
) -> Predictor:
    """The predictor of a certificate folder, or of whatever has one: a run, a released network.

    The folder is read as untrusted data, by the independent checker: hashes are recomputed, and its
    norms and pairwise constants are proved again before they are used. Samples and radii are not
    looked at and need not be there.

    Args:
        path: The certificate folder, a run's folder, its checkpoint, or the name of a network that
            comes with the package, ``"mnist_1.58"``.
        least_radius: As for :class:`Predictor`.
        dtype: As for :class:`Predictor`.
        device: As for :class:`Predictor`.

    Raises:
        NotCertifiedError: nothing has this name, or the run has no certificate yet.
        UnreadableError: the folder is malformed.
        UnsoundNetworkError: a constant is not proved, or the folder does not speak of the network.
    """
    folder = named_certificate(str(path))
    network, proved = read_proved(folder, Task.CLASSIFICATION, "robustcert.load_regressor")
    require_constants(path, proved.proof)
    return Predictor(
        network,
        torch.from_numpy(proved.pairwise),
        least_radius=least_radius,
        dtype=dtype,
        device=device,
    )


def require_constants(path: str | Path, proof: str) -> None:
    """Refuse a certificate of a proof that rests on no Lipschitz constants.

    Raises:
        UnsoundNetworkError: it is of a smoothed classifier or of quadratics.
    """
    if proof == Proof.SMOOTHING:
        raise UnsoundNetworkError(
            f"{path} speaks of a smoothed classifier, which no single forward pass evaluates: "
            "load a certificate of another certifier"
        )
    if proof == Proof.QUADRIC:
        raise UnsoundNetworkError(
            f"{path} speaks of quadratics, which have no Lipschitz constant that a predictor "
            f"could use: certify inputs with {typed('certify')} certifier=quadratic"
        )
