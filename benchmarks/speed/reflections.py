"""Orthogonal convolutions on a torus at size: fold, constants, evaluation, check, in CPU seconds.

    python -m benchmarks.speed.reflections --width 512 --depth 12
    python -m benchmarks.speed.reflections --layer soc --width 256 --depth 2 --large-kernels

prints a line for each, beginning with a step of training of one layer over the plain convolution;
one thread. With the option the layers are folded to kernels as large as the
map, as small ones are.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from robustcert.activations import GroupSort
from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import LipschitzCertifier, strict_arithmetic
from robustcert.check import check
from robustcert.data import as_numbers
from robustcert.layers import BROConv2d, CayleyConv2d, LOTConv2d, SOCConv2d, fft
from robustcert.layers.fft import FrequencyConv2d
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork

# Samples of the folder that is checked, and of a step of training.
SAMPLES, BATCH = 4, 8
LAYERS: dict[str, type[FrequencyConv2d]] = {
    "bro": BROConv2d,
    "soc": SOCConv2d,
    "cayley": CayleyConv2d,
    "lot": LOTConv2d,
}


def timed(said: str, function: Callable[[], Any]) -> Any:
    """The function's result, with a line on its CPU seconds and the memory so far."""
    started = time.process_time()
    found = function()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{said}: {time.process_time() - started:.2f} s, {memory:.2f} GB so far", flush=True)
    return found


def network_of(layer: type[FrequencyConv2d], width: int, depth: int, side: int) -> nn.Module:
    """Convolutions of one width on maps of one size, and a head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        conv = layer(width, width, 3, padding=1, input_size=(side, side))
        layers += [conv, GroupSort(width)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, 10))


def step_seconds(layer: nn.Module, shape: tuple[int, ...], batch: int) -> float:
    """The median of three forward and backward passes, in CPU seconds, after a first one."""
    x = torch.randn(batch, *shape, requires_grad=True)
    taken = []
    for _ in range(4):
        started = time.process_time()
        layer(x).square().sum().backward()
        taken.append(time.process_time() - started)
    return median(taken[1:])


def certified(network: PlainNetwork, folder: Path) -> Path:
    """A certificate folder of random images."""
    x = torch.randint(0, 256, (SAMPLES, *network.input_shape), dtype=torch.uint8)
    certifier = LipschitzCertifier()
    found = certifier.certify(network, as_numbers(x, "images"))
    labels = torch.arange(SAMPLES, dtype=torch.int64, device="cpu")
    split = CertifiedSplit(x, found.prediction, labels, found)
    write_certificate(folder, network, certifier.claim(network), split, [0.01])
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", choices=LAYERS, default="bro")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--side", type=int, default=16, help="height and width of all maps")
    parser.add_argument("--large-kernels", action="store_true")
    parser.add_argument("--unchecked", action="store_true", help="leave the check out")
    parser.add_argument("--depth", type=int, default=12)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.large_kernels:
        fft.MAX_KERNEL = 2**62
    module = network_of(LAYERS[options.layer], options.width, options.depth, options.side)
    shape = (options.width, options.side, options.side)
    width = options.width
    ours = step_seconds(module.get_submodule("0"), shape, BATCH)
    plain = step_seconds(nn.Conv2d(width, width, 3, padding=1), shape, BATCH)
    print(f"step at a batch of {BATCH}: {ours:.2f} s, {ours / plain:.1f} times the plain one")
    network = timed("fold", lambda: fold_network(module, shape))
    bytes_ = sum(t.nbytes for op in network.operations[:-1] for t in op.tensors().values())
    print(f"constants of the convolutions: {bytes_ / 2**20:.1f} MiB")
    x = torch.rand(1, *shape, dtype=torch.float64, device="cpu")
    with strict_arithmetic(), torch.no_grad():
        timed("first forward pass of one image, float64", lambda: network(x))
        timed("second one", lambda: network(x))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "certificate"
        folder.mkdir()
        timed(f"certificates of {SAMPLES} images", lambda: certified(network, folder))
        if not options.unchecked:
            report = timed("check", lambda: check(folder))
            print(f"verified: {report.verified}")


if __name__ == "__main__":
    main()
