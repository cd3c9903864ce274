"""Run every speed benchmark and write what was measured into docs/performance.md.

python benchmarks/performance.py

Replaces the part of the page between its markers, and draws its figure. On a quiet machine it takes
about ten minutes. Other libraries are compared where they are installed; see layer_time.py.
"""

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
FIGURE = ROOT / "docs" / "figures" / "layer_time.png"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
PARTS = [
    ("Dense layers, forward and backward", ["layer_time.py", "dense", "--repeats", "8"]),
    ("Convolutions, forward and backward", ["layer_time.py", "conv", "--repeats", "8"]),
    ("Training step of an MLP", ["step_time.py"]),
    (
        "Training step of LiResNet's trunk, with and without estimate",
        ["architecture_time.py", "trunk"],
    ),
    ("Training step of LiResNet++", ["architecture_time.py", "network"]),
    ("Bounds, certification and validation", ["certify_time.py"]),
    ("Growth, memory and start-up", ["growth.py"]),
    ("Profile of a training step", ["profile_step.py"]),
]


def hardware() -> str:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    cores = sum(line.startswith("processor") for line in lines)
    flops = _matmul_rate()
    import torch

    return (
        f"{time.strftime('%Y-%m-%d')}, {cpu}, {cores} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; 1024x1024 float32 products run at {flops:.0f} GFLOP/s"
    )


def _matmul_rate() -> float:
    import torch

    a = torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best / 1e9


def draw() -> None:
    """Bars of every layer's time over the plain one's."""
    import matplotlib.pyplot as plt
    import torch
    from layer_time import conv_layers, dense_layers, measure, ratio

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    cases = [
        ("dense 1024, batch 512", dense_layers(1024), (512, 1024)),
        ("3x3 convolution, 64 channels, 16x16, batch 128", conv_layers(64, 16), (128, 64, 16, 16)),
    ]
    for axis, (title, makers, shape) in zip(axes, cases, strict=True):
        times = measure(makers, torch.randn(shape).requires_grad_(), 5)
        bars = sorted((ratio(times, name, "plain", 0), name) for name in times if name != "plain")
        foreign = ("orthogonium", "torchlip", "torch orthogonal")
        colours = ["#999999" if name.startswith(foreign) else "#2a6f97" for _, name in bars]
        axis.barh([name for _, name in bars], [value for value, _ in bars], color=colours)
        for row, (value, _) in enumerate(bars):
            axis.text(value * 1.03, row, f"{value:.2g}", va="center", fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(right=axis.get_xlim()[1] * 1.5)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("forward and backward, over the plain layer (grey: other libraries)")
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    """Run the parts and write the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    measured = [f"Measured {hardware()}.\n"]
    for title, command in PARTS:
        print(title, flush=True)
        script = [sys.executable, str(Path(__file__).parent / command[0]), *command[1:]]
        done = subprocess.run(script, check=True, capture_output=True, text=True, cwd=ROOT)
        shown = f"python benchmarks/{' '.join(command)}"
        measured.append(f"### {title}\n\n`{shown}`\n\n```\n{done.stdout.strip()}\n```\n")
    draw()
    measured.append(f"![Time of every layer](figures/{FIGURE.name})\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(measured) + "\n" + END + after)


if __name__ == "__main__":
    main()
