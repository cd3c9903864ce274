"""How tight the certificates are while training, for those who ask for it."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from robustcert.certifiers import LipschitzCertifier, gradient_ratio
from robustcert.data import to_unit
from robustcert.lipschitz import fold_network
from robustcert.metrics.tightness import attack_distance, tightness
from robustcert.module import CertifiedClassifier


class LogTightness(Callback):
    r"""Logs ``val/tightness_estimate`` and ``val/gradient_over_bound`` after a validation epoch.

    The first is the mean of :math:`t = r / d` over the first validation samples that are
    certified, with d the distance that restarted DDN finds. An attack may miss the nearest change
    of prediction, so d errs upwards and t downwards. The second is the largest share of the
    pairwise bounds that the gradients there attain: near 1, no tighter global bound pays.

    Attacks cost more than an epoch of a small network; hence few samples, and not every epoch.
    Add it with ``+trainer.callbacks=[{_target_: robustcert.callbacks.LogTightness}]``.

    Args:
        samples: The most samples looked at.
        steps: Gradient steps of the attack from each of its starts.
        restarts: Its starts.
        every: Epochs between two measurements.
    """

    def __init__(
        self, samples: int = 64, steps: int = 50, restarts: int = 2, every: int = 5
    ) -> None:
        if min(samples, steps, restarts, every) < 1:
            raise ValueError(
                "LogTightness: expected samples, steps, restarts and every of at least 1, got "
                f"{samples}, {steps}, {restarts} and {every}"
            )
        self.samples, self.steps, self.restarts, self.every = samples, steps, restarts, every

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on rank 0, in float64."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due = last or (trainer.current_epoch + 1) % self.every == 0
        if trainer.sanity_checking or not due or not trainer.is_global_zero:
            return
        # Validation runs in inference mode, which knows no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            assert isinstance(pl_module, CertifiedClassifier)
            for key, value in self._measure(trainer, pl_module).items():
                if value.isfinite():
                    pl_module.log(key, value.float(), rank_zero_only=True)

    def _measure(self, trainer: Trainer, pl_module: CertifiedClassifier) -> dict[str, Tensor]:
        examples = trainer.datamodule.stored("validation")  # type: ignore[attr-defined]
        x = to_unit(examples.inputs[: self.samples]).to(pl_module.device)
        network = fold_network(pl_module.model, pl_module.input_shape).to(pl_module.device)
        certifier = LipschitzCertifier()
        found = certifier.certify(network, x)
        distance = attack_distance(
            network, x, found.prediction, steps=self.steps, restarts=self.restarts
        )
        shares = tightness(found.radius, distance)[found.radius > 0]
        return {
            "val/tightness_estimate": shares.nanmean(),
            "val/gradient_over_bound": gradient_ratio(
                network, x, certifier.pairwise_bound(network)
            ).max(),
        }
