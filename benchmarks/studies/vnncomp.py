"""l2 certificates of networks from ONNX files, such as VNN-COMP's mnist_fc and cifar10_resnet.

    python -m benchmarks.studies.vnncomp mnist-net_256x2.onnx --dataset mnist
    python -m benchmarks.studies.vnncomp resnet_2b.onnx --dataset cifar10 \
        --mean 0.4914 0.4822 0.4465 --std 0.2471 0.2435 0.2616

The files are given; nothing is downloaded but what a dataset asks for. For each file: the accuracy,
the proved constant, quantiles of the certified radii, and how many certificates were attacked
inside their radius, with the quotients of DDN's distance over the radius; an attack that succeeds
inside one ends the benchmark with an error.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from robustcert.attacks import cross_check
from robustcert.certifiers import LipschitzCertifier, strict_arithmetic
from robustcert.config.build import build_dataset
from robustcert.data import to_unit
from robustcert.models import Normalize
from robustcert.network.agreement import require_agreement
from robustcert.network.fold import fold_network
from robustcert.network.network import pairwise_bound
from robustcert.network.onnx import fitted, read_onnx

DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR10", "digits": "Digits"}


def study(path: Path, options: argparse.Namespace) -> None:
    """Print what is certified of one file."""
    node = {"_target_": f"robustcert.data.{DATASETS[options.dataset]}"}
    if options.dataset != "digits":
        folder = Path(os.environ.get("ROBUSTCERT_DATA", "data")) / options.dataset
        node["root"] = options.root or str(folder)
    source = build_dataset({"dataset": node}, ("robustcert",))
    source.prepare()
    examples = source.read("test").take(slice(options.samples))
    x = to_unit(examples.inputs[:])
    shape = tuple(x.shape[1:])
    module = fitted(read_onnx(path), shape)
    if options.mean or options.std:
        before = Normalize(options.mean or [0.0], options.std or [1.0], channels=shape[0])
        module = torch.nn.Sequential(before, module)
    started = time.perf_counter()
    network = fold_network(module, shape)
    with strict_arithmetic():
        require_agreement(module, network, x)
    found = LipschitzCertifier().certify(network, x)
    seconds = time.perf_counter() - started
    right = found.prediction == examples.labels
    constant = float(pairwise_bound(network).max()) / 2**0.5
    radii = found.radius[right].quantile(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    print(f"{path.name}: accuracy {right.double().mean():.4f}, constant {constant:.4g}")
    print(f"  radii of right ones: {', '.join(f'{r:.3g}' for r in radii.tolist())} (min, median")
    print(f"  and max); {seconds:.1f} s for {len(x)} samples")
    inside = cross_check(network, x, found.prediction, found.radius, samples=len(x), seconds=600)
    print(f"  inside of the radii: {inside}")


def main() -> None:
    """Study every file that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--dataset", choices=list(DATASETS), default="mnist")
    parser.add_argument("--root", help="folder of the dataset's files")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--mean", type=float, nargs="+", help="of the model's standardisation")
    parser.add_argument("--std", type=float, nargs="+")
    options = parser.parse_args()
    for path in options.models:
        try:
            study(path, options)
        except ValueError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
