"""Training ends when the verified accuracy no longer rises."""

import logging

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from robustcert.training.cadence import is_validated

log = logging.getLogger(__name__)


class EarlyStopping(LightningEarlyStopping):
    """Ends training after ``patience`` validations without a higher ``val/vra``.

    Schedules are cut off where they are: they run over the epochs that were asked for.

    Args:
        patience: Number of validations.
        min_delta: Least rise that counts.
    """

    def __init__(self, patience: int = 10, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ValueError(
                f"expected at least 1 validation, got {patience}: set "
                "callbacks.early_stopping.patience"
            )
        super().__init__("val/vra", mode="max", patience=patience, min_delta=min_delta)

    def _should_skip_check(self, trainer: Trainer) -> bool:
        # Of an epoch without a validation there is nothing but the score of an earlier one.
        validated = is_validated(trainer, trainer.current_epoch + 1)
        return not validated or super()._should_skip_check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why training ended before its last epoch."""
        if self.stopped_epoch and trainer.is_global_zero:
            log.info(
                "stopped after epoch %d: no higher val/vra in %d validations",
                self.stopped_epoch + 1,
                self.patience,
            )
