"""A published checkpoint as it is read: as data, never as code, and no tensor is left over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class ConversionError(ValueError):
    """A file that is no checkpoint of the named source; the message names what is wrong in it."""


def read_published(path: Path) -> Any:
    """What a file of ``torch.save`` holds; only tensors and plain values are read.

    Raises:
        ConversionError: there is no such file, it is damaged, or it holds code.
    """
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ConversionError(
            f"{path}: not a readable checkpoint: it is damaged, or it holds code, of which none "
            "was executed"
        ) from error


class Published:
    """The tensors of a checkpoint, which are taken by their names and shapes until none is left.

    Args:
        tensors: Tensors by name.
        path: The file, for messages.
    """

    def __init__(self, tensors: Any, path: Path) -> None:
        self.path = path
        named = isinstance(tensors, Mapping) and all(isinstance(name, str) for name in tensors)
        if not named or not tensors:
            raise ConversionError(f"{path}: expected tensors by name, got {_kind(tensors)}")
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise ConversionError(f"{path}: {name}: expected a tensor, got {_kind(tensor)}")
        self._left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Shape of a tensor, which stays."""
        if name not in self._left:
            raise ConversionError(f"{self.path}: no tensor {name}: it is missing")
        shape = tuple(self._left[name].shape)
        if len(shape) != dimensions or 0 in shape:
            raise ConversionError(
                f"{self.path}: {name}: expected {dimensions} dimensions, none of size 0, got shape "
                f"{shape}"
            )
        return shape

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of a given shape, in float64.

        Raises:
            ConversionError: it is missing, has another shape, or a value is NaN or infinite.
        """
        if name not in self._left:
            raise ConversionError(f"{self.path}: no tensor {name}: expected one of shape {shape}")
        tensor = self._left.pop(name)
        if tuple(tensor.shape) != shape:
            raise ConversionError(
                f"{self.path}: {name}: expected shape {shape}, got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ConversionError(f"{self.path}: {name}: expected finite numbers, got others")
        return tensor.to("cpu", torch.float64)

    def take_number(self, name: str) -> Tensor:
        """A tensor with one entry, whatever its dimensions, as a scalar in float64."""
        dimensions = self._left[name].dim() if name in self._left else 0
        return self.take(name, *(1,) * dimensions).reshape(())

    def take_identity(self, name: str, expected: Tensor) -> None:
        """Take a constant that the original code reads from the file.

        Raises:
            ConversionError: it is another one.
        """
        if not torch.equal(self.take(name, *expected.shape), expected.double()):
            raise ConversionError(f"{self.path}: {name}: expected an identity, got another tensor")

    def drop(self, *names: str) -> None:
        """Leave out what the network does not read in evaluation."""
        for name in names:
            self._left.pop(name, None)

    def end(self, network: str) -> None:
        """Make sure that nothing is left.

        Raises:
            ConversionError: there are further tensors.
        """
        if self._left:
            more = f" and {len(self._left) - 1} more" if len(self._left) > 1 else ""
            raise ConversionError(
                f"{self.path}: {min(self._left)}{more}: no such tensor in {network}"
            )


class Settings:
    """Options out of a checkpoint's configuration, which are taken with the type they must have.

    Args:
        values: Options by name.
        path: The file, for messages.
        key: Where they stand in it.
    """

    def __init__(self, values: Any, path: Path, key: str) -> None:
        if not isinstance(values, Mapping):
            raise ConversionError(f"{path}: {key}: expected options by name, got {_kind(values)}")
        self.values, self.path, self.key = values, path, key

    def number(self, name: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(name, value, "a whole number above 0")
        assert isinstance(value, int)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return bool(value)

    def word(self, name: str, known: tuple[str, ...], default: str = "") -> str:
        """One of the known words, in lower case."""
        value = self.values.get(name, default)
        word = value.lower() if isinstance(value, str) else ""
        if word not in known:
            self.refuse(name, value, "one of " + ", ".join(known))
        return word

    def refuse(self, name: str, value: Any, expected: str) -> None:
        """Raise the error for an option."""
        raise ConversionError(
            f"{self.path}: {self.key}.{name}: expected {expected}, got {str(value)[:60]!r}"
        )


def _kind(value: Any) -> str:
    return type(value).__name__
