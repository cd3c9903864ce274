"""Largest eigenvalues of Hermitian matrices: estimates, which no proof rests on."""

from collections.abc import Callable

import torch
from torch import Tensor

# Maximum side of a matrix whose eigenvalues are computed rather than estimated.
DIRECT_SIZE = 256
# Number of Lanczos steps of an estimate that tells which matrix is the largest.
ROUGH_STEPS = 8
# Number of steps after which it is looked at what they have gained.
GAIN_STEPS = 4


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int, gain: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue and its vector of Hermitian operators, an estimate from below.

    Args:
        product: Applies the operators to a batch (b, n) of vectors.
        start: Start vectors, (b, n), not zero.
        steps: Largest dimension of the Krylov spaces.
        gain: Stop where a few more steps raise no value by more than this, relative to it.

    Returns:
        Ritz values (b,) and unit Ritz vectors (b, n).
    """
    steps = min(steps, start.shape[-1])
    basis = start.new_zeros(start.shape[0], steps, start.shape[1])
    images = torch.zeros_like(basis)
    vector, epsilon = start, torch.finfo(start.dtype).eps
    step, values = 0, start.new_zeros(len(start)).real
    for step in range(steps):
        begun = _length(vector)
        known = basis[:, :step]
        for _ in range(2):
            overlap = known.conj() @ vector[..., None]
            vector = torch.baddbmm(vector[..., None], known.mT, overlap, alpha=-1)[..., 0]
        length = _length(vector)
        # Nothing but rounding is left of a vector in an invariant space: go on with zero.
        scale = torch.where(length > 50 * epsilon * begun, 1 / length, 0.0)
        basis[:, step] = vector * scale
        images[:, step] = vector = product(basis[:, step])
        if gain and step and step % GAIN_STEPS == 0:
            small = basis[:, : step + 1].conj() @ images[:, : step + 1].mT
            before, values = values, torch.linalg.eigvalsh(small)[:, -1]
            if (values - before <= gain * values).all():
                break
    basis, images = basis[:, : step + 1], images[:, : step + 1]
    values, vectors = torch.linalg.eigh(basis.conj() @ images.mT)
    return values[:, -1].clamp(min=0), (basis.mT @ vectors[..., -1:])[..., 0]


def _length(vectors: Tensor) -> Tensor:
    # Those of complex numbers are added up one by one, of real ones many at once.
    parts = torch.view_as_real(vectors).flatten(1) if vectors.is_complex() else vectors
    return torch.linalg.vector_norm(parts, dim=-1, keepdim=True)


def random_start(size: int) -> Tensor:
    """A random vector (n,), always the same, where none near an eigenvector is known."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")


def ritz_pairs(
    matrices: Tensor, steps: int, gain: float = 0.0, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues (b,) of Hermitian matrices (b, n, n), estimates from below, and vectors.

    Args:
        matrices: Shape (b, n, n).
        steps: Maximum number of Lanczos steps.
        gain: As for :func:`lanczos`.
        start: Start vectors, (b, n); random ones by default.
    """
    # Vectors in single precision cost half; an error of theirs counts by its square.
    peak = matrices.diagonal(dim1=-2, dim2=-1).real.amax()
    # Out of its range nothing would be left; a copy that is not needed takes time.
    narrow = matrices if 2.0**-60 < peak < 2.0**60 else matrices / torch.where(peak > 0, peak, 1.0)
    narrow = narrow.to(torch.complex64 if matrices.is_complex() else torch.float32)
    if start is None:
        start = random_start(matrices.shape[-1]).expand(len(matrices), -1)
    _, ritz = lanczos(
        # Of a batch, rows times matrices take a fifth of the time of matrices times columns.
        lambda x: (x[:, None] @ narrow.mT)[:, 0],
        start.to(narrow),
        steps,
        gain,
    )
    vector = ritz.to(matrices.dtype)
    image = (matrices @ vector[..., None])[..., 0]
    quotient = (vector.conj() * image).sum(-1).real / vector.abs().square().sum(-1)
    return quotient.nan_to_num(0.0).clamp(min=0), vector


def largest_eigenvalue(
    matrices: Tensor, steps: int, gain: float = 0.0, start: Tensor | None = None
) -> float:
    """Largest eigenvalue in a batch (b, n, n) of Hermitian matrices, an estimate from below.

    It is that of one matrix, which a rough estimate of all picks. Arguments as for
    :func:`ritz_pairs`.
    """
    if len(matrices) > 1:
        largest = ritz_pairs(matrices, ROUGH_STEPS, start=start)[0].argmax()
        matrices, start = matrices[largest][None], None if start is None else start[largest][None]
    if matrices.shape[-1] <= DIRECT_SIZE:
        return float(torch.linalg.eigvalsh(matrices).max())
    return float(ritz_pairs(matrices, steps, gain, start)[0].max())
