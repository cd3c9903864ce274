"""SDP-based Lipschitz layers (Araujo et al., arXiv 2303.03169)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.layers.product import gram
from robustcert.layers.residual_block import ResidualConv2d, ResidualLinear


def diagonal_scale(correlation: Tensor, log_q: Tensor) -> Tensor:
    r"""Square root of :math:`T_{ii} = 1 / \sum_j |C_{ij}| q_j / q_i`; 1 for a zero row.

    With Q the diagonal of q, :math:`Q (T^{-1} - C) Q^{-1}` is diagonally dominant for a symmetric
    C, hence :math:`C \preceq T^{-1}`.
    """
    # Centred, so that none overflows whose quotients do not.
    low, high = log_q.detach().aminmax()
    q = (log_q - low / 2 - high / 2).exp()
    sums = correlation @ q / q
    return torch.where(sums == 0, 1.0, sums).rsqrt()


class SLLLinear(ResidualLinear):
    r"""Dense :math:`x \mapsto x - 2 W^\top T s(W x + b)` with T of :func:`diagonal_scale`.

    Reference: Araujo, Havens, Delattre, Allauzen and Hu, `A Unified Algebraic Perspective on
    Lipschitz Neural Networks <https://arxiv.org/abs/2303.03169>`_, ICLR 2023.

    Example:
        >>> layer = SLLLinear(3, 3, activation=ReLU, bias=False)
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> f"{lipschitz_bound(layer, (3,)):.4f}"  # whatever the weight
        '1.0000'
    """

    def prepare(self) -> None:
        """Make the logarithms of q."""
        self.log_q = nn.Parameter(self.weight.new_zeros(len(self.weight)))

    def scale(self) -> Tensor:
        """Square roots of T's diagonal."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return diagonal_scale(gram(self.weight.mT).abs(), self.log_q)


class SLLConv2d(ResidualConv2d):
    r"""Convolutional :math:`x \mapsto x - 2 W^\top T s(W x + b)`.

    :math:`C_{ij}` sums the magnitudes of the correlations of channels i and j over all shifts,
    which bounds every row of :math:`W W^\top` on an unbounded grid.

    Example:
        >>> layer = SLLConv2d(2, 2, 3, padding=1, input_size=(5, 5), activation=ReLU)
        >>> x, y = torch.randn(2, 2, 5, 5)[:, None]
        >>> bool(torch.dist(layer(x), layer(y)) <= torch.dist(x, y))
        True
    """

    def prepare(self) -> None:
        """Make the logarithms of q."""
        self.log_q = nn.Parameter(self.weight.new_zeros(len(self.weight)))

    def scale(self) -> Tensor:
        """Square roots of T's diagonal."""
        with torch.autocast(self.weight.device.type, enabled=False):
            shifts = F.conv2d(self.weight, self.weight, padding=self.weight.shape[-1] - 1)
            return diagonal_scale(shifts.abs().sum((2, 3)), self.log_q)
