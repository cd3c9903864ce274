"""BRONet of ntuaislab/BRONet: block reflector convolutions between the stem and neck of LiResNet.

Reference: Lai et al., `Enhancing Certified Robustness via Block Reflector Orthogonal Layers and
Logit Annealing Loss <https://arxiv.org/abs/2505.15174>`_, ICML 2025.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.convert import liresnet
from robustcert.convert.network import Converted, halves, identity
from robustcert.convert.published import ConversionError, Published, Settings
from robustcert.data import Dataset

# Ridges over the mean diagonal: of trunk and dense layers, and of the neck.
RIDGE, NECK_RIDGE = 1e-7, 1e-5
TRUNKS = ("bro", "brov2", "nonortho", "hybridbro", "hybridbrov2", "hybridnonortho")


def read(content: Any, path: Path, data: Dataset) -> Converted:
    """The network of a checkpoint."""
    settings = liresnet.configuration(content, path, "model")
    weights = Published(content["backbone"], path)
    settings.word("act_name", ("minmax",), "MinMax")
    network = Converted(tuple(data.input_shape), (0.5,) * data.input_shape[0])
    liresnet.read_stem(network, weights, settings.number("width", 256))
    _read_trunk(network, weights, settings)
    _read_neck(network, weights, settings)
    _read_dense(network, weights, settings)
    classes, normalized = data.num_classes, settings.flag("use_lln", True)
    liresnet.read_head(network, weights, classes, normalized)
    weights.end("BRONet")
    return network


def _read_trunk(network: Converted, weights: Published, settings: Settings) -> None:
    depth, trunk = settings.number("depth", 12), settings.word("backbone_type", TRUNKS, "default")
    if trunk.startswith("hybrid"):
        first = settings.number("depth_1", depth // 2)
        liresnet.read_residual_convolutions(network, weights, "conv_1", first)
        depth, trunk = settings.number("depth_2", depth - first), trunk.removeprefix("hybrid")
    if trunk == "nonortho":
        liresnet.read_residual_convolutions(network, weights, "conv", depth)
    else:
        _read_reflectors(network, weights, settings, depth, grows=trunk == "brov2")


def _read_reflectors(
    network: Converted, weights: Published, settings: Settings, depth: int, *, grows: bool
) -> None:
    """Convolutions by block reflectors on a torus, which is padded by zeros around the map.

    The output is cropped to the map, or the map grows by what was padded.
    """
    width = network.shape[0]
    columns = weights.shape("conv.weights", 5)[2]
    free = weights.take("conv.weights", depth, width, columns, 3, 3)
    free = free * weights.take("conv.gamma", depth, width, 1, 1, 1)
    # A one at the middle tap.
    middle = F.pad(identity(width)[:, :columns, None, None], (1, 1, 1, 1))
    weights.take_identity("conv.identity", middle)
    weights.take_identity("conv.I_low", identity(columns)[None, None, None])
    weights.take_identity("conv.I_full", identity(width)[None, None, None])
    if settings.flag("backbone_quasi_residual", True):
        free = middle + free * depth**-0.5
    bias = weights.take("conv.bias", depth, width)
    if "conv.running_mean" in weights:
        bias = bias - weights.take("conv.running_mean", depth, width)
    padded = settings.flag("backbone_zero_padding", True)
    if grows and not padded:
        settings.refuse("backbone_zero_padding", False, "true with this backbone_type")
    for kernel, shift in zip(free, bias, strict=True):
        if grows:
            network.add("layers.ZeroPad2d", channels=width, size=1)
            network.shape = (width, *(n + 2 for n in network.shape[1:]))
        # The original convolves where the layer here correlates, but where the map grows.
        taps = (kernel if grows else kernel.flip(2, 3))[network.order]
        network.add(
            "layers.BROConv2d",
            {"parametrizations.weight.original": taps, "bias": shift[network.order]},
            in_channels=width,
            out_channels=width,
            kernel_size=3,
            stride=1,
            padding=1,
            input_size=list(network.shape[1:]),
            margin=2 if padded and not grows else 0,
            columns=columns,
            ridge=RIDGE,
        )
        network.sort()


def _read_neck(network: Converted, weights: Published, settings: Settings) -> None:
    width, size = network.shape[0], network.shape[1]
    if settings.values.get("neck_conv_patch_size_2", 0):
        settings.refuse("neck_conv_patch_size_2", settings.values["neck_conv_patch_size_2"], "0")
    patch = settings.number("neck_conv_patch_size", 4)
    if size % patch:
        settings.refuse("neck_conv_patch_size", patch, f"a divisor of {size}")
    kind = settings.word("neck_conv_type", ("cholesky", "bro", "l2"))
    entries = width * patch**2
    if kind == "l2":
        network.add("layers.NormPool2d", size=patch)
        network.shape = (width, *(n // patch for n in network.shape[1:]))
    else:
        if kind == "cholesky":
            kernel = liresnet.cholesky_rows(weights.take("neck.kernel", width, entries))
        else:
            kernel = reflector(weights.take("neck.kernel", entries, width), NECK_RIDGE)[:width]
        kernel = kernel.unflatten(1, (width, patch, patch))
        network.convolve(kernel, stride=patch)
    network.flatten()
    if settings.word("neck_linear_type", ("cholesky", "bro")) == "cholesky":
        liresnet.read_neck_dense(network, weights)
        return
    inputs, features = network.shape[0], settings.number("dense_width", 2048)
    square = reflector(weights.take("neck.weight", inputs, features), NECK_RIDGE)
    bias = weights.take("neck.bias", features)
    network.connect(square[:features], bias, order=halves(features))
    network.sort()


def _read_dense(network: Converted, weights: Published, settings: Settings) -> None:
    if settings.values.get("linear_num", 8) == 0:
        return
    depth, features = settings.number("linear_num", 8), network.shape[0]
    if settings.word("dense_type", ("bro", "cholesky"), "bro") == "cholesky":
        liresnet.read_residual_dense(network, weights)
        return
    if not settings.flag("dense_quasi_residual", True):
        # What is computed depends on how many processes evaluate it.
        settings.refuse("dense_quasi_residual", False, "true")
    columns = weights.shape("linear.weights", 3)[2]
    free = weights.take("linear.weights", depth, features, columns)
    gamma = weights.take("linear.gamma", depth, features, 1)
    bias = weights.take("linear.bias", depth, features)
    start = weights.take("linear.residual_identity", features, columns)
    weights.take_identity("linear.identity", identity(features))
    weights.take_identity("linear.identity_half", identity(columns))
    for v, shift in zip(start + free * gamma * depth**-0.5, bias, strict=True):
        network.connect(reflector(v, RIDGE), shift, order=halves(features))
        network.sort()


def reflector(v: Tensor, ridge: float) -> Tensor:
    r""":math:`I - 2 V (V^\top V + \rho I)^{-1} V^\top`, rho a share of the mean diagonal."""
    gram = v.mT @ v
    rho = ridge * gram.diagonal().mean()
    gram = gram + rho * identity(v.shape[1])
    solved, failed = torch.linalg.solve_ex(gram, v.mT)
    if failed:
        raise ConversionError("a matrix has no reflector: it is zero")
    return identity(v.shape[0]) - 2 * v @ solved
