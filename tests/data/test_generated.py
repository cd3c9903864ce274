"""Generated images beside real ones: in training alone, in the order of seed and epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.miniatures import images, labels, write_generated, write_npz
from helpers.runs import compose, run
from lightning.pytorch import Callback, LightningModule, Trainer

from robustcert.data import NPZ, DataModule, DatasetError, Digits, Examples, MixedSampler
from robustcert.data.generated import ChannelsLast, read_generated
from robustcert.runs.commands import resumed
from robustcert.runs.train import train
from robustcert.training.checkpoint import read_checkpoint


@pytest.fixture
def dataset(tmp_path: Path) -> NPZ:
    return NPZ(write_npz(tmp_path / "real.npz"))


@pytest.mark.parametrize("compress", [False, True])
def test_generated_images_are_read_channels_last(
    dataset: NPZ, tmp_path: Path, compress: bool
) -> None:
    examples, sha256 = read_generated(
        write_generated(tmp_path / "g.npz", compress=compress), dataset
    )
    assert isinstance(examples.inputs, ChannelsLast)
    # What is not compressed stays in its file.
    assert isinstance(examples.inputs.array, np.memmap) is not compress
    expected = torch.from_numpy(images(50, 6, 5, 3, seed=9)).permute(0, 3, 1, 2)
    assert torch.equal(examples.inputs[:], expected)
    rows = torch.tensor([49, 0, 7])
    assert torch.equal(examples.inputs[rows], expected[rows])
    assert torch.equal(examples.take(rows).inputs[[2]], expected[[7]])
    assert torch.equal(examples.labels, torch.arange(50) % 3)
    assert read_generated(tmp_path / "g.npz", dataset, sha256)[1] == sha256


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": images(5, 3, 6, 5)}, r"expected uint8 of shape \(5, 6, 5, 3\) for real"),
        ({"image": images(5, 6, 5, 3).astype(np.float32)}, "got float32"),
        ({"image": images(4, 6, 5, 3)}, r"got uint8 of shape \(4, 6, 5, 3\)"),
        ({"label": labels(5, 3).astype(float)}, "expected integers"),
        ({"label": labels(5, 5)}, "from 0 to 2, but got 3"),
        ({"label": np.array([None] * 5)}, "holds objects"),
        ({"label": None}, "arrays image and label"),
        ({"image": images(0, 6, 5, 3), "label": labels(0)}, "expected uint8 of shape"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_names_it(
    dataset: NPZ, tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    path = tmp_path / "wrong.npz"
    content = {"image": images(5, 6, 5, 3), "label": labels(5, 3), **arrays}
    np.savez(path, **{key: array for key, array in content.items() if array is not None})
    with pytest.raises(DatasetError, match=message) as error:
        read_generated(path, dataset)
    assert str(path) in str(error.value)


def test_a_missing_damaged_or_other_file_is_named(dataset: NPZ, tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    with pytest.raises(DatasetError, match=r"loader\.generated .* no file .*g\.npz"):
        read_generated(path, dataset)
    write_generated(path)
    with pytest.raises(DatasetError, match=r"g\.npz: expected the file that training began with"):
        read_generated(path, dataset, "0" * 64)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"g\.npz: expected an \.npz archive"):
        read_generated(path, dataset)
    with pytest.raises(DatasetError, match="digits has no images of type uint8"):
        DataModule(Digits(), generated=str(path)).train_dataloader()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_mixed_batches_keep_the_ratio_and_visit_all_before_any_twice(
    ratio: float, world_size: int
) -> None:
    samplers = [
        MixedSampler(20, 4, 47, ratio, seed=3, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    generated: list[int] = []
    for epoch in range(6):
        real, added = [], [[] for _ in samplers]
        for rank, sampler in enumerate(samplers):
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert batches == list(sampler)
            assert len(batches) == len(sampler)
            for batch in batches:
                own = [row for row in batch if row < 20]
                real += own
                added[rank] += [row - 20 for row in batch if row >= 20]
                assert len(batch) - len(own) == round(ratio * len(own))
        assert sorted(real) == list(range(20))
        generated += [row for rows in zip(*added, strict=True) for row in rows]
    for start in range(0, len(generated) - 46, 47):
        assert sorted(generated[start : start + 47]) == list(range(47))
    assert len(generated) == 6 * 20 * ratio


def test_a_mixed_sampler_goes_on_within_an_epoch_and_depends_on_its_seed() -> None:
    whole, rest = (MixedSampler(20, 4, 47, 2.0, seed=1, epoch=5) for _ in range(2))
    rest.skip = 3
    assert list(rest) == list(whole)[3:]
    assert list(MixedSampler(20, 4, 47, 2.0, seed=2, epoch=5)) != list(whole)
    with pytest.raises(ValueError, match=r"loader\.generated_ratio"):
        MixedSampler(20, 4, 47, 0.0)


def test_only_training_batches_have_generated_images(dataset: NPZ, tmp_path: Path) -> None:
    path = write_generated(tmp_path / "g.npz")
    plain, mixed = (
        DataModule(dataset, batch_size=9, generated=file, generated_ratio=2.0, num_workers=0)
        for file in (None, str(path))
    )
    known = {tuple(x.flatten().tolist()): y for x, y in zip(*real_and_labels(plain), strict=True)}
    made = read_generated(path, dataset)[0]
    drawn = {
        tuple(x.flatten().tolist()): y
        for x, y in zip(made.inputs[:], made.labels.tolist(), strict=True)
    }
    for inputs, target, _ in mixed.train_dataloader():
        assert inputs.dtype == torch.uint8
        found = [tuple(x.flatten().tolist()) for x in inputs]
        assert len(found) == 27
        assert [known.get(x) for x in found[:9]] == target[:9].tolist()
        assert [drawn.get(x) for x in found[9:]] == target[9:].tolist()
    for ours, theirs in zip(mixed.val_dataloader(), plain.val_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0])
    for ours, theirs in zip(mixed.test_dataloader(), plain.test_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0])


def real_and_labels(data: DataModule) -> tuple[torch.Tensor, list[int]]:
    train = data.stored("train")
    return train.inputs[:], train.labels.tolist()


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


class Kill(Callback):
    """Ends the process, so to speak, in the middle of the second epoch."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise Killed


@pytest.mark.slow
def test_a_run_with_generated_and_mixed_images_resumes_bit_for_bit(tmp_path: Path) -> None:
    typed = (
        "dataset=npz",
        f"dataset.root={write_npz(tmp_path / 'real.npz')}",
        "normalization={mean: [0.5], std: [1.0]}",
        f"loader.generated={write_generated(tmp_path / 'g.npz')}",
        "loader.batch_size=8",
        "loader.augmentation=[{_target_: robustcert.data.RandAugment},"
        "{_target_: robustcert.data.CutMix}]",
        "trainer.max_epochs=3",
    )
    run(tmp_path / "straight", *typed)
    with pytest.raises(Killed):
        run(tmp_path / "cut", *typed, callbacks=[Kill()])
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    again = [f"resume={last}"]
    moved = (tmp_path / "g.npz").rename(tmp_path / "moved.npz")
    found = [*again, f"loader.generated={moved}"]
    train(resumed(compose(*found), found), tmp_path / "cut")
    one, other = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")
        for name in ("straight", "cut")
    )
    for key, value in one.model_state.items():
        assert torch.equal(value, other.model_state[key]), key
    assert len(one.config["loader"]["generated_sha256"]) == 64
    write_generated(moved, 51)
    with pytest.raises(DatasetError, match="expected the file that training began with"):
        train(resumed(compose(*found), found), tmp_path / "cut")


def test_a_drawn_image_is_of_its_class_and_repeats_by_seed() -> None:
    from benchmarks.studies.generated_images import generate

    # Two classes, dark and bright, in two shapes each.
    level = torch.tensor([40, 200, 40, 200]).repeat(30)
    stripes = torch.arange(120)[:, None, None, None] // 60 * torch.tensor([0, 30]).repeat(18)
    noise = torch.randint(0, 8, (120, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    inputs = (level.view(-1, 1, 1, 1) + stripes.view(120, 1, 6, 6) + noise).to(torch.uint8)
    examples = Examples(inputs, (level > 100).long())
    drawn, label = generate(examples, per_class=25, components=3, clusters=2, seed=1)
    assert drawn.shape == (50, 6, 6, 1)
    assert drawn.dtype == np.uint8
    assert np.array_equal(label, np.repeat([0, 1], 25))
    assert np.array_equal(drawn.mean((1, 2, 3)) > 120, label == 1)
    assert len(np.unique(drawn, axis=0)) > 40
    again, _ = generate(examples, per_class=25, components=3, clusters=2, seed=1)
    assert np.array_equal(drawn, again)
