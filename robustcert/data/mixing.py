"""Mixup and CutMix: images of a batch are mixed with one another, and so are their losses."""

from abc import abstractmethod

import torch
from torch import Generator, Tensor, nn


class Mixing(nn.Module):
    r"""Mixes every image with another one of its batch.

    Objectives speak of margins of a class, so a mixed image has no soft target: training minimises
    :math:`\lambda\, \ell(y_1) + (1 - \lambda)\, \ell(y_2)`, which for cross-entropy is the same.
    :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` is drawn once for a batch, as in the papers,
    and the partners by a permutation.

    Args:
        alpha: :math:`\alpha`, above 0.
        probability: Of mixing a batch at all.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        super().__init__()
        if not alpha > 0 or not 0 <= probability <= 1:
            raise ValueError(
                f"expected {type(self).__name__}(alpha) above 0 and probability in [0, 1], but got "
                f"{alpha} and {probability}"
            )
        self.alpha = alpha
        self.probability = probability

    def forward(self, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Mix a batch.

        Args:
            x: Shape ``(N, C, H, W)``, in [0, 1].
            generator: Where every draw comes from; on the device of ``x``.

        Returns:
            The mixed images; each one's partner, shape ``(N,)``; and the share of the image itself
            in [0, 1], a scalar.
        """
        alpha = torch.full((2,), self.alpha, dtype=torch.float64, device=x.device)
        # Beta by two Gamma variables: only the private function takes a generator.
        gamma = torch._standard_gamma(alpha, generator=generator)
        skip = torch.rand((), generator=generator, device=x.device) >= self.probability
        share = torch.where(skip, 1.0, gamma[0] / gamma.sum()).to(x.dtype)
        partner = torch.randperm(len(x), generator=generator, device=x.device)
        mixed, share = self.mix(x, x[partner], share, generator)
        return mixed, partner, share

    @abstractmethod
    def mix(
        self, x: Tensor, other: Tensor, share: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """The mixed images, and the share of ``x`` that came out."""


class Mixup(Mixing):
    r"""Blend every image with another one: :math:`\lambda x_1 + (1 - \lambda) x_2`.

    Reference: Zhang et al., `mixup: Beyond Empirical Risk Minimization
    <https://arxiv.org/abs/1710.09412>`_, ICLR 2018.

    Args:
        alpha: Of the Beta distribution that :math:`\lambda` is drawn from.
        probability: Of mixing a batch at all.
    """

    def mix(
        self, x: Tensor, other: Tensor, share: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Blend."""
        return torch.lerp(other, x, share).clamp(0, 1), share


class CutMix(Mixing):
    r"""Paste a rectangle of another image into every image, at the same place.

    Its sides are the image's times :math:`\sqrt{1 - \lambda}`, its centre is drawn uniformly, and
    what sticks out is cut off; :math:`\lambda` becomes the share of pixels that stay.

    Reference: Yun et al., `CutMix <https://arxiv.org/abs/1905.04899>`_, ICCV 2019.

    Args:
        alpha: Of the Beta distribution that :math:`\lambda` is drawn from.
        probability: Of mixing a batch at all.
    """

    def mix(
        self, x: Tensor, other: Tensor, share: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Paste."""
        centre = torch.rand(2, generator=generator, device=x.device)
        inside = []
        for place, side in zip(centre, x.shape[2:], strict=True):
            half = side * (1 - share).sqrt() / 2
            first = (place * side - half).round()
            last = (place * side + half).round()
            pixel = torch.arange(side, device=x.device)
            inside.append((pixel >= first) & (pixel < last))
        pasted = inside[0][:, None] & inside[1][None, :]
        return torch.where(pasted, other, x), 1 - pasted.to(x.dtype).mean()
