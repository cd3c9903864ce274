"""A trained network with its constraints folded into constant weights: a list of operations.

This is what is certified, hashed, exported and deployed. An operation holds constants (float32;
float64 if the module was) and evaluates them in the dtype of its input, so that one list of numbers
defines the real-valued function and its float32 and float64 deployments.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from robustcert import norms
from robustcert.errors import UnsoundNetworkError
from robustcert.network.bounds import operation_bound, owned, run, sequence_bound, shapes
from robustcert.network.branches import digest, walk
from robustcert.network.input_space import (
    IMAGES,
    Composed,
    InputSpace,
    Metric,
    composed,
    directions,
)
from robustcert.network.linear import Dense
from robustcert.network.operation import Operation, Shape, zeros
from robustcert.norms.scalars import round_up


def _above(values: Tensor) -> Tensor:
    # The next float of each entry.
    return torch.nextafter(values, torch.full_like(values, math.inf))


@dataclass(frozen=True, eq=False)
class PlainNetwork:
    """Operations applied in turn to inputs of shape ``(N, *input_shape)``.

    Attributes:
        operations: The operations.
        input_shape: Shape of one input.
        space: What inputs are, and how the distance is measured that constants and radii refer to;
            no part of the function, nor of its digest.

    Raises:
        UnsoundNetworkError: the shapes do not fit together.
    """

    operations: tuple[Operation, ...]
    input_shape: Shape
    space: InputSpace = IMAGES

    def __post_init__(self) -> None:
        shape = self.input_shape
        for operation in self.operations:
            try:
                shape = operation.output_shape(shape)
            except (RuntimeError, IndexError) as error:
                raise UnsoundNetworkError(
                    f"it does not take inputs of shape {tuple(shape)}: {error}", operation.label
                ) from error
        if len(shape) != 1:
            raise UnsoundNetworkError(f"expected logits of shape (N, C), got (N, {shape})")

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, C)`` in the dtype of ``x``."""
        return run(self.operations, x)

    def owned(self) -> "PlainNetwork":
        """The network of :func:`owned` operations, the same one as long as they are the same.

        It is what bounds are remembered for; whoever asks for it must not change it.

        Raises:
            UnsoundNetworkError: see :meth:`Operation.check_claims`.
        """
        operations, shape = tuple(map(owned, self.operations)), tuple(self.input_shape)
        space = self.space
        if space.metric is not None:
            metric = cast(Metric, owned(space.metric))
            space = space if metric is space.metric else replace(space, metric=metric)
        if operations == tuple(self.operations) and space is self.space:
            return self
        known = _NETWORKS.get(self)
        if known is None or (known.operations, known.input_shape, known.space.metric) != (
            *(operations, shape),
            space.metric,
        ):
            known = replace(self, operations=operations, input_shape=shape, space=space)
            _NETWORKS[self] = known
        return known

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "PlainNetwork":
        """A copy whose constants live on ``device``, in ``dtype`` if one is given."""
        return replace(self, operations=tuple(op.to(device, dtype) for op in self.operations))

    def around(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The function whose l2 balls are those of the metric around inputs, and its own inputs.

        That is u -> f(x + S u) with zeros ``(N, *)``, or the network itself with ``x`` where the
        space has no metric.

        Args:
            x: Shape ``(N, *input_shape)``, floating point.
        """
        point, centre = self.balls(x)
        return (self if self.space.metric is None else lambda u: self(point(u))), centre

    def balls(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The map u -> x + S u with zeros, whose l2 balls it takes to those of the metric.

        Without a metric it is the identity with ``x``.

        Args:
            x: Shape ``(N, *input_shape)``, floating point.
        """
        metric = self.space.metric
        if metric is None:
            return lambda point: point, x
        zeros = x.new_zeros(len(x), *directions(metric, tuple(self.input_shape)))
        return lambda u: x + metric(u), zeros

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self(zeros(self.input_shape)).shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Float64 if any of the constants is, else float32."""
        constants = [t for _, tensors in walk(self.operations) for t in tensors.values()]
        wide = any(t.dtype == torch.float64 for t in constants)
        return torch.float64 if wide else torch.float32

    @property
    def head(self) -> Dense | None:
        """The last operation if it is dense: its rows give tighter pairwise constants."""
        last = self.operations[-1] if self.operations else None
        return last if isinstance(last, Dense) else None

    @property
    def backbone(self) -> tuple[Operation, ...]:
        """All operations before the head."""
        return self.operations[:-1] if self.head is not None else self.operations

    def digest(self) -> str:
        """SHA-256 over every operation's definition and little-endian constants."""
        return digest(self.operations, self.input_shape)


# The private copy of each network that was copied.
_NETWORKS: WeakKeyDictionary[PlainNetwork, PlainNetwork] = WeakKeyDictionary()


def composed_bounds(network: PlainNetwork) -> list[float]:
    """Bounds on the norms of S and of its compositions with the first operations, rounded up.

    The first of :func:`prefix_bounds`; 1 without a metric.
    """
    metric, bounds = network.space.metric, [1.0]
    if metric is None:
        return bounds
    try:
        bounds = [p.bound for p in composed(metric, network.operations, network.input_shape)]
    except ValueError as error:
        raise UnsoundNetworkError(str(error), metric.label) from error
    # No worse than the product of norms.
    for k, (operation, shape) in zip(
        range(1, len(bounds)), shapes(network.operations, network.input_shape), strict=False
    ):
        product = norms.product_up([bounds[k - 1], operation_bound(operation, shape)])
        bounds[k] = min(bounds[k], product)
    return bounds


def prefix_bounds(network: PlainNetwork) -> list[float]:
    r"""Bounds on the constants of the network up to each operation, in the metric of its space.

    The k-th of them bounds :math:`u \mapsto h_k(x + S u)`, h being the first k operations, for
    every x: the norm of the composition with S while that is linear, then a product.

    Returns:
        One float for each operation and one before the first, rounded up.
    """
    network = network.owned()
    if network in _PREFIXES:
        return list(_PREFIXES[network])
    bounds = composed_bounds(network)
    for operation, shape in list(shapes(network.operations, network.input_shape))[
        len(bounds) - 1 :
    ]:
        bounds.append(norms.product_up([bounds[-1], operation_bound(operation, shape)]))
    _PREFIXES[network] = bounds
    return list(bounds)


# Of networks from `owned`, as above.
_PREFIXES: WeakKeyDictionary[PlainNetwork, list[float]] = WeakKeyDictionary()


def _backbone_bound(network: PlainNetwork) -> float:
    if network.space.metric is None:
        return sequence_bound(network.backbone, network.input_shape)
    return prefix_bounds(network)[len(network.backbone)]


def _affine_head(network: PlainNetwork) -> Composed | None:
    """The head after S, of a network in a metric that has nothing but affine maps before it."""
    metric, operations = network.space.metric, network.operations
    if metric is None or network.head is None:
        return None
    parts = list(composed(metric, operations, network.input_shape))
    return parts[-1] if len(parts) == len(operations) + 1 else None


def output_bound(network: PlainNetwork) -> Tensor:
    r"""Bounds :math:`K_j` on the Lipschitz constant of every logit.

    :math:`K_j = L_{backbone} \lVert w_j \rVert_2` with the head's rows, or the constant of the
    whole where the network does not end in a dense operation. In a metric S, the rows of an affine
    network are those of its composition with S.

    Returns:
        Shape ``(C,)``, float64, every entry rounded up.
    """
    network = network.owned()
    rest, whole = _backbone_bound(network), _affine_head(network)
    if whole is not None:
        assert isinstance(whole.operation, Dense)
        rest, lengths = 1.0, _above(_row_lengths(whole.operation.weight) + round_up(whole.loss))
    elif network.head is None:
        classes = network.classes
        lengths = torch.ones(classes, dtype=torch.float64, device="cpu")
    else:
        lengths = _row_lengths(network.head.weight)
    bound = _above(lengths * rest)
    if not torch.isfinite(bound).all():
        raise UnsoundNetworkError("the Lipschitz bound of a logit overflows: no certificate")
    return bound


def _row_lengths(weight: Tensor) -> Tensor:
    # The length of a row is its distance from 0.
    rows = torch.cat([weight, torch.zeros_like(weight[:1])])
    return norms.row_distance_bounds(rows)[-1, :-1]


def pairwise_bound(network: PlainNetwork) -> Tensor:
    r"""Bounds :math:`K_{ij}` on the Lipschitz constant of logit i minus logit j.

    :math:`K_{ij} = L_{backbone} \lVert w_i - w_j \rVert_2` with the head's rows (GloRo, Leino et
    al. 2021), or :math:`\sqrt 2 L` where the network does not end in a dense operation. In a metric
    S, the rows of an affine network are those of its composition with S.

    Returns:
        Shape ``(C, C)``, float64, zero on the diagonal, every entry rounded up.
    """
    network = network.owned()
    rest, whole = _backbone_bound(network), _affine_head(network)
    if whole is not None:
        assert isinstance(whole.operation, Dense)
        rest, distances = 1.0, norms.row_distance_bounds(whole.operation.weight)
        distances = _above(distances + round_up(2 * whole.loss))
    elif network.head is None:
        classes = network.classes
        above_root_two = math.sqrt(2) * (1 + 1e-15)
        distances = torch.full(
            (classes, classes), above_root_two, dtype=torch.float64, device="cpu"
        )
        distances.fill_diagonal_(0)
    else:
        distances = norms.row_distance_bounds(network.head.weight)
    pairwise = _above(distances * rest)
    if not torch.isfinite(pairwise).all():
        raise UnsoundNetworkError("the pairwise Lipschitz bound overflows: no certificate")
    return pairwise.fill_diagonal_(0)
