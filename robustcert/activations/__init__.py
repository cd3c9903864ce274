"""Activations with known Lipschitz constants, each in a file named as its pure function."""

from robustcert.activations.absolute import Abs
from robustcert.activations.beta_abs import BetaAbs
from robustcert.activations.grafted import Grafted
from robustcert.activations.group_sort import GroupSort
from robustcert.activations.householder import Householder
from robustcert.activations.householder2 import Householder2
from robustcert.activations.identity import Identity
from robustcert.activations.linear_spline import LinearSpline
from robustcert.activations.n_activation import NActivation
from robustcert.activations.norm_pair import NormPair
from robustcert.activations.relu import ReLU
from robustcert.activations.sin_cos import SinCos
from robustcert.activations.smooth_abs import SmoothAbs
from robustcert.activations.smooth_householder import SmoothHouseholder
from robustcert.activations.smooth_maxmin import SmoothMaxMin
from robustcert.activations.smooth_n import SmoothN
from robustcert.activations.softplus import Softplus
from robustcert.activations.tanh import Tanh

__all__ = [
    "Abs",
    "BetaAbs",
    "Grafted",
    "GroupSort",
    "Householder",
    "Householder2",
    "Identity",
    "LinearSpline",
    "NActivation",
    "NormPair",
    "ReLU",
    "SinCos",
    "SmoothAbs",
    "SmoothHouseholder",
    "SmoothMaxMin",
    "SmoothN",
    "Softplus",
    "Tanh",
]
