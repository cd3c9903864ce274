"""Dense layer orthogonalised by Björck's iteration (Anil, Lucas and Grosse, arXiv 1811.05381)."""

import torch
from torch import Tensor, nn

from robustcert.layers.constrained import ConstrainedLinear
from robustcert.layers.product import gram, product
from robustcert.network.device import stays_on_device
from robustcert.norms.estimates import gram_iteration


class BjorckOrthogonal(nn.Module):
    r"""Map a matrix to its polar factor by :math:`X \leftarrow X (3 I - X^\top X) / 2`.

    A step maps a singular value s to :math:`s (3 - s^2) / 2`, which takes [0, 2] into [-1, 1]. The
    matrix that may have larger ones is divided by a bound of its norm first (Gram iteration, which
    errs on the large side), so that no singular value ends above 1, however few the steps; power
    iteration, which errs on the small side, could make the iteration diverge. Small singular values
    grow by half per step.

    Reference: Anil, Lucas and Grosse, `Sorting out Lipschitz function approximation
    <https://arxiv.org/abs/1811.05381>`_, ICML 2019.

    Args:
        iterations: Largest number of steps.

    Example:
        >>> X = torch.diag(torch.tensor([1.0, 0.5]))
        >>> torch.linalg.svdvals(BjorckOrthogonal(iterations=1)(X)).amin()
        tensor(0.6875)
        >>> f"{torch.linalg.svdvals(BjorckOrthogonal()(X)).amin():.4f}"
        '1.0000'
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
            if weight.shape[0] < weight.shape[1]:
                return self._tall(weight.mT).mT
            return self._tall(weight)

    def _tall(self, x: Tensor) -> Tensor:
        excess = _excess(x)
        # Then no singular value is above 2, and the scale changes nothing but the pace.
        near = torch.linalg.matrix_norm(excess.detach()) <= 3
        waits = not stays_on_device(x)
        if waits and near:
            return bjorck(x, self.iterations, excess)
        norm = gram_iteration(x) if waits else torch.where(near, 1.0, gram_iteration(x))
        # A zero weight stays zero.
        return bjorck(x / norm.clamp_min(torch.finfo(norm.dtype).tiny), self.iterations)


def bjorck(x: Tensor, iterations: int, excess: Tensor | None = None) -> Tensor:
    """At most ``iterations`` steps of Björck's iteration on tall matrices, real or complex.

    Args:
        x: Shape ``(*, m, n)``, singular values at most 2.
        iterations: Steps are left out once they would change nothing but rounding, unless the host
            would have to wait for a device to know.
        excess: ``X^H X - I``, where it is known.
    """
    # A step takes X^H X from I + D to I - 3/4 D^2 - 1/4 D^3.
    enough = torch.finfo(x.dtype).eps ** 0.5
    for _ in range(iterations):
        excess = _excess(x) if excess is None else excess
        x = torch.sub(x, product(x, excess), alpha=0.5)
        if not stays_on_device(x) and excess.detach().abs().max() <= enough:
            break
        excess = None
    return x


def _excess(x: Tensor) -> Tensor:
    """``X^H X - I``."""
    return gram(x) - torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


class BjorckLinear(ConstrainedLinear):
    """Dense layer with nearly orthonormal rows or columns by :class:`BjorckOrthogonal`.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        iterations: Largest number of steps.
        bias: Whether to add a learned bias.

    Example:
        >>> W = BjorckLinear(5, 3).weight
        >>> torch.allclose(W @ W.T, torch.eye(3), atol=1e-5)
        True
    """

    def __init__(
        self, in_features: int, out_features: int, *, iterations: int = 15, bias: bool = True
    ) -> None:
        super().__init__(
            in_features, out_features, parametrization=BjorckOrthogonal(iterations), bias=bias
        )
