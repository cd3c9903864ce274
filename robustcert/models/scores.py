"""What a model gives to objectives and metrics in training: outputs with their constants.

Radii of classes in training are margins of these logits over these constants, see
:func:`robustcert.margins.certified_radius`; neither is proved.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcert.lipschitz import lipschitz_estimate, pairwise_lipschitz_estimate
from robustcert.network.overrides import own_method


@dataclass(frozen=True)
class TrainingScores:
    """Differentiable outputs of a batch, and estimates of their constants.

    Attributes:
        logits: From target classes, shape ``(N,)``, to float32 logits, shape ``(N, C)``. Those of a
            model with Lipschitz constants are the same for all targets.
        pairwise: Estimates of the constants of logit i minus logit j, shape ``(C, C)``, float32. Of
            one real output its constant, a scalar.
    """

    logits: Callable[[Tensor], Tensor]
    pairwise: Tensor


def training_scores(model: nn.Module, x: Tensor) -> TrainingScores:
    """The scores of a batch: by the model's own ``training_scores``, or from its constants.

    Args:
        model: A model of this package, a ``torch.nn.Sequential`` that ends in a dense layer, or a
            module whose class defines ``training_scores(x)`` beside its ``forward``.
        x: Inputs, shape ``(N, *input_shape)``.

    Raises:
        UnknownLipschitz: the module, or one inside it, is not known.
    """
    own = own_method(model, "training_scores")
    return lipschitz_scores(model, x) if own is None else own(x)


def lipschitz_scores(model: nn.Module, x: Tensor) -> TrainingScores:
    """A model's logits with the estimates of their pairwise constants."""
    logits, pairwise = model(x).float(), pairwise_lipschitz_estimate(model).float()
    return TrainingScores(lambda target: logits, pairwise)


def output_scores(model: nn.Module, x: Tensor) -> TrainingScores:
    """The output of a regression, shape ``(N, 1)``, with the estimate of its constant."""
    outputs, lipschitz = model(x).float(), lipschitz_estimate(model).float()
    return TrainingScores(lambda target: outputs, lipschitz)


def distance_scores(
    distances: Callable[[Tensor], Tensor], num_classes: int, device: torch.device
) -> TrainingScores:
    """Scores of a model without constants, whose radii are distances that it estimates itself.

    Minus a distance is a logit that moves at most as fast as the input: its constant is 1.

    Args:
        distances: From target classes ``(N,)`` to minus the distances to the other classes, 0 for
            the target, shape ``(N, C)``.
        num_classes: C.
        device: Of the distances.
    """
    constants = 1 - torch.eye(num_classes, dtype=torch.float32, device=device)
    return TrainingScores(lambda target: distances(target).float(), constants)
