"""Training objectives: ``objective(logits, target, pairwise_lipschitz, epsilon)`` to a scalar."""

from robustcert.objectives.certificate_regularization import CertificateRegularization
from robustcert.objectives.cross_entropy import CrossEntropy, OffsetCrossEntropy
from robustcert.objectives.emma import EMMA
from robustcert.objectives.global_robustness import GlobalRobustness
from robustcert.objectives.gloro import GloRo, TradesGloRo, bottom_logit
from robustcert.objectives.hkr import HKR
from robustcert.objectives.lmt import LMT
from robustcert.objectives.logit_annealing import LogitAnnealing
from robustcert.objectives.regression import Huber, Quantile, Squared

__all__ = [
    "EMMA",
    "HKR",
    "LMT",
    "CertificateRegularization",
    "CrossEntropy",
    "GloRo",
    "GlobalRobustness",
    "Huber",
    "LogitAnnealing",
    "OffsetCrossEntropy",
    "Quantile",
    "Squared",
    "TradesGloRo",
    "bottom_logit",
]
