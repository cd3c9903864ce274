"""How the cost of a training step grows, and what starting up costs.

python -m benchmarks.speed.growth

One size grows at a time, the others stay: width, depth and batch of an orthogonal MaxMin MLP, and
the side of the map of an orthogonal convolutional network. Every point is a process of its own,
whose processor time per step is the median over the steps and whose memory is the most it ever held
beyond what it held before the network was built. The exponent is the slope of a straight line
through the last three points of log(time) over log(size).
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
MLP = {"width": 512, "depth": 4, "batch": 512, "side": 28}
CONV = {"width": 256, "depth": 4, "batch": 64, "side": 16}
SWEEPS: dict[str, tuple[str, dict[str, int], list[int]]] = {
    "width": ("mlp", MLP, [128, 256, 512, 1024]),
    "depth": ("mlp", MLP, [2, 4, 8, 16]),
    "batch": ("mlp", MLP, [128, 256, 512, 1024]),
    "side": ("convnet", CONV, [8, 16, 32, 64]),
}
STARTS = {
    "python train.py --help": ["train.py", "--help"],
    "import robustcert": ["-c", "import robustcert"],
    "import robustcert.check": ["-c", "import robustcert.check.verdict"],
    "robustcert.certify": ["-c", "import robustcert; robustcert.certify"],
}


def measure(model: str, sizes: dict[str, int], steps: int) -> dict[str, float]:
    """Processor seconds of a training step, and MiB beyond the start, in this process."""
    import torch
    from torch import nn

    from robustcert.activations import GroupSort
    from robustcert.layers import BCOPConv2d, CholeskyLinear
    from robustcert.lipschitz import pairwise_lipschitz_estimate
    from robustcert.models import MLP as Dense
    from robustcert.models import ConvNet, LayerFamily
    from robustcert.objectives import EMMA

    channels = 1 if model == "mlp" else 3
    x = torch.rand(sizes["batch"], channels, sizes["side"], sizes["side"])
    y = torch.randint(10, (sizes["batch"],))
    before = _most_held()
    network = (Dense if model == "mlp" else ConvNet)(
        tuple(x.shape[1:]),
        10,
        width=sizes["width"],
        depth=sizes["depth"],
        layer=LayerFamily(CholeskyLinear, BCOPConv2d),
        activation=GroupSort,
    )
    objective, times = EMMA(0.2), []
    optimizer = torch.optim.NAdam(network.parameters(), lr=1e-3)
    for _ in range(steps + 1):
        start = time.process_time()
        optimizer.zero_grad()
        objective(network(x), y, pairwise_lipschitz_estimate(network), 1.0).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 3.0)
        optimizer.step()
        times.append(time.process_time() - start)
    return {"seconds": median(times[1:]), "mib": _most_held() - before}


def exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of log(time) over log(size) through the last three points."""
    x, y = ([math.log(v) for v in values[-3:]] for values in (sizes, times))
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum(
        (a - middle) ** 2 for a in x
    )


def _most_held() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_a_process(model: str, sizes: dict[str, int], steps: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.growth",
        "--point",
        json.dumps([model, sizes, steps]),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    point: dict[str, float] = json.loads(done.stdout)
    return point


def _start_seconds(arguments: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        times.append(time.perf_counter() - start)
    return median(times)


def main() -> None:
    """Measure every point and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(*json.loads(arguments.point))))
        return
    for name, (model, fixed, values) in SWEEPS.items():
        points = [_in_a_process(model, fixed | {name: v}, arguments.steps) for v in values]
        others = ", ".join(f"{k} {v}" for k, v in fixed.items() if k != name)
        power = exponent(values, [point["seconds"] for point in points])
        print(f"\n{model}, {others}: time grows with {name} to the power {power:.2f}")
        print("| " + name + " | " + " | ".join(map(str, values)) + " |")
        print("| --- |" + " --- |" * len(values))
        for label, key, scale in (("CPU ms a step", "seconds", 1e3), ("peak MiB", "mib", 1)):
            print(f"| {label} | " + " | ".join(f"{p[key] * scale:.0f}" for p in points) + " |")
    print("\n| start | seconds |\n| --- | --- |")
    for label, command in STARTS.items():
        print(f"| `{label}` | {_start_seconds(command, 5):.2f} |")


if __name__ == "__main__":
    main()
