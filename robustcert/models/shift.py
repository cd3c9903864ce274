"""Circular shifts of groups of channels: what mixes positions in LipNeXt."""

from torch import Tensor, nn

from robustcert.network.activation import Activation
from robustcert.network.circular_shift import circular_shift


class CircularShift(nn.Module):
    """Move groups of channels by one position on a torus: a permutation of the entries.

    A depthwise circular convolution keeps norms only if each of its kernels is a single tap of 1 or
    -1, which is such a shift.

    Reference: Hu, Hu and Fredrikson, `LipNeXt <https://arxiv.org/abs/2601.18513>`_, ICLR 2026.

    Args:
        num_features: Channels of the input, of shape ``(N, C, H, W)``.
        share: Share of them that moves in each direction, at least one channel if there are four.
            At most 1/4.

    Example:
        >>> layer, x = CircularShift(8), torch.rand(1, 8, 4, 4)
        >>> bool(layer(x).flatten().sort().values.equal(x.flatten().sort().values))
        True
    """

    def __init__(self, num_features: int, share: float = 0.125) -> None:
        super().__init__()
        if not 0 < share <= 0.25:
            raise ValueError(
                f"expected a share above 0 and at most 1/4, got {share}: set model.shift"
            )
        self.moved = min(num_features // 4, max(1, int(share * num_features)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        return circular_shift(x, self.moved)

    def lipschitz_estimate(self) -> float:
        """1, the exact constant."""
        return 1.0

    def fold(self) -> Activation:
        """The permutation as a pure function, which rounds nothing and has no curvature."""
        return Activation(
            circular_shift, {"moved": self.moved}, lipschitz=1.0, jacobian_lipschitz=0.0
        )
