"""Networks: a backbone made of given layers and activations, and a linear head."""

from robustcert.models.classifier import Classifier
from robustcert.models.convnet import ConvNet
from robustcert.models.head import Head
from robustcert.models.layer_family import LayerFamily
from robustcert.models.liresnet import LiResNet
from robustcert.models.mlp import MLP
from robustcert.models.normalize import Normalize
from robustcert.models.patch_family import PatchFamily
from robustcert.models.residual_family import ResidualFamily

__all__ = [
    "MLP",
    "Classifier",
    "ConvNet",
    "Head",
    "LayerFamily",
    "LiResNet",
    "Normalize",
    "PatchFamily",
    "ResidualFamily",
]
