"""Certified radii from global Lipschitz bounds that look at all dense layers together."""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.base import Claim, Proof
from robustcert.certifiers.lipschitz import PairwiseCertifier
from robustcert.certifiers.lipsdp import search, semidefinite
from robustcert.certifiers.lipsdp.layers import NOTHING, Layer, compose
from robustcert.errors import NormBoundError, UnsoundNetworkError
from robustcert.network.activation import Activation
from robustcert.network.bounds import shapes
from robustcert.network.input_space import directions
from robustcert.network.linear import Affine, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.network.network import pairwise_bound as product_bound
from robustcert.network.operation import Operation
from robustcert.norms.proof import Scaled, scaled

# Share by which bounds are raised: the checker, whose rounding errors are others, proves them.
BOUND_ALLOWANCE = 1e-5

log = logging.getLogger(__name__)


class LipSDPCertifier(PairwiseCertifier):
    r"""Certify by the margins over semidefinite pairwise bounds.

    The product of the layers' norms is attained only if what one layer stretches most is what the
    next one stretches most, and no unit is switched off. These bounds take both into account, for
    networks of dense layers whose activation acts on every coordinate by itself (ReLU, softplus,
    tanh, absolute values, zigzags) or on the differences of neighbouring pairs (MaxMin and its
    smooth form). They are proved in float64 with all rounding included, never above the product,
    and equal to it for orthogonal layers with norm-preserving activations, where nothing can be
    gained.

    References: see :mod:`robustcert.certifiers.lipsdp.search`.

    Args:
        iterations: Steps of the optimiser; 0 keeps the closed form, which is that of ECLipsE-Fast
            for slopes in [0, 1].
        per_pair: Whether to optimise for every pair of classes by itself after all together, which
            is tighter by a few per cent and costs about as much again for each pair.
        arithmetic: As in :class:`robustcert.certifiers.LipschitzCertifier`.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        >>> ramp = [[[1.0], [1.0]], [0.0, -2.0], [[1.0, -1.0], [0.0, 0.0]], [0.0, 0.0]]
        >>> for parameter, value in zip(net.parameters(), ramp):
        ...     parameter.data = torch.tensor(value)
        >>> network = fold_network(net, (1,))
        >>> for certifier in (LipschitzCertifier(), LipSDPCertifier()):
        ...     print(f"{certifier.claim(network).pairwise[0, 1]:.2f}")  # the steepest slope is 1
        2.00
        1.00
    """

    proof = Proof.LIPSDP
    covers_metric = True

    def __init__(
        self,
        iterations: int = 100,
        per_pair: bool = False,
        arithmetic: Literal["float64", "float32"] = "float64",
    ) -> None:
        super().__init__(arithmetic)
        if iterations < 0:
            raise ValueError(
                f"LipSDPCertifier(iterations={iterations}) must be at least 0: set "
                "certifier.iterations"
            )
        self.iterations = iterations
        self.per_pair = per_pair

    def pairwise_bound(self, network: PlainNetwork) -> Tensor:
        """Bounds on the constants of logit i minus logit j, shape ``(C, C)``, float64.

        Raises:
            UnsoundNetworkError: the network has an operation that is not covered, or a bound cannot
                be proved.
        """
        return _prove(network.owned(), self.iterations, self.per_pair)[0].clone()

    def claim(self, network: PlainNetwork, samples: Iterable[Tensor] = ()) -> Claim:
        """The pairwise constants with the multipliers that prove them."""
        return replace(super().claim(network), multipliers=self.multiplier_tensors(network))

    def multipliers(self, network: PlainNetwork) -> list[list[Tensor]]:
        r"""What a checker needs to prove the pairwise bounds again: diagonals, layer by layer.

        Every element of the list gives bounds by itself, and :meth:`pairwise_bound` is the least of
        them and of the product of norms. A diagonal D holds the inverses of the multipliers of
        LipSDP, one for every coordinate whose slope is not fixed, in the powers of two of
        :func:`layers_of`.
        """
        _, proved = _prove(network.owned(), self.iterations, self.per_pair)
        return [[diagonal.clone() for diagonal in diagonals] for diagonals in proved]

    def multiplier_tensors(self, network: PlainNetwork) -> dict[str, Tensor]:
        r"""Roots of the multipliers of LipSDP for the independent checker, ``<list>.<layer>``.

        They multiply differences as they are, without the powers of two of :func:`layers_of`, one
        for every coordinate whose slope is not fixed; layers without such a coordinate have none.
        For pairs of neighbours, the coordinate is the second less the first.
        """
        network = network.owned()
        layers, _ = layers_of(network)
        tensors = {}
        for i, diagonals in enumerate(self.multipliers(network)):
            exponent, place = 0, 0
            for depth, (layer, diagonal) in enumerate(zip(layers, diagonals, strict=True), start=1):
                exponent += layer.matrix.exponent
                # Where `semidefinite.pairwise_bound` evaluates them.
                root = (diagonal * (1 + semidefinite.MARGIN) ** depth).rsqrt()
                if len(root):
                    tensors[f"{i}.{place}"] = torch.ldexp(root, root.new_tensor(-exponent))
                    place += 1
        return tensors


@lru_cache(maxsize=4)
@strict_arithmetic()
def _prove(
    network: PlainNetwork, iterations: int, per_pair: bool
) -> tuple[Tensor, list[list[Tensor]]]:
    layers, head = layers_of(network)
    bound = product_bound(network)
    proved = []
    try:
        for diagonals in _candidates(layers, head, iterations, per_pair):
            found = semidefinite.pairwise_bound(layers, head, diagonals)
            bound = torch.minimum(bound, found * (1 + BOUND_ALLOWANCE))
            proved.append(diagonals)
    except (NormBoundError, torch.linalg.LinAlgError) as error:
        log.warning("a semidefinite bound could not be proved, keeping the last one: %s", error)
    return bound, proved


def _candidates(
    layers: list[Layer], head: Scaled, iterations: int, per_pair: bool
) -> Iterator[list[Tensor]]:
    yield search.closed_form(layers)
    if iterations:
        rows = torch.from_numpy(head.values)
        shared = search.search(layers, rows, iterations)
        yield shared
        if per_pair:
            for pair in itertools.combinations(range(len(rows)), 2):
                yield search.search(layers, rows[list(pair)], iterations, shared)


def layers_of(network: PlainNetwork) -> tuple[list[Layer], Scaled]:
    """The network as layers and the linear map after them; in a metric S, from u on.

    Raises:
        UnsoundNetworkError: an operation is not covered; the message names it.
    """
    layers = []
    linear: Scaled | None = None
    network = network.owned()
    metric, operations, first = network.space.metric, network.operations, network.input_shape
    if metric is not None:
        operations, first = (metric, *operations), directions(metric, first)
    for operation, shape in shapes(operations, first):
        size = math.prod(shape)
        ones = torch.ones(size, dtype=torch.float64, device="cpu")
        slopes = operation.slopes if isinstance(operation, Activation) else None
        # By exact class: a subclass may compute something else.
        if type(operation) is Dense and len(shape) == 1:
            linear = compose(scaled(operation.weight), linear)
        elif type(operation) is Affine:
            scale = operation.scale.repeat_interleave(size // len(operation.scale))
            linear = compose(scaled(scale), linear)
        elif type(operation) is Flatten:
            continue
        elif slopes is None or (slopes.pairs and len(shape) > 1):
            raise UnsoundNetworkError(
                f"semidefinite bounds do not cover {_describe(operation)}: they need dense layers "
                "of vectors and activations of one coordinate or of pairs of neighbours. Use "
                "certifier=lipschitz",
                operation.label,
            )
        elif not slopes.pairs:
            if not slopes.low == slopes.high == 1:
                low, high = (ones * s for s in (slopes.low, slopes.high))
                layers.append(Layer(_dense(linear, size), low, high))
                linear = None
        else:
            # In sums and differences of neighbours, the former are kept.
            pair = ones.new_tensor([[1.0, 1.0], [-1.0, 1.0]])
            basis = torch.block_diag(*[pair] * (size // 2))
            matrix = compose(Scaled(basis.numpy(), 0, NOTHING), linear)
            low, high = (ones.clone() for _ in range(2))
            low[1::2], high[1::2] = slopes.low, slopes.high
            layers.append(Layer(matrix, low, high))
            linear = Scaled(basis.mT.contiguous().numpy(), -1, NOTHING)
    return layers, _dense(linear, size)


def _dense(linear: Scaled | None, size: int) -> Scaled:
    """The map as a matrix of ``size`` rows."""
    if linear is None:
        return Scaled(torch.eye(size, dtype=torch.float64, device="cpu").numpy(), 0, NOTHING)
    if linear.values.ndim == 1:
        matrix = torch.from_numpy(linear.values).diag().numpy()
        return Scaled(matrix, linear.exponent, linear.tail)
    return linear


def _describe(operation: Operation) -> str:
    if isinstance(operation, Activation):
        return f"the activation {operation.function.__name__}"
    return f"the operation {operation.kind}"
