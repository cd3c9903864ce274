"""Centering: every feature without its mean over the batch (arXiv 2310.02513)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from robustcert.network.linear import Affine
from robustcert.network.operation import constant


class Centering(nn.Module):
    r"""Subtract the mean of every channel over batch and positions, :math:`x - \bar x_c`.

    Training subtracts the batch's own mean and keeps a running one; evaluation subtracts the
    running mean, a constant: a translation, 1-Lipschitz whatever it is. No scale is learned or
    divided by, so no norm grows.

    Reference: Hu, Leino, Wang and Fredrikson, `A Recipe for Improved Certifiable Robustness
    <https://arxiv.org/abs/2310.02513>`_, ICLR 2024.

    Args:
        num_features: Size of dimension 1 of the input, of shape ``(N, C, *)``.
        momentum: Share of the newest batch in the running mean. In (0, 1].

    Example:
        >>> layer, x = Centering(1), torch.tensor([[1.0], [3.0]])
        >>> layer(x).flatten()
        tensor([-1.,  1.])
        >>> layer.eval()(x).flatten()  # the running mean is a tenth of the way from 0 to 2
        tensor([0.8000, 2.8000])
    """

    mean: Tensor

    def __init__(self, num_features: int, momentum: float = 0.1) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"expected a momentum in (0, 1], got {momentum}: set momentum")
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(num_features))

    def offset(self, batch_mean: Callable[[], Tensor]) -> Tensor:
        """What is subtracted, shape ``(C,)``: in training the batch's mean, as the caller finds it.

        Args:
            batch_mean: Gives the mean of every channel over batch and positions, shape ``(C,)``.
        """
        if not self.training:
            return self.mean
        mean = batch_mean()
        # A copy: the ranks add theirs to it in place, and this batch's mean stays its own.
        self._follow(mean.detach().to(self.mean, copy=True))
        return mean

    def forward(self, x: Tensor) -> Tensor:
        """Centre ``(N, C, *)``."""
        if not self.training:
            return x - _along_channels(self.mean, x)
        centred, mean = _Centre.apply(x)
        self.offset(lambda: mean)
        return centred

    def lipschitz_estimate(self) -> float:
        """1, the exact constant in evaluation."""
        return 1.0

    def fold(self) -> Affine:
        """The translation by the running mean."""
        return Affine(constant(torch.ones_like(self.mean)), constant(-self.mean))

    @torch.no_grad()
    def _follow(self, mean: Tensor) -> None:
        # Every rank keeps the mean of all, or their networks would differ.
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(mean)
            mean /= distributed.get_world_size()
        self.mean = torch.lerp(self.mean, mean, self.momentum)


class _Centre(torch.autograd.Function):
    # A projection, and its own adjoint: autograd would pass over the gradient twice more.
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        # Maps first, which lie together in memory: a third of the time.
        mean = (x.mean(tuple(range(2, x.dim()))) if x.dim() > 2 else x).mean(0)
        return x - _along_channels(mean, x), mean

    @staticmethod
    def setup_context(ctx: Any, _: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(_: Any, grad: Tensor, __: Tensor) -> Tensor:
        return _Centre.apply(grad)[0]


def _along_channels(mean: Tensor, x: Tensor) -> Tensor:
    return mean.view(-1, *(1,) * (x.dim() - 2))
