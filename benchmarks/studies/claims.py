"""The three claims about piecewise linearity, on real data: one command, one table, one figure.

python -m benchmarks.studies.claims --dataset digits --out outputs/claims-digits

(a) tightness by activation at equal capacity, (b) verified accuracy against capacity, (c) the gap
between training and test tightness as capacity grows. Every run is that of ``train.py`` in a folder
of its own; runs that are there already are not repeated, so the command can be stopped and given
again. ``--redraw docs/limits.md`` trains nothing: it draws that page's pictures from its tables.
"""

import argparse
import csv
import math
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import hydra
import torch
from torch import Tensor

from robustcert.attacks import ddn
from robustcert.certificate.style import NEUTRAL, drawing, in_percent, look, save, share_axis
from robustcert.certifiers import CombinedCertifier, LipschitzCertifier
from robustcert.config.build import COMMAND_LINE_TARGETS, build_data, build_dataset, build_model
from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION
from robustcert.metrics.tightness import split_tightness, steepest_slopes
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.runs.commands import plain, register_resolvers
from robustcert.runs.train import train
from robustcert.training.checkpoint import read_checkpoint

# Epochs, widths and further options; the radius is the data set's or an experiment's.
SETTINGS: dict[str, tuple[int, tuple[int, ...], tuple[str, ...]]] = {
    "digits": (30, (32, 64, 128), ("dataset=digits",)),
    "fashion_mnist": (4, (64, 256), ("experiment=fashion_mnist_0.5",)),
    "mnist": (4, (64, 256), ("experiment=mnist_1.58",)),
    "cifar10": (6, (256, 512), ("dataset=cifar10",)),
}
# Smooth networks beside the choices of conf/activation: temperatures of the order of the radius,
# held, learned from there (activation=smooth starts at 0.05), or lowered while training.
VARIANTS: dict[str, tuple[str, ...]] = {
    "smooth_at_epsilon": (
        "activation=smooth",
        "model.activation.temperature=${epsilon}",
        "model.activation.learnable=false",
    ),
    "smooth_learned_from_epsilon": (
        "activation=smooth",
        "model.activation.temperature=${epsilon}",
        "model.activation.per_feature=true",
    ),
    "smooth_annealed": (
        "activation=smooth",
        "model.activation.learnable=false",
        "+trainer.callbacks=[{_target_: robustcert.training.callbacks.TemperatureAnnealing, "
        "start: ${epsilon}, end: 0.01}]",
    ),
}
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
# What is drawn, and how its axis is named: tightness is the certified share of the distance.
PANELS = {"t test": "tight, test", "vra": "verified", "gap": ""}
# Mean and half the width of its interval by column, and such of every activation and width.
Estimates = dict[str, tuple[float, float]]
Rows = list[tuple[str, Estimates]]
KEYS = ("accuracy", "vra", "second-order gain", "t train", "t test", "gap", "t_K", "t_shape")


def compose(*overrides: str) -> dict[str, Any]:
    """What ``python train.py`` would compose."""
    register_resolvers()
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        return plain(hydra.compose("train", list(overrides)))


def measure(folder: Path, samples: int) -> dict[str, float]:
    """Accuracy, verified accuracy and tightness of a finished run."""
    read = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    config = read.config
    dataset = build_dataset(config, COMMAND_LINE_TARGETS)
    model = build_model(config, read.input_shape, read.num_classes, COMMAND_LINE_TARGETS)
    read.load_into(model)
    network = fold_network(model.eval(), read.input_shape)
    data = build_data(config, dataset, COMMAND_LINE_TARGETS)
    test, own = data.examples("test"), data.examples("train")
    found = LipschitzCertifier().certify(network, test.inputs)
    correct = found.prediction == test.labels
    verified = correct & (found.radius > config["epsilon"])
    some = slice(10 * samples)
    combined = CombinedCertifier().certify(network, test.inputs[some])
    also = correct[some] & (combined.radius > config["epsilon"])
    rows = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[:samples]
    t_train, _, _ = tightness_of(network, own.inputs[rows], own.labels[rows])
    t_test, by_bound, by_shape = tightness_of(network, test.inputs[:samples], test.labels[:samples])
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "accuracy": float(correct.double().mean()),
        "vra": float(verified.double().mean()),
        "second-order gain": float(also.double().mean() - verified[some].double().mean()),
        "t train": t_train,
        "t test": t_test,
        "gap": t_train - t_test,
        "t_K": by_bound,
        "t_shape": by_shape,
    }


def tightness_of(network: PlainNetwork, x: Tensor, label: Tensor) -> tuple[float, float, float]:
    """Mean tightness over correct samples, and its two factors."""
    x = x.double()
    certifier = LipschitzCertifier()
    found = certifier.certify(network, x)
    rows = (found.prediction == label).nonzero()[:, 0]
    x, own, radius = x[rows], found.prediction[rows], found.radius[rows]
    start = float(radius.median()) or 1.0
    distance, delta = ddn(network, x, own, steps=60, restarts=3, initial_norm=start)
    rival = network(x + delta).scatter(1, own[:, None], -math.inf).argmax(1)
    logits = network(x)
    at = torch.arange(len(x))
    factors = split_tightness(
        logits[at, own] - logits[at, rival],
        certifier.pairwise_bound(network)[own, rival],
        steepest_slopes(network, x)[own, rival],
        distance,
    )
    return tuple(float(v.nanmean()) for v in (radius / distance, *factors))  # type: ignore[return-value]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval over seeds."""
    if len(values) < 2:
        return values[0], math.nan
    return mean(values), STUDENT[len(values) - 1] * stdev(values) / math.sqrt(len(values))


def estimates(rows: list[dict[str, float]]) -> Estimates:
    """What the seeds of one configuration measured."""
    return {key: interval([row[key] for row in rows]) for key in ("parameters", *KEYS)}


def row_of(activation: str, width: int, found: Estimates) -> str:
    """A row of the table, which :func:`read_tables` reads."""
    cells = [activation, f"{width}", f"{found['parameters'][0]:.0f}"]
    cells += [f"{found[key][0]:.3f} ± {found[key][1]:.3f}" for key in KEYS]
    return f"| {' | '.join(cells)} |"


def read_tables(page: str) -> dict[str, Rows]:
    """For every data set whose picture a page of markdown shows, the rows of the table above it."""
    tables: dict[str, Rows] = {}
    names: list[str] = []
    rows: Rows = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("| activation "):
            names, rows = cells, []
        elif "gap" in names and len(cells) == len(names) and "±" in line:
            parts = [cell.partition("±") for cell in cells[1:]]
            values = [(float(middle), float(half or math.nan)) for middle, _, half in parts]
            rows.append((cells[0], dict(zip(names[1:], values, strict=True))))
        elif picture := re.search(r"\(figures/claims_(\w+)\.png\)", line):
            tables[picture[1]] = rows
    return tables


def draw(path: Path, rows: Rows, title: str) -> None:
    """The three claims beside one another; of few or no seeds without intervals."""
    names = list(dict.fromkeys(name for name, _ in rows))
    with drawing((11.5, 4.0)) as figure:
        panels = figure.subplots(1, len(PANELS))
        for axes, (key, label) in zip(panels, PANELS.items(), strict=True):
            missing = False
            if key == "gap":
                axes.set_ylabel("tightness, training minus test (points)")
                axes.axhline(0, color=NEUTRAL, lw=0.8)
            else:
                missing = share_axis(axes, [found[key][0] for _, found in rows], label, "y")
            for k, name in enumerate(names):
                chosen = [found for other, found in rows if other == name]
                # Set apart a little, so that no interval hides another one.
                apart = 1.04 ** (k - (len(names) - 1) / 2)
                x = [apart * found["parameters"][0] for found in chosen]
                ends = [(m - half, m, m + half) for m, half in (found[key] for found in chosen)]
                drawn = [[in_percent(value, missing) for value in three] for three in ends]
                bars = [[abs(three[1] - three[i]) for three in drawn] for i in (0, 2)]
                bars = bars[::-1] if missing else bars
                y = [three[1] for three in drawn]
                axes.errorbar(x, y, bars, capsize=3, elinewidth=1, label=name, **look(name))
            axes.set(xlabel="parameters", xscale="log")
            # The labels between decades would overlap.
            sizes = [found["parameters"][0] for name, found in rows if name == names[0]]
            axes.set_xticks(
                sizes, [f"{s / 1e6:.2g}M" if s >= 1e6 else f"{s / 1e3:.3g}k" for s in sizes]
            )
            axes.set_xticks([], minor=True)
            axes.margins(x=0.1)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(f"{title}, 95 % intervals over seeds", fontsize=10)
        save(figure, path)


def redraw(page: Path) -> None:
    """Draw a page's pictures anew from its own tables."""
    for dataset, rows in read_tables(page.read_text()).items():
        path = page.parent / "figures" / f"claims_{dataset}.png"
        draw(path, rows, f"{dataset}, {SETTINGS[dataset][0]} epochs, 3 seeds")
        print(path)


def one_run(folder: Path, overrides: tuple[str, ...], samples: int) -> dict[str, float]:
    """A run of ``train.py``, unless it is there already, and what it is worth."""
    if not (folder / "results.json").exists():
        train(compose(*overrides, "trainer.enable_progress_bar=false", "certify=false"), folder)
    return measure(folder, samples)


def write(path: Path, measured: dict[tuple[str, int], list[dict[str, float]]]) -> Rows:
    """Every run as CSV, and the table on standard output."""
    names = ("activation", "width", "parameters", *KEYS)
    print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    rows = []
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("activation", "width", "seed", "parameters", *KEYS))
        for (activation, width), runs in measured.items():
            rows.append((activation, estimates(runs)))
            print(row_of(activation, width, rows[-1][1]))
            for seed, run in enumerate(runs):
                writer.writerow((activation, width, seed, run["parameters"], *map(run.get, KEYS)))
    return rows


def main() -> None:
    """Train what is missing, measure, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=SETTINGS, default="digits")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder of the runs, the table and the figure")
    where.add_argument("--redraw", type=Path, help="page whose figures are drawn from its tables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--samples", type=int, default=100, help="for tightness, of each split")
    parser.add_argument(
        "--activations",
        nargs="+",
        default=["relu", "maxmin", "n_activation", "smooth"],
        help=f"of conf/activation, or {', '.join(VARIANTS)}",
    )
    arguments = parser.parse_args()
    if arguments.redraw:
        return redraw(arguments.redraw)
    epochs, widths, options = SETTINGS[arguments.dataset]
    epochs, widths = arguments.epochs or epochs, tuple(arguments.widths or widths)
    fixed = (*options, "model.depth=3", f"trainer.max_epochs={epochs}")
    measured: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for seed in range(arguments.seeds):
        for width in widths:
            for activation in arguments.activations:
                chosen = VARIANTS.get(activation, (f"activation={activation}",))
                found = one_run(
                    arguments.out / f"{activation}-{width}-{seed}",
                    (*fixed, *chosen, f"model.width={width}", f"seed={seed}"),
                    arguments.samples,
                )
                measured[activation, width].append(found)
                print(activation, width, seed, found, flush=True)
    rows = write(arguments.out / "claims.csv", measured)
    title = f"{arguments.dataset}, {epochs} epochs, {arguments.seeds} seeds"
    draw(arguments.out / "claims.png", rows, title)
    return None


if __name__ == "__main__":
    main()
