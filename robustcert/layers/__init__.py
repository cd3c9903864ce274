"""Layers with a Lipschitz constraint or estimate, each with its folded form."""

from robustcert.layers.aol import AOLConv2d, AOLConvolution, AOLDense, AOLLinear
from robustcert.layers.bcop import BCOP, BCOPConv2d
from robustcert.layers.bjorck import BjorckLinear, BjorckOrthogonal
from robustcert.layers.bro import BROConv2d, BROLinear, ReflectorFrequencies
from robustcert.layers.cayley import CayleyLinear, CayleyOrthogonal
from robustcert.layers.cayley_conv import CayleyConv2d, CayleyFrequencies
from robustcert.layers.centering import Centering
from robustcert.layers.cholesky import CholeskyLinear, CholeskyOrthogonal
from robustcert.layers.circular import UnconstrainedCircularConv2d
from robustcert.layers.constrained import ConstrainedConv2d, ConstrainedLinear
from robustcert.layers.cpl import CPLConv2d, CPLLinear
from robustcert.layers.exponential import ExponentialLinear, ExponentialOrthogonal
from robustcert.layers.fft import FrequencyConstraint, FrequencyConv2d
from robustcert.layers.lires import CholeskyResidualLinear, LinearResidual, LiResConv2d, LiResLinear
from robustcert.layers.lot import LOTConv2d, LOTFrequencies
from robustcert.layers.manifold import ManifoldLinear, ManifoldOrthogonal, ManifoldPatchConv2d
from robustcert.layers.patch import CholeskyPatchConv2d, OnPatches, PatchConv2d
from robustcert.layers.pool import InvertibleDownsampling, NormPool2d
from robustcert.layers.residual_block import ResidualLayer, ScaledResidualConv2d
from robustcert.layers.sandwich import FreeSandwich, SandwichLinear
from robustcert.layers.skew_series import SkewSeriesConv2d
from robustcert.layers.sll import SLLConv2d, SLLLinear
from robustcert.layers.soc import SkewFrequencies, SOCConv2d
from robustcert.layers.unconstrained import UnconstrainedConv2d, UnconstrainedLinear
from robustcert.layers.zero_pad import ZeroPad2d

__all__ = [
    "BCOP",
    "AOLConv2d",
    "AOLConvolution",
    "AOLDense",
    "AOLLinear",
    "BCOPConv2d",
    "BROConv2d",
    "BROLinear",
    "BjorckLinear",
    "BjorckOrthogonal",
    "CPLConv2d",
    "CPLLinear",
    "CayleyConv2d",
    "CayleyFrequencies",
    "CayleyLinear",
    "CayleyOrthogonal",
    "Centering",
    "CholeskyLinear",
    "CholeskyOrthogonal",
    "CholeskyPatchConv2d",
    "CholeskyResidualLinear",
    "ConstrainedConv2d",
    "ConstrainedLinear",
    "ExponentialLinear",
    "ExponentialOrthogonal",
    "FreeSandwich",
    "FrequencyConstraint",
    "FrequencyConv2d",
    "InvertibleDownsampling",
    "LOTConv2d",
    "LOTFrequencies",
    "LiResConv2d",
    "LiResLinear",
    "LinearResidual",
    "ManifoldLinear",
    "ManifoldOrthogonal",
    "ManifoldPatchConv2d",
    "NormPool2d",
    "OnPatches",
    "PatchConv2d",
    "ReflectorFrequencies",
    "ResidualLayer",
    "SLLConv2d",
    "SLLLinear",
    "SOCConv2d",
    "SandwichLinear",
    "ScaledResidualConv2d",
    "SkewFrequencies",
    "SkewSeriesConv2d",
    "UnconstrainedCircularConv2d",
    "UnconstrainedConv2d",
    "UnconstrainedLinear",
    "ZeroPad2d",
]
