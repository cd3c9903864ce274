"""What second-order certificates gain over the Lipschitz radius, by activation, on the digits.

python -m benchmarks.studies.second_order

Trains one small orthogonal network per activation and prints, for three radii, verified accuracy by
each certificate and the attack-free upper bound on robust accuracy.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from robustcert.activations import GroupSort, ReLU, SmoothMaxMin, Softplus, Tanh
from robustcert.certifiers import CombinedCertifier, LipschitzCertifier, robust_accuracy_bracket
from robustcert.data import Digits, to_unit
from robustcert.layers import AOLConv2d, CholeskyLinear
from robustcert.models import MLP, LayerFamily
from robustcert.network.fold import fold_network

RADII = (0.15, 0.3, 0.5)
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": ReLU,
    "MaxMin": GroupSort,
    "SmoothMaxMin, temperature 0.05": partial(SmoothMaxMin, temperature=0.05, learnable=False),
    "SmoothMaxMin, temperature 0.5": partial(SmoothMaxMin, temperature=0.5, learnable=False),
    "softplus, temperature 0.1": partial(Softplus, temperature=0.1, learnable=False),
    "tanh": Tanh,
}


def main() -> None:
    """Train, certify and print one row per activation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    digits = Digits()
    train, test = digits.read("train"), digits.read("test")
    inputs, x, target = to_unit(train.inputs), to_unit(test.inputs), test.labels
    print("activation | accuracy | Lipschitz | second order | at most, at", RADII)
    for name, activation in ACTIVATIONS.items():
        torch.manual_seed(arguments.seed)
        family = LayerFamily(dense=CholeskyLinear, conv=AOLConv2d)
        model = MLP(digits.input_shape, 10, width=64, depth=2, layer=family, activation=activation)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(arguments.steps):
            rows = torch.randint(0, len(inputs), (128,))
            loss = F.cross_entropy(10 * model(inputs[rows]), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network = fold_network(model.eval(), digits.input_shape)
        first = LipschitzCertifier().certify(network, x)
        second = CombinedCertifier().certify(network, x)
        broken = CombinedCertifier().adversarial_distance(network, x)
        correct = first.prediction == target
        by_slope = [(correct & (first.radius > r)).double().mean().item() for r in RADII]
        brackets = [robust_accuracy_bracket(second.radius, broken, correct, r) for r in RADII]
        columns = [by_slope, [float(b[0]) for b in brackets], [float(b[1]) for b in brackets]]
        rows_ = " | ".join(" / ".join(f"{v:.3f}" for v in column) for column in columns)
        print(f"{name} | {correct.double().mean():.3f} | {rows_}", flush=True)


if __name__ == "__main__":
    main()
