"""Torchmetrics over certified radii."""

from robustcert.metrics.radii import AverageCertifiedRadius, RejectionRate, VerifiedRobustAccuracy

__all__ = ["AverageCertifiedRadius", "RejectionRate", "VerifiedRobustAccuracy"]
