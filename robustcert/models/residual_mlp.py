"""Residual multilayer perceptron."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustcert.lipschitz import estimate_children
from robustcert.models.classifier import Classifier, check_sizes
from robustcert.models.head import Head
from robustcert.models.layer_family import LayerFamily
from robustcert.models.stack import Stack
from robustcert.network.branches import Sum
from robustcert.network.fold import fold_children
from robustcert.network.linear import Affine
from robustcert.network.operation import constant


class Mixture(nn.Module):
    r"""Residual connection :math:`x \mapsto (1 - a) x + a\, g(x)` with a learned a in (0, 1).

    A convex combination: 1-Lipschitz if g is, where a plain sum would be 2-Lipschitz.

    Args:
        branch: g, which keeps the shape of its input.
        features: Size of dimension 1 of the input.
        share: a at the start of training. In (0, 1).

    Example:
        >>> layer = Mixture(Abs(1), 1, share=0.25)
        >>> layer(torch.tensor([[-1.0]])).detach()
        tensor([[-0.5000]])
    """

    def __init__(self, branch: nn.Module, features: int, *, share: float = 0.5) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"expected a share in (0, 1), got {share}: set model.share")
        self.branch = branch
        self.features = features
        self.logit = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, features, *)`` to the same shape."""
        return torch.lerp(x, self.branch(x), self.logit.sigmoid().to(x.dtype))

    def lipschitz_estimate(self) -> Tensor:
        """The combination of 1 and the branch's estimate."""
        share = self.logit.sigmoid()
        return 1 - share + share * estimate_children(("branch", self.branch))

    def fold(self) -> Sum:
        """The two branches, each with its factor."""
        share = self.logit.sigmoid()
        return Sum(
            (
                (_factor(1 - share, self.features),),
                (*fold_children(("branch", self.branch)), _factor(share, self.features)),
            )
        )


def _factor(value: Tensor, features: int) -> Affine:
    scale = constant(value.expand(features))
    return Affine(scale, torch.zeros_like(scale))


class ResidualMLP(Classifier):
    """A dense layer, ``depth`` residual dense layers of ``width`` features, and a linear head.

    Args:
        input_shape: Shape of one input, without the batch dimension.
        num_classes: Number of logits.
        width: Outputs of each dense layer.
        depth: Number of residual layers after the first.
        layer: The constraint's layers; the dense one is used.
        activation: Called as ``activation(num_features)``.
        share: Weight of a layer against its input at the start of training. In (0, 1).
        normalize_head: Whether the head's rows have unit norm.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> family = LayerFamily(dense=CayleyLinear, conv=AOLConv2d)
        >>> model = ResidualMLP((4,), 3, width=8, depth=2, layer=family, activation=GroupSort)
        >>> lipschitz_bound(model, (4,)) <= 2.001
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
        share: float = 0.5,
        normalize_head: bool = True,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        check_sizes(width, depth)
        stack = Stack(input_shape, activation, mean=mean, std=std)
        stack.flatten()
        stack.connect(layer.dense, width)
        stack.activate()
        for _ in range(depth):
            branch = nn.Sequential(layer.dense(stack.features, width), activation(width))
            stack.add(Mixture(branch, stack.features, share=share))
        super().__init__(stack.build(), Head(stack.features, num_classes, normalize=normalize_head))
