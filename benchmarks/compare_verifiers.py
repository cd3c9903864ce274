"""Certified radius and CPU seconds per sample of each verifier on the same plain networks.

python benchmarks/compare_verifiers.py --seed 0 --samples 40

Small dense networks, one per activation, are trained by cross-entropy on a toy in the plane and on
the digits. Radii are medians over correctly classified samples; 'exact' is branch and bound on the
plane (piecewise linear networks only), and 'DDN' an attack, from above.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.activations import Abs, GroupSort, ReLU, SmoothMaxMin, Softplus, Tanh
from robustcert.attacks import ddn
from robustcert.branch_and_bound import exact_distance
from robustcert.certifiers import (
    CombinedCertifier,
    CROWNCertifier,
    LipschitzCertifier,
    LipSDPCertifier,
)
from robustcert.data import Digits, Square, to_unit
from robustcert.lipschitz import fold_network
from robustcert.plain import PlainNetwork, UnsoundNetworkError

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": ReLU,
    "Abs": Abs,
    "MaxMin": GroupSort,
    "SmoothMaxMin, 0.5": partial(SmoothMaxMin, temperature=0.5, learnable=False),
    "softplus, 0.5": partial(Softplus, temperature=0.5, learnable=False),
    "tanh": Tanh,
}
VERIFIERS = {
    "lipschitz": LipschitzCertifier(),
    "lipsdp": LipSDPCertifier(),
    "combined": CombinedCertifier(),
    "crown alone": CROWNCertifier(alone=True),
}


def train(x: Tensor, y: Tensor, activation: Callable[[int], nn.Module], width: int) -> PlainNetwork:
    """A dense network of two hidden layers, folded."""
    sizes, classes = x[0].numel(), int(y.max()) + 1
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(sizes, width),
        activation(width),
        nn.Linear(width, width),
        activation(width),
        nn.Linear(width, classes),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        rows = torch.randint(0, len(x), (128,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return fold_network(model.eval(), x.shape[1:])


def timed(run: Callable[[], Tensor], count: int) -> tuple[float, float]:
    """Median of what is returned, and CPU seconds per sample."""
    start = time.process_time()
    radius = run()
    return float(radius.median()), (time.process_time() - start) / count


def main() -> None:
    """Train, verify and print one row per network and verifier."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=40)
    arguments = parser.parse_args()
    print(
        "| data | activation | verifier | median radius | CPU s / sample |\n|---|---|---|---|---|"
    )
    for data, width in ((Square(), 16), (Digits(), 32)):
        train_split, test = data.read("train"), data.read("test")
        x, y = to_unit(train_split.inputs), train_split.labels
        for name, activation in ACTIVATIONS.items():
            torch.manual_seed(arguments.seed)
            network = train(x, y, activation, width)
            z = to_unit(test.inputs).double()
            own = network(z).argmax(1)
            rows = (own == test.labels).nonzero()[: arguments.samples, 0]
            z, own = z[rows], own[rows]

            def show(
                verifier: str,
                run: Callable[[], Tensor],
                count: int = len(z),
                where: str = f"{data.name} {width} | {name}",
            ) -> None:
                try:
                    radius, seconds = timed(run, count)
                    row = f"{radius:.4f} | {seconds:.4f}"
                except UnsoundNetworkError:
                    row = "not covered |"
                print(f"| {where} | {verifier} | {row} |", flush=True)

            for verifier, certifier in VERIFIERS.items():
                show(verifier, lambda c=certifier, n=network, z=z: c.certify(n, z).radius)
            show(
                "DDN (above)",
                lambda n=network, z=z, y=own: ddn(n, z, y, restarts=3, initial_norm=0.1)[0],
            )
            if data.name == "square":
                show(
                    "exact",
                    lambda n=network, z=z: torch.tensor([exact_distance(n, s).upper for s in z]),
                )


if __name__ == "__main__":
    main()
