"""What the targets of a dataset are: class indices or real numbers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


class DatasetError(ValueError):
    """A dataset is missing, damaged or not what it claims to be."""


class Targets(ABC):
    """The targets of a dataset, shape ``(N,)``, and the outputs of a network that predicts them."""

    # Of :class:`robustcert.certifiers.Task`, the part of a claim that follows from the targets.
    task: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    outputs: int

    @abstractmethod
    def check(self, labels: Tensor, source: str) -> None:
        """Raise ``DatasetError`` unless every entry is such a target."""

    @abstractmethod
    def strata(self, labels: Tensor) -> Tensor:
        """Integers, shape ``(N,)``, of each of which a split takes its share."""


@dataclass(frozen=True)
class Classes(Targets):
    """Indices of classes, int64 from 0.

    Args:
        outputs: Number of classes: one logit for each.
    """

    task = "classification"
    dtype = torch.int64
    outputs: int

    def check(self, labels: Tensor, source: str) -> None:
        """Raise unless every label is a class index below the number of classes."""
        wrong = ((labels < 0) | (labels >= self.outputs)).nonzero()
        if len(wrong):
            place = int(wrong[0])
            raise DatasetError(
                f"{source}: expected labels from 0 to {self.outputs - 1}, but got "
                f"{int(labels[place])} at position {place} ({len(wrong)} of {len(labels)} labels "
                "lie outside)"
            )

    def strata(self, labels: Tensor) -> Tensor:
        """The classes themselves."""
        return labels


@dataclass(frozen=True)
class Reals(Targets):
    """Real numbers, float32, in the units of the network's one output."""

    task = "regression"
    dtype = torch.float32
    outputs: int = 1

    def check(self, labels: Tensor, source: str) -> None:
        """Raise unless every target is a finite number."""
        wrong = (~torch.isfinite(labels)).nonzero()
        if len(wrong):
            place = int(wrong[0])
            raise DatasetError(
                f"{source}: expected finite targets, but got {labels[place].item()} at position "
                f"{place} ({len(wrong)} of {len(labels)} are missing or infinite): remove these "
                "samples"
            )

    def strata(self, labels: Tensor) -> Tensor:
        """One stratum."""
        return torch.zeros(len(labels), dtype=torch.int64, device="cpu")
