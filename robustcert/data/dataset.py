"""The dataset contract: examples, what their inputs and targets are, and where they came from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from robustcert.data.targets import Classes, DatasetError, Targets
from robustcert.network.input_space import Kind
from robustcert.network.units import in_units

Split = Literal["train", "test"]

Rows = Tensor | slice | list[int]


class Stream(ABC):
    """Inputs that are read when they are indexed, so that a split may be larger than memory.

    It stands where :class:`Examples` otherwise has a tensor: ``shape``, ``dtype``, ``len`` and
    indexing by rows, which gives a tensor. ``select`` chooses rows without reading them.
    """

    shape: tuple[int, ...]
    dtype = torch.uint8

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: Rows) -> Tensor:
        """Read inputs: uint8, shape ``(len(rows), *input_shape)``."""

    @abstractmethod
    def select(self, rows: Rows) -> "Stream":
        """The same inputs at the given rows alone, still unread."""


class Joined(Stream):
    """Inputs of one shape, one after the other; each part stays where it is."""

    def __init__(self, parts: Sequence[Tensor | Stream], rows: Tensor | None = None) -> None:
        self.parts = list(parts)
        self.starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        self.rows = torch.arange(int(self.starts[-1])) if rows is None else rows
        self.shape = (len(self.rows), *parts[0].shape[1:])

    def __getitem__(self, rows: Rows) -> Tensor:
        places = self.rows[rows]
        found = torch.empty(len(places), *self.shape[1:], dtype=self.dtype)
        owner = torch.bucketize(places, self.starts[1:], right=True)
        for number, part in enumerate(self.parts):
            mine = owner == number
            if mine.any():
                found[mine] = part[places[mine] - self.starts[number]]
        return found

    def select(self, rows: Rows) -> "Joined":
        """The chosen rows of the sequence."""
        return Joined(self.parts, self.rows[rows])


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and labels of one split, in file order unless ``indices`` says otherwise.

    Args:
        inputs: Shape ``(N, *input_shape)``, uint8 in 0..255 or floating point in [0, 1], or, of
            columns, any finite numbers: a tensor, or a :class:`Stream` that reads them batch by
            batch.
        labels: Targets, shape ``(N,)``: class indices, int64, or real numbers, float32.
        indices: Position of every example in the split's file order, int64, shape ``(N,)``;
            ``0 .. N-1`` if not given.
    """

    inputs: Tensor | Stream
    labels: Tensor
    indices: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.indices is None:
            object.__setattr__(self, "indices", torch.arange(len(self.labels)))
        if not len(self.inputs) == len(self.labels) == len(self.indices):
            raise DatasetError(
                f"expected equally many inputs, labels and indices, but got {len(self.inputs)}, "
                f"{len(self.labels)} and {len(self.indices)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows) -> "Examples":
        """The examples at the given rows, which keep their ``indices``; a stream stays unread."""
        chosen = self.inputs
        inputs = chosen.select(rows) if isinstance(chosen, Stream) else chosen[rows]
        return Examples(inputs, self.labels[rows], self.indices[rows])


class Dataset(ABC):
    """A train and a test split of examples with their targets.

    A subclass sets the attributes and implements ``read``. Normalisation is no part of a dataset:
    it is a layer of the network, inside its Lipschitz bound, so that a radius is always a distance
    between inputs in their own units: [0, 1] for images, those of the data for columns.

    Attributes:
        name: What files and messages call it.
        input_shape: Of one input: ``(C, H, W)`` of images, ``(D,)`` of rows of a table, ``(C, T)``
            of signals.
        num_classes: Number of classes.
        class_names: What the classes are called, in the order of their labels.
        domain: ``images`` for inputs in [0, 1], ``columns`` for any finite numbers.
        columns: Names of the entries along dimension 0 of ``input_shape``: the columns of a table,
            the channels of a signal or an image.
        ranges: Least and greatest value of each of these, to which attacks are clipped; of columns.
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    domain: Kind = "images"
    columns: tuple[str, ...] | None = None
    ranges: tuple[tuple[float, float], ...] | None = None

    @property
    def targets(self) -> Targets:
        """What the targets are: indices of ``num_classes`` classes, unless a subclass says else."""
        return Classes(self.num_classes)

    @abstractmethod
    def read(self, split: Split) -> Examples:
        """All examples of the official split, in file order."""

    def prepare(self) -> None:  # noqa: B027 (most datasets fetch nothing)
        """Fetch what ``read`` needs; called in one process before all processes read."""

    def provenance(self) -> dict[str, Any]:
        """Plain record, for the certificate, of what has been read so far.

        ``files`` lists name, bytes, sha256 and ``official``: whether the content is known to be
        the published one (``True``, ``False`` or ``"unknown"``).
        """
        return {"name": self.name, "files": []}


def check_split(split: str) -> None:
    """Raise unless ``split`` names one of the two official splits."""
    if split not in ("train", "test"):
        raise DatasetError(f"expected split 'train' or 'test', but got {split!r}")


def to_unit(inputs: Tensor, source: str = "inputs") -> Tensor:
    """Inputs as float32 in [0, 1]: uint8 is divided by 255, floating point must lie there already.

    Args:
        inputs: Any shape, uint8 or floating point.
        source: Named in the error: the file that the inputs came from.
    """
    try:
        numbers = in_units(inputs)
    except ValueError as error:
        raise DatasetError(f"{source}: {error}") from error
    if inputs.dtype == torch.uint8:
        return numbers
    # NaN compares false, so it is refused as well.
    outside = ~((inputs >= 0) & (inputs <= 1))
    if outside.any():
        raise DatasetError(
            f"{source}: expected floating-point inputs in [0, 1], but got "
            f"{inputs[outside][0].item():g} ({int(outside.sum())} values lie outside): rescale "
            "the data, and leave normalisation to the network (normalization.mean, "
            "normalization.std); of a table or of signals in units of their own, say so by "
            "dataset.domain=columns"
        )
    return numbers.to(torch.float32)


def column_name(columns: Sequence[str] | None, place: int) -> str:
    """What messages call the column at a place, counted from 0."""
    return f"column {columns[place]!r}" if columns else f"column {place}"


def to_columns(inputs: Tensor, columns: Sequence[str] | None, source: str = "inputs") -> Tensor:
    """Inputs in units of their own as float32; every number must be finite.

    Args:
        inputs: Shape ``(N, D)`` or ``(N, C, T)``, floating point.
        columns: Names of the D columns or C channels.
        source: Named in the error.
    """
    if inputs.dtype == torch.uint8:
        raise DatasetError(
            f"{source}: expected floating point in the units of the columns, but got uint8, which "
            "stands for pixels: write x.astype(numpy.float32)"
        )
    try:
        numbers = in_units(inputs).to(torch.float32)
    except ValueError as error:
        raise DatasetError(f"{source}: {error}") from error
    wrong = ~torch.isfinite(numbers)
    if wrong.any():
        row, place = (int(index[0]) for index in wrong.nonzero(as_tuple=True)[:2])
        found = float(inputs[wrong][0])
        count = int(wrong.flatten(1).any(1).sum())
        raise DatasetError(
            f"{source}: expected a finite float32 in every column, but "
            f"{column_name(columns, place)} has {found:g} in row {row} ({count} of {len(numbers)} "
            "rows have such a value): leave these rows out, or fill missing values in, for example "
            "by the column's median in the training split"
        )
    return numbers


def as_numbers(
    inputs: Tensor, domain: Kind, columns: Sequence[str] | None = None, source: str = "inputs"
) -> Tensor:
    """Stored inputs as float32, as their domain reads them.

    Args:
        inputs: Shape ``(N, *input_shape)``: see :func:`to_unit` for images,
            :func:`to_columns` for columns.
        domain: What they are.
        columns: Names of the columns or channels, for errors.
        source: Named in the error.
    """
    if domain == "images":
        return to_unit(inputs, source)
    return to_columns(inputs, columns, source)


def check_labels(labels: Tensor, num_classes: int, source: str) -> None:
    """Raise unless every label is a class index below ``num_classes``."""
    Classes(num_classes).check(labels, source)


def check_examples(dataset: Dataset, split: Split, examples: Examples) -> None:
    """Raise unless ``examples`` keep what ``dataset`` promises: shape, types, labels, range."""
    source = f"{dataset.name} ({split})"
    shape = tuple(examples.inputs.shape[1:])
    if len(examples) == 0:
        raise DatasetError(f"{source}: expected at least one example, but got none")
    if shape != tuple(dataset.input_shape):
        raise DatasetError(
            f"{source}: expected inputs of shape {tuple(dataset.input_shape)}, but got {shape}"
        )
    kind = dataset.targets.dtype
    if examples.labels.dtype != kind or examples.labels.ndim != 1:
        name = str(kind).removeprefix("torch.")
        raise DatasetError(
            f"{source}: expected {name} labels of shape (N,), but got {examples.labels.dtype} of "
            f"shape {tuple(examples.labels.shape)}"
        )
    dataset.targets.check(examples.labels, source)
    if isinstance(examples.inputs, Stream):
        # Nothing is read here, so that only a type with no value out of range will do.
        if examples.inputs.dtype != torch.uint8 or dataset.domain == "columns":
            raise DatasetError(
                f"{source}: expected streamed inputs of type uint8, images, got {dataset.domain} "
                f"of type {examples.inputs.dtype}"
            )
    elif examples.inputs.dtype != torch.uint8 or dataset.domain == "columns":
        as_numbers(examples.inputs, dataset.domain, dataset.columns, source)
