"""Twins of other packages' activations and joins, see :mod:`robustcert.network.twins`."""

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from robustcert.activations.householder import Householder
from robustcert.activations.householder2 import NARROWEST, Householder2
from robustcert.activations.norm_pair import NormPair
from robustcert.activations.peer_blocks import (
    residual_aoc,
    residual_block,
    residual_dense,
    residual_sll_aoc,
)
from robustcert.activations.positive import Positive
from robustcert.activations.smooth_abs import SmoothAbs
from robustcert.errors import UnsoundNetworkError
from robustcert.network.twins import state_twin


class OnHalves(nn.Module):
    """An activation of neighbouring pairs, on pairs (i, i + C/2), times a factor."""

    def __init__(self, activation: nn.Module, factor: float) -> None:
        super().__init__()
        self.activation, self.factor = activation, factor

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        pairs = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        made = self.activation(pairs).unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return self.factor * made


class NormWithBranch(nn.Module):
    r"""The norm :math:`\sqrt{(x^2 + g(x)^2) / 2 + \epsilon}` of an input and a branch g of it."""

    def __init__(self, branch: nn.Module, eps: float) -> None:
        super().__init__()
        # The pair's norm starts at the root, and ends without it.
        self.branch, self.root = branch, math.sqrt(eps)
        self.norm = NormPair(2, temperature=self.root, learnable=False)
        _set(self.norm.temperature, self.root)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        pairs = torch.stack([x, self.branch(x)], 2).flatten(1, 2)
        return self.norm(math.sqrt(0.5) * pairs) + self.root


def _householder(module: Any, factor: float = 1.0) -> nn.Module:
    """Pairs on one side of a line at half the angle, reflected across it."""
    _require_channels(module)
    angle = module.theta.detach().double().flatten() / 2 + math.pi / 2
    made = Householder(2 * len(angle)).double()
    made.angle = nn.Parameter(angle)
    return OnHalves(made, factor)


def _householder_order_2(module: Any) -> nn.Module:
    """The isometries of four sectors between rays at half the angles."""
    _require_channels(module)
    thetas = (module.theta0, module.theta1, module.theta2)
    first, *widths = (t.detach().double().clamp(0, 2 * math.pi).flatten() / 2 for t in thetas)
    share = (torch.stack(widths) - NARROWEST) / (math.pi - 2 * NARROWEST)
    if not ((share > 0) & (share < 1)).all():
        raise UnsoundNetworkError(
            f"expected theta1 and theta2 between {2 * NARROWEST} and 2 pi - {2 * NARROWEST}, which "
            "are twice the widths of sectors"
        )
    made = Householder2(2 * len(first)).double()
    made.angle, made.width = nn.Parameter(first), nn.Parameter(share.logit())
    return OnHalves(made, math.sqrt(0.5))


def _require_channels(module: Any) -> None:
    if getattr(module, "axis", 1) != 1:
        raise UnsoundNetworkError(f"expected pairs of channels, axis=1, got axis={module.axis}")


def _soft_huber(module: Any) -> nn.Module:
    made = SmoothAbs(1, temperature=module.delta, learnable=False)
    _set(made.temperature, module.delta)
    return made


def _set(positive: Positive, value: float) -> None:
    # In float64, whatever precision the module has.
    positive.log = torch.tensor(math.log(value), dtype=torch.float64, device="cpu")


def state_twins() -> None:
    """State the twins of the packages that are imported."""
    torchlip: Any = sys.modules.get("deel.torchlip.modules.activation")
    if torchlip is not None:
        state_twin(torchlip.HouseHolder, _householder)
    orthogonium: Any = sys.modules.get("orthogonium.layers.custom_activations")
    if orthogonium is not None:
        state_twin(orthogonium.HouseHolder, lambda m: _householder(m, math.sqrt(0.5)))
        state_twin(orthogonium.HouseHolder_Order_2, _householder_order_2)
        state_twin(orthogonium.SoftHuber, _soft_huber)
    residual: Any = sys.modules.get("orthogonium.layers.residual")
    if residual is not None:
        state_twin(residual.L2NormResidual, lambda m: NormWithBranch(m.fn, m.eps))
    blocks: Any = sys.modules.get("orthogonium.layers.conv.SLL.sll_layer")
    if blocks is not None:
        state_twin(blocks.SDPBasedLipschitzResBlock, residual_block)
        state_twin(blocks.SDPBasedLipschitzDense, residual_dense)
        state_twin(blocks.AOCLipschitzResBlock, residual_aoc)
        state_twin(blocks.SLLxAOCLipschitzResBlock, residual_sll_aoc)
