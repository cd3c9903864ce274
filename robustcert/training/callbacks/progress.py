"""Progress for people: a bar in a terminal, a line per epoch elsewhere."""

import logging

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.progress import BarColumn, ProgressColumn

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
        """The metrics logged for the bar, without the logger's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts from 0; everything else that we print counts epochs that are done.
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"


class EpochLog(Callback):
    """One line per epoch, for log files and terminals that cannot draw a bar."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch before, whose metrics are complete only now."""
        self._log(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last epoch."""
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        # Read on every rank: some of these values are only reduced now.
        metrics = trainer.callback_metrics
        values = [f"{key} {float(metrics[key]):.4f}" for key in _KEYS if key in metrics]
        if values and trainer.is_global_zero:
            log.info(
                "epoch %d/%s: %s", trainer.current_epoch, trainer.max_epochs, "  ".join(values)
            )


# Metrics that a line of progress shows, where they are logged.
_KEYS = ("train/loss", "val/accuracy", "val/vra", "val/acr", "val/mae", "val/certified_mae")
