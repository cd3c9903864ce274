"""How large the gradients of training are."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class LogGradients(Callback):
    """Logs ``train/gradient_norm`` and what belongs to it, over the steps of an epoch.

    ``train/gradient_norm`` and ``train/gradient_norm_max`` are mean and maximum of the l2 norm of
    all gradients, before they are clipped; ``train/gradient_clipped`` is the share of steps with a
    norm above ``trainer.gradient_clip_val``, where that is set. Norms that are NaN count as such.
    """

    def __init__(self) -> None:
        self._norms: list[Tensor] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the epoch before."""
        self._norms = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure; Lightning clips afterwards."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._norms.append(torch.nn.utils.get_total_norm(gradients).detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        norms = torch.stack(self._norms) if self._norms else torch.full((1,), torch.nan)
        pl_module.log("train/gradient_norm", norms.mean())
        pl_module.log("train/gradient_norm_max", norms.max())
        if trainer.gradient_clip_val:
            share = (norms > trainer.gradient_clip_val).float().mean()
            pl_module.log("train/gradient_clipped", share)
