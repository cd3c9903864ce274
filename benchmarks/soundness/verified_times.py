"""Processor time of ``robustcert-check --verified`` on a folder of a random dense network.

    python -m benchmarks.soundness.verified_times --width 128 --depth 8 --activation ReLU

Weights are orthogonal, biases and inputs random, and every input is labelled as predicted.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.soundness.forgeries import LAYERS, write
from robustcert import activations
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import LipschitzCertifier
from robustcert.data import to_unit
from robustcert.models import MLP
from robustcert.network.fold import fold_network


def orthogonal(inputs: int, outputs: int) -> nn.Linear:
    """A dense layer of norm 1."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight)
    return layer


def main(arguments: Sequence[str] | None = None) -> int:
    """Certify, check and print; the exit status is the check's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--activation", default="GroupSort", help="a class of activations")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--arithmetic", default="float64")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = MLP(
        (1, 28, 28),
        10,
        width=options.width,
        depth=options.depth,
        layer=replace(LAYERS, dense=orthogonal),
        activation=getattr(activations, options.activation),
        mean=(0.1307,),
        std=(0.3081,),
    )
    network = fold_network(model, (1, 28, 28))
    inputs = torch.randint(0, 256, (options.samples, 1, 28, 28), dtype=torch.uint8)
    certifier = LipschitzCertifier(options.arithmetic)
    found = certifier.certify(network, to_unit(inputs))
    split = CertifiedSplit(inputs, found.prediction.clone(), torch.arange(len(inputs)), found)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), network, split, certifier)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "robustcert.check", folder, "--verified"], check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds:.1f} s of processor time, {options.samples} samples")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
