"""What piecewise linearity costs at a corner: theory, constructed networks, trained networks.

python benchmarks/pwl_limits.py --out docs/figures

Prints what section 1 of docs/limits.md reports and draws its pictures; a few minutes on two cores.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.activations import Abs, GroupSort, NormPair, ReLU, SmoothMaxMin
from robustcert.attacks import ddn
from robustcert.certifiers import CombinedCertifier, LipschitzCertifier
from robustcert.data.toys import Wedge
from robustcert.layers import CholeskyLinear
from robustcert.lipschitz import fold_network
from robustcert.models import MLP, LayerFamily
from robustcert.plain import Dense, PlainNetwork

ANGLES = (60, 90, 120)
EXTRA = (0, 1, 2, 3, 5, 10)
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": ReLU,
    "MaxMin": GroupSort,
    "SmoothMaxMin": partial(SmoothMaxMin, temperature=0.05),
    "NormPair": partial(NormPair, temperature=0.05),
}


def rotation(angle: float) -> Tensor:
    """The matrix that turns the plane by an angle."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def with_head(operations: list, row: Tensor) -> PlainNetwork:
    """Two logits whose difference is ``row`` times the features."""
    return PlainNetwork((*operations, Dense(torch.stack([row, -row]) / 2)), (2,))


def folded_cone(turn: float, extra: int) -> PlainNetwork:
    """The maximum of ``extra + 2`` unit slopes at equal angles, by folding the plane in halves.

    Each fold maps p equally spaced slopes onto the upper half of them, so that p of them take
    log2(p) norm-preserving layers, and the Lipschitz bound is exact.
    """
    spacing = turn / (extra + 1)
    pieces, offset = extra + 2, 0.0
    absolute = Abs(2).fold()
    operations = []
    while pieces > 1:
        # The plane is turned so that the remaining slopes lie evenly about the first axis. The
        # absolute value of the first coordinate is harmless: the slopes' cone is on its right.
        operations += [Dense(rotation(-offset)), absolute]
        spread = pieces // 2
        first = 0.5 * spacing if pieces % 2 == 0 else 0.0
        pieces = spread if pieces % 2 == 0 else spread + 1
        offset = first + spacing * (pieces - 1) / 2
    operations.append(Dense(rotation(-offset)))
    return with_head(operations, torch.tensor([1.0, 0.0], dtype=torch.float64))


def worst(network: PlainNetwork, x: Tensor, distance: Tensor) -> float:
    """Least quotient of certified radius and distance."""
    return float((LipschitzCertifier().certify(network, x).radius / distance).min())


def constructed() -> list[tuple[int, int, float, float]]:
    """Angle, extra pieces, measured worst tightness, and what theory says."""
    rows = []
    for angle in ANGLES:
        turn = math.radians(angle)
        directions = torch.linspace(-turn / 2, turn / 2, 20001, dtype=torch.float64)
        x = torch.stack([directions.cos(), directions.sin()], dim=1)
        for extra in EXTRA:
            measured = worst(folded_cone(turn, extra), x, torch.ones(len(x)))
            rows.append((angle, extra, measured, math.cos(turn / (2 * (extra + 1)))))
    return rows


def controls() -> dict[str, float]:
    """Worst tightness where theory says that nothing is lost."""
    x = torch.randn(5000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axis = torch.tensor([1.0, 0.0], dtype=torch.float64)
    diagonal = torch.tensor([1.0, -1.0], dtype=torch.float64) / math.sqrt(2)
    absolute = Abs(2).fold()
    crossing = with_head([Dense(rotation(math.pi / 4)), absolute], diagonal)
    norm = NormPair(2, temperature=1e-6, learnable=False).fold()
    one = with_head([norm], torch.ones(1, dtype=torch.float64))
    return {
        "half-plane": worst(with_head([], axis), x, x[:, 0].abs()),
        "crossing lines (XOR)": worst(crossing, x, x.abs().amin(1)),
        "point, one smooth unit": worst(one, x, x.norm(dim=1)),
    }


def trained(activation: Callable[[int], nn.Module], seed: int, width: int) -> PlainNetwork:
    """A small orthogonal network trained on a right-angled wedge."""
    torch.manual_seed(seed)
    family = LayerFamily(dense=CholeskyLinear, conv=nn.Conv2d)
    model = MLP((2,), 2, width=width, depth=2, layer=family, activation=activation)
    toy = Wedge(90)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 500)
        x = torch.rand(512, 2)
        optimizer.zero_grad()
        F.cross_entropy(30 * model(x), toy.label(x)).backward()
        optimizer.step()
    return fold_network(model.eval(), (2,))


def near_corner(count: int = 200) -> Tensor:
    """Points at distance 0.15 and 0.3 from the tip, in the cone whose nearest point it is."""
    directions = torch.linspace(0.75 * math.pi, 1.25 * math.pi, count // 2, dtype=torch.float64)
    unit = torch.stack([directions.cos(), directions.sin()], dim=1)
    return torch.cat([0.5 + 0.15 * unit, 0.5 + 0.3 * unit])


def pieces(network: PlainNetwork) -> int:
    """Number of different gradients seen along an arc round the tip."""
    directions = torch.linspace(0.75 * math.pi, 1.25 * math.pi, 2000, dtype=torch.float64)
    x = 0.5 + 0.2 * torch.stack([directions.cos(), directions.sin()], dim=1)
    x.requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), x)
    return len(torch.unique((gradient * 1e5).round(), dim=0))


def draw_curves(path: Path, rows: list, points: dict[str, list[tuple[int, float]]]) -> None:
    """Worst tightness against extra pieces."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for angle in ANGLES:
        extra, measured, theory = zip(*[r[1:] for r in rows if r[0] == angle], strict=True)
        (line,) = axes.plot(extra, theory, label=f"cos(θ / 2(m+1)), θ = {angle}°")
        axes.plot(extra, measured, "o", color=line.get_color())
    for name, values in points.items():
        x, y = zip(*values, strict=True)
        axes.plot(x, y, "x", label=f"{name}, trained, θ = 90°")
    axes.set(
        xlabel="extra linear pieces m in the cone", ylabel="worst tightness", xlim=(-0.5, 10.5)
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=140)


def draw_levels(path: Path, networks: dict[str, PlainNetwork]) -> None:
    """Certified radius beside the true distance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    line = torch.linspace(0, 1, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    truth = Wedge(90).distance(grid)
    figure = Figure(figsize=(3 * len(networks), 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    levels = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
    for i, (name, network) in enumerate(networks.items()):
        radius = CombinedCertifier().certify(network, grid).radius
        axes = figure.add_subplot(1, len(networks), i + 1, aspect="equal")
        args = (line, line)
        axes.contour(*args, truth.view(161, 161).T, levels, colors="0.7", linewidths=1)
        axes.contour(*args, radius.view(161, 161).T, levels, colors="#0b6e4f", linewidths=1.2)
        axes.set(title=name, xticks=[], yticks=[])
    figure.suptitle("Certified radius (green) and distance to the true boundary (grey)")
    figure.savefig(path, dpi=140)


def main() -> None:
    """Print the tables and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--width", type=int, default=8)
    arguments = parser.parse_args()
    rows = constructed()
    print("| angle | extra pieces | worst tightness | theory |\n|---|---|---|---|")
    for angle, extra, measured, theory in rows:
        print(f"| {angle} | {extra} | {measured:.5f} | {theory:.5f} |")
    print("\n| control | worst tightness |\n|---|---|")
    for name, value in controls().items():
        print(f"| {name} | {value:.5f} |")
    x = near_corner()
    points: dict[str, list[tuple[int, float]]] = {}
    networks = {}
    print("\n| activation | seed | worst | mean | worst combined | mean combined | pieces |")
    print("|---|---|---|---|---|---|---|")
    for name, activation in ACTIVATIONS.items():
        for seed in range(arguments.seeds):
            network = trained(activation, seed, arguments.width)
            networks.setdefault(name, network)
            first = LipschitzCertifier().certify(network, x)
            both = CombinedCertifier().certify(network, x)
            distance = ddn(network, x, first.prediction, steps=60, restarts=4)[0]
            t, c = first.radius / distance, both.radius / distance
            linear = name in ("ReLU", "MaxMin")
            count = pieces(network) if linear else None
            if linear and count is not None:
                points.setdefault(name, []).append((count - 2, float(t.min())))
            print(
                f"| {name} | {seed} | {t.min():.3f} | {t.mean():.3f} | {c.min():.3f} "
                f"| {c.mean():.3f} | {count or 'smooth'} |",
                flush=True,
            )
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw_curves(arguments.out / "pwl_tightness.png", rows, points)
    draw_levels(arguments.out / "pwl_levels.png", networks)


if __name__ == "__main__":
    main()
