"""Layers with a Lipschitz constraint or estimate, each with its plain form."""

from robustcert.layers.aol import AOLConv2d, AOLConvolution, AOLDense, AOLLinear
from robustcert.layers.cayley import CayleyLinear, CayleyOrthogonal
from robustcert.layers.cholesky import CholeskyLinear, CholeskyOrthogonal
from robustcert.layers.constrained import ConstrainedConv2d, ConstrainedLinear
from robustcert.layers.unconstrained import UnconstrainedConv2d, UnconstrainedLinear

__all__ = [
    "AOLConv2d",
    "AOLConvolution",
    "AOLDense",
    "AOLLinear",
    "CayleyLinear",
    "CayleyOrthogonal",
    "CholeskyLinear",
    "CholeskyOrthogonal",
    "ConstrainedConv2d",
    "ConstrainedLinear",
    "UnconstrainedConv2d",
    "UnconstrainedLinear",
]
