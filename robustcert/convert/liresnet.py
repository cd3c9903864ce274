"""LiResNet++ of hukkai/liresnet: a stem, a trunk of linear residual convolutions, dense layers.

The repository's code has one network, with the centred trunk and the orthogonal neck and dense
layers of the second paper; checkpoints of the first paper's code have other tensors and are
refused.

Reference: Hu, Zou, Wang, Leino and Fredrikson, `Unlocking Deterministic Robustness Certification on
ImageNet <https://arxiv.org/abs/2301.12549>`_, NeurIPS 2023; Hu, Leino, Wang and Fredrikson, `A
Recipe for Improved Certifiable Robustness <https://arxiv.org/abs/2310.02513>`_, ICLR 2024.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.convert.network import Converted, halves, identity
from robustcert.convert.published import ConversionError, Published, Settings
from robustcert.data import Dataset

RIDGE = 1e-3
DATASETS = ("cifar10", "cifar100", "tiny_imagenet", "imagenet")


def dataset(content: Any, path: Path) -> str:
    """Name of the dataset that the checkpoint's configuration names."""
    return configuration(content, path, "dataset").word("name", DATASETS)


def configuration(content: Any, path: Path, part: str) -> Settings:
    """One part of the configuration that a checkpoint holds beside the weights."""
    if not isinstance(content, dict) or not {"backbone", "configs"} <= content.keys():
        raise ConversionError(
            f"{path}: expected a training checkpoint with the keys backbone and configs"
        )
    configs = content["configs"]
    if not isinstance(configs, dict) or part not in configs:
        raise ConversionError(f"{path}: configs.{part}: it is missing")
    return Settings(configs[part], path, f"configs.{part}")


def read(content: Any, path: Path, data: Dataset) -> Converted:
    """The network of a checkpoint."""
    settings = configuration(content, path, "model")
    weights = Published(content["backbone"], path)
    settings.word("act_name", ("minmax",), "MinMax")
    width, depth = settings.number("width", 128), settings.number("depth", 12)
    network = Converted(tuple(data.input_shape), (0.5,) * data.input_shape[0])
    read_stem(network, weights, width)
    read_residual_convolutions(network, weights, "conv", depth)
    read_neck(network, weights)
    read_residual_dense(network, weights)
    read_head(network, weights, data.num_classes, settings.flag("use_lln", True))
    weights.end("LiResNet")
    return network


def read_stem(network: Converted, weights: Published, width: int) -> None:
    """A strided convolution; on 224x224 images it cuts them in patches."""
    channels, size = network.shape[0], network.shape[1]
    kernel = weights.shape("stem.0.weight", 4)[-1]
    patches = size == 224
    network.convolve(
        weights.take("stem.0.weight", width, channels, kernel, kernel),
        weights.take("stem.0.bias", width),
        stride=kernel if patches else 2,
        padding=0 if patches else kernel // 2,
        order=halves(width),
    )
    weights.drop("stem.0.init_x")
    network.sort()


def read_residual_convolutions(
    network: Converted, weights: Published, name: str, depth: int
) -> None:
    r"""Convolutions :math:`I + \gamma W / \sqrt{depth}`, centred by a running mean."""
    width = network.shape[0]
    free = weights.take(f"{name}.weights", depth, width, width, 3, 3)
    gamma = weights.take(f"{name}.gamma", depth, width, 1, 1, 1)
    start = weights.take(f"{name}.identity", depth, width, width, 3, 3)
    bias = weights.take(f"{name}.bias", depth, width)
    if f"{name}.running_mean" in weights:
        bias = bias - weights.take(f"{name}.running_mean", depth, width)
    weights.drop(f"{name}.init_x")
    for kernel, shift in zip(start + free * gamma * depth**-0.5, bias, strict=True):
        network.convolve(kernel, shift, padding=1, order=halves(width))
        network.sort()


def read_neck(network: Converted, weights: Published) -> None:
    """A convolution on 4x4 patches and a dense layer, both orthonormalised by Cholesky factors."""
    width = network.shape[0]
    kernel = cholesky_rows(weights.take("neck.kernel", width, 16 * width))
    network.convolve(kernel.unflatten(1, (width, 4, 4)), stride=4)
    network.flatten()
    read_neck_dense(network, weights)


def read_neck_dense(network: Converted, weights: Published) -> None:
    """The neck's dense layer."""
    features = weights.shape("neck.weight", 2)[0]
    free = weights.take("neck.weight", features, network.shape[0])
    bias = weights.take("neck.bias", features)
    network.connect(cholesky_rows(free), bias, order=halves(features))
    network.sort()


def read_residual_dense(network: Converted, weights: Published) -> None:
    r"""Dense layers, :math:`I + \gamma W / \sqrt{depth}` orthonormalised by Cholesky factors."""
    features = network.shape[0]
    depth = weights.shape("linear.weights", 3)[0]
    free = weights.take("linear.weights", depth, features, features)
    gamma = weights.take("linear.gamma", depth, features, 1)
    bias = weights.take("linear.bias", depth, features)
    start = weights.take("linear.identity", features, features)
    # The layers of the latest evaluation, which the next one computes anew.
    weights.drop("linear.eval_weight")
    for matrix, shift in zip(start + free * gamma * depth**-0.5, bias, strict=True):
        network.connect(cholesky_rows(matrix), shift, order=halves(features))
        network.sort()


def read_head(network: Converted, weights: Published, classes: int, normalized: bool) -> None:
    """The last layer, its rows divided by their norms if they are normalised."""
    weight = weights.take("head.weight", classes, network.shape[0])
    bias = weights.take("head.bias", classes)
    network.end(F.normalize(weight, dim=1) if normalized else weight, bias)


def cholesky_rows(x: Tensor) -> Tensor:
    r""":math:`L^{-1} X`, :math:`L L^\top = X X^\top + \rho I`, rho a share of the mean diagonal."""
    gram = x @ x.mT
    gram = gram + RIDGE * gram.diagonal().mean() * identity(len(x))
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        raise ConversionError("a matrix cannot be orthonormalised: it is zero")
    return torch.linalg.solve_triangular(factor, x, upper=False)
