"""How often a run validates: proofs of large networks may outlast the training between them."""

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator

from robustcert.training.nominal import proof_seconds, training_seconds

log = logging.getLogger(__name__)

# Share of training's time that bounds may take, and a time that nobody minds.
MAX_SHARE, MIN_SECONDS = 0.5, 5.0


def is_validated(trainer: Trainer, epochs: int) -> bool:
    """Whether the last of so many epochs ends with a validation."""
    return epochs % (trainer.check_val_every_n_epoch or 1) == 0


def epochs_between(proof: float, training: float, epochs: int) -> int:
    """Number of epochs from a validation to the next, so that bounds take at most their share.

    A number that divides that of all epochs is preferred: then the last one is validated.

    Args:
        proof: Time of the bounds of a validation.
        training: Time of the training of an epoch.
        epochs: Number of epochs of the run, or -1.
    """
    if proof <= MIN_SECONDS:
        return 1
    least = max(1, math.ceil(proof / (MAX_SHARE * training)))
    if epochs < 1:
        return least
    whole = (k for k in range(least, 2 * least + 1) if epochs % k == 0)
    return min(next(whole, least), epochs)


class Cadence(Callback):
    """Validates every few epochs where bounds would take longer than training.

    Args:
        batch_size: Number of examples of a training step of a process.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose, once the number of steps is known."""
        module: Any = pl_module
        network = module.folded()
        accelerated = not isinstance(trainer.accelerator, CPUAccelerator)
        proof = proof_seconds(network, accelerated=accelerated)
        training = training_seconds(
            *(network, int(trainer.num_training_batches), self.batch_size),
            accelerated=accelerated,
        )
        every = epochs_between(proof, training, trainer.max_epochs or -1)
        trainer.check_val_every_n_epoch = every
        if every > 1 and trainer.is_global_zero:
            log.info(
                "validating every %d epochs: bounds take about %.3g s, an epoch of training %.3g "
                "s; set trainer.check_val_every_n_epoch for another number",
                *(every, proof, training),
            )
