"""Random image augmentations: one draw per example, for a whole batch at once, on its device."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn


class ImageAugmentation(nn.Module):
    """Maps images of shape ``(N, C, H, W)`` in [0, 1] to images of that shape in [0, 1].

    All randomness comes from the generator, which lives on the images' device: the same generator
    state gives the same augmentation.
    """

    @abstractmethod
    def forward(self, x: Tensor, generator: Generator) -> Tensor:
        """Augment every image by its own draw."""


class RandomCrop(ImageAugmentation):
    """Shift every image by up to ``padding`` whole pixels in each direction.

    The same as padding on all sides and cropping to the old size at random.

    Args:
        padding: The largest shift in pixels.
        fill: What stands beyond the border: ``"zeros"``, or ``"reflect"`` for the image mirrored,
            which moves it by less in l2.
    """

    def __init__(self, padding: int, fill: str = "zeros") -> None:
        super().__init__()
        if padding < 0:
            raise ValueError(f"expected RandomCrop(padding) to be at least 0, but got {padding}")
        if fill not in ("zeros", "reflect"):
            raise ValueError(f"expected RandomCrop(fill) to be zeros or reflect, but got {fill!r}")
        self.padding = padding
        self.mode = "constant" if fill == "zeros" else fill

    def forward(self, x: Tensor, generator: Generator) -> Tensor:
        """Draw one whole-pixel shift per image."""
        n, _, height, width = x.shape
        offset = torch.randint(
            2 * self.padding + 1, (2, n, 1), generator=generator, device=x.device
        )
        # Every crop there is, as a view; one is picked for each image.
        crops = F.pad(x, [self.padding] * 4, self.mode).unfold(2, height, 1).unfold(3, width, 1)
        return crops[torch.arange(n, device=x.device), :, offset[0, :, 0], offset[1, :, 0]]


class RandomHorizontalFlip(ImageAugmentation):
    """Mirror every image left to right with probability one half."""

    def forward(self, x: Tensor, generator: Generator) -> Tensor:
        """Draw one coin per image."""
        flip = torch.rand(len(x), generator=generator, device=x.device) < 0.5
        return torch.where(flip[:, None, None, None], x.flip(-1), x)


class RandomAffine(ImageAugmentation):
    """Rotate, shift and scale every image about its centre, bilinearly, filling with zeros.

    Args:
        degrees: Rotation by an angle drawn from [-degrees, degrees].
        translate: Shift by fractions of width and height drawn from [-translate, translate].
        scale: Magnification by a factor drawn from [1 - scale, 1 + scale].
    """

    def __init__(self, degrees: float = 0.0, translate: float = 0.0, scale: float = 0.0) -> None:
        super().__init__()
        if not (0 <= degrees <= 180 and 0 <= translate <= 1 and 0 <= scale < 1):
            raise ValueError(
                "expected RandomAffine(degrees) in [0, 180], translate in [0, 1] and scale in "
                f"[0, 1), but got {degrees}, {translate} and {scale}"
            )
        self.degrees = degrees
        self.translate = translate
        self.scale = scale

    def forward(self, x: Tensor, generator: Generator) -> Tensor:
        """Draw an angle, a magnification and two shifts per image."""
        n, _, height, width = x.shape
        draw = 2 * torch.rand(4, n, generator=generator, device=x.device) - 1
        angle = torch.deg2rad(self.degrees * draw[0])
        factor = 1 + self.scale * draw[1]
        shift = 2 * self.translate * draw[2:]
        # The grid maps output to input: the inverse rotation and magnification. Its coordinates
        # run from -1 to 1 along both sides, so rotating a non-square image needs the aspect ratio.
        cosine, sine = angle.cos() / factor, angle.sin() / factor
        linear = torch.stack(
            [cosine, sine * height / width, -sine * width / height, cosine], dim=1
        ).view(n, 2, 2)
        offset = -linear @ shift.T[:, :, None]
        theta = torch.cat([linear, offset], dim=2).to(x.dtype)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        # Interpolation weights may sum to a rounding error more than 1.
        return F.grid_sample(x, grid, align_corners=False).clamp_(0, 1)


class RandomNoise(nn.Module):
    """Add Gaussian noise, independent in every entry, as randomised smoothing asks for.

    Nothing is clipped: the smoothed classifier sees values outside [0, 1] as well.

    Args:
        sigma: Standard deviation, in input units.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not sigma >= 0:
            raise ValueError(f"expected RandomNoise(sigma) to be at least 0, but got {sigma}")
        self.sigma = sigma

    def forward(self, x: Tensor, generator: Generator) -> Tensor:
        """Draw the noise of every entry."""
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x + self.sigma * noise
