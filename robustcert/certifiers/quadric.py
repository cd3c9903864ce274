"""Certified radii of quadratic logits, exact up to rounding, by duality."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.lipschitz import Certificates, LipschitzCertifier
from robustcert.margins import margins
from robustcert.plain import PlainNetwork, UnsoundNetworkError, gamma
from robustcert.quadric import Quadratics, best_multiplier, quadratics_of
from robustcert.rounding import UNIT
from robustcert.spectral import dense_norm_bound

# Entries of the largest tensor.
ENTRIES = 2**22
# Multiple of what rounding can do that is charged, and what radii are lowered by, relatively: room
# for another proof, whose rounding errors are others.
ROOM, LOWERED = 2.0, 1e-9
# Far above what underflow can do to any of the sums here, far below what matters.
TINY = 2.0**-500


class QuadricCertifier(LipschitzCertifier):
    r"""Radii of networks of one layer, :class:`robustcert.quadric.Quadratics`; exact by duality.

    Let u be the predicted class's largest quadratic at the sample x, and v one of another class,
    with linear map W. Whatever the point z and the multiplier
    :math:`0 \le \lambda < 1 / \lVert W \rVert^2`, the function
    :math:`\varphi(y) = \lVert y - x \rVert^2 + \lambda (u(y) - v(y) - e)` has a Hessian of at least
    :math:`2 \mu = 2 (1 - \lambda \lVert W \rVert^2)`, so that

    .. math:: r^2 = \varphi(z) - \lVert \nabla\varphi(z) \rVert^2 / 4 \mu

    bounds it from below, and no y nearer to x than r has :math:`u(y) - v(y) \le e`, where
    :math:`\varphi(y) \le \lVert y - x \rVert^2`. With the point and the multiplier at which the
    gradient vanishes this is the dual's value, and the best multiplier attains the distance; but
    neither has to be right. e is what rounding may take off the difference of two logits within
    :math:`\lVert x \rVert + 1` of x, to which radii are confined; the rounding of
    :math:`\varphi(z)` and its gradient is bounded a priori.

    Other networks get their Lipschitz radii. The deployed network spoken of is the one in float64.

    Reference: Boyd and Vandenberghe, *Convex Optimization*, appendix B (the S-procedure).
    """

    def __init__(self) -> None:
        super().__init__()

    def proof(self, network: PlainNetwork) -> str:
        """``quadric`` for networks of quadratics, else ``lipschitz``."""
        return super().proof(network) if quadratics_of(network) is None else "quadric"

    def pairwise_bound(self, network: PlainNetwork) -> Tensor:
        """Bounds on the constants of logit i minus logit j; none, ``(0, 0)``, for quadratics."""
        if quadratics_of(network) is None:
            return super().pairwise_bound(network)
        return torch.empty(0, 0, dtype=torch.float64)

    @torch.no_grad()
    @strict_arithmetic()
    def certify(self, network: PlainNetwork, x: Tensor) -> Certificates:
        """Certify inputs of shape ``(N, *input_shape)``.

        Raises:
            UnsoundNetworkError: a bound of the network cannot be proved.
            ValueError: the inputs have another shape than the network's.
        """
        quadratics = quadratics_of(network)
        if quadratics is None:
            return super().certify(network, x)
        if tuple(x.shape[1:]) != tuple(network.input_shape):
            raise ValueError(f"expected inputs (N, {network.input_shape}), got {tuple(x.shape)}")
        known = _prepare(quadratics)
        rows = max(1, ENTRIES // max(quadratics.slope.numel(), known.basis[0].numel()))
        parts = [known.certify(part) for part in x.double().flatten(1).split(rows)]
        return Certificates(*(torch.cat(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The quadratics in float64, with sizes for error bounds and eigenvectors of differences."""

    quadratics: Quadratics
    norm: Tensor  # bounds on the norms of the frames, (P,)
    basis: Tensor  # coordinates in eigenvectors, of products with both frames, (P, P, 2m, 2m)
    eigenvalues: Tensor  # (P, P, 2m)

    def certify(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prediction, radius, margin and error of inputs ``(N, D)``."""
        q = self.quadratics
        value = q.pieces(x)
        logits = value.view(len(x), q.classes, -1).amax(2)
        prediction = logits.argmax(1)
        owner = torch.arange(len(q.shift), device=x.device) // (len(q.shift) // q.classes)
        same = owner == prediction[:, None]
        own = torch.where(same, value, -math.inf).argmax(1)
        size = x.norm(dim=1) * (1 + 1e-9)
        # Of two logits, at any point that is spoken of.
        drift = 2 * ROOM * self.error(2 * size[:, None] + 1).amax(1, keepdim=True)
        multiplier, z = self.search(x, value, own, drift)
        square = self.prove(x, z, multiplier, own, drift).masked_fill(same, math.inf)
        radius = square.amin(1).clamp_min(0).sqrt() * (1 - LOWERED)
        radius = torch.minimum(radius, size * (1 - 1e-8) + 1)
        # NaN compares false: whatever is not a positive number is not certified.
        finite = torch.isfinite(logits).all(1) & torch.isfinite(square).logical_or(same).all(1)
        radius = torch.where(finite & (radius > 0), radius, 0.0)
        margin = margins(logits, prediction).scatter(1, prediction[:, None], math.inf).amin(1)
        error = self.error(size[:, None]).amax(1) * math.sqrt(q.classes) * (1 + 1e-9)
        return prediction, radius, margin, error

    def search(self, x: Tensor, value: Tensor, own: Tensor, drift: Tensor) -> tuple[Tensor, Tensor]:
        """Multipliers ``(N, P)`` and points ``(N, P, D)``, good ones; no proof rests on it."""
        q = self.quadratics
        within = torch.einsum("pmd,nd->npm", q.frame, x) - q.offset
        slope = 2 * torch.einsum("npm,pmd->npd", within, q.frame) + q.slope
        mine = slope.gather(1, own[:, None, None].expand(-1, 1, x.shape[1]))
        gradient = mine - slope
        both = torch.cat(
            [
                torch.einsum("nmd,npd->npm", q.frame[own], gradient),
                torch.einsum("pmd,npd->npm", q.frame, gradient),
            ],
            dim=2,
        )
        basis, eigenvalues = self.basis[own], self.eigenvalues[own]
        along = torch.einsum("npkm,npm->npk", basis, both)
        across = (gradient.square().sum(2) - along.square().sum(2)).clamp_min(0)
        largest = (1 - 1e-6) / self.norm.square()
        ahead = value.gather(1, own[:, None]) - value - drift
        multiplier = best_multiplier(ahead, along, across, eigenvalues, largest)
        turned = multiplier[..., None] * eigenvalues
        back = torch.einsum("npkm,npk->npm", basis, along * turned / (1 + turned))
        first, second = back.chunk(2, dim=2)
        gradient = gradient - torch.einsum("npm,nmd->npd", first, q.frame[own])
        gradient = gradient - torch.einsum("npm,pmd->npd", second, q.frame)
        return multiplier, x[:, None] - multiplier[..., None] / 2 * gradient

    def prove(self, x: Tensor, z: Tensor, multiplier: Tensor, own: Tensor, drift: Tensor) -> Tensor:
        """Proved squared distances to where each difference is at most ``drift``, ``(N, P)``."""
        q = self.quadratics
        terms = gamma(x.shape[1] + q.frame.shape[1] + 20, UNIT[torch.float64])
        delta = z - x[:, None]
        mine = torch.einsum("nmd,npd->npm", q.frame[own], z) - q.offset[own][:, None]
        other = torch.einsum("pmd,npd->npm", q.frame, z) - q.offset
        linear = torch.einsum("nd,npd->np", q.slope[own], z) - (z * q.slope).sum(2)
        shift = q.shift[own][:, None] - q.shift
        ahead = mine.square().sum(2) - other.square().sum(2) + linear + shift
        slope = 2 * torch.einsum("npm,nmd->npd", mine, q.frame[own]) + q.slope[own][:, None]
        slope = slope - 2 * torch.einsum("npm,pmd->npd", other, q.frame) - q.slope
        steepness = (2 * delta + multiplier[..., None] * slope).norm(dim=2)
        # Now what rounding can have done to these.
        far, moved = z.norm(dim=2) * (1 + 1e-9), delta.norm(dim=2)
        lost = 2 * (self.error(far) + self.error(far, own))
        sizes = self.steepness(far) + self.steepness(far, own)
        steepness = steepness * (1 + terms)
        steepness = steepness + ROOM * terms * (2 * moved + multiplier * sizes) + TINY
        convexity = 1 - multiplier * self.norm.square() * (1 + 1e-12)
        charge = steepness.square() / (4 * convexity)
        square = moved.square() * (1 - ROOM * 3 * terms)
        bound = square + multiplier * (ahead - lost - drift) - charge
        rounded = square + multiplier * (ahead.abs() + lost + drift) + charge
        bound = bound - 2.0**-48 * rounded - TINY
        return torch.where((multiplier >= 0) & (convexity > 1e-9), bound, 0.0)

    def error(self, size: Tensor, own: Tensor | None = None) -> Tensor:
        """Bounds on the error of the quadratics at inputs of norms up to ``size``, ``(N, P)``.

        Every term of the sums goes through 2 D + m + 4 roundings at most.
        """
        q = self.quadratics
        terms = gamma(2 * q.frame.shape[2] + q.frame.shape[1] + 10, UNIT[torch.float64])
        rows, offset = q.frame.norm(dim=2), q.offset.abs()
        linear, shift = q.slope.norm(dim=1), q.shift.abs()
        if own is not None:
            rows, offset = rows[own][:, None], offset[own][:, None]
            linear, shift = linear[own][:, None], shift[own][:, None]
        squares = (rows * size[..., None] + offset).square().sum(-1)
        return terms * (squares + linear * size + shift) * (1 + 1e-9) + TINY

    def steepness(self, size: Tensor, own: Tensor | None = None) -> Tensor:
        """Bounds on the norm of a gradient whose terms all have one sign, ``(N, P)``."""
        q = self.quadratics
        rows, offset, linear = q.frame.norm(dim=2), q.offset.abs(), q.slope.norm(dim=1)
        if own is not None:
            rows, offset, linear = rows[own][:, None], offset[own][:, None], linear[own][:, None]
        squares = (rows * (rows * size[..., None] + offset)).sum(-1)
        return (2 * squares + linear) * (1 + 1e-9)


@lru_cache(maxsize=4)
def _prepare(quadratics: Quadratics) -> _Pairs:
    # An operation is an immutable value compared by identity.
    wide = quadratics.to(quadratics.frame.device, torch.float64)
    norms = [dense_norm_bound(frame) for frame in wide.frame.cpu()]
    if not all(0 <= n < 1e30 for n in norms) or not all(
        float(t.abs().max()) < 1e30 for t in wide.tensors().values()
    ):
        raise UnsoundNetworkError("its constants are too large", quadratics.label)
    count, rank, _ = wide.frame.shape
    rows = wide.frame.flatten(0, 1)
    gram = (rows @ rows.mT).view(count, rank, count, rank).transpose(1, 2)
    own = gram.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    blocks = torch.cat(
        [
            torch.cat([own[:, None].expand_as(gram), gram], dim=3),
            torch.cat([gram.mT, own[None].expand_as(gram)], dim=3),
        ],
        dim=2,
    )
    values, vectors = torch.linalg.eigh(blocks)
    root = values.clamp_min(1e-10).sqrt()
    signs = torch.cat([torch.ones(rank), -torch.ones(rank)]).to(values)
    # In these coordinates both frames together are orthonormal, and the difference is diagonal.
    between = root[..., None] * (vectors.mT * signs) @ (vectors * root[..., None, :])
    eigenvalues, turn = torch.linalg.eigh(between)
    basis = turn.mT @ (vectors / root[..., None, :]).mT
    norm = torch.tensor(norms, dtype=torch.float64, device=rows.device)
    return _Pairs(wide, norm, basis, eigenvalues)
