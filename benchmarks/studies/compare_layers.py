"""Layers trained for an equal time: accuracy, verified accuracy, time per step and peak memory.

    python -m benchmarks.studies.compare_layers --seconds 25 --out docs/figures
    python -m benchmarks.studies.compare_layers --layers aol bcop soc --seconds 600 dataset=cifar10

Every layer trains the same network in a process of its own, until that process has used
``--seconds`` of CPU time in training steps, so that neither a busy machine nor the order matters;
schedules follow that clock. Accuracy and verified accuracy are those of the test split, certified
in float64 with bounds. Memory is what the peak grew by from the moment before the network was
built. Other arguments are those of `train.py`. Writes `compare_layers.png`, `.csv` and `.md`.
"""

import argparse
import csv
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import torch
from torch.nn.utils import clip_grad_norm_

import robustcert
from robustcert.certificate.style import VERIFIED, drawing, save
from robustcert.config.build import (
    COMMAND_LINE_TARGETS,
    build,
    build_data,
    build_dataset,
    build_module,
)
from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION
from robustcert.data import to_unit
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.runs.commands import plain, register_resolvers
from robustcert.training.module import CertifiedClassifier

# Free, linear residual (two ways), rescaled, orthogonal (three ways), nonlinear.
LAYERS = ("unconstrained", "lires", "chord", "aol", "bcop", "cayley_conv", "bronet", "sll")
# A trunk of 32 channels on the 7x7 patches of Fashion-MNIST, so that 25 s are two epochs or more.
SMALL = (
    *("dataset=fashion_mnist", "model=liresnet", "model.width=32", "model.depth=4"),
    *("model.stem_kernel=4", "model.stem_stride=4", "optimizer.lr=0.006", "loader.batch_size=128"),
)
COLUMNS = {
    "accuracy": "accuracy",
    "vra": "verified accuracy",
    "step_ms": "CPU time per step (ms)",
    "memory_mib": "peak memory (MiB)",
}
Row = dict[str, Any]


def compose(layer: str, overrides: list[str]) -> dict[str, Any]:
    """The configuration that `train.py` would have."""
    register_resolvers()
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        return plain(hydra.compose("train", [*SMALL, f"layer={layer}", *overrides]))


def peak_mib(*, reset: bool = False) -> float:
    """Peak resident memory of this process, which Linux can be told to forget."""
    if reset and sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(
    module: CertifiedClassifier, data: Any, config: dict[str, Any], seconds: float
) -> list[float]:
    """Train until the steps have used ``seconds`` of CPU time; returns those of every step."""
    stored = data.stored("train")
    schedules = {
        name: build(config[name], name, COMMAND_LINE_TARGETS)
        for name in ("epsilon_schedule", "lr_schedule")
    }
    optimizer = module.optimizer(module.model.parameters())
    rates = [group["lr"] for group in optimizer.param_groups]
    size, order, times = data.batch_size, torch.empty(0, dtype=torch.int64), [0.0]
    while sum(times) < seconds:
        if len(order) < size:
            order = torch.randperm(len(stored.labels))
        rows, order = order[:size], order[size:]
        x, y = to_unit(stored.inputs[rows]), stored.labels[rows]
        progress = sum(times) / seconds
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedules["lr_schedule"](progress)
        epsilon = schedules["epsilon_schedule"](module.epsilon, progress)
        start = time.process_time()
        optimizer.zero_grad()
        pairwise = pairwise_lipschitz_estimate(module.model)
        module.objective(module.model(x), y, pairwise, epsilon).backward()
        clip_grad_norm_(module.model.parameters(), config["trainer"]["gradient_clip_val"])
        optimizer.step()
        times.append(time.process_time() - start)
    return times[1:]


def measure(layer: str, seconds: float, overrides: list[str]) -> Row:
    """One layer, in this process."""
    config = compose(layer, overrides)
    torch.manual_seed(config["seed"])
    torch.set_num_threads(1)
    dataset = build_dataset(config, COMMAND_LINE_TARGETS)
    data = build_data(config, dataset, COMMAND_LINE_TARGETS)
    data.prepare_data()
    data.setup("fit")
    before = peak_mib(reset=True)
    module = build_module(config, dataset, COMMAND_LINE_TARGETS)
    times = train(module, data, config, seconds)
    memory = peak_mib() - before
    test = data.examples("test")
    result = robustcert.certify(module.model.eval(), test.inputs)
    correct = result.prediction == test.labels
    return {
        "layer": layer,
        "dataset": dataset.name,
        "accuracy": correct.double().mean().item(),
        "vra": (correct & (result.radius > config["epsilon"])).double().mean().item(),
        "step_ms": 1e3 * median(times),
        "memory_mib": memory,
        "steps": len(times),
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "epsilon": config["epsilon"],
        "seed": config["seed"],
    }


def in_own_process(layer: str, seconds: float, overrides: list[str]) -> Row:
    """One layer, in a process that ends with it; its last line is the row."""
    command = [sys.executable, __file__, "--one", layer, "--seconds", str(seconds), *overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    return row


def write_tables(out: Path, rows: list[Row], note: str) -> None:
    """The rows as CSV, and the columns that are compared as markdown."""
    with (out / "compare_layers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = [f"| `layer=` | accuracy | VRA at {rows[0]['epsilon']:.4g} | ms/step | steps | MiB |"]
    lines.append("| --- " * 6 + "|")
    lines += [
        f"| `{r['layer']}` | {r['accuracy']:.4f} | {r['vra']:.4f} | {r['step_ms']:.1f} "
        f"| {r['steps']} | {r['memory_mib']:.0f} |"
        for r in rows
    ]
    (out / "compare_layers.md").write_text("\n".join([*lines, "", note, ""]))


def draw(path: Path, rows: list[Row], title: str) -> None:
    """A panel of bars for every column, layers in the order of verified accuracy."""
    rows = sorted(rows, key=lambda row: row["vra"])
    with drawing((11, 0.6 + 0.34 * len(rows))) as figure:
        panels = figure.subplots(1, len(COLUMNS), sharey=True)
        for axes, (key, label) in zip(panels, COLUMNS.items(), strict=True):
            bars = axes.barh([r["layer"] for r in rows], [r[key] for r in rows], color=VERIFIED)
            share = key in ("accuracy", "vra")
            axes.bar_label(bars, fmt="%.3f" if share else "%.0f", padding=2, fontsize=8)
            axes.set_xlim(0, 1.22 * max(r[key] for r in rows))
            axes.set_title(label, fontsize=9)
            axes.grid(False)
        figure.suptitle(title, fontsize=10)
        save(figure, path)


def main() -> None:
    """Measure every layer and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=list(LAYERS))
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="CPU time of each layer's steps"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    if options.one:
        print(json.dumps(measure(options.one, options.seconds, overrides)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [in_own_process(layer, options.seconds, overrides) for layer in options.layers]
    typed = " ".join([*SMALL, *overrides])
    note = (
        f"{typed}; {options.seconds:g} s of CPU time a layer, one thread of {platform.machine()}, "
        f"torch {torch.__version__}, seed {rows[0]['seed']}."
    )
    write_tables(options.out, rows, note)
    title = f"{options.seconds:g} s of CPU time a layer, VRA at {rows[0]['epsilon']:.4g}"
    draw(options.out / "compare_layers.png", rows, f"{rows[0]['dataset']}: {title}")


if __name__ == "__main__":
    main()
