"""Progress for people: a bar in a terminal, a line per epoch elsewhere."""

import logging

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only

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

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the epoch."""
        metrics = trainer.callback_metrics
        values = [f"{k} {float(metrics[k]):.4f}" for k in _KEYS if k in metrics]
        log.info(
            "epoch %d/%s: %s", trainer.current_epoch + 1, trainer.max_epochs, "  ".join(values)
        )


_KEYS = ("val/vra", "val/accuracy", "val/acr", "train/loss")
