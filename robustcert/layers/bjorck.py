"""Dense layer orthogonalised by Björck's iteration (Anil, Lucas and Grosse, arXiv 1811.05381)."""

import torch
from torch import Tensor, nn

from robustcert.layers.constrained import ConstrainedLinear
from robustcert.spectral import gram_iteration


class BjorckOrthogonal(nn.Module):
    r"""Map a matrix to its polar factor by :math:`X \leftarrow X (3 I - X^\top X) / 2`.

    A step maps a singular value s to :math:`s (3 - s^2) / 2`, which takes [0, 2] into [-1, 1]. The
    matrix is divided by a bound of its norm first (Gram iteration, which errs on the large side),
    so that no singular value ends above 1, however few the steps; power iteration, which errs on
    the small side, could make the iteration diverge. Small singular values grow by half per step.

    Reference: Anil, Lucas and Grosse, `Sorting out Lipschitz function approximation
    <https://arxiv.org/abs/1811.05381>`_, ICML 2019.

    Args:
        iterations: Number of steps.
    """

    def __init__(self, iterations: int = 15) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(
                f"iterations must be at least 1, got {iterations}: set model.layer.dense.iterations"
            )
        self.iterations = iterations

    def forward(self, weight: Tensor) -> Tensor:
        """Orthogonalise ``weight`` of shape ``(out_features, in_features)``."""
        with torch.autocast(weight.device.type, enabled=False):
            norm = gram_iteration(weight)
            # A zero weight stays zero.
            x = weight / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            if weight.shape[0] < weight.shape[1]:
                return bjorck(x.mT, self.iterations).mT
            return bjorck(x, self.iterations)


def bjorck(x: Tensor, iterations: int) -> Tensor:
    """Steps of Björck's iteration on tall matrices ``(*, m, n)``, real or complex."""
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.mH @ x)
    return x


class BjorckLinear(ConstrainedLinear):
    """Dense layer with nearly orthonormal rows or columns by :class:`BjorckOrthogonal`.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        iterations: Number of steps.
        bias: Whether to add a learned bias.
    """

    def __init__(
        self, in_features: int, out_features: int, *, iterations: int = 15, bias: bool = True
    ) -> None:
        super().__init__(
            in_features, out_features, parametrization=BjorckOrthogonal(iterations), bias=bias
        )
