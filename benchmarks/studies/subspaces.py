"""A smooth one-layer network whose certificate is exact: squared distances to affine subspaces.

python -m benchmarks.studies.subspaces --dataset mnist --seeds 3

Trains :class:`robustcert.models.Subspaces` on its own estimate of its radii, certifies it by
duality (``certifier=quadratic``), and attacks it; a MaxMin and an N network of as many parameters,
trained with EMMA for as many epochs, stand beside it.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from robustcert.activations import GroupSort, NActivation
from robustcert.attacks import cross_check, margin_attack
from robustcert.certifiers import LipschitzCertifier, QuadricCertifier
from robustcert.data import MNIST, Dataset, Digits, FashionMNIST, to_unit
from robustcert.layers import AOLConv2d, CholeskyLinear
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.models import MLP, LayerFamily, Subspaces
from robustcert.network.fold import fold_network
from robustcert.objectives import EMMA
from robustcert.training.module import MAX_STARTING_EXAMPLES
from robustcert.training.schedules import CosineSchedule, EpsilonSchedule

EPSILON = {"digits": 0.5, "mnist": 1.58, "fashion_mnist": 0.5}
CLASSES = 10


def read(name: str) -> tuple[Dataset, Tensor, Tensor, Tensor, Tensor]:
    """Train and test inputs, flat, with labels."""
    root = Path(os.environ.get("ROBUSTCERT_DATA", "data"))
    data: Dataset = Digits()
    if name != "digits":
        cls = {"mnist": MNIST, "fashion_mnist": FashionMNIST}[name]
        data = cls(root=str(root / name.replace("_", "-")))
    train, test = data.read("train"), data.read("test")
    inputs = [to_unit(part.inputs).flatten(1) for part in (train, test)]
    return data, inputs[0], train.labels, inputs[1], test.labels


def fit(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor, float], Tensor],
    count: int,
    epochs: int,
    lr: float,
    epsilon: float,
) -> float:
    """Train with NAdam and the package's schedules; the CPU seconds that it took."""
    optimizer = torch.optim.NAdam(parameters, lr)
    steps, step, started = epochs * -(-count // 256), 0, time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(count).split(256):
            for group in optimizer.param_groups:
                group["lr"] = lr * CosineSchedule()(step / steps)
            optimizer.zero_grad()
            loss(rows, EpsilonSchedule()(epsilon, step / steps)).backward()
            nn.utils.clip_grad_norm_(parameters, 3.0)
            optimizer.step()
            step += 1
    return time.process_time() - started


def starting(x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The first examples of each class, from which a training run starts the subspaces."""
    rows = torch.cat([(label == c).nonzero()[:MAX_STARTING_EXAMPLES, 0] for c in range(CLASSES)])
    return x[rows], label[rows]


def subspaces(arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train, certify, attack."""
    _, x, label, x_test, label_test = read(arguments.dataset)
    epsilon, shape = EPSILON[arguments.dataset], x.shape[1:]
    torch.manual_seed(seed)
    sizes = {"per_class": arguments.per_class, "rank": arguments.rank}
    model = Subspaces(shape, CLASSES, **sizes)
    model.start_at(*starting(x, label))
    objective, pairwise = EMMA(0.2), 1 - torch.eye(CLASSES)

    def loss(rows: Tensor, radius: float) -> Tensor:
        logits = model.distance_logits(x[rows], label[rows])
        return objective(logits, label[rows], pairwise, radius)

    seconds = fit(list(model.parameters()), loss, len(x), arguments.epochs, 0.02, epsilon)
    network = fold_network(model.eval(), shape)
    found = QuadricCertifier().certify(network, x_test)
    own, radius = found.prediction, found.radius
    correct = own == label_test
    with torch.no_grad():
        parts = zip(x_test.split(500), own.split(500), strict=True)
        logits = torch.cat([model.distance_logits(*part) for part in parts])
    estimate = -logits.scatter(1, own[:, None], -math.inf).amax(1)
    rows = (correct & (radius <= epsilon)).nonzero()[: arguments.attacked, 0]
    reach = torch.full((len(rows),), epsilon, dtype=torch.float64)
    parts = zip(*(t.split(500) for t in (x_test[rows].double(), own[rows], reach)), strict=True)
    left = torch.cat([margin_attack(network, *part)[0] > 0 for part in parts])
    inside = cross_check(network, x_test, own, radius, samples=arguments.attacked)
    median = inside["median_distance_over_radius"] or math.inf
    print(
        f"  {inside['samples']} radii attacked inside, {inside['broken']} broken; distance over "
        f"radius {median:.4f} in the median; {len(rows)} samples "
        f"without a certificate at {epsilon} attacked there, {share(left):.4f} left"
    )
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "cpu seconds": seconds,
        "accuracy": share(correct),
        "by the estimate": share(correct & (estimate > epsilon)),
        "verified": share(correct & (radius > epsilon)),
    }


def orthogonal(
    arguments: argparse.Namespace, seed: int, activation: Callable[[int], nn.Module]
) -> dict[str, float]:
    """A piecewise linear network of about as many parameters."""
    data, x, label, x_test, label_test = read(arguments.dataset)
    epsilon, shape = EPSILON[arguments.dataset], data.input_shape
    torch.manual_seed(seed)
    family = LayerFamily(dense=CholeskyLinear, conv=AOLConv2d)
    width = arguments.width
    model = MLP(shape, CLASSES, width=width, depth=4, layer=family, activation=activation)
    objective = EMMA(0.2)

    def loss(rows: Tensor, radius: float) -> Tensor:
        pairwise = pairwise_lipschitz_estimate(model)
        return objective(model(x[rows].view(-1, *shape)), label[rows], pairwise, radius)

    seconds = fit(list(model.parameters()), loss, len(x), arguments.epochs, 0.008, epsilon)
    network = fold_network(model.eval(), shape)
    found = LipschitzCertifier().certify(network, x_test.view(-1, *shape))
    correct = found.prediction == label_test
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "cpu seconds": seconds,
        "accuracy": share(correct),
        "verified": share(correct & (found.radius > epsilon)),
    }


def share(flags: Tensor) -> float:
    """Mean of booleans."""
    return float(flags.double().mean())


def main() -> None:
    """Train every model with every seed and print means and spreads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=EPSILON, default="mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=4)
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--attacked", type=int, default=1000, help="samples of each kind")
    parser.add_argument("--model", nargs="+", default=["subspaces", "MaxMin", "N"])
    arguments = parser.parse_args()
    models: dict[str, Callable[[int], dict[str, float]]] = {
        "subspaces": lambda seed: subspaces(arguments, seed),
        "MaxMin": lambda seed: orthogonal(arguments, seed, GroupSort),
        "N": lambda seed: orthogonal(arguments, seed, NActivation),
    }
    print(f"{arguments.dataset}, radius {EPSILON[arguments.dataset]}, {arguments.epochs} epochs")
    for name in arguments.model:
        rows = []
        for seed in range(arguments.seeds):
            rows.append(models[name](seed))
            print(f"  seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in rows[-1].items()))
        print(f"{name}:", flush=True)
        for key in rows[0]:
            values = [row[key] for row in rows]
            spread = stdev(values) if len(values) > 1 else math.nan
            print(f"  {key}: {mean(values):.4f} ± {spread:.4f}", flush=True)


if __name__ == "__main__":
    main()
