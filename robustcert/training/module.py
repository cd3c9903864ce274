"""The LightningModule: trains with estimates, validates with bounds."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from robustcert.certifiers import QuadricCertifier
from robustcert.errors import DivergedError
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.margins import certified_radius
from robustcert.metrics import AverageCertifiedRadius, RejectionRate, VerifiedRobustAccuracy
from robustcert.models.distance import MeasuresDistances
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork, pairwise_bound
from robustcert.training.schedules import CosineSchedule, EpsilonSchedule

Batch = tuple[Tensor, Tensor]
# Of mixed images: inputs, targets, their partners' targets, share of their own.
TrainBatch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]


# Training examples of each class that a model may look at before training.
STARTING = 2000


class CertifiedClassifier(LightningModule):
    """Certified training of a model.

    Logged per epoch: ``train/loss``, ``train/accuracy``, ``train/vra_estimate``, ``train/epsilon``;
    ``val/loss``, ``val/accuracy``, ``val/vra`` (at ``epsilon``), ``val/vra_<radius>``, ``val/acr``,
    ``val/rejection`` and ``val/lipschitz`` (the largest pairwise constant). Whatever is under
    ``val/`` comes from the folded network and a bound of it, computed once an epoch; only the
    rounding of the logits, a matter of 1e-6, is left to certification.

    A model that :class:`MeasuresDistances` is trained on its own estimates of them, validated by
    :class:`robustcert.certifiers.QuadricCertifier`, and has no ``val/lipschitz``; its ``val/loss``
    rests on those estimates.

    Args:
        model: Network with ``backbone`` and ``head``, or one that :class:`MeasuresDistances`.
        objective: ``objective(logits, target, pairwise_lipschitz, epsilon)``.
        input_shape: Shape of one input.
        num_classes: Number of classes.
        epsilon: Radius that is trained for and selected by, in input units.
        radii: Radii at which verified robust accuracy is reported.
        optimizer: Called with the parameters.
        epsilon_schedule: Training radius over training.
        lr_schedule: Learning rate over training.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[Tensor, Tensor, Tensor, float], Tensor],
        *,
        input_shape: Sequence[int],
        num_classes: int,
        epsilon: float,
        radii: Sequence[float],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        epsilon_schedule: EpsilonSchedule | None = None,
        lr_schedule: CosineSchedule | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.epsilon = epsilon
        self.radii = sorted({*radii, epsilon})
        self.optimizer = optimizer
        self.epsilon_schedule = epsilon_schedule or EpsilonSchedule(1.0, 1.0, 0.0)
        self.lr_schedule = lr_schedule or CosineSchedule()
        # A metric's ranks meet where compute is called, a value's wherever someone reads it.
        # Updated with a copy for every sample: with this strategy weights are ignored.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.train_vra = VerifiedRobustAccuracy([epsilon])
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_vra = VerifiedRobustAccuracy(self.radii)
        self.val_acr = AverageCertifiedRadius()
        self.val_rejection = RejectionRate(epsilon)
        # Every rank computes the same buffers; DDP would broadcast them with every step, and wait
        # for a rank that has no validation batch.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self._plain: PlainNetwork | None = None
        self._pairwise = torch.empty(0, dtype=torch.float32, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, C)``."""
        return self.model(x)

    @property
    def progress(self) -> float:
        """Share of training done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, self.trainer.estimated_stepping_batches))

    def on_fit_start(self) -> None:
        """Start a model that measures distances at the training data."""
        if isinstance(self.model, MeasuresDistances):
            datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            examples = datamodule.first_of_each_class(STARTING)
            self.model.start_at(examples.inputs, examples.labels)

    def scores(self, x: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """From targets to logits with estimates of their pairwise constants."""
        model = self.model
        if isinstance(model, MeasuresDistances):
            constants = 1 - torch.eye(self.num_classes, dtype=torch.float32, device=x.device)
            return lambda target: (model.distance_logits(x, target).float(), constants)
        scores = model(x).float(), pairwise_lipschitz_estimate(model).float()
        return lambda target: scores

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """Objective on the estimate of the pairwise constants, or of distances.

        The loss of mixed images is that of both their targets, by their shares; metrics count the
        first target.
        """
        x, target, *mixed = batch
        epsilon = self.epsilon_schedule(self.epsilon, self.progress)
        scores = self.scores(x)
        logits, pairwise = scores(target)
        loss = self.objective(logits, target, pairwise, epsilon)
        if mixed:
            partner, share = mixed
            others, _ = scores(partner)
            other = self.objective(others, partner, pairwise, epsilon)
            loss = share * loss + (1 - share) * other
        with torch.no_grad():
            prediction = logits.argmax(1)
            radius = certified_radius(logits, prediction, pairwise)
            self.train_loss.update(loss.detach().expand(len(x)))
            self.train_accuracy.update(prediction, target)
            self.train_vra.update(radius, prediction == target)
        self.log("train/epsilon", epsilon, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the training metrics; the constants behind them were estimates."""
        metrics = {
            "train/loss": self.train_loss,
            "train/accuracy": self.train_accuracy,
            "train/vra_estimate": self.train_vra,
        }
        for key, metric in metrics.items():
            self.log(key, metric.compute())
            metric.reset()

    @property
    def _val_metrics(self) -> dict[str, Metric]:
        return {
            "val/loss": self.val_loss,
            "val/accuracy": self.val_accuracy,
            "val/acr": self.val_acr,
            "val/rejection": self.val_rejection,
        }

    def on_train_epoch_start(self) -> None:
        """Hand a schedule-free optimizer the weights at which it takes gradients."""
        self._switch_optimizer("train")

    def on_validation_start(self) -> None:
        """Put its averaged weights in place: they are validated and go into checkpoints."""
        self._switch_optimizer("eval")

    def _switch_optimizer(self, mode: str) -> None:
        if self._trainer is None or not self.trainer.optimizers:
            return
        for optimizer in self.trainer.optimizers:
            getattr(optimizer, mode, lambda: None)()

    def on_validation_epoch_start(self) -> None:
        """Fold the network and bound it, once.

        Raises:
            DivergedError: a weight is NaN or infinite.
        """
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise DivergedError(self.current_epoch, f"{name} is NaN or infinite")
        # A reduced precision is for training steps: it never reaches a verified number.
        with torch.autocast(self.device.type, enabled=False):
            network = fold_network(self.model, self.input_shape)
        self._plain = network.to(self.device)
        if not isinstance(self.model, MeasuresDistances):
            self._pairwise = pairwise_bound(network).to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count certified samples of the validation split."""
        x, target = batch
        assert self._plain is not None
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(self.model, MeasuresDistances):
                logits, pairwise = self.scores(x)(target)
                found = QuadricCertifier().certify(self._plain, x)
                prediction, radius = found.prediction, found.radius
            else:
                logits, pairwise = self._plain(x.float()), self._pairwise.float()
                prediction = logits.argmax(1)
                radius = certified_radius(logits.double(), prediction, self._pairwise)
            loss = self.objective(logits, target, pairwise, self.epsilon)
        correct = prediction == target
        self.val_loss.update(loss.expand(len(x)))
        self.val_accuracy.update(prediction, target)
        self.val_vra.update(radius, correct)
        self.val_acr.update(radius, correct)
        self.val_rejection.update(radius)

    def on_validation_epoch_end(self) -> None:
        """Log the verified metrics of the validation split."""
        for radius, vra in zip(self.radii, self.val_vra.compute().reshape(-1), strict=True):
            self.log(f"val/vra_{radius:.4g}", vra)
            if radius == self.epsilon:
                self.log("val/vra", vra, prog_bar=True)
        for key, metric in self._val_metrics.items():
            self.log(key, metric.compute().float(), prog_bar=key == "val/accuracy")
        if not isinstance(self.model, MeasuresDistances):
            self.log("val/lipschitz", float(self._pairwise.max()))
        for metric in (self.val_vra, *self._val_metrics.values()):
            metric.reset()
        self._plain = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with the learning-rate schedule stepped every batch."""
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                "the schedules need to know the end of training: set trainer.max_epochs"
            )
        optimizer = self.optimizer(self.parameters())
        _refuse_averages_of_steps(optimizer, self.model)
        total = max(1, int(steps))
        scheduler = LambdaLR(optimizer, lambda step: self.lr_schedule(step / total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _refuse_averages_of_steps(optimizer: Optimizer, model: nn.Module) -> None:
    steps = next((m for m in model.modules() if getattr(m, "weights_are_steps", False)), None)
    if steps is not None and getattr(optimizer, "averages_weights", False):
        raise ValueError(
            f"{type(optimizer).__name__} averages weights, but those of {type(steps).__name__} are "
            "steps on a manifold, whose average means nothing: set optimizer=nadam or another layer"
        )
