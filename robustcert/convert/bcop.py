"""Kernels of block convolution orthogonal parametrisations, as Björck's iteration finds them.

The original code divides every matrix by its largest singular value as a power iteration from
*random* numbers finds it, in evaluation too, before an iteration that takes all singular values to
1. Where it ends at 1 for every one of them, whatever was drawn takes it to the same matrix.

Reference: Li et al., `Preventing gradient attenuation in Lipschitz constrained convolutional
networks <https://arxiv.org/abs/1911.00937>`_, NeurIPS 2019.
"""

import torch
from torch import Tensor

from robustcert.convert.network import identity
from robustcert.convert.published import ConversionError

# How far from 1 an iterated singular value may be left.
CONVERGED = 1e-6
# The norm over what ten steps of a power iteration make of it, at most.
UNDERESTIMATED = 1.5


def bjorck(matrices: Tensor, iterations: int, name: str, *, scaled: bool = True) -> Tensor:
    """Björck's first-order iteration for square matrices ``(*, n, n)``.

    Args:
        matrices: What it starts from.
        iterations: Number of its steps.
        name: The tensor in the file, for messages.
        scaled: Whether the matrices are divided by their norms first.

    Raises:
        ConversionError: the result depends on what a power iteration would draw.
    """
    if scaled:
        values = torch.linalg.svdvals(matrices)
        least = values[..., -1] / values[..., 0]
        # Ratios above 1 are below 1 after one step, but not below what UNDERESTIMATED gives.
        least = torch.minimum(least, _step(torch.full_like(least, UNDERESTIMATED)))
        for _ in range(iterations - 1):
            least = _step(least)
        if not bool((least >= 1 - CONVERGED).all()):
            raise ConversionError(
                f"{name}: the original code divides by a norm that it estimates from random "
                f"numbers, and after its {iterations} iterations what was drawn still shows: "
                "expected singular values that are closer to each other"
            )
        matrices = matrices / values[..., :1, None]
    for _ in range(iterations):
        matrices = 1.5 * matrices - 0.5 * matrices @ (matrices.mT @ matrices)
    return matrices


def _step(value: Tensor) -> Tensor:
    """What a step makes of a singular value."""
    return 1.5 * value - 0.5 * value**3


def kernel_of(last: Tensor, projections: Tensor) -> Tensor:
    """The kernel ``(C, C, k, k)`` of a matrix ``(C, C)`` and 2 (k - 1) projections."""
    if not len(projections):
        return last[..., None, None]
    eye = identity(len(last))
    taps = eye[None, None]
    for p, q in zip(projections[::2], projections[1::2], strict=True):
        pairs = torch.stack([torch.stack([a @ b for b in (q, eye - q)]) for a in (p, eye - p)])
        side = len(taps)
        wider = taps.new_zeros(side + 1, side + 1, *last.shape)
        for i in (0, 1):
            for j in (0, 1):
                wider[i : i + side, j : j + side] += taps @ pairs[i, j]
        taps = wider
    return (last @ taps).permute(3, 2, 1, 0)
