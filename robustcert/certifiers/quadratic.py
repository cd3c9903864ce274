"""Certified radii of quadratic logits, exact up to rounding, by duality."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from robustcert.arithmetic.products import linear
from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.base import Certificates, Certifier, Claim, Proof
from robustcert.certifiers.feature_moves import FeatureMoves, moves_of
from robustcert.certifiers.lipschitz import LipschitzCertifier
from robustcert.errors import UnsoundNetworkError
from robustcert.margins import smallest_margin
from robustcert.network.forward_error import UNIT_ROUNDOFFS, forward_error
from robustcert.network.local_error import gamma
from robustcert.network.network import PlainNetwork
from robustcert.network.quadratics import Quadratics, best_multiplier, split_quadratics
from robustcert.network.units import finite_samples, network_inputs
from robustcert.norms.dense import dense_norm_bound

log = logging.getLogger(__name__)

# Maximum number of entries of a tensor.
MAX_ENTRIES = 2**22
# Safety factor for rounding errors, and the share of a radius that is given up: the independent
# checker, whose rounding errors are others, proves what is left.
ROUNDING_FACTOR, RADIUS_ALLOWANCE = 2.0, 1e-9
# Share of the product of constants that is given up likewise, for each operation.
PER_OPERATION = 2.0**-23
# Rounding is bounded up to so many times the distance in u at which tangents vanish, but to no more
# than so many times the one in which features may double their length.
BEYOND_TANGENT, MAX_REACH = 4.0, 2.0**10
# Underflow allowance of every sum in this file.
SUM_UNDERFLOW = 2.0**-500


class QuadricCertifier(Certifier):
    r"""Radii of networks that end in ``Quadratics``, exact of these.

    Let u be the predicted class's largest quadratic at x, the features of the sample, and v one of
    another class, with linear map W. Whatever the point z and the multiplier
    :math:`0 \le \lambda < 1 / \lVert W \rVert^2`, the function
    :math:`\varphi(y) = \lVert y - x \rVert^2 + \lambda (u(y) - v(y) - e)` has a Hessian of at least
    :math:`2 \mu = 2 (1 - \lambda \lVert W \rVert^2)`, so that

    .. math:: r^2 = \varphi(z) - \lVert \nabla\varphi(z) \rVert^2 / 4 \mu

    bounds it from below, and no y nearer to x than r has :math:`u(y) - v(y) \le e`, where
    :math:`\varphi(y) \le \lVert y - x \rVert^2`. With the point and the multiplier at which the
    gradient vanishes this is the dual's value, and the best multiplier attains the distance; but
    neither has to be right. e is what rounding may take off the difference of two logits within
    :math:`\lVert x \rVert + 1` of x, to which radii are confined; the rounding of
    :math:`\varphi(z)` and its gradient is bounded a priori. A radius of the features is L times one
    of the input, L being the proved constant of what is before the quadratics: 1 where that only
    flattens, and the radius is the exact one.

    In a metric S the variable is u, and the features of x + S u are y + M u where they are affine
    in the input, see :mod:`robustcert.certifiers.feature_moves`: u takes the place of y - x above,
    W M that of W, and e counts also what rounding moves features by. The multiplier is then kept
    below :math:`1 / \lVert W M \rVert^2`, where the difference u - v may bend less, so that radii
    are at most the distances. Where features are not affine, L is the constant of u to them.

    Other networks get their Lipschitz radii. The deployed network is the one in float64.

    Reference: Boyd and Vandenberghe, *Convex Optimization*, appendix B (the S-procedure).

    Example:
        >>> model = Subspaces((2,), 2, per_class=1, rank=1)
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> model.start_at(x, torch.tensor([0, 0, 1, 1]))  # two parallel lines at distance 1
        >>> QuadricCertifier().certify(fold_network(model, (2,)), torch.tensor([[0.0, 0.5]])).radius
        tensor([0.5000], dtype=torch.float64)
    """

    covers_metric = True

    def __init__(self) -> None:
        self._otherwise = LipschitzCertifier()

    def claim(self, network: PlainNetwork, samples: Iterable[Tensor] = ()) -> Claim:
        """``quadric`` for networks that end in quadratics, else that of Lipschitz radii."""
        if split_quadratics(network) is None:
            log.warning(
                "certifier=quadratic does not cover the network, which gets its Lipschitz radii: "
                "it does not end in distances, as those of model=subspaces do"
            )
            return self._otherwise.claim(network)
        return Claim(Proof.QUADRIC, ("R", "F64"))

    @torch.no_grad()
    @strict_arithmetic()
    def certify(self, network: PlainNetwork, x: Tensor) -> Certificates:
        """Certify inputs of shape ``(N, *input_shape)``.

        Raises:
            UnsoundNetworkError: a bound of the network cannot be proved.
            ValueError: the inputs have another shape than the network's, or stand for no numbers.
        """
        network = network.owned()
        x = network_inputs(x, network.input_shape)
        if split_quadratics(network) is None:
            return self._otherwise.certify(network, x)
        known = _prepare(network)
        features = forward_error(known.before, x.double())
        rows = max(1, MAX_ENTRIES // known.quadratics.slope.numel())
        parts = [
            known.certify(part, doubt, features.growth)
            for part, doubt in zip(
                features.output.split(rows), features.centre.split(rows), strict=True
            )
        ]
        prediction, radius, margin, error = map(torch.cat, zip(*parts, strict=True))
        if known.moves is None:
            # Features of inputs within r, real or computed, are within L r + 2 D + growth r of the
            # computed ones of the sample.
            steep = features.lipschitz + features.growth
            radius = (radius - 2 * ROUNDING_FACTOR * features.centre) / steep
        radius = radius * (1 - RADIUS_ALLOWANCE - PER_OPERATION * len(network.operations))
        radius = torch.minimum(radius, features.reach)
        # NaN compares false here too: features may have overflowed.
        radius = torch.where((radius > 0) & finite_samples(x), radius, 0.0)
        return Certificates(prediction, radius, margin, error)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The quadratics in float64, with sizes for error bounds.

    Distances are between features, or in u with :attr:`moves`, where ``(P, m, k)`` are the frames
    times M; without it they are the frames, and k is D.
    """

    before: PlainNetwork  # what computes the features
    quadratics: Quadratics
    moves: FeatureMoves | None
    frames: Tensor  # of the function of u, (P, m, k); no proof rests on it
    norm: Tensor  # bounds on the norms of the frames of the function of u, (P,)
    length: Tensor  # of the quadratics' own frames' rows, (P, m)
    linear: Tensor  # lengths of the slopes, (P,)

    def certify(
        self, x: Tensor, doubt: Tensor, growth: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prediction, radius, margin and error of features ``(N, D)``, which may be off by doubt.

        Without :attr:`moves`, the radius is the distance from the features as they are.
        """
        q = self.quadratics
        value = q.pieces(x)
        logits = value.view(len(x), q.classes, -1).amax(2)
        prediction = logits.argmax(1)
        piece = torch.arange(len(q.shift), dtype=torch.int64, device=x.device)
        owner = piece // (len(q.shift) // q.classes)
        same = owner == prediction[:, None]
        own = torch.where(same, value, -math.inf).argmax(1)
        size = x.norm(dim=1) * (1 + 1e-9)
        within = linear(x, q.frame.flatten(0, 1)).view(len(x), *q.offset.shape) - q.offset
        slope = 2 * torch.bmm(within.transpose(0, 1), q.frame) + q.slope[:, None]
        slope = slope.transpose(0, 1)
        every = torch.arange(len(x), dtype=torch.int64, device=x.device)
        turn = self.back(slope[every, own][:, None] - slope)
        ahead = value[every, own][:, None] - value
        tangent = (ahead / turn.norm(dim=2)).masked_fill(same, math.inf).amin(1)
        most, far, off = self.confine(size, tangent, doubt, growth)
        # Error of the difference of two logits, at any point of the ball.
        drift = 2 * ROUNDING_FACTOR * self.error(far[:, None]).amax(1)
        drift = drift + 2 * self.steepness(far[:, None]).amax(1) * off
        ahead = ahead - 2 * drift[:, None]
        distance = self.by_gradients(ahead, turn, own, size).masked_fill(same, math.inf)

        def improve(rows: Tensor, others: Tensor) -> None:
            step = max(1, MAX_ENTRIES // (2 * max(q.frame[0].numel(), self.frames[0].numel())))
            for i, j in zip(rows.split(step), others.split(step), strict=True):
                square = self.by_duality(x[i], own[i], j, ahead[i, j], turn[i, j], drift[i])
                distance[i, j] = torch.maximum(distance[i, j], square.clamp_min(0).sqrt())

        # The nearest rival first: those that gradients show to be farther need nothing better.
        nearest = distance.argmin(1)
        improve(every, nearest)
        known = distance[every, nearest][:, None]
        improve(*(distance < known).scatter(1, nearest[:, None], False).nonzero(as_tuple=True))
        radius = torch.minimum(distance.amin(1) * (1 - RADIUS_ALLOWANCE), most)
        # NaN compares false: whatever is not a positive number is not certified.
        finite = torch.isfinite(logits).all(1) & torch.isfinite(distance).logical_or(same).all(1)
        radius = torch.where(finite & (radius > 0), radius, 0.0)
        margin = smallest_margin(logits, prediction)
        error = self.error(size[:, None])
        error = error + self.steepness((size + doubt)[:, None]) * doubt[:, None]
        error = error.amax(1) * math.sqrt(q.classes) * (1 + 1e-9)
        return prediction, radius, margin, error

    def confine(
        self, size: Tensor, tangent: Tensor, doubt: Tensor, growth: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Radii that are looked at, norms of features within, and how far these are off y + M u.

        Real features of x + S u are off by the error at x and by the loss of M, computed ones by
        their own error as well. The distance to the tangent's zero is about where radii end.
        """
        most = size * (1 - 1e-8) + 1
        if self.moves is None:
            return most, 2 * size + 1, torch.zeros_like(size)
        moves = self.moves
        most = most / moves.constant
        most = torch.minimum(most.maximum(BEYOND_TANGENT * tangent), MAX_REACH * most)
        off = ROUNDING_FACTOR * (2 * doubt + (growth + moves.loss) * most)
        return most, (size + moves.constant * most) * (1 + 1e-9) + off, off

    def back(self, gradient: Tensor) -> Tensor:
        """The gradient of a function of u, from that of the features, ``(*, D)``."""
        return gradient if self.moves is None else self.moves.back(gradient)

    def by_gradients(self, ahead: Tensor, turn: Tensor, own: Tensor, size: Tensor) -> Tensor:
        """Proved distances ``(N, P)``: a difference falls by at most ``g s + (norm s)^2`` in s."""
        sizes = self.steepness(size[:, None])
        sizes = sizes + sizes.gather(1, own[:, None])
        steep = (
            turn.norm(dim=2) * (1 + self.terms)
            + ROUNDING_FACTOR * self.terms * self.stretch * sizes
            + SUM_UNDERFLOW
        )
        root = (steep.square() + 4 * ahead * self.norm.square()).sqrt()
        return torch.where(ahead > 0, 2 * ahead / (steep + root) * (1 - 1e-12), 0.0)

    def by_duality(
        self, x: Tensor, own: Tensor, other: Tensor, ahead: Tensor, turn: Tensor, drift: Tensor
    ) -> Tensor:
        """Proved squared distances of K pairs to where a difference is at most ``drift``."""
        pairs = torch.stack([own, other], dim=1)
        both = self.frames[pairs]
        multiplier, u = self.search(other, ahead, turn, both)
        if self.moves is not None:
            both = self.quadratics.frame[pairs]
        return self.prove(x, u, multiplier, own, other, drift, both)

    def search(
        self, other: Tensor, ahead: Tensor, turn: Tensor, both: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Multipliers ``(K,)`` and moves u ``(K, k)``, good ones; no proof rests on it.

        ``both`` are the frames of the pairs, shape ``(K, 2, m, k)``.
        """
        frames = both.flatten(1, 2)
        signs = torch.ones_like(both[..., 0])
        signs[:, 1] = -1
        # In coordinates in which both frames together are orthonormal, the difference is diagonal.
        gram = frames @ frames.mT
        ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).sum(1)[:, None] + 1e-100
        lower = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge.expand(gram.shape[:2])))[0]
        eigenvalues, vectors = torch.linalg.eigh(lower.mT * signs.flatten(1)[:, None] @ lower)
        basis = torch.linalg.solve_triangular(lower.mT, vectors, upper=True).mT
        along = torch.einsum("kab,kb->ka", basis, torch.bmm(frames, turn[..., None])[..., 0])
        across = (turn.square().sum(1) - along.square().sum(1)).clamp_min(0)
        largest = (1 - 1e-6) / self.norm[other].square()
        multiplier = best_multiplier(ahead, along, across, eigenvalues, largest)
        turned = multiplier[:, None] * eigenvalues
        back = torch.einsum("kab,ka->kb", basis, along * turned / (1 + turned))
        gradient = turn - torch.bmm(back[:, None], frames)[:, 0]
        return multiplier, -multiplier[:, None] / 2 * gradient

    def prove(
        self,
        x: Tensor,
        u: Tensor,
        multiplier: Tensor,
        own: Tensor,
        other: Tensor,
        drift: Tensor,
        both: Tensor,
    ) -> Tensor:
        """The same with given multipliers ``(K,)`` and moves ``(K, k)``."""
        q, terms = self.quadratics, self.terms
        z, delta, far = self.place(x, u)
        values, slopes = [], []
        for piece, frame in zip((own, other), both.unbind(1), strict=True):
            within = torch.bmm(frame, z[..., None])[..., 0] - q.offset[piece]
            linear = (q.slope[piece] * z).sum(1) + q.shift[piece]
            values.append(within.square().sum(1) + linear)
            slopes.append(2 * torch.bmm(within[:, None], frame)[:, 0] + q.slope[piece])
        ahead = values[0] - values[1]
        turn = self.back(slopes[0] - slopes[1])
        steepness = (2 * delta + multiplier[:, None] * turn).norm(dim=1)
        # Now what rounding can have done to these.
        moved = delta.norm(dim=1)
        lost = 2 * (self.error(far, own) + self.error(far, other))
        sizes = self.stretch * (self.steepness(far, own) + self.steepness(far, other))
        steepness = steepness * (1 + terms)
        steepness = (
            steepness + ROUNDING_FACTOR * terms * (2 * moved + multiplier * sizes) + SUM_UNDERFLOW
        )
        convexity = 1 - multiplier * self.norm[other].square() * (1 + 1e-12)
        charge = steepness.square() / (4 * convexity)
        square = moved.square() * (1 - ROUNDING_FACTOR * 3 * terms)
        bound = square + multiplier * (ahead - lost - drift) - charge
        rounded = square + multiplier * (values[0].abs() + values[1].abs() + lost + drift) + charge
        bound = bound - 2.0**-48 * rounded - SUM_UNDERFLOW
        return torch.where((multiplier >= 0) & (convexity > 1e-9), bound, 0.0)

    def place(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features after moves u, the moves that lead there, and the size of all that is summed."""
        if self.moves is None:
            z = x + u
            return z, z - x, z.norm(dim=1) * (1 + 1e-9)
        size = x.norm(dim=1) + self.moves.stretch * u.norm(dim=1)
        return x + self.moves(u), u, size * (1 + 1e-9)

    @property
    def stretch(self) -> float:
        """Bound on the norm of the moves of the features in u, all of their entries positive."""
        return 1.0 if self.moves is None else self.moves.stretch

    @property
    def more(self) -> int:
        """Roundings that M u adds to those of a feature, and as many to a gradient."""
        return 0 if self.moves is None else sum(self.moves.weight.shape) + 4

    @property
    def terms(self) -> float:
        """Relative error of gradients, see :meth:`steepness`."""
        _, rank, width = self.quadratics.frame.shape
        return gamma(width + rank + 20 + self.more, UNIT_ROUNDOFFS[torch.float64])

    def error(self, size: Tensor, piece: Tensor | slice = slice(None)) -> Tensor:
        """Bounds on the error of quadratics at inputs of norms up to ``size``.

        Every term of the sums goes through 2 D + m + 4 roundings at most, and those of its moves.
        """
        q = self.quadratics
        _, rank, width = q.frame.shape
        terms = gamma(2 * (width + self.more) + rank + 10, UNIT_ROUNDOFFS[torch.float64])
        rows, offset = self.length[piece], q.offset.abs()[piece]
        linear, shift = self.linear[piece], q.shift.abs()[piece]
        squares = (rows * size[..., None] + offset).square().sum(-1)
        return terms * (squares + linear * size + shift) * (1 + 1e-9) + SUM_UNDERFLOW

    def steepness(self, size: Tensor, piece: Tensor | slice = slice(None)) -> Tensor:
        """Bounds on the norm of a gradient whose terms all have one sign."""
        q = self.quadratics
        rows, offset = self.length[piece], q.offset.abs()[piece]
        squares = (rows * (rows * size[..., None] + offset)).sum(-1)
        return (2 * squares + self.linear[piece]) * (1 + 1e-9)


@lru_cache(maxsize=4)
def _prepare(network: PlainNetwork) -> _Pairs:
    # Of owned networks that end in quadratics, which never change.
    split = split_quadratics(network)
    assert split is not None
    before, quadratics = split
    device = quadratics.frame.device
    wide, moves = quadratics.to(device, torch.float64), moves_of(before, device)
    frames = wide.frame.cpu()
    norms = [dense_norm_bound(frame) for frame in frames]
    if not all(0 <= n < 1e30 for n in norms) or not all(
        float(t.abs().max()) < 1e30 for t in wide.tensors().values()
    ):
        raise UnsoundNetworkError("its constants are too large", quadratics.label)
    if moves is not None:
        norms = [moves.norm_after(frame) for frame in frames]
    norm = torch.tensor(norms, dtype=torch.float64, device=device)
    moved = wide.frame if moves is None else moves.back(wide.frame)
    return _Pairs(before, wide, moves, moved, norm, wide.frame.norm(dim=2), wide.slope.norm(dim=1))
