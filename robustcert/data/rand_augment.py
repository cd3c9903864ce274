"""RandAugment for a whole batch at once: every image draws its own operations."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from robustcert.data.augment import ImageAugmentation

# Operations to draw from.
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
)
# Largest shear (slope), shift (share of the side), rotation (degrees) and change of a factor.
SHEAR, TRANSLATE, ROTATE, FACTOR = 0.3, 150 / 331, 30.0, 0.9
# Largest number of bits that posterising takes away.
POSTERIZE_BITS = 4
# Largest magnitude.
STEPS = 30
# ITU-R 601-2, which image libraries take for grey.
LUMA = (0.299, 0.587, 0.114)


class RandAugment(ImageAugmentation):
    r"""Apply ``operations`` random operations to every image, all of one magnitude.

    Each image draws each of its operations, and its sign, anew from: identity, shear and shift in
    x and y, rotation (bilinear, filled with zeros), brightness, contrast, saturation, sharpness,
    posterize, solarize, autocontrast. The paper's list has *equalize* besides, which needs a
    histogram of every image and is left out. At magnitude m of 30, the share m / 30 of the largest
    change is made: slope 0.3, shift 150/331 of the side, 30 degrees, factor :math:`1 \pm 0.9`, 4
    bits less, inversion of all that is at least 1 - m / 30.

    Reference: Cubuk et al., `RandAugment <https://arxiv.org/abs/1909.13719>`_, NeurIPS 2020.

    Args:
        operations: Operations for each image, one after the other.
        magnitude: m, from 0 to 30.
        probability: Of an image to be changed; others stay as they are.
    """

    def __init__(
        self, operations: int = 2, magnitude: float = 9.0, probability: float = 1.0
    ) -> None:
        super().__init__()
        if operations < 1 or not (0 <= magnitude <= STEPS and 0 <= probability <= 1):
            raise ValueError(
                "expected RandAugment(operations) of at least 1, magnitude in [0, 30] and "
                f"probability in [0, 1], but got {operations}, {magnitude} and {probability}"
            )
        self.operations = operations
        self.magnitude = magnitude
        self.probability = probability

    def forward(self, x: Tensor, generator: Generator) -> Tensor:
        """Draw operations and signs for every image."""
        shape = (3, self.operations, len(x))
        choice, sign, use = torch.rand(shape, generator=generator, device=x.device)
        number = (choice * len(OPERATIONS)).long().clamp(max=len(OPERATIONS) - 1)
        number = torch.where(use[0] < self.probability, number, 0)
        signs = torch.where(sign < 0.5, -1.0, 1.0)
        for i in range(self.operations):
            x = apply_operations(x, number[i], signs[i], self.magnitude / STEPS)
        return x


def apply_operations(x: Tensor, number: Tensor, sign: Tensor, level: float) -> Tensor:
    """One operation for every image.

    Args:
        x: Shape ``(N, C, H, W)``, in [0, 1].
        number: Place of each image's operation in :data:`OPERATIONS`, shape ``(N,)``.
        sign: 1 or -1, for operations that have two directions, shape ``(N,)``.
        level: Share of the largest change, in [0, 1].

    Returns:
        Images of the same shape, in [0, 1].
    """

    def chosen(*names: str) -> Tensor:
        places = torch.tensor([OPERATIONS.index(name) for name in names], device=x.device)
        return torch.isin(number, places)[:, None, None, None]

    # Without a look at the draws, which would make the device wait: all are computed for all.
    moved = _move(x, {name: chosen(name).flatten() * sign * level for name in OPERATIONS[1:6]})
    base = torch.zeros_like(x)
    grey = _grey(x)
    base = torch.where(chosen("contrast"), grey.mean((2, 3), keepdim=True), base)
    base = torch.where(chosen("saturation"), grey, base)
    base = torch.where(chosen("sharpness"), _smooth(x), base)
    factor = (1 + FACTOR * level * sign)[:, None, None, None].to(x.dtype)
    blended = (base + factor * (x - base)).clamp(0, 1)
    found = torch.where(chosen(*OPERATIONS[1:6]), moved, x)
    found = torch.where(chosen(*OPERATIONS[6:10]), blended, found)
    found = torch.where(chosen("posterize"), _posterize(x, level), found)
    found = torch.where(chosen("solarize"), torch.where(x >= 1 - level, 1 - x, x), found)
    return torch.where(chosen("autocontrast"), _stretch(x), found)


def _move(x: Tensor, amount: dict[str, Tensor]) -> Tensor:
    n, _, height, width = x.shape
    angle = torch.deg2rad(ROTATE * amount["rotate"])
    one = torch.ones_like(angle)
    # From output to input, in pixels from the centre.
    rows = [
        [angle.cos(), angle.sin() + SHEAR * amount["shear_x"]],
        [SHEAR * amount["shear_y"] - angle.sin(), angle.cos()],
    ]
    shift = [TRANSLATE * 2 * amount["translate_x"], TRANSLATE * 2 * amount["translate_y"]]
    # The grid runs from -1 to 1 along both sides.
    theta = torch.stack(
        [
            torch.stack([rows[0][0], rows[0][1] * height / width, shift[0] * one], 1),
            torch.stack([rows[1][0] * width / height, rows[1][1], shift[1] * one], 1),
        ],
        1,
    ).to(x.dtype)
    grid = F.affine_grid(theta, [n, x.shape[1], height, width], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != len(LUMA):
        return x.mean(1, keepdim=True)
    weights = torch.tensor(LUMA, dtype=x.dtype, device=x.device)
    return (x * weights[:, None, None]).sum(1, keepdim=True)


def _smooth(x: Tensor) -> Tensor:
    """A 3 x 3 mean in which the centre counts five times; borders stay."""
    if min(x.shape[2:]) < 3:
        return x
    kernel = torch.ones(3, 3, dtype=x.dtype, device=x.device)
    kernel[1, 1] = 5
    channels = x.shape[1]
    smooth = F.conv2d(x, (kernel / kernel.sum()).expand(channels, 1, 3, 3), groups=channels)
    result = x.clone()
    result[:, :, 1:-1, 1:-1] = smooth
    return result


def _posterize(x: Tensor, level: float) -> Tensor:
    step = 2.0 ** round(POSTERIZE_BITS * level)
    return ((x * 255).round() / step).floor() * step / 255


def _stretch(x: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    width = high - low
    return torch.where(width > 0, ((x - low) / width.clamp_min(1e-6)).clamp(0, 1), x)
