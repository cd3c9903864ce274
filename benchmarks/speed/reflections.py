"""Block reflector convolutions at size: fold, constants, evaluation and check, in CPU seconds.

    python -m benchmarks.speed.reflections --width 512 --depth 12

prints a line for each; one thread.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcert.activations import GroupSort
from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import LipschitzCertifier, strict_arithmetic
from robustcert.check import check
from robustcert.data import as_numbers
from robustcert.layers import BROConv2d
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork

# Height and width of all maps, and samples of the folder that is checked.
SIDE, SAMPLES = 16, 4


def timed(said: str, function: Callable[[], Any]) -> Any:
    """The function's result, with a line on its CPU seconds and the memory so far."""
    started = time.process_time()
    found = function()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{said}: {time.process_time() - started:.2f} s, {memory:.2f} GB so far", flush=True)
    return found


def network_of(width: int, depth: int) -> nn.Module:
    """Convolutions of one width on maps of one size, and a head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        conv = BROConv2d(width, width, 3, padding=1, input_size=(SIDE, SIDE))
        layers += [conv, GroupSort(width)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * SIDE**2, 10))


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
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=12)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    module = network_of(options.width, options.depth)
    shape = (options.width, SIDE, SIDE)
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
        report = timed("check", lambda: check(folder))
        print(f"verified: {report.verified}")


if __name__ == "__main__":
    main()
