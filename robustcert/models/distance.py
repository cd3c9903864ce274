"""The protocol of models that measure distances."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class MeasuresDistances(Protocol):
    """A model that has no Lipschitz constant, and estimates its distances itself."""

    def start_at(self, inputs: Tensor, labels: Tensor) -> None:
        """Start at training examples, unless training has begun before."""

    def distance_logits(self, x: Tensor, target: Tensor) -> Tensor:
        """Minus the estimated distances to other classes, 0 for the target; shape ``(N, C)``.

        As logits with pairwise constants of 1 they have those distances for radii.
        """
