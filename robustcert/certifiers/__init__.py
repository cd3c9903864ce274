"""Certifiers: a folded network and inputs to predictions and proved radii."""

from robustcert.arithmetic.settings import UnsoundArithmeticError
from robustcert.certifiers.arithmetic import (
    bounds_on,
    float64_products_are_strict,
    strict_arithmetic,
)
from robustcert.certifiers.base import Certificates, Certifier, Claim, Proof, Task
from robustcert.certifiers.crown import CROWNCertifier
from robustcert.certifiers.global_robustness.certifier import GlobalBounds, GlobalCertifier
from robustcert.certifiers.intervals import IntervalCertifier, Outputs
from robustcert.certifiers.lipschitz import LipschitzCertifier, certify
from robustcert.certifiers.lipsdp.certifier import LipSDPCertifier
from robustcert.certifiers.local_lipsdp.certifier import LocalLipschitzCertifier
from robustcert.certifiers.quadratic import QuadricCertifier
from robustcert.certifiers.quantiles import clopper_pearson_low
from robustcert.certifiers.second_order.certifier import CombinedCertifier, robust_accuracy_bracket
from robustcert.certifiers.smoothing import SmoothingCertifier
from robustcert.norms import quick_bounds

__all__ = [
    "CROWNCertifier",
    "Certificates",
    "Certifier",
    "Claim",
    "CombinedCertifier",
    "GlobalBounds",
    "GlobalCertifier",
    "IntervalCertifier",
    "LipSDPCertifier",
    "LipschitzCertifier",
    "LocalLipschitzCertifier",
    "Outputs",
    "Proof",
    "QuadricCertifier",
    "SmoothingCertifier",
    "Task",
    "UnsoundArithmeticError",
    "bounds_on",
    "certify",
    "clopper_pearson_low",
    "float64_products_are_strict",
    "quick_bounds",
    "robust_accuracy_bracket",
    "strict_arithmetic",
]
