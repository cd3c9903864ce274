"""The constant that a peer's network is taken to have, beside the one that is proved of it.

    python -m benchmarks.studies.peers --epochs 20

Trains two networks of deel-torchlip (``pip install 'robustcert[bridges]'``) on the digits: one of
its constrained layers, and the same network exported to layers of torch before training, whose
certificate is read off its margins as if its constant were still 1. Prints for both the constant,
the median radius by each, and how many samples are changed by an attack inside the assumed radius.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robustcert
from robustcert.attacks import margin_attack
from robustcert.data import Digits
from robustcert.lipschitz import fold_network, lipschitz_bound

TEMPERATURE = 10.0
WIDTH = 64


def network(*, constrained: bool) -> nn.Module:
    """Three dense layers with GroupSort; not constrained, as the package exports them."""
    peer = import_module("deel.torchlip")
    torch.manual_seed(0)
    sizes = (64, WIDTH, WIDTH)
    layers = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [peer.SpectralLinear(inputs, outputs), peer.GroupSort2()]
    made: nn.Module = peer.Sequential(*layers, peer.SpectralLinear(WIDTH, 10))
    return made if constrained else peer.vanilla_model(made, in_place=False)


def train(module: nn.Module, x: Tensor, label: Tensor, epochs: int) -> None:
    """Cross-entropy of scaled logits, Adam, batches of 64."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(TEMPERATURE * module(x[rows]), label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()


def compare(module: nn.Module, x: Tensor, label: Tensor) -> dict[str, float]:
    """Accuracy, constants, and radii of the samples that are classified correctly."""
    found = robustcert.certify(module, x)
    right = found.prediction == label
    with torch.no_grad():
        largest = module(x[right]).double().topk(2, dim=1).values
    # Of logits that are 1-Lipschitz together, two change their difference by sqrt(2) at most.
    assumed = (largest[:, 0] - largest[:, 1]) / math.sqrt(2)
    folded = fold_network(module, tuple(x.shape[1:]))
    inside = 0.999 * assumed
    margin, _ = margin_attack(folded, x[right].double(), label[right], inside, steps=100)
    return {
        "accuracy": float(right.double().mean()),
        "constant": lipschitz_bound(module, tuple(x.shape[1:])),
        "assumed": float(assumed.median()),
        "proved": float(found.radius[right].median()),
        "broken": float((margin <= 0).double().mean()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Train both, print one row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)
    trained, tested = (Digits().read(split) for split in ("train", "test"))
    names = ("accuracy", "constant", "assumed", "proved", "broken")
    sys.stdout.write(f"{'network':<12}" + "".join(f"{name:>11}" for name in names) + "\n")
    for name, constrained in (("constrained", True), ("exported", False)):
        module = network(constrained=constrained)
        train(module, trained.inputs, trained.labels, options.epochs)
        row = compare(module, tested.inputs, tested.labels)
        sys.stdout.write(f"{name:<12}" + "".join(f"{row[n]:>11.7f}" for n in names) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
