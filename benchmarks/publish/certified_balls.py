"""The README's picture: points of two moons and the balls that are certified around them.

    python -m benchmarks.publish.certified_balls docs/figures/certified_balls.png

The same data, number of parameters and steps twice: plain layers with ReLU, trained for accuracy;
orthogonal ones with MaxMin, trained for the certificate. A circle is the certified ball of a test
point, its colour that of the prediction.
"""

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Circle
from torch import Tensor, nn

import robustcert
from robustcert.activations import GroupSort
from robustcert.certificate.style import BLUE, RED, drawing, save
from robustcert.data import Moons
from robustcert.layers import AOLConv2d, CholeskyLinear
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.models import MLP, LayerFamily
from robustcert.objectives import EMMA

WIDTH, STEPS, EPSILON, SHOWN = 64, 600, 0.05, 60
CLASSES = (BLUE, RED)


def plain(x: Tensor, y: Tensor) -> nn.Module:
    """A ReLU network, trained by cross-entropy."""
    wide = [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    network = nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU(), *wide, nn.Linear(WIDTH, 2))
    optimizer = torch.optim.NAdam(network.parameters(), lr=0.01)
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def certified(x: Tensor, y: Tensor) -> nn.Module:
    """A MaxMin network of orthogonal layers, trained for its certificate."""
    layers = LayerFamily(dense=CholeskyLinear, conv=AOLConv2d)
    network = MLP(
        (2,), 2, width=WIDTH, depth=2, layer=layers, activation=GroupSort, mean=(0.5, 0.5)
    )
    objective = EMMA(temperature=0.1)
    optimizer = torch.optim.NAdam(network.parameters(), lr=0.01)
    for _ in range(STEPS):
        loss = objective(network(x), y, pairwise_lipschitz_estimate(network), epsilon=EPSILON)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def draw(axes: Axes, network: nn.Module, x: Tensor, y: Tensor, title: str) -> None:
    """Decision regions, the test points, and a ball around each that has one."""
    result = robustcert.certify(network, x)
    grid = torch.cartesian_prod(torch.linspace(0, 1, 300), torch.linspace(0, 1, 300))
    with torch.no_grad():
        regions = network(grid).argmax(1).reshape(300, 300).T
    axes.contourf(regions, levels=[-0.5, 0.5, 1.5], colors=CLASSES, alpha=0.13, extent=(0, 1, 0, 1))
    for label, colour in enumerate(CLASSES):
        mine = [i for i in range(SHOWN) if int(result.prediction[i]) == label]
        balls = [Circle(x[i].tolist(), float(result.radius[i])) for i in mine]
        axes.add_collection(PatchCollection(balls, facecolor=colour, alpha=0.12))
        axes.add_collection(PatchCollection(balls, facecolor="none", edgecolor=colour))
    axes.scatter(*x[:SHOWN].T, s=5, color="black", zorder=3)
    right = result.prediction == y
    verified = right & (result.radius > EPSILON)
    axes.set_title(f"{title}\naccuracy {right.double().mean():.2f}", fontsize=10)
    axes.set_xlabel(f"verified at {EPSILON:g}: {verified.double().mean():.2f}")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[], yticks=[])


def main(path: Path) -> None:
    """Train both, certify both, and write the picture."""
    torch.manual_seed(0)
    train, test = Moons().read("train"), Moons().read("test")
    accurate, proved = plain(train.inputs, train.labels), certified(train.inputs, train.labels)
    with drawing((8, 4.8)) as figure:
        left, right = figure.subplots(1, 2)
        draw(left, accurate, test.inputs, test.labels, "trained for accuracy")
        draw(right, proved, test.inputs, test.labels, "trained for the certificate")
        save(figure, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
