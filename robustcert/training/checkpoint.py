"""What a checkpoint holds beside Lightning's own state, read and written as data, never code."""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcert import __version__
from robustcert.atomic import complete_file

# Version of what a checkpoint holds under RECORD_KEY; no other is read.
CHECKPOINT_FORMAT = 1
# Metrics that choose best.ckpt, one for each task, and which of two values is the better one.
SCORES = {"val/vra": "max", "val/certified_mae": "min"}
# Key of what we put into a checkpoint beside Lightning's own state.
RECORD_KEY = "robustcert"
# What names of the model's tensors begin with.
_PREFIX = "model."


def score_of(metrics: Mapping[str, float]) -> float:
    """The metric that chose a checkpoint among those of its epoch; NaN where there is none."""
    return float(next((metrics[key] for key in SCORES if key in metrics), math.nan))


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file."""


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
        step: Optimizer steps done when it was written.
        metrics: Metrics of its epoch, ``val/...``.
        training: Those of training, ``train/...``.
        seconds: Seconds of training until it was written.
        processor_seconds: Those of the processor, in all threads together; 0 if not recorded.
    """

    path: Path
    sha256: str
    config: dict[str, Any]
    input_shape: tuple[int, ...]
    num_classes: int
    model_state: dict[str, Tensor]
    epoch: int
    step: int
    metrics: dict[str, float]
    training: dict[str, float]
    seconds: float
    processor_seconds: float

    @property
    def training_row(self) -> dict[str, float]:
        """What is logged of the training of its epoch; both numbers count from 0."""
        return {"epoch": self.epoch - 1, "step": self.step - 1, **self.training}

    def load_into(self, model: nn.Module) -> None:
        """Put the weights into a model of the same architecture.

        Raises:
            CheckpointError: the architecture is another one.
        """
        # As the weights are, whatever the default dtype was when the model was built: folding
        # keeps float64.
        kinds = {value.dtype for value in self.model_state.values()}
        model.to(torch.float64 if torch.float64 in kinds else torch.float32)
        try:
            model.load_state_dict(self.model_state)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise CheckpointError(
                f"{self.path}: its weights do not fit the configured architecture: {first}"
            ) from error


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without executing anything that it holds.

    Raises:
        CheckpointError: it is missing, truncated, not one of ours, of another format, or a weight
            is NaN or infinite.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: no run: there is no checkpoints/best.ckpt in this folder")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected <run>/checkpoints/best.ckpt")
    data = path.read_bytes()
    content = _unpickle(path, data)
    record = content.get(RECORD_KEY) if isinstance(content, dict) else None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: not a checkpoint of robustcert")
    if record.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {record.get('format')!r} (robustcert "
            f"{record.get('version')}); this version reads "
            f"format {CHECKPOINT_FORMAT}"
        )
    try:
        checkpoint = Checkpoint(
            path=path,
            sha256=hashlib.sha256(data).hexdigest(),
            config=dict(record["config"]),
            input_shape=tuple(int(n) for n in record["input_shape"]),
            num_classes=int(record["num_classes"]),
            model_state=_model_state(content["state_dict"]),
            # content["epoch"] is the index of the epoch that has just ended.
            epoch=int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]),
            step=int(content["global_step"]),
            metrics=dict(record["metrics"]),
            training=dict(record.get("training", {})),
            seconds=float(record["seconds"]),
            processor_seconds=float(record.get("processor_seconds", 0.0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a complete checkpoint of robustcert: {error!r}"
        ) from error
    for name, value in checkpoint.model_state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} holds values that are NaN or infinite")
    return checkpoint


def write_checkpoint(
    path: Path,
    *,
    config: Mapping[str, Any],
    input_shape: Sequence[int],
    num_classes: int,
    model_state: Mapping[str, Tensor],
) -> None:
    """Write the checkpoint of a network that no run of ours trained.

    Args:
        path: The file.
        config: Configuration that certification reads: model, dataset, loader, radii, epsilon.
        input_shape: Shape of one input.
        num_classes: Number of classes.
        model_state: State of the model.
    """
    content = {
        "state_dict": {_PREFIX + name: tensor for name, tensor in model_state.items()},
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 0}}}},
        "global_step": 0,
        RECORD_KEY: {
            "format": CHECKPOINT_FORMAT,
            "version": __version__,
            "config": dict(config),
            "input_shape": list(input_shape),
            "num_classes": num_classes,
            "metrics": {},
            "training": {},
            "seconds": 0.0,
            "processor_seconds": 0.0,
        },
    }
    with complete_file(path) as temporary:
        torch.save(content, temporary)


def _unpickle(path: Path, data: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise CheckpointError(
            f"{path}: not a readable checkpoint: it is truncated or damaged, or it holds code, of "
            "which none was executed"
        ) from error


def _model_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
