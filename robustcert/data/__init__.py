"""Datasets of images and columns, their readers, and batches of them for Lightning."""

from typing import TYPE_CHECKING

from robustcert.data.augment import (
    ImageAugmentation,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomNoise,
)
from robustcert.data.cifar import CIFAR10, CIFAR100
from robustcert.data.dataset import Dataset, DatasetError, Domain, Examples, Stream, to_unit
from robustcert.data.digits import Digits
from robustcert.data.files import FileDataset
from robustcert.data.idx import MNIST, FashionMNIST
from robustcert.data.image_folder import ImageFolder
from robustcert.data.imagenet import ImageNet, TinyImageNet
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
    "Domain",
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
    "standardisation",
    "to_unit",
]


# Resolved on first use: the DataModule is Lightning's, which certification does not need.
def __getattr__(name: str) -> object:
    if name == "DataModule":
        from robustcert.data.datamodule import DataModule

        return DataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
