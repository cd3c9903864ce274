"""Random numbers that a resumed run draws again."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from robustcert.data.sampler import derive_seed

# First part of these seeds, which keeps them apart from those of batches.
EPOCH_SEED_KEY = 18_060_421


class SeedEpochs(Callback):
    """Seeds torch's global generators at the start of every epoch, from seed, epoch and rank.

    Checkpoints don't hold the generators' states, so a network that draws (a dropout, say) would
    not continue as it would have gone on.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed."""
        torch.manual_seed(
            derive_seed(EPOCH_SEED_KEY, self.seed, trainer.current_epoch, trainer.global_rank)
        )
