"""LipNeXt: orthogonal projections of channels and shifts of the map, no spatial kernels."""

import math
from collections.abc import Callable, Sequence

from torch import nn

from robustcert.models.classifier import Classifier, check_sizes
from robustcert.models.head import Head
from robustcert.models.layer_family import LayerFamily
from robustcert.models.position import Position
from robustcert.models.shift import CircularShift
from robustcert.models.stack import Stack


class LipNeXt(Classifier):
    r"""Patches, ``depth`` blocks of ``width`` channels, L2 pooling, a dense layer, linear head.

    .. math:: z = \sigma\big(M\, S(R (x + p)) + b\big)

    with 1x1 convolutions R and M, a circular shift S of groups of channels and a learned map p. The
    paper writes :math:`M R^\top S R`; for orthogonal matrices the product of M and the transpose of
    R is just another orthogonal matrix, so this is the same set of functions. Published with
    ``layer=manifold activation=beta_abs``; any layers will do.

    Reference: Hu, Hu and Fredrikson, `LipNeXt <https://arxiv.org/abs/2601.18513>`_, ICLR 2026.

    Args:
        input_shape: ``(C, H, W)`` of one input.
        num_classes: Number of logits.
        width: Channels.
        depth: Number of blocks.
        layer: The constraint's layers.
        activation: Called as ``activation(num_features)``.
        pool: Called as ``pool(size)``: norms of windows of this size.
        patch: Side of the patches that the stem reads.
        shift: Share of the channels that moves in each of the four directions.
        normalize_head: Whether the head's rows have unit norm.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> family = PatchFamily(dense=ManifoldLinear, patch=ManifoldPatchConv2d, conv=AOLConv2d)
        >>> model = LipNeXt(
        ...     (1, 8, 8), 3, width=8, depth=2, layer=family, activation=BetaAbs, pool=NormPool2d
        ... ).eval()
        >>> bound = lipschitz_bound(model, (1, 8, 8))
        >>> bound < 2  # the head's; what is before it has 1
        True
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int,
        depth: int,
        layer: LayerFamily,
        activation: Callable[[int], nn.Module],
        pool: Callable[[int], nn.Module],
        patch: int = 2,
        shift: float = 0.125,
        normalize_head: bool = True,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        check_sizes(width, depth)
        if patch < 1:
            raise ValueError(f"expected patches of side 1 at least, got {patch}: set model.patch")
        stack = Stack(input_shape, activation, mean=mean, std=std, images="LipNeXt")
        stack.convolve(layer.conv, width, patch, stride=patch)
        for _ in range(depth):
            stack.add(Position((stack.features, *stack.size)))
            stack.convolve(layer.conv, width, 1)
            stack.add(CircularShift(width, shift))
            stack.convolve(layer.conv, width, 1)
            stack.activate()
        # The largest square windows that tile the map: the whole of a square one.
        side = math.gcd(*stack.size)
        stack.add(pool(side))
        stack.size = tuple(n // side for n in stack.size)
        stack.flatten()
        stack.connect(layer.dense, width)
        stack.activate()
        super().__init__(stack.build(), Head(stack.features, num_classes, normalize=normalize_head))
