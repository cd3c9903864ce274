"""A smooth one-layer network whose certificate is exact: squared distances to affine subspaces.

python benchmarks/subspaces.py --dataset mnist --seeds 3

Class c has k affine subspaces p + span W, W with m orthonormal columns, and its logit is minus the
least squared distance. Differences of two such distances are quadratic with eigenvalues in [-1, 1],
so that a second-order certificate has a closed form, and duality (robustcert.quadric) an exact one;
no global Lipschitz constant exists. Trained for the closed form; a MaxMin and an N network of as
many parameters, trained with EMMA for as many epochs, stand beside it. The radii here are computed
in float64 without an account of rounding: a measurement, not a certificate that is shipped.
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
from robustcert.certifiers import LipschitzCertifier
from robustcert.data import MNIST, Dataset, Digits, FashionMNIST, to_unit
from robustcert.layers import AOLConv2d, CholeskyLinear
from robustcert.lipschitz import fold_network, pairwise_lipschitz_estimate
from robustcert.models import MLP, LayerFamily
from robustcert.objectives import EMMA
from robustcert.quadric import quadric_distance
from robustcert.schedules import CosineSchedule, EpsilonSchedule

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


class Subspaces(nn.Module):
    """Affine subspaces, started at clusters of each class and their main directions."""

    def __init__(self, x: Tensor, label: Tensor, per_class: int, rank: int) -> None:
        super().__init__()
        points, bases = [], []
        for c in range(CLASSES):
            own = x[label == c]
            own = own[torch.randperm(len(own))[:2000]]
            centre = own[torch.randperm(len(own))[:per_class]].clone()
            for _ in range(10):
                nearest = torch.cdist(own, centre).argmin(1)
                for j in range(per_class):
                    if (nearest == j).any():
                        centre[j] = own[nearest == j].mean(0)
            for j in range(per_class):
                spread = own[torch.cdist(own, centre).argmin(1) == j] - centre[j]
                noise = 1e-3 * torch.randn(rank, x.shape[1])
                rows = torch.cat([spread, noise])
                bases.append(torch.linalg.svd(rows, full_matrices=False)[2][:rank].T)
                points.append(centre[j])
        self.point = nn.Parameter(torch.stack(points))
        self.raw = nn.Parameter(torch.stack(bases))
        self.owner = torch.arange(CLASSES).repeat_interleave(per_class)

    def basis(self) -> Tensor:
        """Orthonormal columns, shape ``(P, D, m)``."""
        return torch.linalg.qr(self.raw)[0]

    def squares(self, x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances ``(N, P)``, and coordinates in the subspaces ``(N, P, m)``."""
        point = self.point.to(x)
        within = torch.einsum("nd,pdm->npm", x, basis) - torch.einsum("pdm,pd->pm", basis, point)
        far = x.square().sum(1, keepdim=True) - 2 * x @ point.T + point.square().sum(1)
        return (far - within.square().sum(2)).clamp_min(1e-12), within

    def closed_radii(self, x: Tensor, own: Tensor, basis: Tensor) -> Tensor:
        """Signed second-order radii to every subspace, shape ``(N, P)``; see the module.

        With f the difference of two squares and g the norm of its gradient, f falls by at most
        g s + s^2 within s, so it is positive up to 2 f / (g + sqrt(g^2 + 4 f)).
        """
        square, within = self.squares(x, basis)
        rows = torch.arange(len(x))
        best = square[rows, own]
        point = self.point.to(x)
        residual = x - point[own] - torch.einsum("ndm,nm->nd", basis[own], within[rows, own])
        # residuals' inner products, without the residuals of all subspaces
        inner = (x * residual).sum(1, keepdim=True) - residual @ point.T
        inner = inner - (torch.einsum("nd,pdm->npm", residual, basis) * within).sum(2)
        g2 = 4 * (square + best[:, None] - 2 * inner).clamp_min(1e-9)
        f = square - best[:, None]
        return 2 * f / (g2.sqrt() + (g2 + 4 * f.abs()).sqrt())

    def exact_radii(self, x: Tensor, own: Tensor, basis: Tensor) -> Tensor:
        """Distances to every other class's subspaces by duality, shape ``(N, P)``."""
        result = torch.full((len(x), len(self.owner)), math.inf, dtype=torch.float64)
        for i in own.unique().tolist():
            rows = (own == i).nonzero()[:, 0]
            square, within = self.squares(x[rows], basis)
            near = x[rows] - self.point[i] - within[:, i] @ basis[i].T
            for j in (self.owner != self.owner[i]).nonzero()[:, 0].tolist():
                far = x[rows] - self.point[j] - within[:, j] @ basis[j].T
                gradient = 2 * (far - near)
                frame = torch.linalg.qr(torch.cat([basis[i], basis[j]], dim=1))[0]
                a, b = frame.T @ basis[i], frame.T @ basis[j]
                eigenvalues, vectors = torch.linalg.eigh(a @ a.T - b @ b.T)
                along = gradient @ frame @ vectors
                across = (gradient.square().sum(1) - along.square().sum(1)).clamp_min(0)
                value = square[:, j] - square[:, i]
                result[rows, j] = quadric_distance(value, along, across, eigenvalues)
        return result

    def nearest(self, x: Tensor, basis: Tensor, label: Tensor | None = None) -> Tensor:
        """Index of the nearest subspace, of one class if given."""
        square, _ = self.squares(x, basis)
        if label is not None:
            square = torch.where(self.owner == label[:, None], square, math.inf)
        return square.argmin(1)


def by_class(radius: Tensor, label: Tensor) -> Tensor:
    """Least radius towards each class, 0 in the own column, shape ``(N, C)``."""
    return radius.view(len(radius), CLASSES, -1).amin(2).scatter(1, label[:, None], 0.0)


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


def attack(model: Subspaces, x: Tensor, own: Tensor, basis: Tensor, size: Tensor) -> Tensor:
    """Whether descent of the least margin within ``size`` changes the class, shape ``(N,)``."""
    label = model.owner[own]
    delta, broken = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool)
    for step in range(20):
        moved = (x + delta).requires_grad_()
        square = model.squares(moved, basis)[0].view(len(x), CLASSES, -1).amin(2)
        mine = square.gather(1, label[:, None])
        least = (square - mine).scatter(1, label[:, None], math.inf).amin(1)
        broken |= least.detach() <= 0
        (g,) = torch.autograd.grad(least.sum(), moved)
        turn = g / g.norm(dim=1, keepdim=True).clamp_min(1e-12)
        delta = delta - 0.3 * size[:, None] * (1 - step / 20) * turn
        delta = delta * (size[:, None] / delta.norm(dim=1, keepdim=True)).clamp(max=1)
    return broken


def subspaces(arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train, certify by both radii, attack."""
    _, x, label, x_test, label_test = read(arguments.dataset)
    epsilon = EPSILON[arguments.dataset]
    torch.manual_seed(seed)
    model = Subspaces(x, label, arguments.per_class, arguments.rank)
    objective, pairwise = EMMA(0.2), 1 - torch.eye(CLASSES)

    def loss(rows: Tensor, radius: float) -> Tensor:
        basis = model.basis()
        own = model.nearest(x[rows], basis, label[rows])
        radii = model.closed_radii(x[rows], own, basis)
        return objective(-by_class(radii, label[rows]), label[rows], pairwise, radius)

    seconds = fit(list(model.parameters()), loss, len(x), arguments.epochs, 0.02, epsilon)
    with torch.no_grad():
        model = model.double()
        basis = model.basis()
        inputs = x_test.double()
        own = torch.cat([model.nearest(part, basis) for part in inputs.split(500)])
        closed = []
        for part, mine in zip(inputs.split(500), own.split(500), strict=True):
            same = model.owner == model.owner[mine][:, None]
            radii = model.closed_radii(part, mine, basis)
            closed.append(radii.masked_fill(same, math.inf).amin(1))
        r_closed, r_exact = torch.cat(closed), model.exact_radii(inputs, own, basis).amin(1)
    correct = model.owner[own] == label_test
    count = min(len(inputs), arguments.attacked)
    parts = [t[:count].split(500) for t in (inputs, own, r_exact)]
    at, inside = torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool)
    for part, mine, radius in zip(*parts, strict=True):
        size = torch.full_like(radius, epsilon)
        at = torch.cat([at, attack(model, part, mine, basis, size)])
        inside = torch.cat([inside, attack(model, part, mine, basis, radius * (1 - 1e-6))])
    below = int((r_exact < r_closed * (1 - 1e-9)).sum())
    print(
        f"  {len(inside)} radii attacked inside, {int(inside.sum())} broken; {below} below closed"
    )
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "cpu seconds": seconds,
        "accuracy": share(correct),
        "closed form": share(correct & (r_closed > epsilon)),
        "verified": share(correct & (r_exact > epsilon)),
        "verified, attacked ones": share((correct & (r_exact > epsilon))[:count]),
        "under attack, the same": share(correct[:count] & ~at),
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
    parser.add_argument("--attacked", type=int, default=10_000, help="test samples to attack")
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
