"""Quadratic functions whose maximum is the logit of a class, with bounds on rounding errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import FLOAT64, SLACK, Arithmetic, norm
from robustcert.check.fixed_point import Floats, Integers, to_integers
from robustcert.check.network.operation import Operation
from robustcert.check.norms.operation import find
from robustcert.check.quadratic.moves import Moves
from robustcert.check.reader import UnreadableError

# Relative allowance for the rounding of a comparison of quadratics.
PIECE_ROUNDING = 2.0**-45


@dataclass(frozen=True, eq=False)
class Pieces:
    """The quadratic pieces, as float64.

    Attributes:
        operation: The operation that holds them.
        deployed: Arithmetics of the deployed networks that the claim is about.
        moves: How the points move in the variable u of a metric; None if they are the variable.
    """

    operation: Operation
    deployed: Sequence[Arithmetic]
    moves: Moves | None = None
    frame: Floats = field(init=False)  # (P, m, D)
    offset: Floats = field(init=False)  # (P, m)
    slope: Floats = field(init=False)  # (P, D)
    shift: Floats = field(init=False)  # (P,)
    length: Floats = field(init=False)  # of the frames' rows, (P, m)

    def __post_init__(self) -> None:
        for key in ("frame", "offset", "slope", "shift"):
            object.__setattr__(self, key, self.operation.wide(key))
        count, rank, _ = self.frame.shape
        lengths = norm(self.frame.reshape(count * rank, -1)).reshape(count, rank)
        object.__setattr__(self, "length", lengths)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The class of each piece."""
        count = len(self.shift)
        return np.arange(count) // (count // self.operation.options["classes"])

    @property
    def gamma(self) -> float:
        """Relative error of gradients in float64."""
        return FLOAT64.gamma(sum(self.frame.shape[1:]) + 8 + self._more)

    @property
    def _more(self) -> int:
        # Roundings that M u adds to an entry of a point, and those of the product with M'.
        return 0 if self.moves is None else sum(self.moves.weight.shape) + 4

    @property
    def stretch(self) -> float:
        """A bound of the norm of the magnitudes of M, 1 without it."""
        return 1.0 if self.moves is None else self.moves.stretch

    @cached_property
    def frames(self) -> Floats:
        """The frames times M, ``(P, m, k)``, on which no proof rests."""
        return self.back(self.frame)

    def back(self, gradient: Floats) -> Floats:
        """The gradient in the variable of one among points."""
        return gradient if self.moves is None else self.moves.back(gradient)

    @cached_property
    def bound(self) -> Floats:
        """Proved bounds of the norms of the frames, or of their products with M, ``(P,)``."""
        found = [
            find(Operation("dense", "", "", {}, {"weight": frame}, (), ()))
            if self.moves is None
            else self.moves.norm_after(frame)
            for frame in self.frame
        ]
        if not np.isfinite(found).all():
            raise UnreadableError(f"{self.operation.label}: no bound of a frame can be proved here")
        return np.array(found)

    def hessians(self, own: NDArray[np.int64], other: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Eigenvectors (times both frames) and eigenvalues of half the Hessians of pairs, in u.

        They are accurate to some digits only; no proof rests on them.
        """
        rank = self.frame.shape[1]
        frames = np.concatenate([self.frames[own], self.frames[other]], axis=1)
        blocks = np.matmul(frames, frames.swapaxes(1, 2))
        ridge = 1e-10 * np.trace(blocks, axis1=1, axis2=2)[:, None, None] + 1e-100
        lower = np.linalg.cholesky(blocks + ridge * np.eye(2 * rank))
        signs = np.repeat([1.0, -1.0], rank)[:, None]
        values, vectors = np.linalg.eigh(lower.swapaxes(1, 2) @ (signs * lower))
        return np.linalg.solve(lower.swapaxes(1, 2), vectors).swapaxes(1, 2), values

    def terms(self, size: Floats, piece: NDArray[np.int64] | slice) -> Floats:
        """T: the sum of the sizes of all terms of pieces at points of a given norm."""
        length, offset = self.length[piece], abs(self.offset[piece])
        squares = ((length * size[..., None] + offset) ** 2).sum(-1)
        return (squares + norm(self.slope)[piece] * size + abs(self.shift[piece])) * SLACK

    def slopes(self, size: Floats, piece: NDArray[np.int64] | slice) -> Floats:
        """N: the sum of the sizes of all terms of their gradients."""
        length, offset = self.length[piece], abs(self.offset[piece])
        products = (length * (length * size[..., None] + offset)).sum(-1)
        return (2 * products + norm(self.slope)[piece]) * SLACK

    def error(
        self, size: Floats, piece: NDArray[np.int64] | slice, arithmetic: Arithmetic = FLOAT64
    ) -> Floats:
        """Rounding errors of pieces at points of a given norm; infinite where they may overflow."""
        _, rank, width = self.frame.shape
        terms = self.terms(size, piece)
        gamma = arithmetic.gamma(2 * (width + self._more) + rank + 8)
        found = gamma * terms + arithmetic.least * 2.0**30 * width * rank
        return np.where(terms < math.sqrt(arithmetic.safe), found * SLACK, math.inf)

    def drift(self, size: Floats, piece: NDArray[np.int64] | slice) -> Floats:
        """The largest of these errors among the deployed networks."""
        found = [self.error(size, piece, arithmetic) for arithmetic in self.deployed]
        return np.maximum.reduce([np.zeros_like(found[0]), *found]) if found else 0 * size

    def values(self, x: Floats) -> tuple[Floats, Floats]:
        """Values of all pieces ``(N, P)``, and the vectors that they square ``(N, P, m)``."""
        count, rank, _ = self.frame.shape
        within = (x @ self.frame.reshape(count * rank, -1).T).reshape(-1, count, rank) - self.offset
        return (within**2).sum(2) + x @ self.slope.T + self.shift, within


def exactly(pieces: Pieces, piece: int, z: tuple[Integers, int]) -> tuple[Fraction, Integers, int]:
    """A piece at z, integers with places; its gradient there as integers, and their places."""
    parts = [part[piece] for part in (pieces.frame, pieces.offset, pieces.slope, pieces.shift)]
    scaled = [z, *(to_integers(np.asarray(part)) for part in parts)]
    places = max(finer for _, finer in scaled)
    point, frame, offset, slope, shift = (
        np.asarray(v << (places - finer), dtype=object).reshape(np.shape(part))
        for (v, finer), part in zip(scaled, (z[0], *parts), strict=True)
    )
    within = frame @ point - (offset << places)
    total = (within @ within) + ((slope @ point) << 2 * places) + (shift.item() << 3 * places)
    gradient = 2 * (within @ frame) + (slope << 2 * places)
    return Fraction(int(total), 1 << 4 * places), gradient, 3 * places
