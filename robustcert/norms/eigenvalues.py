"""Largest eigenvalues of Hermitian matrices: estimates, which no proof rests on."""

from collections.abc import Callable

import torch
from torch import Tensor

# Maximum side of a matrix whose eigenvalues are computed rather than estimated.
DIRECT_SIZE = 256
# Number of Lanczos steps of an estimate that tells which matrix is the largest.
ROUGH_STEPS = 8


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue and its vector of Hermitian operators, an estimate from below.

    Args:
        product: Applies the operators to a batch (b, n) of vectors.
        start: Start vectors, (b, n), not zero.
        steps: Dimension of the Krylov spaces.

    Returns:
        Ritz values (b,) and unit Ritz vectors (b, n).
    """
    steps = min(steps, start.shape[-1])
    basis = start.new_zeros(start.shape[0], steps, start.shape[1])
    images = torch.zeros_like(basis)
    vector, epsilon = start, torch.finfo(start.dtype).eps
    for step in range(steps):
        before = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        for _ in range(2):
            overlap = basis[:, :step].conj() @ vector[..., None]
            vector = vector - (basis[:, :step].mT @ overlap)[..., 0]
        length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        # Nothing but rounding is left of a vector in an invariant space: go on with zero.
        basis[:, step] = torch.where(length > 50 * epsilon * before, vector / length, 0.0)
        images[:, step] = vector = product(basis[:, step])
    values, vectors = torch.linalg.eigh(basis.conj() @ images.mT)
    return values[:, -1].clamp(min=0), (basis.mT @ vectors[..., -1:])[..., 0]


def ritz_pairs(matrices: Tensor, steps: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues (b,) of Hermitian matrices (b, n, n), estimates from below, and vectors.

    Args:
        matrices: Shape (b, n, n).
        steps: Number of Lanczos steps.
        start: A vector (n,) near those that are looked for, or None for a random one.
    """
    # Vectors in single precision cost half; an error of theirs counts by its square.
    peak = matrices.diagonal(dim1=-2, dim2=-1).real.amax()
    # Out of its range nothing would be left; a copy that is not needed takes time.
    narrow = matrices if 2.0**-60 < peak < 2.0**60 else matrices / torch.where(peak > 0, peak, 1.0)
    narrow = narrow.to(torch.complex64 if matrices.is_complex() else torch.float32)
    if start is None:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(
            matrices.shape[-1], generator=generator, dtype=torch.float64, device="cpu"
        )
    _, ritz = lanczos(
        lambda x: (narrow @ x[..., None])[..., 0],
        start.to(narrow).expand(len(matrices), -1),
        steps,
    )
    vector = ritz.to(matrices.dtype)
    image = (matrices @ vector[..., None])[..., 0]
    quotient = (vector.conj() * image).sum(-1).real / vector.abs().square().sum(-1)
    return quotient.nan_to_num(0.0).clamp(min=0), vector


def largest_eigenvalue(matrices: Tensor, steps: int, start: Tensor | None = None) -> float:
    """Largest eigenvalue in a batch (b, n, n) of Hermitian matrices, an estimate from below.

    It is that of one matrix, which a rough estimate of all picks. Arguments as for
    :func:`ritz_pairs`; a start near the vector halves the number of steps.
    """
    if len(matrices) > 1:
        matrices = matrices[ritz_pairs(matrices, ROUGH_STEPS)[0].argmax()][None]
    if matrices.shape[-1] <= DIRECT_SIZE:
        return float(torch.linalg.eigvalsh(matrices).max())
    steps = steps if start is None else steps // 2
    return float(ritz_pairs(matrices, steps, start)[0].max())
