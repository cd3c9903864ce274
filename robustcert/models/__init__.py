"""Networks: a backbone made of given layers and activations, and a linear head; subspaces."""

from robustcert.models.chain import Chain
from robustcert.models.classifier import Classifier
from robustcert.models.conv_subspaces import ConvSubspaces
from robustcert.models.convnet import ConvNet
from robustcert.models.convnet1d import ConvNet1d
from robustcert.models.deep_subspaces import DeepSubspaces
from robustcert.models.feature_subspaces import FeatureSubspaces
from robustcert.models.fit_channels import FitChannels
from robustcert.models.head import Head
from robustcert.models.layer_family import LayerFamily
from robustcert.models.lip_convnet import LipConvNet
from robustcert.models.lipnext import LipNeXt
from robustcert.models.liresnet import LiResNet
from robustcert.models.mean_pool import MeanPool
from robustcert.models.mlp import MLP
from robustcert.models.monotone import Monotone
from robustcert.models.normalize import Normalize
from robustcert.models.patch_family import PatchFamily
from robustcert.models.position import Position
from robustcert.models.residual_family import ResidualFamily
from robustcert.models.residual_mlp import Mixture, ResidualMLP
from robustcert.models.shift import CircularShift
from robustcert.models.subspaces import Subspaces

__all__ = [
    "MLP",
    "Chain",
    "CircularShift",
    "Classifier",
    "ConvNet",
    "ConvNet1d",
    "ConvSubspaces",
    "DeepSubspaces",
    "FeatureSubspaces",
    "FitChannels",
    "Head",
    "LayerFamily",
    "LiResNet",
    "LipConvNet",
    "LipNeXt",
    "MeanPool",
    "Mixture",
    "Monotone",
    "Normalize",
    "PatchFamily",
    "Position",
    "ResidualFamily",
    "ResidualMLP",
    "Subspaces",
]
