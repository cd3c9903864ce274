"""LiResNet++ and BRONet by the operations of their published code, in plain torch.

What is restated are formulas, so that a table of this package's steps can show what a step costs by
those beside them:

LiResNet++ (arXiv 2310.02513, https://github.com/hukkai/liresnet)
    Residual convolutions less the batch's mean, whose norms ten power iterations estimate in every
    step, all of the trunk in one grouped convolution; neck and dense layers by Cholesky factors of
    torch, the dense ones in one stack.
BRONet (arXiv 2505.15174, https://github.com/ntuaislab/BRONet)
    The same with a trunk of block reflectors ``I - 2 V (V* V + rho I)^-1 V*``: the blocks of all
    frequencies are solved for and multiplied out.

Networks start at random weights: nobody trains them.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Steps of power iteration, and ridges over mean diagonals: of Cholesky factors and of reflectors.
ITERATIONS = 10
CHOLESKY_RIDGE, REFLECTOR_RIDGE = 1e-3, 1e-7


def orthonormal_rows(x: Tensor) -> Tensor:
    r""":math:`L^{-1} X` with :math:`L L^\top = X X^\top + \rho I`, of matrices ``(*, m, n)``."""
    return torch.linalg.solve_triangular(
        torch.linalg.cholesky(_with_ridge(x @ x.mT, CHOLESKY_RIDGE)), x, upper=False
    )


def reflector(v: Tensor) -> Tensor:
    r""":math:`I - 2 V (V^* V + \rho I)^{-1} V^*` of matrices ``(*, m, n)``, real or complex."""
    gram = _with_ridge(v.mH @ v, REFLECTOR_RIDGE)
    return _identity(v, v.shape[-2]) - 2 * v @ torch.linalg.solve(gram, v.mH)


def _with_ridge(gram: Tensor, ridge: float) -> Tensor:
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1).detach()
    return gram + ridge * mean[..., None, None] * _identity(gram, gram.shape[-1])


def _identity(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def maxmin(x: Tensor) -> Tensor:
    """Maxima and minima of the two halves of the channels."""
    first, second = x.chunk(2, 1)
    return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1)


class PowerIteration(nn.Module):
    """Norms of convolutions in groups, by a map for each group that steps keep.

    Args:
        channels: Of the input, of all groups.
        side: Of the input.
        stride: Of the convolution, and its padding and groups.
        padding: See ``stride``.
        groups: See ``stride``.
    """

    map: Tensor

    def __init__(self, channels: int, side: int, *, stride: int, padding: int, groups: int) -> None:
        super().__init__()
        options = {"stride": stride, "padding": padding, "groups": groups}
        self.forth = partial(F.conv2d, **options)
        self.back = partial(F.conv_transpose2d, **options, output_padding=stride - 1)
        self.groups = groups
        self.register_buffer("map", torch.ones(1, channels, side, side))

    def forward(self, weight: Tensor) -> Tensor:
        """Norms ``(groups,)``, differentiable in the weight by the last step."""
        with torch.no_grad():
            x = self.map
            for _ in range(ITERATIONS):
                x = self.back(self.forth(x, weight), weight).view(self.groups, -1)
                x = F.normalize(x, dim=1).view(self.map.shape)
            self.map.copy_(x)
        return torch.linalg.vector_norm(self.forth(x, weight).view(self.groups, -1), dim=1)


class ResidualTrunk(nn.Module):
    """Convolutions ``x + W x - mean + b``, each before MaxMin.

    Args:
        width: Channels.
        depth: Number of convolutions.
        side: Of the map.
    """

    def __init__(self, width: int, depth: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(depth, width, width, 3, 3) / (9 * width))
        self.gamma = nn.Parameter(torch.ones(depth, width, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(depth, width))
        self.norms = PowerIteration(depth * width, side, stride=1, padding=1, groups=depth)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map, and the product of the convolutions' norms."""
        depth, width = self.bias.shape
        weights = self.weight * self.gamma * depth**-0.5
        for weight, bias in zip(weights, self.bias, strict=True):
            y = F.conv2d(x, weight, padding=1)
            x = maxmin(x + y + (bias - y.mean((0, 2, 3)))[:, None, None])
        middle = F.pad(_identity(x, width)[:, :, None, None], (1, 1, 1, 1))
        return x, self.norms((weights + middle).flatten(0, 1)).prod()


class ReflectorTrunk(nn.Module):
    """Block reflector convolutions on a torus with one row and column of zeros around the map.

    Args:
        width: Channels.
        depth: Number of convolutions.
        side: Of the map.
    """

    def __init__(self, width: int, depth: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(depth, width, width // 2, 3, 3) / (9 * width))
        self.gamma = nn.Parameter(torch.ones(depth, width, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(depth, width))
        self.period = side + 2

    def blocks(self) -> Tensor:
        """Unitary blocks of all convolutions at all frequencies, ``(depth, F, width, width)``."""
        depth, width, rank = self.weight.shape[:3]
        middle = F.pad(_identity(self.weight, width)[:, :rank, None, None], (1, 1, 1, 1))
        v = middle + self.weight * self.gamma * depth**-0.5
        spectrum = torch.fft.rfft2(v, (self.period, self.period)).flatten(3)
        return reflector(spectrum.permute(0, 3, 1, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map, and the product of the convolutions' norms."""
        for block, bias in zip(self.blocks(), self.bias, strict=True):
            spectrum = torch.fft.rfft2(F.pad(x, (1, 1, 1, 1)))
            turned = block @ spectrum.flatten(2).permute(2, 1, 0)
            turned = turned.permute(2, 1, 0).view(spectrum.shape)
            y = torch.fft.irfft2(turned, (self.period, self.period))[:, :, 1:-1, 1:-1]
            x = maxmin(y + (bias - y.mean((0, 2, 3)))[:, None, None])
        return x, x.new_ones(())


class PublishedNetwork(nn.Module):
    """LiResNet++ or BRONet on images of 32x32 pixels.

    Args:
        width: Channels of stem, trunk and neck.
        depth: Convolutions of the trunk.
        dense_width: Features of dense layers.
        dense_depth: Dense layers behind the neck's.
        reflects: Whether the trunk is one of block reflectors: BRONet.
    """

    def __init__(
        self, *, width: int, depth: int, dense_width: int, dense_depth: int, reflects: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2)
        self.stem_norm = PowerIteration(3, 32, stride=2, padding=2, groups=1)
        self.trunk = (ReflectorTrunk if reflects else ResidualTrunk)(width, depth, 16)
        self.patch = nn.Parameter(torch.randn(width, 16 * width) / (16 * width) ** 0.5)
        self.neck = nn.Parameter(torch.randn(dense_width, 16 * width) / (16 * width) ** 0.5)
        self.weight = nn.Parameter(torch.randn(dense_depth, dense_width, dense_width) / dense_width)
        self.gamma = nn.Parameter(torch.ones(dense_depth, dense_width, 1))
        self.bias = nn.Parameter(torch.zeros(1 + dense_depth, dense_width))
        self.head = nn.Linear(dense_width, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, 10)``, and estimates of the pairwise constants ``(10, 10)``."""
        stem = self.stem_norm(self.stem.weight)[0]
        x, norm = self.trunk(maxmin(self.stem(x)))
        patch = orthonormal_rows(self.patch).unflatten(1, (len(self.patch), 4, 4))
        x = F.conv2d(x, patch, stride=4).flatten(1)
        residual = self.weight * self.gamma * len(self.weight) ** -0.5
        weights = orthonormal_rows(_identity(x, self.bias.shape[1]) + residual)
        for weight, bias in zip([orthonormal_rows(self.neck), *weights], self.bias, strict=True):
            x = maxmin(F.linear(x, weight, bias))
        rows = F.normalize(self.head.weight, dim=1)
        constants = stem * norm * torch.cdist(rows, rows)
        return F.linear(x, rows, self.head.bias), constants
