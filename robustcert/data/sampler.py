"""Batch samplers whose order is a pure function of seed and epoch, so that a run can resume."""

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

# Part of the seed by which generated samples are drawn.
GENERATED_KEY = 20_230_204


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that depends on every part; nearby parts give unrelated seeds."""
    text = ",".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class EpochSampler(Sampler[list[int]]):
    """Batches of indices for training, a pure function of ``(seed, epoch)``.

    Every epoch visits every index once. With several ranks, all draw the same order and rank r
    takes the positions r, r + world_size, ...; so that all ranks get equally many indices, the
    order is extended by its own beginning, by fewer than ``world_size`` indices, which are then
    visited twice. With ``drop_last`` the tail of the order that fills no batch on every rank is
    left out instead, as long as a full batch exists.

    Use it as ``DataLoader(dataset, sampler=..., batch_size=None)``.

    Args:
        size: Number of examples.
        batch_size: Indices in a batch, on each rank.
        seed: Chooses the orders together with the epoch.
        shuffle: Permute the indices in every epoch.
        epoch: The epoch of the next iteration.
        rank: This process, from 0.
        world_size: Number of processes.
        drop_last: Leave the incomplete last batch out.

    Example:
        >>> list(EpochSampler(5, batch_size=2, shuffle=False))
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        _check(size, batch_size, rank, world_size)
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.per_rank = math.ceil(size / world_size)
        full = size // (world_size * batch_size)
        if drop_last and full:
            self.per_rank = full * batch_size
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """All indices in this epoch's order, the same on every rank."""
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        return torch.randperm(self.size, generator=generator)

    def __len__(self) -> int:
        return math.ceil(self.per_rank / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches, after the first ``skip`` ones: a run resumed within an epoch."""
        positions = self.rank + self.world_size * torch.arange(self.per_rank)
        indices = self.order()[positions % self.size].tolist()
        for start in range(self.skip * self.batch_size, self.per_rank, self.batch_size):
            yield indices[start : start + self.batch_size]


class MixedSampler(EpochSampler):
    """Batches of an :class:`EpochSampler` with generated examples behind the real ones.

    Real examples have the indices below ``size``, generated ones those from ``size``. A batch of b
    real examples gets ``round(ratio * b)`` generated ones. These come from an endless sequence of
    permutations of all of them, drawn one after the other, in which an epoch begins where the one
    before ended: none is seen twice before all were seen once. An epoch's place in it, and so its
    batches, are a pure function of ``(seed, epoch)``.

    Args:
        size: Number of real examples.
        batch_size: Real indices in a batch, on each rank.
        generated: Number of generated examples.
        ratio: Generated examples for each real one.
        options: Of :class:`EpochSampler`.

    Example:
        >>> [sorted(batch) for batch in MixedSampler(3, 2, generated=3, ratio=1, shuffle=False)]
        [[0, 1, 3, 4], [2, 5]]
    """

    def __init__(
        self, size: int, batch_size: int, generated: int, ratio: float, **options: Any
    ) -> None:
        super().__init__(size, batch_size, **options)
        if generated < 1 or not ratio > 0:
            raise ValueError(
                "expected at least one generated example and loader.generated_ratio above 0, but "
                f"got {generated} and {ratio}"
            )
        self.generated = generated
        self.ratio = ratio

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches, after the first ``skip`` ones."""
        batches = range(0, self.per_rank, self.batch_size)
        real = [min(self.batch_size, self.per_rank - start) for start in batches]
        sizes = [round(self.ratio * count) for count in real]
        rows = self._rows(sum(sizes)).split(sizes)
        for batch, added in zip(super().__iter__(), rows[self.skip :], strict=True):
            yield batch + added.tolist()

    def _rows(self, count: int) -> Tensor:
        """Indices of ``count`` generated examples, this rank's in this epoch."""
        positions = self.rank + self.world_size * (self.epoch * count + torch.arange(count))
        rounds = positions // self.generated
        places = positions % self.generated
        for number in rounds.unique().tolist():
            mine = rounds == number
            places[mine] = self._order(number)[places[mine]]
        return self.size + places

    def _order(self, number: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.generated)
        seed = derive_seed(GENERATED_KEY, self.seed, number)
        return torch.randperm(self.generated, generator=torch.Generator().manual_seed(seed))


class EvaluationSampler(Sampler[list[int]]):
    """Batches of indices for evaluation: every index on exactly one rank, never padded.

    Rank r takes the indices r, r + world_size, ..., so that counts summed over the ranks add up to
    ``size``. They are cut into batches as even as possible, so that all ranks run equally many
    batches (unless one has fewer examples than batches, as with ``batch_size=1``).

    Args:
        size: Number of examples.
        batch_size: The most indices in a batch, on each rank.
        rank: This process, from 0.
        world_size: Number of processes.

    Example:
        >>> [list(EvaluationSampler(7, batch_size=2, rank=r, world_size=2)) for r in range(2)]
        [[[0, 2], [4, 6]], [[1, 3], [5]]]
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        _check(size, batch_size, rank, world_size)
        self.indices = torch.arange(min(rank, size), size, world_size)
        most = math.ceil(size / world_size)
        self.num_batches = min(math.ceil(most / batch_size), len(self.indices))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        if self.num_batches:
            for batch in self.indices.tensor_split(self.num_batches):
                yield batch.tolist()


def _check(size: int, batch_size: int, rank: int, world_size: int) -> None:
    if size < 1:
        raise ValueError(f"expected at least one example, but got size={size}")
    if batch_size < 1:
        raise ValueError(f"expected batch_size to be at least 1, but got {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"expected 0 <= rank < world_size, but got {rank} and {world_size}")
