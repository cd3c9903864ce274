"""RandAugment against an image library, operation by operation; mixup and CutMix by definition."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.configs import build
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.data import CutMix, DataModule, Mixup, RandAugment, RandomCrop
from robustcert.data.dataset import Dataset, Examples
from robustcert.data.mixing import Mixing
from robustcert.data.rand_augment import OPERATIONS, apply_operations
from robustcert.margins import row_distances
from robustcert.models.scores import TrainingScores
from robustcert.training.module import CertifiedClassifier


def picture(height: int = 12, width: int = 16) -> np.ndarray:
    """A smooth image with some noise, as bytes."""
    random = np.random.RandomState(0)
    rows, columns = np.mgrid[:height, :width]
    ramps = np.stack([rows * 9, columns * 8, (rows + columns) * 5], axis=2) + 40
    return (ramps + random.randint(0, 25, (height, width, 3))).clip(0, 255).astype(np.uint8)


def to_batch(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 255


def perform(x: Tensor, name: str, level: float, sign: float = 1.0) -> Tensor:
    number = torch.full((len(x),), OPERATIONS.index(name))
    return apply_operations(x, number, torch.full((len(x),), sign), level)


REFERENCES: dict[str, Callable[[Image.Image, float, float], Image.Image]] = {
    "identity": lambda image, level, sign: image,
    "brightness": lambda im, level, s: ImageEnhance.Brightness(im).enhance(1 + 0.9 * level * s),
    "contrast": lambda im, level, s: ImageEnhance.Contrast(im).enhance(1 + 0.9 * level * s),
    "saturation": lambda im, level, s: ImageEnhance.Color(im).enhance(1 + 0.9 * level * s),
    "sharpness": lambda im, level, s: ImageEnhance.Sharpness(im).enhance(1 + 0.9 * level * s),
    "posterize": lambda im, level, s: ImageOps.posterize(im, 8 - round(4 * level)),
    "solarize": lambda im, level, s: ImageOps.solarize(im, round(255 * (1 - level))),
    "autocontrast": lambda im, level, s: ImageOps.autocontrast(im),
}


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("level", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("name", REFERENCES)
def test_colour_operations_are_those_of_an_image_library(
    name: str, level: float, sign: float
) -> None:
    array = picture()
    expected = np.asarray(REFERENCES[name](Image.fromarray(array), level, sign)).astype(int)
    found = perform(to_batch(array), name, level, sign)[0].permute(1, 2, 0) * 255
    # The library rounds to bytes, the mean and the smoothed image too.
    assert np.abs(found.numpy() - expected).max() <= 2.1


MOVES = {
    "shear_x": lambda level, w, h: (1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda level, w, h: (1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda level, w, h: (1, 0, 150 / 331 * level * w, 0, 1, 0),
    "translate_y": lambda level, w, h: (1, 0, 0, 0, 1, 150 / 331 * level * h),
    "rotate": lambda level, w, h: (
        *(np.cos(np.pi / 6 * level), np.sin(np.pi / 6 * level), 0),
        *(-np.sin(np.pi / 6 * level), np.cos(np.pi / 6 * level), 0),
    ),
}


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", MOVES)
def test_geometric_operations_are_those_of_an_image_library(
    name: str, level: float, sign: float
) -> None:
    array = picture(30, 40)
    a, b, c, d, e, f = MOVES[name](level * sign, 40, 30)
    # The library's coordinates begin at the corner, these maps keep the centre.
    c, f = c + 20 - a * 20 - b * 15, f + 15 - d * 20 - e * 15
    image = Image.fromarray(array)
    data = (a, b, c, d, e, f)
    moved = image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(moved)).permute(2, 0, 1).float()
    found = perform(to_batch(array), name, level, sign)[0] * 255
    # Where it reads only inside, and so do the pixels around: at borders it reads them twice.
    inside = Image.new("L", image.size, 255)
    inside = inside.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    framed = F.pad(torch.from_numpy(np.array(inside))[None].float(), (1, 1, 1, 1))
    known = -F.max_pool2d(-framed, 3, 1) == 255
    assert known.float().mean() > 0.3
    assert ((found - expected).abs() * known).max() <= 1.1


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 9, 14)])
def test_randaugment_draws_for_each_image_and_from_its_generator_alone(
    shape: tuple[int, ...],
) -> None:
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).expand(400, *shape)

    def draw(seed: int) -> Tensor:
        return RandAugment(2, 15.0)(x, torch.Generator().manual_seed(seed))

    first = draw(1)
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))
    assert (first.shape, first.dtype) == (x.shape, x.dtype)
    assert 0 <= first.min() <= first.max() <= 1
    # 13 operations, of which nine have two signs, make 22 outcomes of the first and of the second.
    assert len({tuple(row.tolist()) for row in first.flatten(1)}) > 80
    # An image's draw does not depend on what the other images are.
    other = x.clone()
    other[1:] = 0.5
    assert torch.equal(RandAugment(2, 15.0)(other, torch.Generator().manual_seed(1))[0], first[0])


def test_each_operation_is_drawn_equally_often_and_not_without_luck() -> None:
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2600, 3, 8, 8)
    y = RandAugment(1, 20.0)(x, torch.Generator().manual_seed(0))
    for name in OPERATIONS:
        same = torch.zeros(len(x), dtype=torch.bool)
        for sign in (-1.0, 1.0):
            same |= (y == perform(x[:1], name, 2 / 3, sign)).flatten(1).all(1)
        assert 150 < same.sum() < 250, name
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(RandAugment(2, 20.0, probability=0.0)(x, generator), x)
    # Whole images are spared, not single operations: two of 13 are the identity one time in 169.
    half = RandAugment(2, 20.0, probability=0.5)(x, generator)
    assert 1200 < (half == x).flatten(1).all(1).sum() < 1430


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandAugment(0),
        lambda: RandAugment(magnitude=31.0),
        lambda: RandAugment(probability=1.5),
        lambda: Mixup(0.0),
        lambda: CutMix(1.0, probability=-0.1),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="expected "):
        make()


# --- mixing ------------------------------------------------------------------------------------


def mixed(mixing: Mixing, seed: int, n: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.rand(n, 2, 10, 7, generator=torch.Generator().manual_seed(7))
    return (x, *mixing(x, torch.Generator().manual_seed(seed)))


def test_mixup_blends_with_a_partner() -> None:
    for seed in range(20):
        x, y, partner, share = mixed(Mixup(0.4), seed)
        assert sorted(partner.tolist()) == list(range(6))
        torch.testing.assert_close(y, share * x + (1 - share) * x[partner])
        assert 0 <= y.min() <= y.max() <= 1


def test_cutmix_pastes_one_rectangle_and_counts_its_pixels() -> None:
    shares = []
    for seed in range(40):
        x, y, partner, share = mixed(CutMix(), seed)
        moved = partner != torch.arange(6)
        assert torch.equal(y[~moved], x[~moved])
        pasted = (y != x)[moved]
        if not moved.any() or not pasted.any():
            continue
        place = pasted[0, 0]
        assert (pasted == place).all()
        assert torch.equal(place, place.any(1)[:, None] & place.any(0)[None, :])
        for line in (place.any(1), place.any(0)):
            (where,) = line.nonzero(as_tuple=True)
            assert len(where) == where[-1] - where[0] + 1
        assert torch.equal(y[moved], torch.where(place, x[partner], x)[moved])
        torch.testing.assert_close(share, 1 - place.float().mean())
        shares.append(share.item())
    assert min(shares) < 0.3
    assert max(shares) > 0.7


@pytest.mark.parametrize("mixing", [Mixup, CutMix])
def test_mixing_comes_from_its_generator_alone(mixing: type[Mixing]) -> None:
    first, again, other = (mixed(mixing(0.5), seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first[1], other[1])
    x, y, _, share = mixed(mixing(0.5, probability=0.0), 1)
    assert share == 1
    assert torch.equal(x, y)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_the_share_follows_the_beta_distribution(alpha: float) -> None:
    x = torch.zeros(1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    mixing = Mixup(alpha)
    shares = torch.stack([mixing(x, generator)[2] for _ in range(4000)]).double()
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


class Pictures(Dataset):
    name = "pictures"
    input_shape = (2, 10, 7)
    num_classes = 3

    def read(self, split: str) -> Examples:
        inputs = torch.randint(256, (30, 2, 10, 7), dtype=torch.uint8)
        return Examples(inputs, torch.arange(30) % 3)


def test_a_mixed_batch_has_both_targets_and_their_shares() -> None:
    torch.manual_seed(0)
    data = DataModule(Pictures(), batch_size=27, augmentation=[RandomCrop(1), Mixup(1.0)])
    (batch,) = data.train_dataloader()
    inputs, target, partner, share = data.on_after_batch_transfer(batch, 0)
    assert inputs.dtype == torch.float32
    assert torch.equal(target, batch[1])
    assert torch.equal(partner.sort()[0], target.sort()[0])
    assert 0 < share < 1
    (plain,) = data.val_dataloader()
    assert len(data.on_after_batch_transfer(plain, 0)) == 2
    with pytest.raises(ValueError, match=r"loader\.augmentation: .* can only be the last"):
        DataModule(Pictures(), augmentation=[Mixup(), RandomCrop(1)])
    with pytest.raises(ValueError, match="expects images"):
        DataModule(Flat(), augmentation=[Mixup()])


class Flat(Pictures):
    input_shape = (2,)


def test_the_loss_of_a_mixed_batch_is_that_of_both_targets() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

        def training_scores(self, x: Tensor) -> TrainingScores:
            logits, pairwise = self(x), row_distances(self.weight)
            return TrainingScores(lambda target: logits, pairwise)

    torch.manual_seed(0)
    network = Linear()
    options: dict[str, Any] = {"input_shape": (4,), "num_classes": 3, "epsilon": 0.2, "radii": []}
    module = CertifiedClassifier(
        network, build("objective", "emma"), optimizer=torch.optim.SGD, **options
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CertifiedClassifier, "progress", 0.0)
        patch.setattr(CertifiedClassifier, "log", lambda *a, **k: None)
        x, target, partner = torch.rand(5, 4), torch.arange(5) % 3, torch.arange(5).flip(0) % 3
        both = module.training_step((x, target, partner, torch.tensor(0.3)), 0)
        one, other = (module.training_step((x, y), 0) for y in (target, partner))
    torch.testing.assert_close(both, 0.3 * one + 0.7 * other)
