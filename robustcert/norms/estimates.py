"""Norms of linear maps from below: estimates for training, never a proof."""

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.norms.convolution import Pair, pair
from robustcert.norms.dense import Matrix, tall
from robustcert.norms.eigenvalues import lanczos
from robustcert.norms.proof import energy_up, scaled
from robustcert.norms.scalars import TINY, UNIT, exact, gamma, root_up


def gram_iteration(weight: Tensor, iterations: int = 6) -> Tensor:
    r"""Spectral norm by Gram iteration in the tensor's own dtype, differentiable, for training.

    .. math:: \lVert (W^\top W)^{2^{K-1}} \rVert_F^{2^{-K}}, \qquad K = \text{iterations},

    is an upper bound in exact arithmetic only: rounding can take it below the norm, and a proof
    needs :func:`gram_bound` or :func:`dense_norm_bound`. The scale is taken out before every
    product, so it neither overflows nor underflows; at zero both value and gradient are zero.

    Reference: Delattre et al. 2023, see :func:`gram_bound`.

    Args:
        weight: Shape ``(m, n)``.
        iterations: Number of products.

    Returns:
        A scalar.
    """
    matrix = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    # The value does not depend on the scales, so the gradient may take them for constants.
    scales = []
    for _ in range(iterations):
        scales.append(peak(matrix))
        matrix = matrix / scales[-1]
        matrix = matrix.mT @ matrix
    norm = length(matrix)
    zero = norm == 0
    root = torch.where(zero, 1.0, norm)
    for scale in reversed(scales):
        root = scale * root.sqrt()
    return torch.where(zero, norm, root)


def power_iteration(weight: Tensor, vector: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    r"""Estimate the spectral norm of a matrix from below by power iteration, differentiably.

    .. math:: \lVert W v \rVert / \lVert v \rVert, \qquad
        v \leftarrow W^\top W v / \lVert W^\top W v \rVert

    Never above the norm but for rounding, and possibly far below it: nothing can be certified with
    it. The gradient is that of the quotient with ``v`` held constant. The quotient is that of the
    vector before the last step, with which it shares the product. A vector that ``W`` maps to zero
    is kept.

    Reference: Miyato et al., `Spectral normalization for generative adversarial networks
    <https://arxiv.org/abs/1802.05957>`_, ICLR 2018.

    Args:
        weight: Shape ``(m, n)``.
        vector: Start, shape ``(n,)``; hand in the last result to go on from there.
        iterations: Number of steps; 0 evaluates the quotient.

    Returns:
        The estimate, a scalar, and the new vector, of unit length and without gradient.
    """
    return quotient(lambda x: weight @ x, lambda y: weight.mT @ y, vector, iterations)


def conv_power_iteration(
    weight: Tensor,
    vector: Tensor,
    iterations: int,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""Estimate the norm of a zero-padded 2-D convolution from below by power iteration.

    Like :func:`power_iteration`, with the convolution and its transpose in place of the products.

    Args:
        weight: Shape ``(c_out, c_in / groups, kh, kw)``.
        vector: Start, shape ``(1, c_in, h, w)``: the norm depends on the input size.
        iterations: Number of steps; 0 evaluates the quotient.
        stride: Stride, an integer or (height, width), as are the next two.
        padding: Zeros added on both sides.
        dilation: Distance between kernel elements.
        groups: Number of blocks of channels.

    Returns:
        The estimate, a scalar, and the new vector, of unit length and without gradient.
    """
    forward, adjoint = convolution(weight, vector.shape[2:], stride, padding, dilation, groups)
    return quotient(forward, adjoint, vector, iterations)


def norm_lower(weight: Matrix) -> float:
    r"""Bound the spectral norm of a matrix from below, to report the slack of upper bounds.

    The Rayleigh quotient :math:`\lVert W v \rVert / \lVert v \rVert` of a Ritz vector, in float64
    with its rounding error taken off.

    Args:
        weight: Shape ``(m, n)``, floating point.
    """
    copy = tall(weight)
    matrix = torch.from_numpy(copy.values)
    rows, columns = matrix.shape
    start = torch.randn(
        columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1), device="cpu"
    )
    _, ritz = lanczos(lambda x: (matrix.mT @ (matrix @ x[0]))[None], start[None], 60)
    vector = F.hardshrink(ritz[0], TINY)
    image = (matrix @ vector).numpy()
    square = exact(float(image @ image)) / (1 + gamma(rows + 1)) - rows * Fraction(2) ** -1022
    length2 = energy_up(vector.numpy()[None])
    error = gamma(columns) * exact(root_up(energy_up(copy.values[None]) * length2))
    if square <= 0:
        return 0.0
    root = exact(root_up(square)) * (1 - 4 * UNIT)
    ratio = (root - error) / exact(root_up(length2)) - copy.tail
    return max(0.0, math.nextafter(float(ratio * Fraction(2) ** copy.exponent), 0.0))


def conv_norm_lower(
    weight: Matrix,
    input_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    steps: int = 40,
) -> float:
    r"""Estimate the norm of a zero-padded 2-D convolution from below, to report slack.

    The quotient :math:`\lVert W * v \rVert / \lVert v \rVert` of a Ritz vector in float64, low but
    for rounding. Arguments as for :func:`conv_norm_bound`; ``steps`` is that of Lanczos.
    """
    copy = scaled(weight)
    kernel = torch.from_numpy(copy.values)
    shape = (1, kernel.shape[1] * groups, *pair(input_size))
    forward, adjoint = convolution(kernel, shape[2:], stride, padding, dilation, groups)
    start = torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), device="cpu"
    )
    _, ritz = lanczos(
        lambda x: adjoint(forward(x.reshape(shape))).reshape(1, -1), start.reshape(1, -1), steps
    )
    image = forward(ritz.reshape(shape))
    found = math.ldexp(float(length(image) / length(ritz)), copy.exponent)
    # Lanczos has no vector for the zero map.
    return 0.0 if math.isnan(found) else found


def peak(x: Tensor) -> Tensor:
    """Largest magnitude without gradient, 1 for a zero tensor; NaN stays NaN."""
    largest = x.detach().abs().amax()
    return torch.where(largest == 0, 1.0, largest)


def length(x: Tensor) -> Tensor:
    """Euclidean length, free of overflow and underflow, with gradient 0 at 0."""
    scale = peak(x)
    return scale * torch.linalg.vector_norm(x / scale)


def unit(x: Tensor) -> Tensor:
    """``x`` divided by its length, no epsilon added; zero stays zero."""
    x = x / peak(x)
    norm = torch.linalg.vector_norm(x)
    return x / torch.where(norm == 0, 1.0, norm)


def quotient(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    vector: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Power iteration on an operator and its adjoint, each applied once a step."""
    vector = unit(vector.detach())

    def moved(direction: Tensor) -> Tensor:
        new = adjoint(direction)
        return torch.where(new.abs().amax() == 0, vector, unit(new))

    with torch.no_grad():
        for _ in range(iterations - 1):
            vector = moved(unit(forward(vector)))
    image = forward(vector)
    # The inner product with its direction has an image's length for its value, and its gradient.
    direction = unit(image.detach())
    norm = torch.dot(image.flatten(), direction.flatten())
    if iterations:
        with torch.no_grad():
            vector = moved(direction)
    return norm, vector


def convolution(
    weight: Tensor,
    size: tuple[int, ...],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A convolution on inputs of the given height and width, and its transpose without gradient."""
    strides, paddings, dilations = pair(stride), pair(padding), pair(dilation)
    # What the last window does not reach, the transpose must append.
    unread = [
        (n + 2 * p - d * (k - 1) - 1) % s
        for n, k, s, p, d in zip(size, weight.shape[2:], strides, paddings, dilations, strict=True)
    ]

    def forward(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, strides, paddings, dilations, groups)

    # Without a stride the transpose is faster as a convolution, with the kernel turned over.
    fill = tuple(
        d * (k - 1) - p for k, p, d in zip(weight.shape[2:], paddings, dilations, strict=True)
    )
    if strides == (1, 1) and groups == 1 and min(fill) >= 0:
        turned = weight.detach().flip(2, 3).transpose(0, 1).contiguous()
        return forward, lambda y: F.conv2d(y, turned, None, 1, fill, dilations)

    def adjoint(y: Tensor) -> Tensor:
        return F.conv_transpose2d(y, weight, None, strides, paddings, unread, groups, dilations)

    return forward, adjoint
