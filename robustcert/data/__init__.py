"""Datasets with inputs in [0, 1], their readers, and batches of them for Lightning."""

from robustcert.data.augment import (
    ImageAugmentation,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomNoise,
)
from robustcert.data.cifar import CIFAR10
from robustcert.data.datamodule import DataModule
from robustcert.data.dataset import Dataset, DatasetError, Examples, to_unit
from robustcert.data.digits import Digits
from robustcert.data.files import FileDataset
from robustcert.data.idx import MNIST, FashionMNIST
from robustcert.data.npz import NPZ
from robustcert.data.sampler import EpochSampler, EvaluationSampler
from robustcert.data.toys import Disc, Moons, Square, Toy, Wedge

__all__ = [
    "CIFAR10",
    "MNIST",
    "NPZ",
    "DataModule",
    "Dataset",
    "DatasetError",
    "Digits",
    "Disc",
    "EpochSampler",
    "EvaluationSampler",
    "Examples",
    "FashionMNIST",
    "FileDataset",
    "ImageAugmentation",
    "Moons",
    "RandomAffine",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomNoise",
    "Square",
    "Toy",
    "Wedge",
    "to_unit",
]
