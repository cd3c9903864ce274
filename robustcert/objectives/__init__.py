"""Training objectives: ``objective(logits, target, pairwise_lipschitz, epsilon)`` to a scalar."""

from robustcert.objectives.cross_entropy import CrossEntropy, OffsetCrossEntropy
from robustcert.objectives.emma import EMMA
from robustcert.objectives.gloro import GloRo, TradesGloRo, bottom_logit

__all__ = [
    "EMMA",
    "CrossEntropy",
    "GloRo",
    "OffsetCrossEntropy",
    "TradesGloRo",
    "bottom_logit",
]
