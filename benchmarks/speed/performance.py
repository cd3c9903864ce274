"""Run every speed benchmark and write what was measured into docs/performance.md.

python -m benchmarks.speed.performance

Replaces the part of the page between its markers, and draws its figure. On a quiet machine it takes
about five minutes. Other libraries are compared where they are installed; see layer_time.py, which
`--compared FOLDER` is handed on to.
"""

import argparse
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.speed.layer_time import COMPARED, ORTHOGONIUM, TORCHLIP
from benchmarks.speed.training_step import rate
from robustcert.certificate.style import BLUE, NEUTRAL, drawing, save

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
FIGURE = ROOT / "docs" / "figures" / "layer_time.png"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
PARTS = [
    ("Dense layers, forward and backward", ["layer_time", "dense", "--repeats", "8"]),
    ("Convolutions, forward and backward", ["layer_time", "conv", "--repeats", "8"]),
    ("Between layers, forward and backward", ["layer_time", "between", "--repeats", "8"]),
    ("Training step of an MLP", ["step_time"]),
    (
        "Training step of LiResNet's trunk, with and without estimate",
        ["architecture_time", "trunk"],
    ),
    ("Training step of LiResNet++", ["architecture_time", "network"]),
    ("Bounds, certification and validation", ["certify_time"]),
    ("Growth and memory", ["training_step", "growth"]),
    ("Before the first step", ["training_step", "start"]),
    ("Operations of a training step", ["training_step", "operations"]),
]


def hardware() -> str:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    cores = sum(line.startswith("processor") for line in lines)
    return (
        f"{time.strftime('%Y-%m-%d')}, {cpu}, {cores} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; 1024x1024 float32 products run at "
        f"{rate() / 1e9:.0f} GFLOP/s"
    )


def draw(tables: list[tuple[str, str]]) -> None:
    """Bars of every layer's time over the first one's, from what layer_time.py printed."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    with drawing((17, 6)) as figure:
        axes = figure.subplots(1, len(tables), squeeze=False)[0]
        for axis, (title, table) in zip(axes, tables, strict=True):
            base, *rows = (re.split(r"\s{2,}", line) for line in table.splitlines()[2:])
            bars = sorted((float(row[2]), row[0]) for row in rows)
            foreign = (ORTHOGONIUM, TORCHLIP, COMPARED, "torch orthogonal")
            colours = [NEUTRAL if name.startswith(foreign) else BLUE for _, name in bars]
            axis.barh([name for _, name in bars], [value for value, _ in bars], color=colours)
            for row, (value, _) in enumerate(bars):
                axis.text(value * 1.03, row, f"{value:.3g}", va="center", fontsize=8)
            axis.set_xscale("log")
            axis.set_xlim(0.8 * min(1.0, bars[0][0]), 1.6 * bars[-1][0])
            axis.xaxis.set_major_locator(FixedLocator([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.axvline(1, color=NEUTRAL, linewidth=0.8)
            axis.grid(visible=False, axis="y")
            axis.set_title(title)
            axis.set_xlabel(f"time over {base[0]} (grey: other libraries)")
        save(figure, FIGURE)


def main() -> None:
    """Run the parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compared", metavar="FOLDER", help="see layer_time.py")
    folder = parser.parse_args().compared
    measured = [f"Measured {hardware()}.\n"]
    tables = []
    for title, command in PARTS:
        print(title, flush=True)
        compares = folder is not None and command[0] == "layer_time"
        script = [sys.executable, "-m", f"benchmarks.speed.{command[0]}", *command[1:]]
        script += ["--compared", folder] if compares else []
        done = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        # The page names no folder of the machine that it was measured on.
        shown = f"python -m benchmarks.speed.{' '.join(command)}{' --compared FOLDER' * compares}"
        if command[0] == "layer_time":
            tables.append((title, done.stdout))
        measured.append(f"### {title}\n\n`{shown}`\n\n```\n{done.stdout.strip()}\n```\n")
    draw(tables)
    measured.append(f"![Time of every layer](figures/{FIGURE.name})\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(measured) + "\n" + END + after)


if __name__ == "__main__":
    main()
