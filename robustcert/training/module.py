"""The LightningModule: trains with estimates, validates with bounds."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from robustcert.errors import ConfigError, DivergedError
from robustcert.layers.together import constrained_together
from robustcert.margins import certified_radius
from robustcert.metrics import AverageCertifiedRadius, RejectionRate, VerifiedRobustAccuracy
from robustcert.models.scores import TrainingScores, training_scores
from robustcert.network.fold import fold_network
from robustcert.network.input_space import IMAGES, InputSpace, composed
from robustcert.network.linear import Affine
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation
from robustcert.training.schedules import CosineSchedule, EpsilonSchedule, TorchSchedule
from robustcert.training.validation import ValidationCertifier

Batch = tuple[Tensor, Tensor]
# Of mixed images: inputs, targets, their partners' targets, share of their own.
TrainBatch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]
# From the arguments of scored_loss to the loss, outputs and their constants.
Step = Callable[..., tuple[Tensor, Tensor, Tensor]]

# Maximum number of training examples of each class that a model's ``start_at`` is given.
MAX_STARTING_EXAMPLES = 2000


class CertifiedModule(LightningModule):
    """Training of a model by an objective, its optimizer and its schedules, whatever the targets.

    Training rests on estimates; whatever is logged under ``val/`` comes from the folded network.

    Args:
        model: Any module that can be folded. Its ``start_at(inputs, labels)``, if it has one, is
            called before training.
        objective: ``objective(outputs, target, constants, epsilon)``.
        input_shape: Shape of one input.
        num_classes: Number of outputs: of classes, or 1 for a real target.
        epsilon: Radius that is trained for and selected by, in input units.
        radii: Radii at which metrics are reported.
        optimizer: Called with the parameters.
        epsilon_schedule: Training radius over training.
        lr_schedule: Learning rate over training; None for that of the optimizer.
        space: What inputs are, with the metric that ``epsilon`` and all radii refer to.
    """

    # Metric that chooses best.ckpt, one of robustcert.training.checkpoint.SCORES.
    score: ClassVar[str]
    validation: Any

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
        lr_schedule: CosineSchedule | TorchSchedule | None = None,
        space: InputSpace = IMAGES,
    ) -> None:
        super().__init__()
        # Backend of torch.compile for training steps; None to run them as written.
        self.compiler: str | None = None
        self.model = model
        self.objective = objective
        self.input_shape = tuple(input_shape)
        self.space = space
        # Factor on estimated constants: 1 for the l2 distance of inputs.
        self.stretch = 1.0
        if space.metric is not None:
            self.stretch = stretch_of(space.metric, fold_network(model, self.input_shape))
        self.num_classes = num_classes
        self.epsilon = epsilon
        self.radii = sorted({*radii, epsilon})
        self.optimizer = optimizer
        self.epsilon_schedule = epsilon_schedule or EpsilonSchedule(1.0, 1.0, 0.0)
        self.lr_schedule = lr_schedule
        # Seconds that the bounds of the last validation took, before its first sample.
        self.bound_seconds: float | None = None

    def ignore_buffers(self) -> None:
        """Keep buffers out of DDP's broadcasts; called once all metrics are there."""
        # Every rank computes the same buffers; DDP would broadcast them with every step, and wait
        # for a rank that has no validation batch.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of shape ``(N, C)``."""
        return self.model(x)

    def compiled(self, step: Step) -> Step:
        """A function of a training step, by ``compiler`` if there is one.

        What is compiled belongs to no module, so that names in checkpoints do not change.
        """
        return step if self.compiler is None else _compiled(step, self.compiler)

    @property
    def progress(self) -> float:
        """Share of training done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, self.trainer.estimated_stepping_batches))

    def on_fit_start(self) -> None:
        """Start a model at the training data, if it has a ``start_at``."""
        start: Any = getattr(self.model, "start_at", None)
        if start is not None:
            datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            examples = datamodule.first_of_each_class(MAX_STARTING_EXAMPLES)
            start(examples.inputs, examples.labels)

    def on_train_epoch_start(self) -> None:
        """Hand a schedule-free optimizer the weights at which it takes gradients."""
        self._switch_optimizer("train")

    def on_validation_start(self) -> None:
        """Put its averaged weights in place: they are validated and go into checkpoints."""
        self._switch_optimizer("eval")

    def on_validation_end(self) -> None:
        """Give its metric to a schedule that waits for a plateau.

        Lightning would do so after the epoch's checkpoint, of which a run would be resumed with
        the rate from before: see :class:`TorchSchedule`.

        Raises:
            ValueError: the metric is none that is logged.
        """
        if self._trainer is None or self.trainer.sanity_checking:
            return
        for schedule in self.trainer.lr_scheduler_configs:
            if not schedule.reduce_on_plateau:
                continue
            metrics = self.trainer.callback_metrics
            if schedule.monitor not in metrics:
                known = ", ".join(sorted(key for key in metrics if key.startswith("val/")))
                raise ValueError(
                    f"lr_schedule.monitor: no metric {schedule.monitor!r}; there are {known}"
                )
            plateau: Any = schedule.scheduler
            plateau.step(float(metrics[schedule.monitor]))

    def _switch_optimizer(self, mode: str) -> None:
        if self._trainer is None or not self.trainer.optimizers:
            return
        for optimizer in self.trainer.optimizers:
            getattr(optimizer, mode, lambda: None)()

    @property
    def only_checking(self) -> bool:
        """Whether this validation is Lightning's trial of the data, whose metrics nobody reads."""
        return self._trainer is not None and self.trainer.sanity_checking

    def folded(self) -> PlainNetwork:
        """The folded network, in full precision.

        Raises:
            DivergedError: a weight is NaN or infinite.
        """
        for name, parameter in self.model.named_parameters():
            # A NaN makes both extremes NaN, and isfinite takes ten times as long.
            if parameter.numel() and not all(map(math.isfinite, torch.aminmax(parameter.detach()))):
                raise DivergedError(self.current_epoch, f"{name} is NaN or infinite")
        # A reduced precision is for training steps: it never reaches a verified number.
        with torch.autocast(self.device.type, enabled=False):
            return fold_network(self.model, self.input_shape, self.space)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with the learning-rate schedule."""
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                "the schedules need to know the end of training: set trainer.max_epochs"
            )
        try:
            optimizer = self.optimizer(self.parameters())
        except ValueError as error:
            raise ConfigError(f"optimizer: {error}") from error
        _refuse_averages_of_steps(optimizer, self.model)
        if self.lr_schedule is None:
            return optimizer
        schedule: Any = self.lr_schedule.scheduler_of(optimizer, max(1, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": schedule}


@cache
def _compiled(step: Step, backend: str) -> Step:
    return torch.compile(step, backend=backend)


def scored_loss(
    scores_of: Callable[[nn.Module, Tensor], TrainingScores],
    model: nn.Module,
    objective: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    batch: TrainBatch,
    epsilon: float,
    stretch: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a batch, with the outputs and the constants that it is of.

    The loss of mixed images is that of both their targets, by their shares.
    """
    x, target, *mixed = batch
    with constrained_together(model):
        scores = scores_of(model, x)
        logits, pairwise = scores.logits(target), scores.pairwise
        if stretch != 1.0:
            pairwise = pairwise * stretch
        loss = objective(logits, target, pairwise, epsilon)
        if mixed:
            partner, share = mixed
            other = objective(scores.logits(partner), partner, pairwise, epsilon)
            loss = share * loss + (1 - share) * other
    return loss, logits, pairwise


class CertifiedClassifier(CertifiedModule):
    """Certified training of a model.

    Logged per epoch: ``train/loss``, ``train/accuracy``, ``train/vra_estimate``, ``train/epsilon``;
    ``val/loss``, ``val/accuracy``, ``val/vra`` (at ``epsilon``), ``val/vra_<radius>``, ``val/acr``,
    ``val/rejection`` and ``val/lipschitz`` (the largest pairwise constant). Whatever is under
    ``val/`` comes from the folded network; what its radii are, and what they cost, stands in
    :mod:`robustcert.training.validation`.

    Training rests on :func:`robustcert.models.scores.training_scores`; so does ``val/loss`` of a
    network without pairwise constants, which has no ``val/lipschitz``.

    Args:
        model: Any module that :func:`robustcert.models.scores.training_scores` takes and that can
            be folded. Its ``start_at(inputs, labels)``, if it has one, is called before training.
        objective: ``objective(logits, target, pairwise_lipschitz, epsilon)``.
        num_classes: Number of classes.
        epsilon: Radius that is trained for and selected by, in input units.
        validation: Certifier whose radii choose ``best.ckpt``.
        options: Further options of :class:`CertifiedModule`.
    """

    score = "val/vra"
    validation: ValidationCertifier

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[Tensor, Tensor, Tensor, float], Tensor],
        *,
        num_classes: int,
        epsilon: float,
        validation: ValidationCertifier | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, objective, num_classes=num_classes, epsilon=epsilon, **options)
        self.validation = validation or ValidationCertifier()
        # A metric's ranks meet where compute is called, a value's wherever someone reads it.
        # Updated with a copy for every sample: with this strategy weights are ignored.
        self.train_loss = MeanMetric(nan_strategy="disable")
        # Unchecked: the checks wait for classes, which the dataset has checked when it was read.
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.train_vra = VerifiedRobustAccuracy([epsilon])
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_vra = VerifiedRobustAccuracy(self.radii)
        self.val_acr = AverageCertifiedRadius()
        self.val_rejection = RejectionRate(epsilon)
        self.ignore_buffers()

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """Objective on the model's training scores; metrics count the first of two targets."""
        x, target = batch[:2]
        epsilon = self.epsilon_schedule(self.epsilon, self.progress)
        step, given = self.compiled(scored_loss), (self.model, self.objective, batch)
        loss, logits, pairwise = step(training_scores, *given, epsilon, self.stretch)
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

    def on_validation_epoch_start(self) -> None:
        """Fold the network and prove what holds for all samples, once; in a trial, nothing.

        Raises:
            DivergedError: a weight is NaN or infinite.
            UnsoundNetworkError: see :meth:`ValidationCertifier.prepare`.
        """
        if self.only_checking:
            return
        begun = time.perf_counter()
        network = self.folded()
        ranks = (self.trainer.global_rank, self.trainer.world_size) if self._trainer else (0, 1)
        self.validation.prepare(network, self.device, *ranks)
        self.bound_seconds = time.perf_counter() - begun

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count certified samples of the validation split."""
        x, target = batch
        if self.only_checking:
            estimated = training_scores(self.model, x)
            self.objective(estimated.logits(target), target, estimated.pairwise, self.epsilon)
            return
        with torch.autocast(x.device.type, enabled=False):
            found = self.validation.certify(x)
            scores = found.scores
            stretch = 1.0
            if scores is None:
                scores, stretch = training_scores(self.model, x), self.stretch
            pairwise = scores.pairwise if stretch == 1.0 else scores.pairwise * stretch
            loss = self.objective(scores.logits(target), target, pairwise, self.epsilon)
        # Not every sample may have been certified.
        correct = (found.prediction == target)[: len(found.radius)]
        self.val_loss.update(loss.expand(len(x)))
        self.val_accuracy.update(found.prediction, target)
        self.val_vra.update(found.radius, correct)
        self.val_acr.update(found.radius, correct)
        self.val_rejection.update(found.radius)

    def on_validation_epoch_end(self) -> None:
        """Log the verified metrics of the validation split."""
        if self.only_checking:
            return
        for radius, vra in zip(self.radii, self.val_vra.compute().reshape(-1), strict=True):
            self.log(f"val/vra_{radius:.4g}", vra)
            if radius == self.epsilon:
                self.log("val/vra", vra, prog_bar=True)
        for key, metric in self._val_metrics.items():
            self.log(key, metric.compute().float(), prog_bar=key == "val/accuracy")
        if self.validation.pairwise is not None:
            self.log("val/lipschitz", float(self.validation.pairwise.max()))
        for metric in (self.val_vra, *self._val_metrics.values()):
            metric.reset()
        self.validation.release()


def stretch_of(metric: Operation, network: PlainNetwork) -> float:
    r"""Factor on the estimated constants of a model whose radii are in a metric S.

    It is :math:`\lVert A S \rVert / \lVert A \rVert`, A being the normalisation, and the norm of S
    where the network does not begin with one. Neither is trained.
    """
    first = [op for op in network.operations[:1] if isinstance(op, Affine)]
    *_, last = composed(metric, first, network.input_shape)
    alone = first[0].lipschitz_bound(network.input_shape) if first else 1.0
    return last.bound / alone if alone > 0 else 1.0


def _refuse_averages_of_steps(optimizer: Optimizer, model: nn.Module) -> None:
    steps = next((m for m in model.modules() if getattr(m, "weights_are_steps", False)), None)
    if steps is not None and getattr(optimizer, "averages_weights", False):
        raise ValueError(
            f"{type(optimizer).__name__} averages weights, but those of {type(steps).__name__} are "
            "steps on a manifold, whose average means nothing: set optimizer=nadam or another layer"
        )
