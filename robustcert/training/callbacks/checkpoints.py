"""The two checkpoints of a run, ``best.ckpt`` and ``last.ckpt``, and what they record."""

import io
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from robustcert import __version__
from robustcert.atomic import complete_file
from robustcert.training.cadence import is_validated
from robustcert.training.checkpoint import CHECKPOINT_FORMAT, RECORD_KEY, SCORES

log = logging.getLogger(__name__)

# Names of the radii that were validated before checkpoints named them.
UNNAMED_MEASURES = ("LipschitzCertifier()", "QuadricCertifier() of every sample")


class RecordRun(Callback):
    """Puts into every checkpoint what it takes to rebuild the network without the command.

    Args:
        config: The resolved configuration: plain values, so that the file loads as data.
        input_shape: Shape of one input.
        num_classes: Number of classes.
    """

    def __init__(
        self, config: dict[str, Any], input_shape: tuple[int, ...], num_classes: int
    ) -> None:
        self.record = {
            "format": CHECKPOINT_FORMAT,
            "version": __version__,
            "config": config,
            "input_shape": list(input_shape),
            "num_classes": num_classes,
        }
        self._before = _NO_TIME
        self._started = _clocks()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._started = _clocks()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on counting the seconds of a resumed run."""
        record = checkpoint[RECORD_KEY]
        # Checkpoints of older versions have no time of the processor.
        self._before = {name: record.get(name, 0.0) for name in _NO_TIME}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the record, the metrics of this epoch and the seconds of training so far."""
        logged = {k: float(v) for k, v in trainer.callback_metrics.items()}
        # Lightning keeps those of the last validation, which may be of an earlier epoch.
        fresh = is_validated(trainer, trainer.current_epoch + 1)
        checkpoint[RECORD_KEY] = {
            **self.record,
            "metrics": {k: v for k, v in logged.items() if fresh and k.startswith("val/")},
            "training": {k: v for k, v in logged.items() if k.startswith("train/")},
            **{name: self._before[name] + t - self._started[name] for name, t in _clocks().items()},
        }


# Times of training in a checkpoint: by the clock, and of the processor, in all threads together.
_NO_TIME = {"seconds": 0.0, "processor_seconds": 0.0}


def _clocks() -> dict[str, float]:
    return {"seconds": time.perf_counter(), "processor_seconds": time.process_time()}


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: the epoch of the best score, the last of equals.

    At a large radius the accuracy may be 0 for many epochs, and the first is not the best of them.

    Args:
        folder: Where the file is.
        measure: Name of the radii that validation counts. A run that is resumed with others
            chooses anew from the epochs that follow: the accuracies do not compare.
        score: Metric that is compared, one of :data:`SCORES`.
    """

    def __init__(self, folder: Path, measure: str, score: str = "val/vra") -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=score,
            mode=SCORES[score],
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.measure = measure

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state and the name of the radii behind the score."""
        return {**super().state_dict(), "measure": self.measure}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare an epoch that was validated; others have no score."""
        if is_validated(trainer, trainer.current_epoch + 1):
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the score is at least the best."""
        equal = current is not None and current == self.best_model_score
        return bool(equal) or super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the best score of a resumed run, also if its folder has moved."""
        before = state_dict.get("measure")
        if not (before == self.measure or (before is None and self.measure in UNNAMED_MEASURES)):
            log.info(
                "best.ckpt is chosen anew from the epochs that follow: %s was by %s, and is by %s "
                "now",
                self.monitor,
                before or " or ".join(UNNAMED_MEASURES),
                self.measure,
            )
            return

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = {
            "dirpath": self.dirpath,
            "best_k_models": {here(k): v for k, v in state_dict["best_k_models"].items()},
            **{key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path")},
        }
        super().load_state_dict({**state_dict, **moved})


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt``: every epoch's; ``save_last=True`` would only follow the best ones."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is carried over: the file is always the same one."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning writes into the system's temporary folder; where that is another disk, the move is a
    copy, and a full disk would destroy the checkpoint that it replaces.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Replace ``path`` by the checkpoint, completely or not at all."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with complete_file(Path(path)) as temporary, temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
