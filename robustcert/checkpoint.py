"""What a checkpoint holds beside Lightning's own state, and how it is read: as data, never code."""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from robustcert import __version__

FORMAT = 1
_KEY = "robustcert"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file."""


class RecordRun(Callback):
    """Puts the resolved configuration and the shapes of a run into its checkpoints.

    Args:
        config: Plain dictionary, so that the file loads without executing anything.
        input_shape: Shape of one input.
        num_classes: Number of classes.
    """

    def __init__(
        self, config: dict[str, Any], input_shape: tuple[int, ...], num_classes: int
    ) -> None:
        self.record = {
            "format": FORMAT,
            "version": __version__,
            "config": config,
            "input_shape": list(input_shape),
            "num_classes": num_classes,
        }

    def on_save_checkpoint(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Add the record."""
        checkpoint[_KEY] = self.record


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        path: The file.
        sha256: Its hash.
        config: Configuration of the run.
        input_shape: Shape of one input.
        num_classes: Number of classes.
        model_state: State of the model.
        epoch: Epochs done when it was written.
    """

    path: Path
    sha256: str
    config: dict[str, Any]
    input_shape: tuple[int, ...]
    num_classes: int
    model_state: dict[str, Tensor]
    epoch: int


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without executing anything that it holds.

    Raises:
        CheckpointError: it is missing, truncated, not one of ours, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file: set checkpoint=<run>/checkpoints/best.ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a readable checkpoint (truncated, or holding more than data): {reason}"
        ) from error
    record = content.get(_KEY) if isinstance(content, dict) else None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: not a checkpoint of robustcert")
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {record.get('format')!r} (robustcert "
            f"{record.get('version')}); this version reads format {FORMAT}"
        )
    prefix = "model."
    state = {
        key.removeprefix(prefix): value
        for key, value in content["state_dict"].items()
        if key.startswith(prefix)
    }
    return Checkpoint(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        config=record["config"],
        input_shape=tuple(record["input_shape"]),
        num_classes=record["num_classes"],
        model_state=state,
        epoch=content["epoch"],
    )
