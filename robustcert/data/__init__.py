"""Datasets of images in [0, 1] or of columns, their readers, and batches of them for Lightning."""

from typing import TYPE_CHECKING

from robustcert.data.augment import (
    ImageAugmentation,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomNoise,
)
from robustcert.data.cifar import CIFAR10, CIFAR100
from robustcert.data.dataset import Dataset, DatasetError, Examples, Stream, as_numbers, to_unit
from robustcert.data.digits import Digits
from robustcert.data.files import FileDataset
from robustcert.data.idx import MNIST, FashionMNIST
from robustcert.data.image_folder import ImageFolder
from robustcert.data.imagenet import ImageNet, TinyImageNet
from robustcert.data.metric import input_space
from robustcert.data.mixing import CutMix, Mixing, Mixup
from robustcert.data.moons import Moons
from robustcert.data.npz import NPZ
from robustcert.data.parts import Part, Parts
from robustcert.data.rand_augment import RandAugment
from robustcert.data.sampler import EpochSampler, EvaluationSampler, MixedSampler
from robustcert.data.standardise import standardisation
from robustcert.data.tables import BreastCancer, Diabetes, Phishing, Table, Wine
from robustcert.data.time_series import GunPoint, ItalyPowerDemand, JapaneseVowels, TimeSeries
from robustcert.data.toys import XOR, Disc, HalfPlane, Orthant, Spheres, Square, Toy, Wedge
from robustcert.network.input_space import InputSpace

if TYPE_CHECKING:
    from robustcert.data.datamodule import DataModule

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "NPZ",
    "XOR",
    "BreastCancer",
    "CutMix",
    "DataModule",
    "Dataset",
    "DatasetError",
    "Diabetes",
    "Digits",
    "Disc",
    "EpochSampler",
    "EvaluationSampler",
    "Examples",
    "FashionMNIST",
    "FileDataset",
    "GunPoint",
    "HalfPlane",
    "ImageAugmentation",
    "ImageFolder",
    "ImageNet",
    "InputSpace",
    "ItalyPowerDemand",
    "JapaneseVowels",
    "MixedSampler",
    "Mixing",
    "Mixup",
    "Moons",
    "Orthant",
    "Part",
    "Parts",
    "Phishing",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomNoise",
    "Spheres",
    "Square",
    "Stream",
    "Table",
    "TimeSeries",
    "TinyImageNet",
    "Toy",
    "Wedge",
    "Wine",
    "as_numbers",
    "input_space",
    "standardisation",
    "to_unit",
]


# Resolved on first use: the DataModule is Lightning's, which certification does not need.
def __getattr__(name: str) -> object:
    if name == "DataModule":
        from robustcert.data.datamodule import DataModule

        return DataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
