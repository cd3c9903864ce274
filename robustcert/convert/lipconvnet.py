"""LipConvNet of ntuaislab/BRONet: five blocks of block reflector convolutions.

Beside its tensors lies ``config.json``, the options of the training.

Reference: Lai et al., `Enhancing Certified Robustness via Block Reflector Orthogonal Layers and
Logit Annealing Loss <https://arxiv.org/abs/2505.15174>`_, ICML 2025.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from robustcert.convert.network import Converted, halves
from robustcert.convert.published import ConversionError, Published, Settings
from robustcert.data import Dataset

RIDGE = 1e-5
MEANS, SCALE = (0.4914, 0.4822, 0.4465), 0.2507
DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "tinyimg": "tiny_imagenet"}
BLOCKS = 5


def dataset(content: Any, path: Path) -> str:  # noqa: ARG001
    """Name of the dataset that the options name."""
    return DATASETS[_options(path).word("dataset", (*DATASETS,))]


def _options(path: Path) -> Settings:
    file = path.parent / "config.json"
    try:
        options = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path}: expected the training's config.json beside it: {error}"
        ) from error
    return Settings(options, file, "options")


def read(content: Any, path: Path, data: Dataset) -> Converted:
    """The network of a checkpoint."""
    settings = _options(path)
    settings.word("conv_layer", ("bro",))
    settings.word("activation", ("maxmin",))
    if settings.values.get("num_dense", 0):
        settings.refuse("num_dense", settings.values["num_dense"], "0")
    if settings.values.get("lln") is not True:
        settings.refuse("lln", settings.values.get("lln"), "true")
    weights = Published(content, path)
    network = Converted(tuple(data.input_shape), MEANS, SCALE)
    for block in range(1, BLOCKS + 1):
        length = settings.number("block_size")
        kernels = [3] * (length - 1) + [settings.number("kernel", 3) if block < BLOCKS else 1]
        for place, kernel in enumerate(kernels):
            stride = 2 if place == length - 1 else 1
            _read_convolution(network, weights, f"layer{block}.{place}.conv", kernel, stride)
    network.flatten()
    weight = weights.take("last_layer.weight", data.num_classes, network.shape[0])
    network.end(F.normalize(weight, dim=1), weights.take("last_layer.bias", data.num_classes))
    weights.end("LipConvNet")
    return network


def _read_convolution(
    network: Converted, weights: Published, name: str, kernel: int, stride: int
) -> None:
    """A convolution by block reflectors on a torus, of windows that were moved into channels.

    A square of the larger number of channels is reflected, and cut to inputs and outputs.
    """
    channels = network.shape[0]
    outputs = weights.shape(f"{name}.bias", 1)[0]
    rows = max(outputs, channels * stride**2)
    columns = weights.shape(f"{name}.weight", 4)[1]
    free = weights.take(f"{name}.weight", rows, columns, kernel, kernel)
    # The original convolves where the layer here correlates. Zeros around the map, after windows
    # were moved, are `margin` rows before.
    side = (kernel - 1) * stride
    network.restore_order()
    network.add(
        "layers.BROConv2d",
        {
            "parametrizations.weight.original": free.flip(2, 3),
            "bias": weights.take(f"{name}.bias", outputs),
        },
        in_channels=channels,
        out_channels=outputs,
        kernel_size=kernel * stride,
        stride=stride,
        padding=side // 2,
        input_size=list(network.shape[1:]),
        margin=side,
        columns=columns,
        ridge=RIDGE,
    )
    network.shape = (outputs, *(n // stride for n in network.shape[1:]))
    network.order = torch.arange(outputs, dtype=torch.int64, device="cpu")
    network.reorder(halves(outputs))
    network.sort()
