"""Torchmetrics over certified radii."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustcert.metrics.radii import (
        AverageCertifiedRadius,
        RejectionRate,
        VerifiedRobustAccuracy,
    )

__all__ = ["AverageCertifiedRadius", "RejectionRate", "VerifiedRobustAccuracy"]


# Resolved on first use: certification needs the gradient ratio, which is no torchmetric.
def __getattr__(name: str) -> object:
    if name in __all__:
        from robustcert.metrics import radii

        return getattr(radii, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
