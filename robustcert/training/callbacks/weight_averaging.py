"""An average of the weights over training, which is what is validated and certified."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging as LightningWeightAveraging
from torch import Tensor


class WeightAveraging(LightningWeightAveraging):
    r"""Average of the free parameters: :math:`\bar\theta \leftarrow d \bar\theta + (1-d) \theta`.

    The n-th step counts with :math:`d = \min(\texttt{decay}, (1 + n) / (10 + n))`, or with
    :math:`d = n / (n + 1)`, the equal average. Averaged is what the optimizer moves; constraints
    and folding are applied to the average, so that it satisfies them as the weights do. Buffers,
    such as the vectors of power iterations, are those of the last step. Validation, ``best.ckpt``
    and the certificate use the average; ``last.ckpt`` holds both.

    Reference: Izmailov et al., `Averaging weights leads to wider optima and better generalization
    <https://arxiv.org/abs/1803.05407>`_, UAI 2018.

    Args:
        decay: Largest d, in [0, 1); None for the equal average.
        start: Share of training after which steps count, in [0, 1); before, the average is the
            weights.
    """

    def __init__(self, decay: float | None = 0.99, start: float = 0.5) -> None:
        for key, value in (("decay", decay), ("start", start)):
            if value is not None and not 0 <= value < 1:
                raise ValueError(
                    f"expected a number in [0, 1), got {value}: set "
                    f"callbacks.weight_averaging.{key}"
                )
        self.decay = decay
        self.start = start
        super().__init__(use_buffers=False, avg_fn=self._average)

    def _average(self, average: Tensor, weight: Tensor, count: Tensor | int) -> Tensor:
        n = float(count)
        d = n / (n + 1) if self.decay is None else min(self.decay, (1 + n) / (10 + n))
        return torch.lerp(weight, average, d)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse weights whose average means nothing, and averages of averages.

        Raises:
            ValueError: weights are steps on a manifold, or the optimizer averages as well.
        """
        module: Any = pl_module
        for part in module.model.modules():
            if getattr(part, "weights_are_steps", False):
                raise ValueError(
                    f"the weights of {type(part).__name__} are steps on a manifold, whose average "
                    "means nothing: leave callbacks=weight_averaging out, or set another layer"
                )
        for optimizer in trainer.optimizers:
            if getattr(optimizer, "averages_weights", False):
                raise ValueError(
                    f"{type(optimizer).__name__} averages weights itself: leave "
                    "callbacks=weight_averaging out, or set optimizer=nadam"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a step into the average, or be the weights as long as steps do not count."""
        module: Any = pl_module
        assert self._average_model is not None
        if module.progress <= self.start:
            # The first model that is averaged is copied.
            self._average_model.n_averaged.zero_()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    # Put in place for all of validation, so that whatever measures at its end sees the average.

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: :meth:`on_validation_start` has put the average in place."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: :meth:`on_validation_end` puts the weights back."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in place."""
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
