"""Sandwich layers (Wang and Manchester, arXiv 2301.11526), dense, and with free factors."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustcert.layers.cayley import CayleyOrthogonal
from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.product import linear
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
        return linear(self.activation(linear(x, inner, self.bias)), outer.mT)

    def lipschitz_estimate(self) -> float:
        """1, the constant that the condition gives."""
        return 1.0

    def fold(self) -> Sandwich:
        """The layer with its factors as constants."""
        inner, outer, psi = (constant(factor) for factor in self.factors())
        bias = None if self.bias is None else constant(self.bias)
        return Sandwich(inner, outer, psi, folded_activation(self.activation), bias)


class FreeSandwich(nn.Module):
    r"""``x -> G' s(V x + b)`` with free factors, for weights whose factors are known.

    Dense, or with kernels as large as the map, on which the map is a torus;
    :class:`robustcert.network.blocks.Sandwich` has the bound, which is 1 for the factors of a
    sandwich layer and its multiplier.

    Args:
        in_features: Features or channels of the input.
        out_features: Of the output, and of what is inside.
        activation: s, called with ``out_features``; slopes in [0, 1], entry by entry.
        input_size: ``(H, W)`` of a map; None for vectors.
        bias: Whether to add a learned bias inside.

    Example:
        >>> layer = FreeSandwich(2, 3, activation=ReLU, input_size=(4, 4))
        >>> layer(torch.zeros(1, 2, 4, 4)).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[int], nn.Module],
        input_size: tuple[int, int] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kernel = input_size or ()
        self.inner = nn.Parameter(torch.empty(out_features, in_features, *kernel))
        self.outer = nn.Parameter(torch.empty(out_features, out_features, *kernel))
        orthogonal_(self.inner)
        orthogonal_(self.outer)
        self.multiplier = nn.Parameter(torch.ones(out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.activation = activation(out_features)
        folded_activation(self.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features, *input_size)`` to ``(N, out_features, *input_size)``."""
        first, last = self._operation(self.inner, self.outer, self.bias).linear()
        return last(self.activation(first(x)))

    def _operation(self, inner: Tensor, outer: Tensor, bias: Tensor | None) -> Sandwich:
        return Sandwich(inner, outer, self.multiplier, folded_activation(self.activation), bias)

    def lipschitz_estimate(self) -> float:
        """1, the constant of factors that obey the condition."""
        return 1.0

    def fold(self) -> Sandwich:
        """The layer with its factors as constants."""
        bias = None if self.bias is None else constant(self.bias)
        made = self._operation(constant(self.inner), constant(self.outer), bias)
        return replace(made, multiplier=constant(self.multiplier))
