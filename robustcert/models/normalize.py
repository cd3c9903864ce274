"""Input normalisation as a layer, so that it is inside every bound."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustcert.network.linear import Affine
from robustcert.network.operation import constant


class Normalize(nn.Module):
    r"""Per-channel :math:`x \mapsto (x - \mu_c) / \sigma_c`.

    Its Lipschitz constant is :math:`1 / \min_c \sigma_c`.

    Args:
        mean: One value, or one per channel.
        std: One value, or one per channel, above 0.
        channels: Size of dimension 1 of the input.

    Example:
        >>> layer = Normalize(mean=[0.5], std=[0.25], channels=3)
        >>> layer(torch.full((1, 3), 0.75))
        tensor([[1., 1., 1.]])
        >>> f"{lipschitz_bound(layer, (3,)):.4f}"
        '4.0000'
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, channels: int) -> None:
        super().__init__()
        for key, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ValueError(
                    f"expected 1 or {channels} values, one per channel, got {list(values)}: set "
                    f"normalization.{key}"
                )
        if not all(value > 0 for value in std):
            raise ValueError(f"expected values above 0, got {list(std)}: set normalization.std")
        scale = 1 / torch.tensor(std, dtype=torch.float64).expand(channels)
        shift = -torch.tensor(mean, dtype=torch.float64) * scale
        self.register_buffer("scale", scale.float().clone())
        self.register_buffer("shift", shift.float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, C, *)``."""
        shape = (-1,) + (1,) * (x.dim() - 2)
        return x * self.scale.view(shape) + self.shift.view(shape)

    def lipschitz_estimate(self) -> Tensor:
        """The largest factor."""
        return self.scale.abs().max()

    def fold(self) -> Affine:
        """The same map with constants."""
        return Affine(constant(self.scale), constant(self.shift))
