"""Progress for people: a bar in a terminal, a line per epoch elsewhere."""

import logging

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

log = logging.getLogger(__name__)


class ProgressBar(RichProgressBar):
    """Lightning's bar without the logger's version number."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics logged for the bar: ``val/vra`` and ``val/accuracy``."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


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


_KEYS = ("train/loss", "val/accuracy", "val/vra", "val/acr")
