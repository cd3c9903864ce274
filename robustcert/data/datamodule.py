"""From a dataset to Lightning's batches: epoch order, augmentation, ranks."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from robustcert.data.augment import ImageAugmentation
from robustcert.data.dataset import (
    Dataset,
    DatasetError,
    Examples,
    Joined,
    as_numbers,
    to_unit,
)
from robustcert.data.generated import read_generated
from robustcert.data.mixing import Mixing
from robustcert.data.parts import Batches, Part, Parts
from robustcert.data.sampler import EpochSampler, EvaluationSampler, MixedSampler, derive_seed


class TrainLoader(DataLoader[Any]):
    """A loader that resumes: each batch is a function of seed, epoch, batch number and rank.

    A batch is ``(inputs, labels, seed)``, the last an integer to draw its augmentation from.
    ``state_dict`` holds the epoch and the number of batches handed out, by which Lightning resumes
    a run that was interrupted within an epoch.
    """

    sampler: EpochSampler

    def __init__(self, examples: Examples, sampler: EpochSampler, **options: Any) -> None:
        super().__init__(Batches(examples), sampler=sampler, batch_size=None, **options)
        self._handed_out = 0
        self._resume: dict[str, int] | None = None

    # A generator starts at the first next(): Lightning calls iter() before set_epoch(), and worker
    # processes started there would fetch batches of the wrong epoch.
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self.sampler
        resume, self._resume = self._resume, None
        sampler.skip = 0
        if resume is not None and resume["epoch"] == sampler.epoch:
            sampler.skip = resume["batches"]
        self._handed_out = sampler.skip
        for inputs, labels in super().__iter__():
            number = self._handed_out
            self._handed_out += 1
            yield (
                inputs,
                labels,
                derive_seed(sampler.seed, sampler.epoch, number, sampler.rank),
            )

    def state_dict(self) -> dict[str, int]:
        """Where the epoch stands."""
        return {"epoch": self.sampler.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches already handed out, if the next epoch is the state's."""
        self._resume = dict(state)


class DataModule(LightningDataModule):
    """Batches of a dataset for Lightning.

    Examples are those of :class:`Parts`; the test split is read for testing only. Data stays in
    memory as read (images as uint8), unless the dataset streams, and then each batch is read when
    it is its turn; batches become float32, and are augmented in training, on the device.

    Training batches depend on ``(seed, epoch, batch number, rank)`` only, so a resumed run sees
    those of an uninterrupted one, bit for bit on the same device type, also when the checkpoint was
    written within an epoch. On several devices the Trainer must have
    ``use_distributed_sampler=False`` (this is checked): the samplers here know the ranks
    themselves, and Lightning's would count examples twice in evaluation.
    ``reload_dataloaders_every_n_epochs`` may have any value.

    Args:
        dataset: What to read.
        batch_size: Training examples in a batch, on each device.
        eval_batch_size: The most examples in a validation or test batch, on each device.
        validation: Share of the train split held out for validation, between 0 and 1.
        augmentation: Modules called with ``(inputs, generator)``, one after the other; the last
            one may be a :class:`Mixing`.
        seed: Chooses the order of training examples and their augmentation.
        num_workers: Processes that gather batches: 0 is fast for data in memory, one for each core
            for images that are decoded. Each holds up to three batches of uint8.
        drop_last: Leave the incomplete last training batch out.
        generated: File of generated images that training batches have beside ``batch_size`` real
            ones, see :func:`read_generated`; validation and test never have any.
        generated_ratio: Generated images for each real one.
        generated_sha256: That the file must have; recorded when training begins.
        calibration: Share of the train split that neither training nor validation sees, see
            :class:`Parts`.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 128,
        eval_batch_size: int = 1024,
        validation: float = 0.1,
        augmentation: Sequence[nn.Module] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        drop_last: bool = False,
        generated: str | None = None,
        generated_ratio: float = 3.0,
        generated_sha256: str | None = None,
        calibration: float = 0.0,
    ) -> None:
        super().__init__()
        self.parts = Parts(dataset, validation, num_workers, calibration)
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"expected loader.{name} to be at least 1, but got {value}")
        if not generated_ratio > 0:
            raise ValueError(
                f"expected loader.generated_ratio to be above 0, but got {generated_ratio}"
            )
        self.augmentation = list(augmentation or [])
        if any(isinstance(module, Mixing) for module in self.augmentation[:-1]):
            raise ValueError("loader.augmentation: Mixup or CutMix can only be the last one")
        for module in self.augmentation:
            if isinstance(module, ImageAugmentation | Mixing) and len(dataset.input_shape) != 3:
                raise ValueError(
                    f"augmentation {type(module).__name__} expects images of shape (C, H, W), but "
                    f"{dataset.name} has inputs of shape {tuple(dataset.input_shape)}: set "
                    "loader.augmentation=[]"
                )
        self.dataset = dataset
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.generated = generated
        self.generated_ratio = generated_ratio
        self.generated_sha256 = generated_sha256
        self._generated: Examples | None = None

    def examples(self, part: Part) -> Examples:
        """All examples of a part as float32; see :meth:`Parts.examples`."""
        return self.parts.examples(part)

    def stored(self, part: Part) -> Examples:
        """All examples of a part as the dataset gives them; see :meth:`Parts.stored`."""
        return self.parts.stored(part)

    def first_of_each_class(self, count: int) -> Examples:
        """The first ``count`` training examples of each class, as float32."""
        stored = self.stored("train")
        strata = self.dataset.targets.strata(stored.labels)
        rows = torch.cat([(strata == c).nonzero()[:count, 0] for c in strata.unique()])
        inputs = as_numbers(stored.inputs[rows], self.dataset.domain)
        return Examples(inputs, stored.labels[rows], stored.indices[rows])

    def prepare_data(self) -> None:
        """Fetch missing files, in one process."""
        self.dataset.prepare()

    def setup(self, stage: str) -> None:
        """Read what the stage needs."""
        parts: dict[str, tuple[Part, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
        }
        for part in parts.get(stage, ()):
            self.stored(part)

    def train_dataloader(self) -> TrainLoader:
        """Batches ``(inputs, labels, seed)``, which ``on_after_batch_transfer`` completes."""
        rank, world_size = self._rank()
        examples, generated = self.stored("train"), self.read_generated()
        options: dict[str, Any] = {
            "seed": self.seed,
            "epoch": self.trainer.current_epoch if self.trainer else 0,
            "rank": rank,
            "world_size": world_size,
            "drop_last": self.drop_last,
        }
        size = len(examples)
        if generated is None:
            sampler = EpochSampler(size, self.batch_size, **options)
        else:
            added, ratio = len(generated), self.generated_ratio
            sampler = MixedSampler(size, self.batch_size, added, ratio, **options)
            inputs = Joined([examples.inputs, generated.inputs])
            examples = Examples(inputs, torch.cat([examples.labels, generated.labels]))
        return TrainLoader(examples, sampler, **self._options())

    def read_generated(self) -> Examples | None:
        """The generated images, if there are to be any; sets ``generated_sha256``.

        Raises:
            DatasetError: the file is missing, damaged or another one.
        """
        if self.generated is not None and self._generated is None:
            stored = self.stored("train")
            if stored.inputs.dtype != torch.uint8 or stored.labels.dtype != torch.int64:
                raise DatasetError(
                    f"loader.generated: {self.dataset.name} has no images of type uint8 with "
                    "classes that generated ones could stand beside"
                )
            self._generated, self.generated_sha256 = read_generated(
                self.generated, self.dataset, self.generated_sha256
            )
        return self._generated

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation example once, over all ranks."""
        return self._eval_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test example once, over all ranks."""
        return self._eval_loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, ...]:
        """The batch as ``(inputs, labels)``, inputs as numbers and, in training, augmented.

        Where images are mixed: ``(inputs, labels, partners' labels, share of their own)``.
        """
        del dataloader_idx
        inputs, labels, *draw = batch
        # The range was checked when the data was read; a check here would stall the device.
        if inputs.dtype == torch.uint8:
            inputs = to_unit(inputs)
        if draw and self.augmentation:
            generator = torch.Generator(inputs.device).manual_seed(draw[0])
            for augment in self.augmentation:
                if isinstance(augment, Mixing):
                    inputs, partner, share = augment(inputs, generator)
                    return inputs, labels, labels[partner], share
                inputs = augment(inputs, generator)
        return inputs, labels

    def _eval_loader(self, part: Part) -> DataLoader[Any]:
        rank, world_size = self._rank()
        examples = self.stored(part)
        sampler = EvaluationSampler(len(examples), self.eval_batch_size, rank, world_size)
        return DataLoader(Batches(examples), sampler=sampler, batch_size=None, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"num_workers": self.parts.num_workers, "pin_memory": torch.cuda.is_available()}

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        if getattr(self.trainer, "overfit_batches", 0):
            raise ValueError(
                "Trainer(overfit_batches) would replace the sampler of whole batches by one of "
                "single examples. Set trainer.limit_train_batches instead"
            )
        if self.trainer.world_size > 1 and getattr(
            self.trainer._accelerator_connector, "use_distributed_sampler", False
        ):
            raise ValueError(
                "training on several devices needs Trainer(use_distributed_sampler=False): "
                "Lightning's sampler would split every batch list again and repeat examples in "
                "evaluation. Set trainer.use_distributed_sampler=false"
            )
        return self.trainer.global_rank, self.trainer.world_size
