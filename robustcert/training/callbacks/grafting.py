"""Linearity grafting: during training, some units become lines."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from robustcert.activations import Grafted
from robustcert.data import as_numbers
from robustcert.errors import ConfigError
from robustcert.metrics.kinks import UnitScores, kinks_within, unit_scores
from robustcert.network.fold import fold_network

log = logging.getLogger(__name__)


class LinearityGrafting(Callback):
    r"""Turns a share of the units of :class:`robustcert.activations.Grafted` into lines, once.

    Units are chosen by :math:`d / s`: d is the share of training samples whose input of the unit
    is nearer to its kink than epsilon times the local Lipschitz constant of that input (unstable,
    in the words of the paper), and s the mean norm of the gradient of the margin by the unit's
    output (its significance). What is left of training fine-tunes the network, lines included.

    Logs ``graft/kinks``, the share of units with a kink within epsilon, after every epoch. The
    chosen units are part of the network's state, so that a resumed run goes on with them.

    Reference: Chen et al., `Linearity grafting: relaxed neuron pruning helps certifiable robustness
    <https://arxiv.org/abs/2206.07839>`_, ICML 2022. There, units are unstable if an interval of
    their inputs around a sample has a kink in it, for a box around the sample.

    Args:
        share: Of the units of all activations together, in [0, 1].
        epoch: Epochs of training before it.
        samples: Training samples that units are judged by.
    """

    def __init__(self, share: float = 0.3, epoch: int = 15, samples: int = 64) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"expected share in [0, 1], got {share}")
        for key, value, least in (("epoch", epoch, 0), ("samples", samples, 1)):
            if value < least:
                raise ValueError(f"expected {key} of at least {least}, got {value}")
        self.share = share
        self.epoch = epoch
        self.samples = samples

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be grafted.

        Raises:
            ConfigError: training ends before, or units are missing or not reached one by one.
        """
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= self.epoch:
            raise ConfigError(
                f"LinearityGrafting(epoch={self.epoch}) comes after the last of "
                f"{trainer.max_epochs} epochs: raise trainer.max_epochs"
            )
        module: Any = pl_module
        known = {name for name, part in module.model.named_modules() if isinstance(part, Grafted)}
        network = fold_network(module.model, module.input_shape)
        reached = {operation.name for operation in network.operations}
        if not known or not known <= reached:
            raise ConfigError(
                "LinearityGrafting needs grafted activations that are applied one after the other: "
                "set activation=grafted, with model=mlp or model=convnet"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose and graft, when it is time."""
        if trainer.current_epoch != self.epoch:
            return
        model: Any = pl_module.model
        scores = self._scores(trainer, pl_module)
        chosen = choose(scores, self.share)
        for unit, units in zip(scores, chosen, strict=True):
            model.get_submodule(unit.name).graft_units(units, unit.inputs)
        count = sum(int(units.sum()) for units in chosen)
        log.info("grafted %d of %d units", count, sum(map(len, chosen)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the share of kinks within epsilon, of the samples that units are judged by."""
        if trainer.sanity_checking:
            return
        module: Any = pl_module
        network, x = self._network_and_samples(trainer, pl_module)
        share = kinks_within(network, x, module.epsilon).mean()
        module.log("graft/kinks", share.float())

    def _scores(self, trainer: Trainer, pl_module: LightningModule) -> list[UnitScores]:
        module: Any = pl_module
        network, x = self._network_and_samples(trainer, pl_module)
        return unit_scores(network, x, module.epsilon)

    def _network_and_samples(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Any, Any]:
        # Every rank looks at the same samples and comes to the same choice.
        module: Any = pl_module
        data = trainer.datamodule  # type: ignore[attr-defined]
        with torch.autocast(module.device.type, enabled=False):
            network = fold_network(module.model, module.input_shape, module.space)
        inputs = data.stored("train").inputs
        rows = torch.arange(min(self.samples, len(inputs)))
        x = as_numbers(inputs[rows], module.space.kind)
        return network.to(module.device), x.to(module.device)


def choose(scores: list[UnitScores], share: float) -> list[torch.Tensor]:
    """Which units have the largest scores, for each activation a boolean tensor.

    Args:
        scores: Of every activation.
        share: Of all units together; the number is rounded to the nearest.
    """
    values = torch.cat([unit.score for unit in scores])
    best = values.argsort(descending=True, stable=True)[: round(share * len(values))]
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[best] = True
    return list(mask.split([len(unit.score) for unit in scores]))
