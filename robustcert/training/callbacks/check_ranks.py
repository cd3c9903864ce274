"""A guard against training on a part of the data without noticing."""

from lightning.pytorch import Callback, LightningModule, Trainer

from robustcert.errors import ConfigError


class CheckRanks(Callback):
    """Refuses to start with fewer processes than devices were asked for.

    A cluster job with one task and two devices per node runs one process that takes every second
    sample, in training and in validation.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare, once the processes know of each other."""
        wanted = trainer.num_devices * trainer.num_nodes
        if trainer.world_size != wanted:
            raise ConfigError(
                f"trainer.devices={trainer.num_devices} on trainer.num_nodes={trainer.num_nodes} "
                f"needs {wanted} processes, and {trainer.world_size} started: start one task per "
                "device (srun --ntasks-per-node)"
            )
