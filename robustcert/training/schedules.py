"""How the training radius and the learning rate move over training."""

import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from robustcert.training.checkpoint import SCORES


@dataclass(frozen=True)
class EpsilonSchedule:
    r"""Linear growth of the training radius from ``start * epsilon`` to ``end * epsilon``.

    Args:
        start: First multiple of epsilon.
        end: Last multiple of epsilon.
        warmup: Share of training in which it grows; constant afterwards. In [0, 1].
    """

    start: float = 0.1
    end: float = 1.3
    warmup: float = 0.5

    def __post_init__(self) -> None:
        if not (self.start >= 0 and self.end >= 0):
            raise ValueError(
                f"expected multiples of at least 0, got start={self.start} and end={self.end}: set "
                "epsilon_schedule.start and epsilon_schedule.end"
            )
        if not 0 <= self.warmup <= 1:
            raise ValueError(
                f"expected a share in [0, 1], got {self.warmup}: set epsilon_schedule.warmup"
            )

    def __call__(self, epsilon: float, progress: float) -> float:
        """The radius at ``progress`` in [0, 1] through training."""
        share = 1.0 if progress >= self.warmup else progress / self.warmup
        return epsilon * (self.start + (self.end - self.start) * share)


@dataclass(frozen=True)
class CosineSchedule:
    r"""Learning-rate factor: linear warm-up to 1, then half a cosine down to ``final``.

    Args:
        warmup: Share of training in which it rises from 0. In [0, 1).
        final: Factor at the end of training.
    """

    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"expected a share in [0, 1), got {self.warmup}: set lr_schedule.warmup"
            )
        if not 0 <= self.final <= 1:
            raise ValueError(
                f"expected a factor in [0, 1], got {self.final}: set lr_schedule.final"
            )

    def __call__(self, progress: float) -> float:
        """The factor at ``progress`` in [0, 1] through training."""
        if progress < self.warmup:
            return progress / self.warmup
        share = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(share, 1.0))) / 2

    def scheduler_of(self, optimizer: Optimizer, steps: int) -> dict[str, Any]:
        """What Lightning takes for a schedule of so many steps; it is stepped with every batch."""
        scheduler = LambdaLR(optimizer, lambda step: self(step / steps))
        return {"scheduler": scheduler, "interval": "step"}


@dataclass(frozen=True)
class TorchSchedule:
    """Learning rate by a scheduler of torch.

    Args:
        scheduler: Called with the optimizer. One that takes ``total_steps`` and is not given any
            gets the number of optimizer steps of the run.
        interval: When it is stepped; one that waits for a plateau, after each validation.
        monitor: Metric that is given to one that waits for a plateau, ``val/loss`` say.
    """

    scheduler: Callable[..., LRScheduler]
    interval: Literal["epoch", "step"] = "epoch"
    monitor: str | None = None

    def scheduler_of(self, optimizer: Optimizer, steps: int) -> dict[str, Any]:
        """What Lightning takes for a schedule of so many steps.

        Raises:
            ValueError: a plateau of no metric, or one whose mode is that of another metric.
        """
        parameters = inspect.signature(self.scheduler).parameters
        # Of a bound argument that is left out, the signature still has the default.
        unset = "total_steps" in parameters and parameters["total_steps"].default is None
        given = "total_steps" in getattr(self.scheduler, "keywords", {})
        extra = {"total_steps": steps} if unset and not given else {}
        scheduler = self.scheduler(optimizer, **extra)
        if not isinstance(scheduler, ReduceLROnPlateau):
            return {"scheduler": scheduler, "interval": self.interval}
        if self.monitor is None:
            raise ValueError("a plateau of what? set lr_schedule.monitor=val/loss or val/vra")
        if scheduler.mode != SCORES.get(self.monitor, scheduler.mode):
            mode = SCORES[self.monitor]
            raise ValueError(
                f"the best {self.monitor} is its {mode}, got mode={scheduler.mode}: set "
                f"lr_schedule.scheduler.mode={mode}"
            )
        # Lightning keeps its state, and the module steps it.
        never = {"interval": "epoch", "frequency": sys.maxsize}
        return {"scheduler": scheduler, "monitor": self.monitor, **never}
