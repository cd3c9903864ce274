"""1-Lipschitz ConvNets of berndprach/1LipschitzLayersCompared: one network, several layers.

The layers are told apart by their tensors. Those of ECO are refused: they round every map to
float16, so that no network of real numbers gives their logits.

Reference: Prach, Brau, Buttazzo and Lampert, `1-Lipschitz Layers Compared
<https://arxiv.org/abs/2311.16833>`_, CVPR 2024.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.convert.bcop import bjorck, kernel_of
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
# Björck's iterations of BCOP's convolutions, and of the dense layer behind them, of either class.
BCOP_STEPS = 20
HEAD_STEPS = {"parametrizations.weight.original": 15, "weight": 20}
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
        "psi": _sandwich,
        "parametrizations.weight.original": _aol,
        "param_matrices": _bcop,
        "random_conv_filter": _soc,
        "q": _sll,
        "u": _cpl,
        "alpha": _cayley,
        "weight": _lot,
    }
    if "FirstConv.us" in weights:
        raise ConversionError(
            f"{path}: its layers are those of ECO, which are not taken: the original code rounds "
            "every map to float16 before and behind a convolution, which no Lipschitz constant "
            "bounds, and 1e-3 away from the network without"
        )
    for name, layer in kinds.items():
        if f"FirstConv.{name}" in weights:
            return layer, weights.shape("FirstConv.bias", 1)[0]
    raise ConversionError(
        f"{path}: its layers are not AOL, BCOP, SLL, CPL, Cayley, LOT, SOC or Sandwich"
    )


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


def _bcop(network: Converted, weights: Published, name: str) -> None:
    """A circular convolution by products of projections."""
    channels = network.shape[0]
    count = weights.shape(f"{name}.param_matrices", 3)[0]
    side = (count + 1) // 2
    if not (count % 2 and side % 2):
        raise ConversionError(
            f"{weights.path}: {name}.param_matrices: expected 1, 5, 9, ... matrices, those of an "
            f"odd kernel, got {count}"
        )
    free = weights.take(f"{name}.param_matrices", count, channels, channels)
    kept = weights.take(f"{name}.mask", count - 1, 1, channels)
    found = bjorck(free, BCOP_STEPS, f"{weights.path}: {name}.param_matrices")
    frames = found[1:] * kept
    kernel = kernel_of(found[0], frames @ frames.mT)
    bias = weights.take(f"{name}.bias", channels)
    order = neighbours(channels)
    network.convolve_circularly(kernel, bias, padding=side // 2, order=order)


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


def _soc(network: Converted, weights: Published, name: str) -> None:
    """A skew zero-padded convolution's exponential, which the border of the map cuts at every term.

    The kernel is divided by the least of four bounds, estimated at the file's vectors.
    """
    free = _kernel(network, weights, f"{name}.random_conv_filter")
    kernel = (free - free.transpose(0, 1).flip(2, 3)) / 2
    # Dimensions of u, the others being those of v: input channels with columns, with rows, with
    # both, and output channels with both.
    products = []
    for number, own in enumerate(((1, 3), (1, 2), (1, 2, 3), (0, 2, 3)), 1):
        u, v = (
            weights.take(
                f"{name}.{letter}{number}",
                *(n if (d in own) == (letter == "u") else 1 for d, n in enumerate(kernel.shape)),
            )
            for letter in "uv"
        )
        products.append((kernel * u * v).sum())
    least = torch.stack(products).min()
    if not least > 0:
        raise ConversionError(
            f"{weights.path}: {name}: expected vectors at which the kernel's bounds are above 0, "
            f"got {float(least)}"
        )
    scale = weights.take_number(f"{name}.correction") / least
    network.turn(scale * kernel, weights.take(f"{name}.bias", network.shape[0]))


def _sandwich(network: Converted, weights: Published, name: str) -> None:
    """Two circular convolutions around a ReLU, or two dense maps, by a Cayley transform."""
    channels, *size = network.shape
    if size:
        side = weights.shape(f"{name}.weight", 4)[-1]
        free = weights.take(f"{name}.weight", channels, 2 * channels, side, side)
        blocks = _blocks(free, size[0])
        # The norm is that of the frequencies of a real transform.
        norm = torch.linalg.vector_norm(blocks[:, : size[0] // 2 + 1])
    else:
        blocks = weights.take(f"{name}.weight", channels, 2 * channels)
        norm = torch.linalg.vector_norm(blocks)
    blocks = weights.take_number(f"{name}.alpha") * blocks / norm
    u, v = blocks.mT.split(channels, -2)
    a, eye = u - u.mH + v.mH @ v, identity(channels)
    inverse = torch.linalg.inv(eye + a)
    outer, inner = (inverse @ (eye - a)).mT, (-2 * v @ inverse).mT
    psi = weights.take(f"{name}.psi", channels).exp()
    inner, outer = 2**0.5 / psi[:, None] * inner, 2**0.5 * psi[:, None] * outer
    if size:
        inner, outer = _taps(inner), _taps(outer)
    bias = weights.take(f"{name}.bias", channels)
    network.enclose(inner, outer, psi, bias, order=neighbours(channels))


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
    flat = layer is _sandwich or layer in _DENSE
    if flat:
        network.flatten()
    if layer in _DENSE:
        bias = weights.take("ClassificationHead.1.bias", width)
        weight = _DENSE[layer](weights, "ClassificationHead.1", width)
        network.end(weight[:classes], bias[:classes])
        return
    layer(network, weights, f"ClassificationHead.{int(flat)}")
    if not flat:
        network.flatten()
    network.end(identity(width)[:classes])


def _cayley_head(weights: Published, name: str, width: int) -> Tensor:
    free = weights.take(f"{name}.weight", width, width)
    a = weights.take_number(f"{name}.alpha") * free / torch.linalg.vector_norm(free)
    a = a - a.mT
    eye = identity(width)
    return torch.linalg.solve(eye + a, eye - a)


def _bcop_head(weights: Published, name: str, width: int) -> Tensor:
    (key,) = [key for key in HEAD_STEPS if f"{name}.{key}" in weights] or ["weight"]
    free = weights.take(f"{name}.{key}", width, width)
    return bjorck(free, HEAD_STEPS[key], f"{weights.path}: {name}.{key}", scaled=key != "weight")


# What reads the dense layer of networks that end with one.
_DENSE: dict[Layer, Callable[[Published, str, int], Tensor]] = {
    _bcop: _bcop_head,
    _cayley: _cayley_head,
}
