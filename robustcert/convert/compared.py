"""1-Lipschitz ConvNets of berndprach/1LipschitzLayersCompared: one network, several layers.

The layers are told apart by their tensors. Those of SOC, BCOP and Sandwich are refused: the first
is a truncated series of zero-padded convolutions, the second draws random numbers in evaluation.

Reference: Prach, Brau, Buttazzo and Lampert, `1-Lipschitz Layers Compared
<https://arxiv.org/abs/2311.16833>`_, CVPR 2024.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.convert.network import Converted, identity, neighbours
from robustcert.convert.published import ConversionError, Published
from robustcert.data import Dataset

MEANS = {
    10: (0.49139968, 0.48215841, 0.44653091),
    100: (0.5071, 0.4865, 0.4409),
    200: (0.485, 0.456, 0.406),
}
EPSILON = 1e-6
# Steps of the power iteration by which CPL finds its norm in evaluation, and of LOT's Newton.
POWER_STEPS, NEWTON_STEPS = 100, 10
Layer = Callable[[Converted, Published, str], None]


def read(content: Any, path: Path, data: Dataset) -> Converted:
    """The network of a checkpoint."""
    weights = Published(content, path)
    layer, width = _layer(weights, path)
    if data.num_classes not in MEANS:
        raise ConversionError(f"{path}: expected one of {list(MEANS)} classes")
    network = Converted(tuple(data.input_shape), MEANS[data.num_classes])
    _fit_channels(network, width)
    layer(network, weights, "FirstConv")
    _sort(network)
    block = 1
    while network.shape[1] > 1:
        for place in range(sum(f"Block{block}.{2 * k}.bias" in weights for k in range(100))):
            layer(network, weights, f"Block{block}.{2 * place}")
            _sort(network)
        _downsample(network, path)
        block += 1
    _read_head(network, weights, layer, data.num_classes)
    weights.end("this network")
    return network


def _layer(weights: Published, path: Path) -> tuple[Layer, int]:
    """What reads the checkpoint's kind of layer, and the width of the network."""
    kinds: dict[str, Layer] = {
        "parametrizations.weight.original": _aol,
        "q": _sll,
        "u": _cpl,
        "alpha": _cayley,
        "weight": _lot,
    }
    for name, layer in kinds.items():
        if f"FirstConv.{name}" in weights:
            return layer, weights.shape("FirstConv.bias", 1)[0]
    raise ConversionError(f"{path}: its layers are not AOL, SLL, CPL, Cayley or LOT")


def _aol(network: Converted, weights: Published, name: str) -> None:
    """A circular convolution whose input channels are rescaled."""
    free = _kernel(network, weights, f"{name}.parametrizations.weight.original")
    by_input = free.transpose(0, 1)
    correlation = F.conv2d(by_input, by_input, padding=free.shape[-1] - 1)
    scale = (correlation.abs().sum((1, 2, 3)) + EPSILON).rsqrt()
    kernel = free * scale[:, None, None]
    bias = weights.take(f"{name}.bias", network.shape[0])
    order, padding = neighbours(network.shape[0]), free.shape[-1] // 2
    network.convolve_circularly(kernel, bias, padding=padding, order=order)


def _cayley(network: Converted, weights: Published, name: str) -> None:
    """A circular convolution whose blocks are Cayley transforms."""
    blocks = _blocks(_kernel(network, weights, f"{name}.weight"), network.shape[1])
    # The norm is that of the frequencies of a real transform.
    half = blocks[:, : network.shape[1] // 2 + 1]
    a = weights.take_number(f"{name}.alpha") * blocks / torch.linalg.vector_norm(half)
    a = a - a.mH
    eye = identity(network.shape[0])
    orthogonal = torch.linalg.solve(eye + a, eye - a)
    bias = weights.take(f"{name}.bias", network.shape[0])
    network.convolve_circularly(_taps(orthogonal), bias, order=neighbours(network.shape[0]))


def _lot(network: Converted, weights: Published, name: str) -> None:
    """A circular convolution, the map extended by zeros, with orthogonalised blocks."""
    free = _kernel(network, weights, f"{name}.weight")
    margin = 2 * (free.shape[-1] // 2)
    blocks = _blocks(free, network.shape[1] + margin)
    gram = blocks @ blocks.mH
    eye = identity(network.shape[0])
    gram = gram + 1e-4 * eye
    size = torch.linalg.matrix_norm(gram, keepdim=True) + 1e-4
    y, z = gram / size, eye.to(gram.dtype)
    for _ in range(NEWTON_STEPS):
        step = 0.5 * (3 * eye - z @ y)
        y, z = y @ step, step @ z
    orthogonal = z @ blocks / size.sqrt()
    bias = weights.take(f"{name}.bias", network.shape[0])
    order = neighbours(network.shape[0])
    network.convolve_circularly(_taps(orthogonal), bias, margin=margin, order=order)


def _sll(network: Converted, weights: Published, name: str) -> None:
    """A residual layer scaled by sums of correlations."""
    kernel = _kernel(network, weights, f"{name}.kernel")
    q = weights.take(f"{name}.q", network.shape[0]).abs() + EPSILON
    correlation = F.conv2d(kernel, kernel, padding=kernel.shape[-1] - 1)
    bound = (correlation * q[:, None, None]).abs().sum((1, 2, 3)) / q
    network.subtract(kernel, weights.take(f"{name}.bias", network.shape[0]), 2 / (bound + EPSILON))


def _cpl(network: Converted, weights: Published, name: str) -> None:
    """A residual layer scaled by its norm, as a power iteration from the file's vector finds it."""
    kernel = _kernel(network, weights, f"{name}.kernel")
    padding = kernel.shape[-1] // 2
    u = weights.take(f"{name}.u", 1, *network.shape)
    for _ in range(POWER_STEPS):
        v = F.conv2d(u, kernel, padding=padding)
        v = v / (torch.linalg.vector_norm(v) + 1e-12)
        u = F.conv_transpose2d(v, kernel, padding=padding)
        u = u / (torch.linalg.vector_norm(u) + 1e-12)
    scale = 2 / ((F.conv2d(u, kernel, padding=padding) * v).sum().square() + EPSILON)
    bias = weights.take(f"{name}.bias", network.shape[0])
    network.subtract(kernel, bias, scale.expand(network.shape[0]))


def _kernel(network: Converted, weights: Published, name: str) -> Tensor:
    side = weights.shape(name, 4)[-1]
    return weights.take(name, network.shape[0], network.shape[0], side, side)


def _blocks(kernel: Tensor, period: int) -> Tensor:
    """Transform ``(period, period, C, C)`` of a correlation with a kernel around its middle tap."""
    before = (kernel.shape[-1] - 1) // 2
    spectrum = torch.fft.fft2(kernel, (period, period)).conj()
    places = torch.arange(period, dtype=torch.float64, device="cpu")
    phase = torch.exp(-2j * torch.pi * before * (places[:, None] + places) / period)
    return (phase * spectrum).permute(2, 3, 0, 1)


def _taps(blocks: Tensor) -> Tensor:
    """The kernel of a correlation whose transform multiplies by these blocks."""
    taps = torch.fft.ifft2(blocks.permute(2, 3, 0, 1)).real
    return taps.flip(2, 3).roll((1, 1), (2, 3))


def _fit_channels(network: Converted, channels: int) -> None:
    network.add("models.FitChannels", in_channels=network.shape[0], out_channels=channels)
    network.shape = (channels, *network.shape[1:])
    kept = network.order[network.order < channels]
    added = torch.arange(len(kept), channels, dtype=torch.int64, device="cpu")
    network.order = torch.cat([kept, added])


def _sort(network: Converted) -> None:
    order = neighbours(network.shape[0])
    if not torch.equal(network.order, order):
        network.reorder(order)
    network.sort()


def _downsample(network: Converted, path: Path) -> None:
    """Half of the channels, whose windows are moved into channels."""
    channels, height, width = network.shape
    if channels % 4 or height % 2 or width % 2:
        raise ConversionError(f"{path}: a map of {network.shape} cannot be halved")
    _fit_channels(network, channels // 2)
    network.add("layers.InvertibleDownsampling", channels=channels // 2, size=2)
    places = torch.arange(4, dtype=torch.int64, device="cpu")
    network.order = (network.order[:, None] * 4 + places).flatten()
    network.shape = (2 * channels, height // 2, width // 2)


def _read_head(network: Converted, weights: Published, layer: Layer, classes: int) -> None:
    width = network.shape[0]
    if classes > width:
        raise ConversionError(f"expected at least {classes} features, got {width}")
    if layer is not _cayley:
        layer(network, weights, "ClassificationHead.0")
        network.flatten()
        network.end(identity(width)[:classes])
        return
    network.flatten()
    free = weights.take("ClassificationHead.1.weight", width, width)
    a = weights.take_number("ClassificationHead.1.alpha") * free / torch.linalg.vector_norm(free)
    a = a - a.mT
    eye = identity(width)
    orthogonal = torch.linalg.solve(eye + a, eye - a)
    network.end(orthogonal[:classes], weights.take("ClassificationHead.1.bias", width)[:classes])
