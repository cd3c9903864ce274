"""The parts of a dataset in a run: train, validation, calibration and test."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from robustcert.data.dataset import (
    Dataset,
    DatasetError,
    Examples,
    Stream,
    as_numbers,
    check_examples,
)
from robustcert.data.split import random_split, stratified_split

Part = Literal["train", "validation", "calibration", "test"]

VALIDATION_KEY = 20_210_217
CALIBRATION_KEY = 20_050_101


class Batches(TorchDataset[tuple[Tensor, Tensor]]):
    """Indexed by whole lists of rows: one gather, or one reading of a stream, per batch."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.examples.inputs[rows], self.examples.labels[rows]


class Parts:
    """Train, validation, calibration and test examples, each read when it is first asked for.

    Calibration examples are cut at random from the train split, before anything else: neither
    training nor the choice of ``best.ckpt`` sees them. Validation examples are cut from the rest,
    stratified by class. Both permutations are the same for every run. Lightning is not needed:
    certification reads its samples here, and :class:`DataModule` makes batches of the same parts.

    Args:
        dataset: What to read.
        validation: Share of the train split held out for validation, between 0 and 1.
        num_workers: Processes that gather batches, at least 0.
        calibration: Share of the train split held out for the thresholds of conformal prediction
            sets, at least 0 and below 1; with 0 there is no such part.
    """

    def __init__(
        self,
        dataset: Dataset,
        validation: float = 0.1,
        num_workers: int = 0,
        calibration: float = 0.0,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"expected loader.num_workers to be at least 0, but got {num_workers}")
        if not 0 < validation < 1:
            raise ValueError(
                "expected loader.validation, the share of the train split held out, to lie between "
                f"0 and 1, but got {validation}"
            )
        self.dataset = dataset
        self.validation = validation
        if not 0 <= calibration < 1:
            raise ValueError(
                "expected loader.calibration, the share of the train split held out for conformal "
                f"prediction sets, to be at least 0 and below 1, but got {calibration}"
            )
        self.num_workers = num_workers
        self.calibration = calibration
        self._parts: dict[Part, Examples] = {}

    def examples(self, part: Part) -> Examples:
        """All examples of a part, as float32 in their units; a stream is read from end to end.

        ``indices`` are positions in the official split's file order: the train split's for
        all parts but ``"test"``.
        """
        stored = self.stored(part)
        inputs = as_numbers(stored.inputs[:], self.dataset.domain)
        return Examples(inputs, stored.labels, stored.indices)

    def stored(self, part: Part) -> Examples:
        """All examples of a part as the dataset gives them: images as uint8, or as a stream."""
        if part not in self._parts:
            if part == "test":
                self._parts["test"] = self._read("test")
            elif part in ("train", "validation") or (part == "calibration" and self.calibration):
                self._cut(self._read("train"))
            else:
                raise ValueError(
                    "expected 'train', 'validation', 'test' or, with loader.calibration above 0, "
                    f"'calibration', but got {part!r}"
                )
        return self._parts[part]

    def _cut(self, train: Examples) -> None:
        """Cut calibration and validation examples off the train split."""
        if len(train) < 2:
            raise DatasetError(
                f"{self.dataset.name}: expected at least two training examples, one of them for "
                f"validation, but got {len(train)}"
            )
        if self.calibration:
            rest, held_out = random_split(len(train), self.calibration, CALIBRATION_KEY)
            self._parts["calibration"] = train.take(held_out)
            train = train.take(rest)
            if len(train) < 2:
                raise DatasetError(
                    f"{self.dataset.name}: loader.calibration={self.calibration} leaves "
                    f"{len(train)} example for training and validation: make it smaller"
                )
        strata = self.dataset.targets.strata(train.labels)
        rest, held_out = stratified_split(strata, self.validation, VALIDATION_KEY)
        self._parts["train"] = train.take(rest)
        self._parts["validation"] = train.take(held_out)

    def _read(self, split: Literal["train", "test"]) -> Examples:
        examples = self.dataset.read(split)
        check_examples(self.dataset, split, examples)
        if examples.inputs.dtype == torch.uint8 or isinstance(examples.inputs, Stream):
            return examples
        inputs = as_numbers(examples.inputs, self.dataset.domain)
        return Examples(inputs, examples.labels, examples.indices)

    def in_order(self, part: Part, batch_size: int, first: int, last: int) -> DataLoader[Any]:
        """Batches of the rows from ``first`` to ``last`` (not included) of a part, as stored."""
        starts = range(first, last, batch_size)
        rows = [list(range(start, min(start + batch_size, last))) for start in starts]
        return DataLoader(
            Batches(self.stored(part)), sampler=rows, batch_size=None, num_workers=self.num_workers
        )
