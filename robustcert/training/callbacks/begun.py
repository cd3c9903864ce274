"""Whether a run has taken a step."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Begun(Callback):
    """Knows whether any batch was trained on: before that, there is nothing to keep of a run."""

    def __init__(self) -> None:
        self.begun = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_outputs_and_batch: Any
    ) -> None:
        """Remember the first step."""
        self.begun = True
