r"""Complex matrices with a bound on how far they are from those that they stand for.

Note [balls]
~~~~~~~~~~~~
A ball is a computed matrix X', a radius w and a number n: the exact matrix X that it stands for has
norm at most n, and is within w of X' in the spectral norm. With ``size`` for

    s(X') = sqrt(max row sum  max column sum)  of |Re X'| + |Im X'|,

which bounds the norm of X', of its entries' absolute values, and of anything below them:

* X' Y' - X Y = (X' - X) Y + X' (Y' - Y) is at most w_X n_Y + (n_X + w_X) w_Y. Real and imaginary
  parts of an entry of X' Y' are sums of 2 k products, whose rounding is at most gamma_{2k+4} times
  the sum of (|Re| + |Im|) (|Re| + |Im|) for each part: gamma_{4k+8} s(X') s(Y') for both, in any
  order of summation, as 2 gamma_j <= gamma_2j.
* X' + c Y', with c rounded, is wrong by w_X + |c| w_Y + 4 u (s(X') + |c| s(Y')).

What underflow takes is below ``TINY``.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from robustcert.network.local_error import gamma

UNIT = 2.0**-53
# More than underflow can take from a matrix that fits into memory.
TINY = 2.0**-900
# For the rounding of the bounds themselves.
MORE = 1 + 1e-9


@dataclass(frozen=True, eq=False)
class Ball:
    """Matrices ``(F, m, n)``, all of them within one distance of what they stand for.

    Attributes:
        real: Real parts, float64.
        imaginary: Likewise.
        wrong: Bound on the spectral norm of the difference.
        norm: Bound on that of the exact matrices.
    """

    real: Tensor
    imaginary: Tensor
    wrong: float
    norm: float

    @cached_property
    def size(self) -> float:
        """Bound on the norm of the computed matrices and of their absolute values."""
        entries = self.real.abs() + self.imaginary.abs()
        found = float((entries.sum(1).amax(1) * entries.sum(2).amax(1)).sqrt().max()) * MORE
        return found if math.isfinite(found) else math.inf

    @property
    def adjoint(self) -> "Ball":
        """Conjugate transposes."""
        return replace(self, real=self.real.mT, imaginary=-self.imaginary.mT)

    def __matmul__(self, other: "Ball") -> "Ball":
        a, b, c, d = self.real, self.imaginary, other.real, other.imaginary
        rounded = gamma(4 * a.shape[2] + 8, UNIT) * self.size * other.size
        wrong = self.wrong * other.norm + (self.norm + self.wrong) * other.wrong + rounded
        return Ball(
            torch.baddbmm(a @ c, b, d, alpha=-1),
            torch.baddbmm(a @ d, b, c),
            (wrong + TINY) * MORE,
            self.norm * other.norm * MORE,
        )

    def plus(self, other: "Ball", share: float = 1.0) -> "Ball":
        """The sum with a multiple; ``share`` may be rounded once."""
        size, much = self.size + abs(share) * other.size, abs(share)
        return Ball(
            torch.add(self.real, other.real, alpha=share),
            torch.add(self.imaginary, other.imaginary, alpha=share),
            (self.wrong + much * other.wrong + 4 * UNIT * size + TINY) * MORE,
            (self.norm + much * other.norm) * MORE,
        )

    def times(self, factor: float) -> "Ball":
        """A multiple; exact for powers of two, otherwise ``factor`` may be rounded once."""
        wrong = abs(factor) * (self.wrong + 2 * UNIT * self.size) + TINY
        return Ball(
            self.real * factor,
            self.imaginary * factor,
            wrong * MORE,
            abs(factor) * self.norm * MORE,
        )

    def known(self, norm: float, more: float = 0.0) -> "Ball":
        """With a bound of the exact matrices' norm that is known, and a larger radius."""
        return replace(self, norm=norm, wrong=(self.wrong + more) * MORE)


def exactly(real: Tensor, imaginary: Tensor) -> Ball:
    """Balls of matrices that stand for themselves."""
    found = Ball(real, imaginary, 0.0, 0.0)
    return replace(found, norm=found.size)


def identity_like(ball: Ball) -> Ball:
    """Identities of as many columns."""
    shape = (len(ball.real), ball.real.shape[2], ball.real.shape[2])
    one = torch.eye(shape[1], dtype=torch.float64, device="cpu").expand(shape)
    return Ball(one, torch.zeros(shape, dtype=torch.float64, device="cpu"), 0.0, 1.0)
