"""Annealed temperatures: a smooth activation that sharpens while it is trained."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from robustcert.activations.positive import MAX_VALUE, MIN_VALUE, Positive
from robustcert.errors import ConfigError


class TemperatureAnnealing(Callback):
    r"""Moves every fixed temperature from ``start`` to ``end``, epoch by epoch.

    With the share s of epochs that are over, :math:`\tau = start^{1 - s}\, end^s`: the last epoch
    is trained, and validated, at ``end``. Temperatures are part of the network's state, so
    ``best.ckpt`` keeps the one that it was chosen with.

    Args:
        start: Temperature of the first epoch, in units of the activation's input.
        end: Temperature of the last epoch.
    """

    def __init__(self, start: float, end: float) -> None:
        for key, value in (("start", start), ("end", end)):
            if not MIN_VALUE <= value <= MAX_VALUE:
                raise ValueError(
                    f"TemperatureAnnealing: expected {key} between {MIN_VALUE:g} and "
                    f"{MAX_VALUE:g}, got {value}"
                )
        self.start = start
        self.end = end

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a network without fixed temperatures.

        Raises:
            ConfigError: there is none, or it is trained itself.
        """
        found = temperatures(pl_module)
        if not found or any(part.log.requires_grad for part in found):
            raise ConfigError(
                "TemperatureAnnealing needs an activation with a fixed temperature: set "
                "activation=smooth model.activation.learnable=false"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the temperature of this epoch."""
        last = (trainer.max_epochs or 1) - 1
        share = 1.0 if last < 1 else min(trainer.current_epoch / last, 1.0)
        log = (1 - share) * math.log(self.start) + share * math.log(self.end)
        for part in temperatures(pl_module):
            part.log.fill_(log)


def temperatures(module: Any) -> list[Positive]:
    """The temperatures in a module."""
    return [
        part
        for name, part in module.named_modules()
        if isinstance(part, Positive) and name.split(".")[-1] == "temperature"
    ]
