"""What piecewise linearity costs: theory, constructed networks, trained networks.

python -m benchmarks.studies.pwl_limits --out docs/figures

Prints what docs/limits.md reports and draws its pictures; a few minutes on two cores, each of which
trains networks of its own. ``--part`` chooses among theory, dimension, corner, toys and levels.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.activations import Abs, GroupSort, NActivation, NormPair, ReLU, SmoothMaxMin
from robustcert.attacks import ddn
from robustcert.certificate.style import (
    ATTACKED,
    BLUE,
    COLOURS,
    LINES,
    MARKERS,
    NEUTRAL,
    VERIFIED,
    drawing,
    look,
    save,
)
from robustcert.certifiers import CombinedCertifier, LipschitzCertifier
from robustcert.data import XOR, Disc, HalfPlane, Orthant, Spheres, Square, Toy, Wedge
from robustcert.ground_truth.plane import (
    area,
    boundary_segments,
    cut,
    distance_to_segments,
    linear_pieces,
)
from robustcert.layers import CholeskyLinear
from robustcert.models import MLP, LayerFamily
from robustcert.network.fold import fold_network
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork

ANGLES = (60, 90, 120)
EXTRA = (0, 1, 2, 3, 5, 10)
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": ReLU,
    "MaxMin": GroupSort,
    "N": NActivation,
    "SmoothMaxMin": partial(SmoothMaxMin, temperature=0.05),
    "NormPair": partial(NormPair, temperature=0.05),
}
# Piecewise linear ones, and their options of activation=.
LINEAR = {"ReLU": "relu", "MaxMin": "maxmin", "N": "n_activation"}
TOYS: list[Toy] = [
    HalfPlane(),
    XOR(),
    Wedge(60),
    Wedge(90),
    Square(),
    Disc(0.3),
    Orthant(8),
    Spheres(8),
]
# The toys' boundaries are looked at beyond the unit square, where the nearest point may lie.
LOW, HIGH, GRID = -0.5, 1.5, 801
TRUE_RADIUS = 0.1


def rotation(angle: float) -> Tensor:
    """The matrix that turns the plane by an angle."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def with_head(operations: list, row: Tensor, inputs: int = 2) -> PlainNetwork:
    """Two logits whose difference is ``row`` times the features."""
    return PlainNetwork((*operations, Dense(torch.stack([row, -row]) / 2)), (inputs,))


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


def cone_directions(count: int, dimension: int, seed: int = 0) -> Tensor:
    """Uniform unit vectors of the positive orthant, the normal cone of a box's corner."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dimension, dtype=torch.float64, generator=generator).abs()
    return x / x.norm(dim=1, keepdim=True)


def cap_share(dimension: int, angle: float) -> float:
    """Share of the unit sphere within an angle of a point."""
    from scipy.special import betainc

    return 0.5 * float(betainc((dimension - 1) / 2, 0.5, math.sin(angle) ** 2))


def least_pieces(dimension: int, loss: float) -> float:
    """Volume bound on the pieces for tightness 1 - loss at an orthant's corner."""
    return max(1.0, 2.0**-dimension / cap_share(dimension, math.acos(1 - loss)))


def greedy_pieces(dimension: int, loss: float, samples: int = 4000) -> int:
    """Pieces through sampled directions until every sampled direction has tightness 1 - loss."""
    x = cone_directions(samples, dimension)
    best, count = torch.zeros(samples, dtype=torch.float64), 0
    while best.min() < 1 - loss:
        # The ray through the direction that is certified least.
        best = torch.maximum(best, x @ x[best.argmin()])
        count += 1
    return count


def mean_tightness(rays: Tensor, x: Tensor) -> float:
    """Mean over directions of the certificate of the maximum of these unit slopes."""
    return float(torch.cat([(part @ rays.T).amax(1) for part in x.split(500)]).mean())


def dimension_tables() -> dict[str, Any]:
    """Growth of pieces with dimension, and what rays through training points leave to others."""
    dimensions = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
    bound = [least_pieces(d, 0.05) for d in dimensions]
    greedy = [(d, greedy_pieces(d, 0.05)) for d in (2, 3, 4, 5, 6, 7, 8)]
    print("\n| dimension | pieces needed for 0.95, at least |")
    print("|---|---|")
    for d, pieces in zip(dimensions, bound, strict=True):
        print(f"| {d} | {math.ceil(pieces - 1e-9):.4g} |")
    print("\n| dimension | pieces, greedy, for all of 4,000 directions |\n|---|---|")
    for d, count in greedy:
        print(f"| {d} | {count} |")
    print("\n| dimension | facets only | with the diagonal | one smooth unit, worst |")
    print("|---|---|---|---|")
    for d in (2, 10, 100, 784):
        x, facets = cone_directions(2000, d, seed=1), torch.eye(d, dtype=torch.float64)
        diagonal = torch.full((1, d), d**-0.5, dtype=torch.float64)
        both = mean_tightness(torch.cat([facets, diagonal]), x)
        unit = NormPair(d, group_size=d, temperature=1e-6, learnable=False).fold()
        network = with_head([unit], torch.ones(1, dtype=torch.float64), inputs=d)
        smooth = worst(network, x, torch.ones(2000))
        print(f"| {d} | {mean_tightness(facets, x):.3f} | {both:.3f} | {smooth:.5f} |")
    rays = (1, 4, 16, 64, 256, 1024, 4096)
    gap = {}
    print("\n| dimension | rays through training points | tightness there | on test points |")
    print("|---|---|---|---|")
    for d in (2, 8, 32, 128):
        train, test = cone_directions(rays[-1], d, seed=2), cone_directions(1000, d, seed=3)
        gap[d] = [mean_tightness(train[:n], test) for n in rays]
        own = mean_tightness(train, train[:1000])
        print(f"| {d} | {rays[-1]} | {own:.3f} | {gap[d][-1]:.3f} |")
    return {"bound": (dimensions, bound), "greedy": greedy, "rays": rays, "gap": gap}


def trained(
    toy: Toy, activation: Callable[[int], nn.Module], seed: int, width: int
) -> PlainNetwork:
    """A small orthogonal network of two layers trained on a toy."""
    torch.manual_seed(seed)
    family = LayerFamily(dense=CholeskyLinear, conv=nn.Conv2d)
    model = MLP(
        toy.input_shape, 2, width=width, depth=2, layer=family, activation=activation, mean=[0.5]
    )
    points = toy.read("train").inputs
    target = toy.label(points)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 500)
        rows = torch.randint(len(points), (256,))
        optimizer.zero_grad()
        F.cross_entropy(30 * model(points[rows]), target[rows]).backward()
        optimizer.step()
    return fold_network(model.eval(), toy.input_shape)


def contour_segments(network: PlainNetwork) -> Tensor:
    """The boundary of any network of two inputs, as a polyline on a fine grid."""
    from contourpy import contour_generator

    line = torch.linspace(LOW, HIGH, GRID, dtype=torch.float64)
    logits = network(torch.cartesian_prod(line, line))
    value = (logits[:, 0] - logits[:, 1]).view(GRID, GRID).T
    lines = contour_generator(line.numpy(), line.numpy(), value.numpy()).lines(0.0)
    parts = [torch.stack([c[:-1], c[1:]], dim=1) for c in map(torch.from_numpy, lines)]
    return torch.cat(parts) if parts else torch.empty(0, 2, 2, dtype=torch.float64)


def own_boundary(name: str, network: PlainNetwork) -> Tensor:
    """Exact for piecewise linear networks."""
    if name in LINEAR:
        return boundary_segments(linear_pieces(network, LOW, HIGH))
    return contour_segments(network)


def at_corner(name: str, network: PlainNetwork) -> dict[str, Any] | None:
    """Tightness round the tip of the wedge, relative to the network's own boundary.

    None where the directions to the nearest boundary point don't sweep an arc: no reflex corner was
    learned, or several.
    """
    turn = torch.linspace(0.75 * math.pi, 1.25 * math.pi, 2001, dtype=torch.float64)
    x = 0.5 + 0.25 * torch.stack([turn.cos(), turn.sin()], dim=1)
    segments = own_boundary(name, network)
    found = LipschitzCertifier().certify(network, x)
    if len(segments) == 0 or found.prediction.any():
        return None
    distance, nearest = distance_to_segments(x, segments)
    towards = x - nearest
    angle = torch.atan2(towards[:, 1], towards[:, 0]) % (2 * math.pi)
    if angle.diff().abs().max() > math.radians(3):
        return None
    t = found.radius / distance
    combined = CombinedCertifier().certify(network, x).radius / distance
    row: dict[str, Any] = {
        "worst": float(t.min()),
        "mean": float(t.mean()),
        "second order": float(combined.mean()),
    }
    if name in LINEAR:
        directions = directions_met(network, torch.cat([x, nearest]))
        # An end of the arc whose own direction is among the slopes is the middle of no interval.
        ends = sum(float((directions - angle[k]).abs().min()) < 1e-6 for k in (0, -1))
        swept = float(angle.max() - angle.min())
        row["pieces"] = len(directions)
        row["at most"] = math.cos(min(math.pi, swept / (2 * (len(directions) - ends / 2))))
    return row


def directions_met(network: PlainNetwork, points: Tensor) -> Tensor:
    """Directions of the slopes of all linear pieces that meet the convex hull of some points."""
    from scipy.spatial import ConvexHull

    hull = ConvexHull(points.numpy())
    found = []
    for piece in linear_pieces(network, LOW, HIGH):
        parts = [piece.corners]
        for side in torch.from_numpy(hull.equations):
            # The half-plane's inside has negative values.
            below = [list(cut(p, -(p @ side[:2] + side[2]))) for p in parts]
            parts = [q[0] for q in below if len(q) and inside(q[0], side)]
        if any(area(p) > 1e-12 for p in parts) and piece.gradient.norm() > 1e-9:
            found.append(torch.atan2(piece.gradient[1], piece.gradient[0]) % (2 * math.pi))
    return torch.unique((torch.stack(found) * 1e9).round()) / 1e9


def inside(corners: Tensor, side: Tensor) -> bool:
    """Whether the middle of a polygon is on a half-plane's negative side."""
    return bool(corners.mean(0) @ side[:2] + side[2] <= 0)


def corner_row(name: str, size: int, seed: int) -> dict[str, Any] | None:
    """A network trained at the tip of a right-angled wedge."""
    return at_corner(name, trained(Wedge(90), ACTIVATIONS[name], seed, size))


def corner_table(
    workers: ProcessPoolExecutor, seeds: int, width: int
) -> list[tuple[str, dict[str, Any]]]:
    """Trained networks at the tip of a right-angled wedge: of half the width, and of the width."""
    rows = []
    print("\n| activation | width | seed | pieces | worst | at most | mean | mean, second order |")
    print("|---|---|---|---|---|---|---|---|")
    cases = list(product(ACTIVATIONS, (width // 2, width), range(seeds)))
    found = workers.map(corner_row, *zip(*cases, strict=True))
    for (name, size, seed), row in zip(cases, found, strict=True):
        if row is None:
            print(f"| {name} | {size} | {seed} | no single corner | | | | |", flush=True)
            continue
        rows.append((name, row))
        most = f"{row['at most']:.3f}" if "at most" in row else ""
        print(
            f"| {name} | {size} | {seed} | {row.get('pieces', 'smooth')} | {row['worst']:.3f} "
            f"| {most} | {row['mean']:.3f} | {row['second order']:.3f} |",
            flush=True,
        )
    linear = [r for _, r in rows if "at most" in r]
    if linear:
        above = sum(r["worst"] > r["at most"] + 1e-9 for r in linear)
        short = mean(r["at most"] - r["worst"] for r in linear)
        print(f"\n{above} of {len(linear)} above the curve; mean shortfall {short:.3f}")
    return rows


def toy_row(toy: Toy, name: str, seed: int, width: int) -> dict[str, float]:
    """What one network certifies of a toy."""
    x = toy.read("test").inputs[:500].double()
    truth, label = toy.distance(x), toy.label(x)
    network = trained(toy, ACTIVATIONS[name], seed, width)
    radius = LipschitzCertifier().certify(network, x).radius
    result = CombinedCertifier().certify(network, x)
    correct = result.prediction == label
    certified = (correct & (radius > TRUE_RADIUS))[truth > TRUE_RADIUS].double().mean()
    if toy.input_shape == (2,):
        distance, _ = distance_to_segments(x, own_boundary(name, network))
        kept = distance > 0.01
    else:
        distance, _ = ddn(network, x, result.prediction, steps=60, restarts=3)
        kept = (distance > 0.01) & distance.isfinite()
    t = (radius / distance)[kept].sort().values
    return {
        "accuracy": float(correct.double().mean()),
        "share": float(certified),
        "mean": float(t.mean()),
        "worst": float(t[len(t) // 20]),
        "second order": float((result.radius / distance)[kept].mean()),
    }


def toy_rows(
    workers: ProcessPoolExecutor, seeds: int, width: int
) -> Iterator[tuple[str, str, list[dict[str, float]]]]:
    """For every toy and activation, what each seed's network certifies."""
    cases = list(product(TOYS, ACTIVATIONS))
    every = [(toy, name, seed, width) for toy, name in cases for seed in range(seeds)]
    found = workers.map(toy_row, *zip(*every, strict=True))
    for toy, name in cases:
        title = f"{toy.name} {toy.angle:.0f}°" if isinstance(toy, Wedge) else toy.name
        yield title, name, [next(found) for _ in range(seeds)]


def toy_table(workers: ProcessPoolExecutor, seeds: int, width: int) -> None:
    """Every toy, every activation: mean and spread over the seeds."""
    keys = ("accuracy", "share", "mean", "worst", "second order")
    print(
        f"\nWidth {width}, depth 2, {seeds} seeds, mean ± standard deviation: share of the points"
    )
    print(f"truly robust at {TRUE_RADIUS} that are certified; radius over own distance\n")
    print(
        "| toy | activation | accuracy | certified share | tightness | worst 5 % | second order |"
    )
    print("|---|---|---|---|---|---|---|")
    for toy, name, rows in toy_rows(workers, seeds, width):
        cells = []
        for key in keys:
            values = [row[key] for row in rows]
            spread = stdev(values) if len(values) > 1 else math.nan
            cells.append(f"{mean(values):.3f} ± {spread:.3f}")
        print(f"| {toy} | {name} | {' | '.join(cells)} |", flush=True)


def legend_below(axes: Any, columns: int) -> None:
    """The legend where it hides nothing."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)


def draw_corner(path: Path, rows: list, points: list[tuple[str, dict[str, Any]]]) -> None:
    """Worst tightness against extra pieces, and trained networks against what theory allows."""
    with drawing((9.6, 4.2)) as figure:
        left, right = figure.subplots(1, 2)
        # Grey: the colours are the activations', on the right.
        for angle, line, marker in zip(ANGLES, LINES, MARKERS, strict=False):
            extra, measured, theory = zip(*[r[1:] for r in rows if r[0] == angle], strict=True)
            left.plot(extra, theory, line, color=NEUTRAL)
            style = {"marker": marker, "linestyle": line, "markeredgecolor": "k"}
            left.plot([], [], color=NEUTRAL, markerfacecolor="k", label=f"θ = {angle}°", **style)
            left.plot(extra, measured, marker, color="k")
        left.set(
            xlabel="extra linear pieces m in the cone",
            ylabel="worst tightness",
            title="constructed networks (marks), cos(θ / 2(m + 1)) (lines)",
        )
        # Nearly all are near 1: what is missing to it tells them apart.
        found = [1 - row["at most"] for _, row in points if "at most" in row] or [0.1]
        ends = math.log10(min(found) / 1.5), math.log10(1.5 * max(found))
        missing = torch.logspace(*ends, 50).tolist()
        theory = [1 - value for value in missing]
        right.plot(missing, theory, color=NEUTRAL, label="theory: nothing above")
        for name, option in LINEAR.items():
            chosen = [row for other, row in points if other == name]
            if chosen:
                x, y = [1 - r["at most"] for r in chosen], [r["worst"] for r in chosen]
                style = {**look(option), "linestyle": "", "label": f"{name}, {len(x)} networks"}
                right.plot(x, y, **style)
        right.set(
            xlabel="1 - best possible with as many pieces",
            ylabel="worst tightness measured",
            xscale="log",
            ylim=(0, 1.01),
            title="trained networks, right angle",
        )
        right.xaxis.set_inverted(True)
        right.xaxis.set_major_formatter("{x:g}")
        for axes, columns in ((left, 3), (right, 2)):
            legend_below(axes, columns)
        save(figure, path)


def draw_dimension(path: Path, tables: dict[str, Any]) -> None:
    """Pieces against dimension, and test tightness against rays."""
    with drawing((9.6, 4.0)) as figure:
        left, right = figure.subplots(1, 2)
        left.semilogy(*tables["bound"], "o-", ms=3, color=BLUE, label="at least (volume)")
        greedy = zip(*tables["greedy"], strict=True)
        left.semilogy(*greedy, "s--", ms=4, color=ATTACKED, label="greedy, measured")
        left.axhline(1, color=VERIFIED, label="one smooth unit: exact")
        left.set(
            xlabel="dimension", ylabel="linear pieces for tightness 0.95", title="orthant corner"
        )
        for color, (d, values) in zip(COLOURS, tables["gap"].items(), strict=False):
            label = f"test, d = {d}"
            right.semilogx(tables["rays"], values, "o-", ms=3, color=color, label=label)
        right.axhline(1, color="k", ls=":", label="training, each")
        right.set(
            xlabel="pieces, one ray through each training point",
            ylabel="mean tightness",
            title="rays that memorise, in dimension d",
        )
        right.xaxis.set_major_formatter("{x:g}")
        for axes in (left, right):
            legend_below(axes, 3)
        save(figure, path)


def draw_levels(path: Path, width: int) -> None:
    """Certified radius beside the true distance, for each activation, on three toys."""
    toys: list[Toy] = [Wedge(90), Square(), Disc(0.3)]
    line = torch.linspace(0, 1, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    levels = [0.05, 0.1, 0.15, 0.2, 0.25]
    count = len(ACTIVATIONS)
    with drawing((2.3 * count, 2.4 * len(toys) + 0.3)) as figure:
        panels = figure.subplots(len(toys), count, squeeze=False)
        for toy, row in zip(toys, panels, strict=True):
            truth = toy.distance(grid)
            for axes, activation in zip(row, ACTIVATIONS.values(), strict=True):
                network = trained(toy, activation, 0, width)
                radius = LipschitzCertifier().certify(network, grid).radius
                for values, color in ((truth, NEUTRAL), (radius, VERIFIED)):
                    drawn = axes.contour(
                        line, line, values.view(161, 161).T, levels, colors=color, linewidths=1
                    )
                    if color == VERIFIED:
                        axes.clabel(drawn, levels[1::2], fontsize=6, fmt="%g")
                axes.set(xticks=[], yticks=[], aspect="equal")
            row[0].set_ylabel(toy.name)
        for axes, name in zip(panels[0], ACTIVATIONS, strict=True):
            axes.set_title(name)
        figure.suptitle(
            "Certified radius (green, labelled) and distance to the true boundary (grey)",
            fontsize=11,
        )
        save(figure, path)


PARTS = ("theory", "dimension", "corner", "toys", "levels")


def main() -> None:
    """Print the tables and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--seeds", type=int, default=5, help="at the corner; three on all toys")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = constructed()
    if "theory" in arguments.part:
        print("| angle | extra pieces | worst tightness | theory |\n|---|---|---|---|")
        for angle, extra, measured, theory in rows:
            print(f"| {angle} | {extra} | {measured:.5f} | {theory:.5f} |")
        print("\n| control | worst tightness |\n|---|---|")
        for name, value in controls().items():
            print(f"| {name} | {value:.5f} |")
    if "dimension" in arguments.part:
        draw_dimension(arguments.out / "pwl_dimension.png", dimension_tables())
    # A new interpreter each, and one thread: the networks are too small for two.
    with ProcessPoolExecutor(
        mp_context=torch.multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as workers:
        if "corner" in arguments.part:
            points = corner_table(workers, arguments.seeds, arguments.width)
            draw_corner(arguments.out / "pwl_tightness.png", rows, points)
        if "toys" in arguments.part:
            toy_table(workers, min(3, arguments.seeds), arguments.width)
    if "levels" in arguments.part:
        draw_levels(arguments.out / "pwl_levels.png", arguments.width)


if __name__ == "__main__":
    main()
