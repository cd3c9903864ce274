"""The three claims about piecewise linearity, on real data: one command, one table, one figure.

python -m benchmarks.studies.claims --dataset digits --out outputs/claims-digits

(a) tightness by activation at equal capacity, (b) verified accuracy against capacity, (c) the gap
between training and test tightness as capacity grows. Every run is that of ``train.py`` in a folder
of its own; runs that are there already are not repeated, so the command can be stopped and given
again.
"""

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import hydra
import torch
from torch import Tensor

from robustcert.attacks import ddn
from robustcert.certificate.style import drawing, look, save
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


def draw(path: Path, rows: dict[tuple[str, int], list[dict[str, float]]], title: str) -> None:
    """The three claims beside one another."""
    panels = [("t test", "tightness, test"), ("vra", "verified accuracy")]
    panels.append(("gap", "tightness, training minus test"))
    with drawing((12, 4.2)) as figure:
        for k, (key, label) in enumerate(panels):
            axes = figure.add_subplot(1, 3, k + 1)
            for name in dict.fromkeys(name for name, _ in rows):
                chosen = [r for (other, _), r in rows.items() if other == name]
                x = [r[0]["parameters"] for r in chosen]
                y, error = zip(*[interval([s[key] for s in r]) for r in chosen], strict=True)
                axes.errorbar(x, y, error, capsize=3, label=name, **look(name))
            axes.set(xlabel="parameters", ylabel=label, xscale="log")
            # The labels between decades would overlap.
            axes.set_xticks([r[0]["parameters"] for (n, _), r in rows.items() if n == name])
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.tick_params(axis="x", labelrotation=30, labelsize=7)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(f"{title}: 95 % intervals over seeds", fontsize=10)
        save(figure, path)


def main() -> None:
    """Train what is missing, measure, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=SETTINGS, default="digits")
    parser.add_argument("--out", type=Path, required=True)
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
    epochs, widths, options = SETTINGS[arguments.dataset]
    epochs, widths = arguments.epochs or epochs, tuple(arguments.widths or widths)
    measured: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for seed in range(arguments.seeds):
        for width in widths:
            for activation in arguments.activations:
                folder = arguments.out / f"{activation}-{width}-{seed}"
                if not (folder / "results.json").exists():
                    config = compose(
                        *options,
                        *VARIANTS.get(activation, (f"activation={activation}",)),
                        f"model.width={width}",
                        "model.depth=3",
                        f"seed={seed}",
                        f"trainer.max_epochs={epochs}",
                        "trainer.enable_progress_bar=false",
                        "certify=false",
                    )
                    train(config, folder)
                measured[activation, width].append(measure(folder, arguments.samples))
                print(activation, width, seed, measured[activation, width][-1], flush=True)
    names = ("activation", "width", "parameters", *KEYS)
    print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    with (arguments.out / "claims.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("activation", "width", "seed", "parameters", *KEYS))
        for (activation, width), rows in measured.items():
            cells = [f"{rows[0]['parameters']:.0f}"]
            for key in KEYS:
                centre, half = interval([row[key] for row in rows])
                cells.append(f"{centre:.3f} ± {half:.3f}")
            print(f"| {activation} | {width} | {' | '.join(cells)} |")
            for seed, row in enumerate(rows):
                writer.writerow((activation, width, seed, row["parameters"], *map(row.get, KEYS)))
    title = f"{arguments.dataset}, {epochs} epochs, {arguments.seeds} seeds"
    draw(arguments.out / "claims.png", measured, title)


if __name__ == "__main__":
    main()
