r"""Torch's activations as pure functions, each with its constant and the roundings of its formula.

The formulas are evaluated as they are written here. It is assumed, as elsewhere, that exp, expm1,
log1p, tanh and erf are within 4 ulp, that is 8u.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from robustcert.network.activation import Activation, Slopes
from robustcert.network.local_error import counted
from robustcert.network.operation import constant

# sup |f'| of torch's activations whose slopes exceed 1, rounded up.
SILU, GELU, GELU_TANH, HARDSWISH = 1.09984, 1.12891, 1.1292, 1.5
# Where F.softplus(x, beta, threshold) returns x it is wrong by log1p(exp(-threshold)) / beta.
MIN_THRESHOLD = 1.0


def relu_activation() -> Activation:
    """``max(x, 0)``."""
    return Activation(torch.relu, {}, lipschitz=1.0, slopes=Slopes(0.0, 1.0))


def absolute(x: Tensor) -> Tensor:
    """The absolute value of every entry."""
    return x.abs()


def absolute_activation() -> Activation:
    """The absolute value, with slopes of -1 and 1."""
    return Activation(absolute, {}, lipschitz=1.0, slopes=Slopes(-1.0, 1.0))


def leaky_relu(x: Tensor, slope: Tensor) -> Tensor:
    """``x`` above 0 and ``slope * x`` below, the slope a scalar or one number per feature."""
    return torch.where(x > 0, x, _per_feature(slope, x) * x)


def leaky_relu_activation(slope: Tensor) -> Activation:
    """LeakyReLU and PReLU: a continuous function with slopes of 1 and ``slope``."""
    slope = constant(slope)
    least, largest = min(1.0, float(slope.min())), max(1.0, float(slope.max()))
    bound = max(largest, -least)
    # One product, where the slope is not 1.
    return Activation(
        leaky_relu,
        {"slope": slope},
        lipschitz=bound,
        error=counted(bound, roundings=1),
        slopes=_slopes(least, largest),
    )


def elu(x: Tensor, alpha: Tensor, width: Tensor) -> Tensor:
    """``x`` above 0 and ``alpha * (exp(x / width) - 1)`` below."""
    return torch.where(x > 0, x, alpha * torch.expm1(torch.where(x > 0, -x, x) / width))


def elu_activation(alpha: Tensor, width: Tensor) -> Activation:
    r"""ELU (``width`` of 1) and CELU (``width`` of ``alpha``).

    The slope is 1 above 0 and :math:`\alpha/w\, e^{x/w}` below, between 0 and :math:`\alpha/w`.
    """
    alpha, width = constant(alpha), constant(width)
    steepest = float(alpha.double() / width.double())
    if not width > 0:
        raise ValueError(f"expected a positive width of the exponential, got {float(width)}")
    bound = max(1.0, abs(steepest)) * (1 + 2.0**-50)
    # The quotient t <= 0 rounds by u, which moves expm1 by u |t| e^t <= u |expm1(t)|; expm1 is
    # within 8u and the product rounds by u, of a result of at most |alpha / w| |x|: 10u.
    return Activation(
        elu,
        {"alpha": alpha, "width": width},
        lipschitz=bound,
        error=counted(10 * bound),
        slopes=_slopes(min(0.0, steepest), max(1.0, steepest)),
    )


def silu(x: Tensor) -> Tensor:
    """``x / (1 + exp(-x))``."""
    return x * x.sigmoid()


def silu_activation() -> Activation:
    r"""SiLU, whose slope is :math:`s + x s (1 - s)`, s the sigmoid of x.

    Its derivative :math:`s (1 - s) (2 - x \tanh(x/2))` is 0 where :math:`x \tanh(x/2) = 2`, at
    :math:`\pm x_0`, :math:`x_0 = 2.39935728`, where the slope is
    :math:`\tfrac12 (1 + \tfrac2x) + \tfrac x4 (1 - \tfrac4{x^2}) = \tfrac12 + \tfrac x4`: it lies
    in [-0.09984, 1.09984].
    """
    # In the sigmoid exp counts 8, sum and quotient 1 each, with factors of at most 1: 10u of it,
    # and the product 1: 11u of at most |x|. Where exp overflows, beyond 88, that covers the loss.
    return Activation(silu, {}, lipschitz=SILU, error=counted(11.0))


def gelu(x: Tensor) -> Tensor:
    """``x`` times the normal distribution function."""
    return x * (0.5 * (1 + torch.erf(x * math.sqrt(0.5))))


def gelu_activation() -> Activation:
    r"""GELU, whose slope is :math:`\Phi(x) + x \varphi(x)`.

    Its derivative :math:`(2 - x^2) \varphi(x)` is 0 at :math:`\pm \sqrt 2`, where the slope is
    1.128905 and -0.128905.
    """
    # The argument t of erf is wrong by 2u |t|, which moves it by 2u |t| erf'(t) < u; erf within 8u,
    # the sum 2u: 11u, halved, and the product u, of |x|.
    return Activation(gelu, {}, lipschitz=GELU, error=counted(7.0))


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of :func:`gelu` by the hyperbolic tangent."""
    inner = math.sqrt(2 / math.pi) * x * (1 + 0.044715 * (x * x))
    return x * (0.5 * (1 + inner.tanh()))


def gelu_tanh_activation() -> Activation:
    r"""GELU by tanh, :math:`\tfrac x2 (1 + \tanh t)`, :math:`t = \beta x (1 + \kappa x^2)`.

    Its slope is at most 1.128994 in magnitude. That it is below the constant is proved on [-8, 8]
    by ball arithmetic, piece by piece (a test); beyond,
    :math:`1 - \tanh^2 t \le 4 e^{-2 |t|} < e^{-40}`, and the slope is within 1e-9 of 0 or 1.
    """
    # Six roundings of t, which move tanh by 6u |t| / cosh(t)^2 < 2.7u; tanh within 8u and the sum
    # 2u, halved: 6.4u; the product u. Beyond the range of the square tanh is exactly 1.
    return Activation(gelu_tanh, {}, lipschitz=GELU_TANH, error=counted(8.0), squares=True)


def hardtanh(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Every entry, moved into [low, high]."""
    return x.clamp(low, high)


def hardtanh_activation(low: Tensor, high: Tensor) -> Activation:
    """Hardtanh and ReLU6, with slopes of 0 and 1."""
    constants = {"low": constant(low), "high": constant(high)}
    return Activation(hardtanh, {**constants}, lipschitz=1.0, slopes=Slopes(0.0, 1.0))


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return x.sigmoid()


def sigmoid_activation() -> Activation:
    """The sigmoid s, with slopes s (1 - s) in (0, 1/4]."""
    # exp 8, sum and quotient 1 each, of at most 1.
    return Activation(sigmoid, {}, lipschitz=0.25, error=counted(0.0, 10.0), slopes=Slopes(0, 0.25))


def tanh_activation() -> Activation:
    """The hyperbolic tangent, with slopes in (0, 1]."""
    # Within 8u of an output of at most |x|.
    return Activation(torch.tanh, {}, lipschitz=1.0, error=counted(8.0), slopes=Slopes(0.0, 1.0))


def log_sigmoid(x: Tensor) -> Tensor:
    """``-log(1 + exp(-x))``."""
    return torch.where(x > 0, 0, x) - torch.log1p(torch.exp(-x.abs()))


def log_sigmoid_activation() -> Activation:
    """The logarithm of the sigmoid s, with slopes 1 - s in (0, 1)."""
    # exp 8u, halved by log1p at most; log1p 8u log 2; the last difference |x| + log 2.
    return Activation(
        log_sigmoid, {}, lipschitz=1.0, error=counted(1.0, 10.3), slopes=Slopes(0.0, 1.0)
    )


def smooth_relu(x: Tensor, temperature: Tensor) -> Tensor:
    """``temperature * log(1 + exp(x / temperature))``."""
    return x.relu() + temperature * torch.log1p(torch.exp(-x.abs() / temperature))


def smooth_relu_activation(beta: Tensor, threshold: float) -> Activation:
    r"""Softplus with ``temperature`` :math:`1 / \beta`, a function with slopes in (0, 1).

    Torch's jumps at its threshold, where it goes on as the identity: what it is wrong by there is
    charged as an error of the evaluation in any arithmetic.
    """
    temperature = constant(1 / beta)
    if not temperature > 0 or not threshold >= MIN_THRESHOLD:
        raise ValueError(
            f"expected a positive beta and a threshold of at least {MIN_THRESHOLD:g}, got "
            f"{float(beta)} and {threshold}"
        )
    tau = float(temperature)
    # As for log_sigmoid, times tau, and u / e for the rounding of the quotient.
    return Activation(
        smooth_relu,
        {"temperature": temperature},
        lipschitz=1.0,
        error=counted(1.0, 12.0 * tau),
        slopes=Slopes(0.0, 1.0),
        jump=math.log1p(math.exp(-threshold)) * tau * (1 + 1e-6),
    )


def softsign(x: Tensor) -> Tensor:
    """``x / (1 + |x|)``."""
    return x / (1 + x.abs())


def softsign_activation() -> Activation:
    """Softsign, with slopes 1 / (1 + |x|)^2."""
    # A sum and a quotient.
    return Activation(softsign, {}, lipschitz=1.0, error=counted(2.0), slopes=Slopes(0.0, 1.0))


def hardswish(x: Tensor) -> Tensor:
    """``x`` times ``x / 6 + 1 / 2``, the latter moved into [0, 1]."""
    return x * (x + 3).clamp(0, 6) / 6


def hardswish_activation() -> Activation:
    """Hardswish, with slopes x / 3 + 1 / 2 in [-1/2, 3/2] within 3 of 0, and 0 or 1 beyond."""
    # A sum of at most 6, a product and a quotient, of at most |x|.
    return Activation(hardswish, {}, lipschitz=HARDSWISH, error=counted(3.0), squares=True)


def softshrink(x: Tensor, width: Tensor) -> Tensor:
    """``x`` without what of it is in [-width, width]."""
    return x - x.clamp(-width, width)


def softshrink_activation(width: Tensor) -> Activation:
    """Softshrink, with slopes of 0 and 1."""
    # One difference, of at most |x|.
    constants = {"width": constant(width)}
    return Activation(
        softshrink, {**constants}, lipschitz=1.0, error=counted(1.0), slopes=Slopes(0.0, 1.0)
    )


def tanhshrink(x: Tensor) -> Tensor:
    """``x - tanh(x)``."""
    return x - x.tanh()


def tanhshrink_activation() -> Activation:
    """Tanhshrink, with slopes tanh(x)^2."""
    # tanh within 8u of at most |x|, and a difference of at most |x|.
    return Activation(tanhshrink, {}, lipschitz=1.0, error=counted(9.0), slopes=Slopes(0.0, 1.0))


def max_pool(
    x: Tensor, height: int, width: int, down: int, right: int, top: int, left: int
) -> Tensor:
    """Largest entry of every window, moved by (down, right), the map padded by (top, left)."""
    return torch.max_pool2d(x, (height, width), (down, right), (top, left))


def max_pool_activation(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Activation:
    r"""MaxPool, whose squared constant is the largest number of windows that share an entry.

    A maximum moves by at most the largest change in its window, so the squares of all changes sum
    to at most :math:`m |d|^2` where each entry is in at most m windows:
    :math:`m = \lceil k / s \rceil` in each dimension. It selects and rounds nothing.
    """
    windows = math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))
    names = ("height", "width", "down", "right", "top", "left")
    sizes = dict(zip(names, (*kernel, *stride, *padding), strict=True))
    return Activation(max_pool, {**sizes}, lipschitz=math.sqrt(windows) * (1 + 2.0**-50))


def _per_feature(value: Tensor, x: Tensor) -> Tensor:
    return value if value.dim() == 0 else value.view(-1, *(1,) * (x.dim() - 2)).expand(x.shape[1:])


def _slopes(low: float, high: float) -> Slopes | None:
    # Certifiers that use them are written for slopes within [-1, 1].
    return Slopes(low, high) if low >= -1 and high <= 1 else None


# Functions of this file by their names in files.
FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        *(leaky_relu, elu, silu, gelu, gelu_tanh, hardtanh, sigmoid, log_sigmoid, smooth_relu),
        *(softsign, hardswish, softshrink, tanhshrink, max_pool),
    )
}
