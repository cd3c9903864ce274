"""Progress for people: a bar in a terminal, lines elsewhere."""

import logging
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.progress import BarColumn, ProgressColumn

from robustcert.training.cadence import is_validated
from robustcert.training.stage import Advance, stage

log = logging.getLogger(__name__)


class ProgressBar(RichProgressBar):
    """Lightning's bar, narrow enough for the metrics to stand on its line."""

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """All columns but the speed, and a shorter bar."""
        columns = super().configure_columns(trainer)
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = 12
        return [c for c in columns if not isinstance(c, ProcessingSpeedColumn)]

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics logged for the bar, with what the last validation's bounds took.

        The logger's version number is left out.
        """
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if seconds := _bound_seconds(pl_module):
            metrics["bounds"] = seconds
        return metrics

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the network is folded and its bounds are proved, which may take its time."""
        super().on_validation_start(trainer, pl_module)
        self._describe(f"{self._get_train_description(trainer.current_epoch)}, proving bounds")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the epoch's own name."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._describe(self._get_train_description(trainer.current_epoch))

    def _describe(self, said: str) -> None:
        # Lightning sets it when the first epoch begins, after its trial of validation.
        task = getattr(self, "train_progress_bar_id", None)
        if self.progress is not None and task is not None:
            self.progress.update(task, description=said)
            self.refresh()

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts from 0; everything else that we print counts epochs that are done.
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"


class EpochLog(Callback):
    """One line per epoch, for log files and terminals that cannot draw a bar; more for a long one.

    What an epoch spends more than a second on is said while it lasts: its training steps, the
    bound that validation proves for all samples, and the samples.
    """

    def __init__(self) -> None:
        self._open = ExitStack()
        self._advance: Advance | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the network is started at the data, where it is."""
        self._begin(trainer, "starting", None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch before, whose metrics are complete only now."""
        self._log(trainer, pl_module)
        self._begin(trainer, "training", trainer.num_training_batches)

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Count a training step."""
        if self._advance:
            self._advance(1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the network is folded and its bounds are proved."""
        self._begin(trainer, "validating", None)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say nothing more of an epoch's parts; what follows are checkpoints."""
        self._begin(trainer, "finishing", None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last epoch."""
        self._open.close()
        self._log(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Fall silent."""
        self._open.close()

    def _begin(self, trainer: Trainer, doing: str, batches: float | None) -> None:
        self._open.close()
        if trainer.is_global_zero and not trainer.sanity_checking:
            total = int(batches) if batches and batches != float("inf") else None
            said = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {doing}"
            self._advance = self._open.enter_context(stage(said, total, "batches", bar=False))

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Read on every rank: some of these values are only reduced now.
        metrics = trainer.callback_metrics
        validated = is_validated(trainer, trainer.current_epoch)
        keys = [key for key in _KEYS if key in metrics and (validated or key.startswith("train/"))]
        values = [f"{key} {float(metrics[key]):.4f}" for key in keys]
        seconds = _bound_seconds(pl_module)
        if validated and seconds:
            values.append(f"bounds {seconds}")
        if values and trainer.is_global_zero:
            log.info(
                "epoch %d/%s: %s", trainer.current_epoch, trainer.max_epochs, "  ".join(values)
            )


def _bound_seconds(pl_module: LightningModule) -> str | None:
    """What the bounds of the last validation took, in words; None of a module without any."""
    seconds = getattr(pl_module, "bound_seconds", None)
    return None if seconds is None else f"{seconds:.3g} s"


# Metrics that a line of progress shows, where they are logged.
_KEYS = ("train/loss", "val/accuracy", "val/vra", "val/acr", "val/mae", "val/certified_mae")
