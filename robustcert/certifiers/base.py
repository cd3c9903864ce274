"""The certifier's contract: what it says of inputs and of a network, and radii from margins."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Context
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.margins import least_of_rivals, margins
from robustcert.network.forward_error import ForwardError
from robustcert.network.network import PlainNetwork
from robustcert.network.units import finite_samples

# Functions that radii speak of, in the words of a claim.
FUNCTIONS: Mapping[str, str] = {
    "R": "the real-valued function that the float constants of the network define",
    "F64": "the network evaluated in IEEE float64, summed in any order",
    "F32": "the network evaluated in IEEE float32, summed in any order, without TF32",
    "smoothed": "the classifier that returns the most probable class of the network under Gaussian "
    "noise of standard deviation sigma, in real arithmetic",
}


class Task(StrEnum):
    """What a network's outputs are, and so what a certificate says of a sample.

    Example:
        >>> Task("regression").name
        'REGRESSION'
    """

    CLASSIFICATION = "classification"  # logits: a prediction and the radius within which it holds
    REGRESSION = "regression"  # one real number: an interval for each radius


class Proof(StrEnum):
    """What radii rest on, in the words of a certificate's claim.

    Example:
        >>> Proof("quadric").name
        'QUADRIC'
    """

    LIPSCHITZ = "lipschitz"  # norms of the operations
    LIPSDP = "lipsdp"  # semidefinite bounds of pairwise constants
    SECOND_ORDER = "second-order"  # gradients at the samples
    CROWN = "crown"  # linear bounds on balls around the samples
    LOCAL_LIPSCHITZ = "local-lipschitz"  # semidefinite bounds on such balls
    QUADRIC = "quadric"  # the dual of the distance to quadrics
    SMOOTHING = "smoothing"  # no proof: a vote under noise


@dataclass(frozen=True, eq=False)
class Claim:
    """What a certifier says of a network, beside the radii of samples.

    Attributes:
        proof: What the radii rest on: a :class:`Proof`, or the name of another. The independent
            checker refuses a folder whose proof it does not know.
        functions: Functions that the radii speak of, of :data:`FUNCTIONS`.
        dtype: Arithmetic in which the network is evaluated.
        pairwise: Proved bounds on the constants of logit i minus logit j, shape ``(C, C)``,
            float64; None if the radii rest on none.
        multipliers: Tensors from which the checker proves semidefinite bounds again; None without.
        smoothing: Noise and ``confidence`` of radii that are true with some probability; None if
            they are proved.
        pairs: Claim about all pairs of near inputs, whatever the samples, for ``global.json``; None
            without.
        task: What the outputs are.
        lipschitz: Proved bounds on the constants of outputs, shape ``(C,)``, float64; None where
            none is claimed.
        monotone: For every input +1 or -1 where the network's output, or logit 1 minus logit 0, is
            proved never to fall or never to rise with it, and else 0; None where none is claimed.

    Raises:
        ValueError: the proof has no name, or a function is not known.

    Example:
        >>> claim = LipschitzCertifier().claim(fold_network(torch.nn.Linear(2, 2), (2,)))
        >>> claim.proof, claim.functions, claim.pairwise.shape
        (<Proof.LIPSCHITZ: 'lipschitz'>, ('R', 'F64'), torch.Size([2, 2]))
    """

    proof: str
    functions: tuple[str, ...]
    dtype: torch.dtype = torch.float64
    pairwise: Tensor | None = None
    multipliers: Mapping[str, Tensor] | None = None
    smoothing: Mapping[str, float | int] | None = None
    pairs: Mapping[str, Any] | None = None
    task: Task = Task.CLASSIFICATION
    lipschitz: Tensor | None = None
    monotone: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.proof, str) and self.proof):
            raise ValueError(f"Claim.proof: expected the name of a proof, got {self.proof!r}")
        if not self.functions or not set(self.functions) <= set(FUNCTIONS):
            raise ValueError(
                f"Claim.functions: expected some of {', '.join(FUNCTIONS)}, got {self.functions!r}"
            )


@dataclass(frozen=True, repr=False)
class Certificates:
    """What a certifier says about a batch.

    Attributes:
        prediction: Class indices, shape ``(N,)``.
        radius: Certified radius, shape ``(N,)``, float64, rounded down: on the open ball of this
            radius the prediction does not change. In l2 and input units or, if the network's space
            has a metric S, that of u in x + S u. 0 where nothing is certified.
        margin: Smallest margin over the other classes, shape ``(N,)``, float64.
        error: Bound on the l2 error of the computed logits at the sample, shape ``(N,)``.
        decided: Whether the prediction is proved to be the unique largest logit of the real-valued
            network at the sample, shape ``(N,)``; by default where the radius is above 0 or the
            margin above its own error.

    Example:
        >>> radius = torch.tensor([0.5, 0.25, 0.0])
        >>> Certificates(torch.tensor([0, 1, 1]), radius, margin=2 * radius, error=torch.zeros(3))
        Certificates(3 samples, 2 with a radius: median 0.25, largest 0.5)
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

    def __repr__(self) -> str:
        return f"Certificates({described(self.radius)})"


def described(radius: Tensor) -> str:
    """Radii in words: how many are above 0, their median and the largest, rounded down."""
    certified = radius[radius > 0].detach().double().cpu()
    counted = f"{radius.numel()} samples, {len(certified)} with a radius"
    if not len(certified):
        return counted
    median, largest = (rounded_down(float(r)) for r in (certified.median(), certified.max()))
    return f"{counted}: median {median}, largest {largest}"


def rounded_down(radius: float) -> str:
    """Four digits of a radius, never more than it."""
    return f"{Context(4, ROUND_FLOOR).create_decimal_from_float(radius):g}"


class Certifier(ABC):
    """Proves of a network how far from an input its prediction does not change.

    A certifier of another package derives from this class; ``certify.py`` takes it with
    ``certifier._target_=their_package.TheirCertifier allow_targets=[their_package]``.

    Attributes:
        covers_metric: Whether radii are in the metric of the network's space. A certifier that
            knows the l2 distance of inputs alone is refused where there is another.

    Example:
        >>> class Halved(LipschitzCertifier):
        ...     def certify(self, network, x):
        ...         full = super().certify(network, x)
        ...         return Certificates(full.prediction, full.radius / 2, full.margin, full.error)
        >>> network = fold_network(torch.nn.Flatten(), (2,))
        >>> Halved().certify(network, torch.tensor([[1.0, 0.0]])).radius
        tensor([0.3536], dtype=torch.float64)
    """

    covers_metric: ClassVar[bool] = False
    # What it covers where it does not cover a metric.
    distances_covered: ClassVar[str] = "the l2 distance of inputs alone"

    @abstractmethod
    def claim(self, network: PlainNetwork, samples: Iterable[Tensor] = ()) -> Claim:
        """What is said of the network beside the radii.

        Args:
            network: The folded network.
            samples: The samples to be certified, in batches of shape ``(N, *input_shape)``, for
                claims that count some of them.

        Raises:
            UnsoundNetworkError: a bound cannot be proved, or the network is not covered.
        """

    @abstractmethod
    def certify(self, network: PlainNetwork, x: Tensor) -> Certificates:
        """Certify inputs of shape ``(N, *input_shape)``.

        Args:
            network: The folded network.
            x: uint8, of which p stands for float32(p / 255), or floating point.

        Raises:
            UnsoundNetworkError: a bound of the network cannot be proved.
            ValueError: the inputs have another shape than the network's, or stand for no numbers.
        """


def require_covered_metric(certifier: Certifier, network: PlainNetwork) -> None:
    """Refuse a certifier of plain l2 balls for a network whose inputs have another metric.

    Raises:
        UnsoundNetworkError: the certifier does not cover the metric.
    """
    if network.space.metric is not None and not certifier.covers_metric:
        raise UnsoundNetworkError(
            f"{type(certifier).__name__} covers {certifier.distances_covered}, got a metric: set "
            "certifier=lipschitz, or norm.scale=1 norm.frozen=[]"
        )


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
        distances: ``distances(prediction, gap, drift)``, see
            :meth:`robustcert.certifiers.lipschitz.PairwiseCertifier.distances`.
    """
    logits = result.output.double()
    prediction = logits.argmax(1)
    margin = margins(logits, prediction)
    # Subtraction of two float64 logits rounds once, hence the relative term.
    alpha = result.centre * (1 + 1e-9)
    allowance = (2 * math.sqrt(2) * (1 + 1e-9)) * alpha[:, None] + margin.abs() * 2.0**-52
    drift = math.sqrt(2) * (1 + 1e-9) * result.growth
    ratio = distances(prediction, margin - allowance, drift)
    radius = torch.minimum(least_of_rivals(ratio, prediction), result.reach) - moved(x, inputs)
    radius = radius * (1 - 2.0**-50)
    # NaN compares false: whatever is not a positive number is not certified. A radius is
    # infinite only where every other class is a constant distance away, which is true. An operation
    # may lose the NaN or the infinity of an input.
    proved = (radius > 0) & torch.isfinite(logits).all(1) & finite_samples(inputs)
    radius = torch.where(proved, radius, 0.0)
    return Certificates(prediction, radius, least_of_rivals(margin, prediction), alpha)


def moved(x: Tensor, inputs: Tensor) -> Tensor:
    """How far the conversion to the arithmetic's precision moved each input, rounded up."""
    if x.is_floating_point() and torch.promote_types(x.dtype, inputs.dtype) == inputs.dtype:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return (x.double() - inputs.double()).flatten(1).norm(dim=1) * (1 + 1e-6)
