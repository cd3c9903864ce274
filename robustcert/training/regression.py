"""Training of a network with one real output: its metrics, and how validation certifies it."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from robustcert.certifiers import (
    Certifier,
    IntervalCertifier,
    bounds_on,
    quick_bounds,
    strict_arithmetic,
)
from robustcert.models.head import Head
from robustcert.models.scores import output_scores
from robustcert.network.network import PlainNetwork
from robustcert.training.module import Batch, CertifiedModule, TrainBatch, scored_loss


class ValidationBound:
    """The proved constant of the output, by which validation certifies.

    Residuals are those of float32 outputs; their rounding is left to certification.

    Args:
        certifier: Certifier of the claim, see :class:`IntervalCertifier`.
        samples: Only for certifiers of single samples, of which this is none.
    """

    def __init__(self, certifier: Certifier | None = None, samples: int | None = None) -> None:
        del samples
        self.certifier = certifier

    def measure(self, network: PlainNetwork) -> str:
        """What is counted; the scores of two epochs compare only if it is the same."""
        return "intervals by the Lipschitz constant of the output"

    def describe(self, network: PlainNetwork) -> str:
        """The same in one line."""
        return self.measure(network)

    def check(self, network: PlainNetwork) -> None:
        """Bound the output once, to know before training that it can be done.

        Raises:
            UnsoundNetworkError: it cannot.
        """
        self.lipschitz(network)

    @quick_bounds()
    @strict_arithmetic()
    def lipschitz(self, network: PlainNetwork) -> float:
        """Proved bound on the constant of the output.

        Raises:
            UnsoundNetworkError: it cannot be proved, or the certifier is for classes.
        """
        return float(IntervalCertifier(self.certifier).lipschitz(network)[0])


class CertifiedRegressor(CertifiedModule):
    r"""Certified training of a model with one real output.

    Logged per epoch: ``train/loss``, ``train/mae``, ``train/certified_mae_estimate`` and
    ``train/epsilon``; ``val/loss``, ``val/mae``, ``val/certified_mae`` (at ``epsilon``),
    ``val/certified_mae_<radius>``, ``val/width`` (of the interval at ``epsilon``) and
    ``val/lipschitz``. The certified mean absolute error within r is the mean of
    :math:`|f(x) - y| + K r`, which no input within r of a sample exceeds.

    Args:
        model: As for :class:`CertifiedModule`, with one output and a ``lipschitz_estimate``.
        objective: ``objective(outputs, target, lipschitz, epsilon)``, with the estimate of the
            output's constant.
        epsilon: Radius that is trained for and selected by, in input units.
        validation: How the output is bounded.
        options: Further options of :class:`CertifiedModule`.
    """

    score = "val/certified_mae"
    validation: ValidationBound

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[Tensor, Tensor, Tensor, float], Tensor],
        *,
        epsilon: float,
        validation: ValidationBound | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, objective, epsilon=epsilon, **options)
        self.validation = validation or ValidationBound()
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.train_mae = MeanMetric(nan_strategy="disable")
        self.train_certified = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_mae = MeanMetric(nan_strategy="disable")
        self.ignore_buffers()
        self._network: PlainNetwork | None = None
        self._lipschitz = 0.0

    def on_fit_start(self) -> None:
        """Start the output at the mean of the training targets; a resumed run is where it was."""
        super().on_fit_start()
        if self.trainer.ckpt_path is None:
            datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            start_at_mean(self.model, datamodule.stored("train").labels)

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """Objective on the model's outputs and the estimate of their constant."""
        x, target = batch[:2]
        epsilon = self.epsilon_schedule(self.epsilon, self.progress)
        step, given = self.compiled(scored_loss), (self.model, self.objective, batch)
        loss, outputs, lipschitz = step(output_scores, *given, epsilon, self.stretch)
        with torch.no_grad():
            residual = (outputs[:, 0] - target).abs()
            self.train_loss.update(loss.detach().expand(len(x)))
            self.train_mae.update(residual)
            self.train_certified.update(residual + lipschitz * self.epsilon)
        self.log("train/epsilon", epsilon, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the training metrics; the constant behind them was an estimate."""
        self._flush(
            {
                "train/loss": self.train_loss,
                "train/mae": self.train_mae,
                "train/certified_mae_estimate": self.train_certified,
            }
        )

    def on_validation_epoch_start(self) -> None:
        """Fold the network and prove its constant, once; in a trial, nothing.

        Raises:
            DivergedError: a weight is NaN or infinite.
            UnsoundNetworkError: see :meth:`ValidationBound.lipschitz`.
        """
        if self.only_checking:
            return
        begun = time.perf_counter()
        network = self.folded()
        with bounds_on(self.device):
            self._lipschitz = self.validation.lipschitz(network)
        self._network = network.to(self.device)
        self.bound_seconds = time.perf_counter() - begun

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the residuals of a batch of the validation split."""
        x, target = batch
        if self.only_checking:
            estimated = output_scores(self.model, x)
            self.objective(estimated.logits(target), target, estimated.pairwise, self.epsilon)
            return
        assert self._network is not None
        with torch.autocast(x.device.type, enabled=False):
            outputs = self._network(x.float())
            lipschitz = torch.tensor(self._lipschitz, dtype=torch.float32, device=x.device)
            loss = self.objective(outputs, target, lipschitz, self.epsilon)
        self.val_loss.update(loss.expand(len(x)))
        self.val_mae.update((outputs[:, 0] - target).abs())

    def on_validation_epoch_end(self) -> None:
        """Log the certified metrics of the validation split."""
        if self.only_checking:
            return
        mae = self.val_mae.compute()
        for radius in self.radii:
            self.log(f"val/certified_mae_{radius:.4g}", mae + self._lipschitz * radius)
        self.log(self.score, mae + self._lipschitz * self.epsilon, prog_bar=True)
        self.log("val/width", 2 * self._lipschitz * self.epsilon)
        self.log("val/lipschitz", self._lipschitz)
        self._flush({"val/loss": self.val_loss, "val/mae": self.val_mae})
        self._network = None

    def _flush(self, metrics: dict[str, Metric]) -> None:
        for key, metric in metrics.items():
            self.log(key, metric.compute(), prog_bar=key == "val/mae")
            metric.reset()


@torch.no_grad()
def start_at_mean(model: nn.Module, targets: Tensor) -> None:
    """Set the bias of a model's head to the mean of targets, where it is 0 as in a new one.

    Targets may be far from 0, which steps of the learning rate alone take long to reach.
    """
    heads = [module for module in model.modules() if isinstance(module, Head)]
    if heads and not heads[-1].bias.any():
        heads[-1].bias.fill_(float(targets.double().mean()))
