"""How tight the certificates are while a network is trained, on a few validation samples."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric

from robustcert.attacks import ddn
from robustcert.certifiers import LipschitzCertifier
from robustcert.errors import ConfigError, UnsoundNetworkError
from robustcert.margins import margins
from robustcert.metrics.kinks import kinks_within
from robustcert.metrics.tightness import (
    CertifiabilityGap,
    Tightness,
    split_tightness,
    steepest_slopes,
)
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork


class LogTightness(Callback):
    """Logs ``val/tightness`` and what it is made of; see :mod:`robustcert.metrics.tightness`.

    ``val/tightness`` and ``val/tightness_worst`` are mean and 5 % quantile of radius over distance;
    ``val/tightness_bound`` and ``val/tightness_shape`` the means of the two factors, both at most
    1; ``val/certifiability_gap`` the area between the accuracy under attack and the verified one up
    to the largest of ``radii``; ``val/kinks`` the share of units with a kink within ``epsilon``.
    Only correctly classified samples have a tightness. Distances are those of restarted DDN. In a
    metric S, all of these are of u in x + S u.

    Args:
        samples: Validation samples, over all ranks.
        every: Epochs between two measurements.
        steps: Gradient steps from each start of the attack.
        restarts: Starts of the attack.
    """

    def __init__(
        self, samples: int = 64, every: int = 1, steps: int = 100, restarts: int = 10
    ) -> None:
        for key, value in (
            ("samples", samples),
            ("every", every),
            ("steps", steps),
            ("restarts", restarts),
        ):
            if value < 1:
                raise ValueError(f"expected {key} of at least 1, got {value}")
        self.samples = samples
        self.every = every
        self.steps = steps
        self.restarts = restarts
        self._inputs: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a network without Lipschitz constants, which the two factors are made of."""
        module: Any = pl_module
        network = fold_network(module.model, module.input_shape, module.space)
        if network.classes < 2:
            raise ConfigError(
                "LogTightness is of distances to another class, which a regression has none of: "
                "leave it out of trainer.callbacks (trainer=default)"
            )
        try:
            LipschitzCertifier().pairwise_bound(network)
        except UnsoundNetworkError as error:
            raise ValueError(
                f"{type(module.model).__name__} has no Lipschitz constant, of which tightness is "
                f"measured ({error}): leave LogTightness out of trainer.callbacks (trainer=default)"
            ) from error

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the samples of the epoch before."""
        self._inputs, self._labels = [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first samples of this rank."""
        share = -(-(self.samples - trainer.global_rank) // trainer.world_size)
        missing = max(0, share) - sum(map(len, self._labels))
        if missing > 0 and self._is_due(trainer):
            self._inputs.append(batch[0][:missing])
            self._labels.append(batch[1][:missing])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        if not self._is_due(trainer):
            return
        module: Any = pl_module
        with torch.autocast(module.device.type, enabled=False):
            network = fold_network(module.model, module.input_shape, module.space).to(module.device)
            found = self._measure(network, module.epsilon)
        metrics = {
            "tightness": Tightness(),
            "tightness_bound": MeanMetric(nan_strategy="ignore"),
            "tightness_shape": MeanMetric(nan_strategy="ignore"),
            "certifiability_gap": CertifiabilityGap(module.radii[-1]),
            "kinks": MeanMetric(nan_strategy="ignore"),
        }
        for key, metric in metrics.items():
            metric.to(module.device).update(*(t.to(module.device) for t in found[key]))
            value = metric.compute()
            if isinstance(value, dict):
                module.log(f"val/{key}", value["mean"].float())
                module.log(f"val/{key}_worst", value["worst"].float())
            else:
                module.log(f"val/{key}", value.float())

    def _measure(self, network: PlainNetwork, epsilon: float) -> dict[str, tuple[Tensor, ...]]:
        """What each metric is updated with."""
        nothing = torch.empty(0, dtype=torch.float64)
        by_bound = by_shape = nothing
        if not self._labels:
            # A rank without samples takes part in the sum all the same.
            none = nothing.bool()
            return {
                "tightness": (nothing, nothing),
                "tightness_bound": (nothing,),
                "tightness_shape": (nothing,),
                "certifiability_gap": (nothing, nothing, none),
                "kinks": (nothing,),
            }
        x, label = torch.cat(self._inputs).double(), torch.cat(self._labels)
        certifier = LipschitzCertifier()
        found = certifier.certify(network, x)
        own, correct = found.prediction, found.prediction == label
        # In a metric S the attack searches u of x + S u, and so do the slopes.
        f, centre = network.around(x)
        distance, delta = ddn(f, centre, own, steps=self.steps, restarts=self.restarts)
        rows = (correct & torch.isfinite(distance)).nonzero()[:, 0]
        if len(rows):
            near, near_own = x[rows], own[rows]
            point, start = network.balls(near)
            logits = network(point(start + delta[rows])).scatter(1, near_own[:, None], -torch.inf)
            rival = logits.argmax(1)
            by_bound, by_shape = split_tightness(
                margins(network(near), near_own).gather(1, rival[:, None])[:, 0],
                certifier.pairwise_bound(network).to(x.device)[near_own, rival],
                steepest_slopes(network, near)[near_own, rival],
                distance[rows],
            )
        return {
            "tightness": (found.radius[rows], distance[rows]),
            "tightness_bound": (by_bound,),
            "tightness_shape": (by_shape,),
            "certifiability_gap": (found.radius, distance, correct),
            "kinks": (kinks_within(network, x, epsilon),),
        }

    def _is_due(self, trainer: Trainer) -> bool:
        return not trainer.sanity_checking and (trainer.current_epoch + 1) % self.every == 0
