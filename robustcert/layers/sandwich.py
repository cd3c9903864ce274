"""Sandwich layers (Wang and Manchester, arXiv 2301.11526)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.layers.cayley import CayleyOrthogonal
from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.residual_block import folded_activation
from robustcert.network.blocks import Sandwich
from robustcert.network.operation import constant


class SandwichLinear(nn.Module):
    r"""Dense :math:`x \mapsto \sqrt 2 A^\top \Psi\, s(\sqrt 2 \Psi^{-1} B x + b)`, 1-Lipschitz.

    :math:`A A^\top + B B^\top = I` comes from a Cayley transform, and :math:`\Psi` is a free
    positive diagonal; :class:`robustcert.network.blocks.Sandwich` has the proof and the bound for
    weights that keep the condition up to rounding only. The activation is inside the layer, and the
    model may put another one behind it.

    Reference: Wang and Manchester, `Direct Parameterization of Lipschitz-Bounded Deep Networks
    <https://arxiv.org/abs/2301.11526>`_, ICML 2023.

    Args:
        in_features: Size of the input.
        out_features: Size of the output, and rows of A and B.
        activation: s, called with ``out_features``; slopes in [0, 1], entry by entry.
        bias: Whether to add a learned bias inside.

    Example:
        >>> layer = SandwichLinear(3, 2, activation=ReLU)
        >>> _ = torch.nn.init.normal_(layer.weight)  # whatever the weight
        >>> f"{lipschitz_bound(layer, (3,)):.4f}"
        '1.0000'
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[int], nn.Module],
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(in_features + out_features, out_features))
        orthogonal_(self.weight)
        self.log_psi = nn.Parameter(torch.zeros(out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.orthogonal = CayleyOrthogonal()
        self.activation = activation(out_features)
        folded_activation(self.activation)

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`\sqrt 2 \Psi^{-1} B`, :math:`\sqrt 2 \Psi A` and :math:`\Psi`'s diagonal."""
        with torch.autocast(self.weight.device.type, enabled=False):
            a, b = self.orthogonal(self.weight).mT.tensor_split([self.out_features], 1)
            psi = self.log_psi.exp()[:, None]
            return math.sqrt(2) / psi * b, math.sqrt(2) * psi * a, psi[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        inner, outer, _ = self.factors()
        return F.linear(self.activation(F.linear(x, inner, self.bias)), outer.mT)

    def lipschitz_estimate(self) -> float:
        """1, the constant that the condition gives."""
        return 1.0

    def fold(self) -> Sandwich:
        """The layer with its factors as constants."""
        inner, outer, psi = (constant(factor) for factor in self.factors())
        bias = None if self.bias is None else constant(self.bias)
        return Sandwich(inner, outer, psi, folded_activation(self.activation), bias)
