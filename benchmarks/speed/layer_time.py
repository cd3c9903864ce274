"""Forward and backward pass of every layer over the unconstrained one, and beside other libraries.

python -m benchmarks.speed.layer_time dense --features 1024 --batch 512
python -m benchmarks.speed.layer_time conv --features 64 --size 16 --batch 128
python -m benchmarks.speed.layer_time between --features 64 --size 16 --batch 128

All layers run in turn in one process, so that a busy machine slows them alike; ratios are taken
round by round. Layers of orthogonium and deel-torchlip are measured where these are installed
(`pip install deel-torchlip einops orthogonium`, the last with `--no-deps`), those of
1LipschitzLayersCompared, which is no package, with `--compared FOLDER`, a clone of it. Seconds are
wall time; the CPU column is the ratio of the time that the processors spent, which other work
disturbs less, and so are the ratios over the same method elsewhere.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from robustcert import activations, layers
from robustcert.activations import ReLU
from robustcert.lipschitz import lipschitz_estimate

Make = Callable[[], nn.Module]
ORTHOGONIUM, TORCHLIP = "orthogonium", "torchlip"
COMPARED = "1LipschitzLayersCompared"
# What a layer of ours is compared with, where the method is the same.
SAME_METHOD = {
    "Björck (15 steps)": (f"{ORTHOGONIUM} Björck (12 steps)", f"{TORCHLIP} Björck"),
    "Cholesky": (f"{ORTHOGONIUM} Cholesky",),
    "exponential": (f"{ORTHOGONIUM} exponential", "torch orthogonal, matrix_exp"),
    "Cayley": ("torch orthogonal, cayley",),
    "SLL": (f"{ORTHOGONIUM} SLL",),
    "CPL": (f"{COMPARED} CPL",),
    "BCOP": (f"{ORTHOGONIUM} AOC", f"{ORTHOGONIUM} BCOP"),
    "AOL": (f"{ORTHOGONIUM} AOL",),
    "SOC": (f"{ORTHOGONIUM} SOC",),
    "Cayley convolution": (f"{ORTHOGONIUM} Cayley convolution",),
    "MaxMin": (f"{ORTHOGONIUM} MaxMin", f"{TORCHLIP} GroupSort2"),
    "GroupSort of 8": (f"{TORCHLIP} GroupSort of 8",),
    "Householder": (f"{ORTHOGONIUM} Householder", f"{TORCHLIP} Householder"),
    "Householder of order 2": (f"{ORTHOGONIUM} Householder of order 2",),
    # orthogonium's centring subtracts the running mean, through which no gradient flows.
    "centring": (f"{TORCHLIP} centring",),
    "L2-norm pooling, 2x2": (f"{TORCHLIP} L2-norm pooling",),
    "invertible downsampling, 2x2": (f"{TORCHLIP} invertible downsampling",),
}


class WithEstimate(nn.Module):
    """A free layer whose norm is estimated with every pass, and paid for."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, through which the estimate's gradient flows as well."""
        return self.layer(x) * lipschitz_estimate(self.layer)


def dense_layers(n: int) -> dict[str, Make]:
    """Square dense layers with ``n`` features; the first is the plain one."""
    orthogonal = parametrizations.orthogonal
    return {
        "plain": lambda: nn.Linear(n, n),
        "free + estimate": lambda: WithEstimate(layers.UnconstrainedLinear(n, n)),
        "LiRes + estimate": lambda: WithEstimate(layers.LiResLinear(n, n)),
        "AOL": lambda: layers.AOLLinear(n, n),
        "BRO": lambda: layers.BROLinear(n, n),
        "Cholesky": lambda: layers.CholeskyLinear(n, n),
        "Cholesky residual": lambda: layers.CholeskyResidualLinear(n, n),
        "manifold": lambda: layers.ManifoldLinear(n, n),
        "Cayley": lambda: layers.CayleyLinear(n, n),
        "Björck (15 steps)": lambda: layers.BjorckLinear(n, n),
        "exponential": lambda: layers.ExponentialLinear(n, n),
        "SLL": lambda: layers.SLLLinear(n, n, activation=ReLU),
        "CPL": lambda: layers.CPLLinear(n, n, activation=ReLU),
        "Sandwich": lambda: layers.SandwichLinear(n, n, activation=ReLU),
        "torch orthogonal, cayley": lambda: orthogonal(nn.Linear(n, n), orthogonal_map="cayley"),
        "torch orthogonal, matrix_exp": lambda: orthogonal(
            nn.Linear(n, n), orthogonal_map="matrix_exp"
        ),
        **_dense_peers(n),
    }


def conv_layers(n: int, size: int) -> dict[str, Make]:
    """Square 3x3 convolutions with ``n`` channels; the first is the plain one."""
    ours: dict[str, Any] = {
        "AOL": layers.AOLConv2d,
        "BCOP": layers.BCOPConv2d,
        "BRO": layers.BROConv2d,
        "Cayley convolution": layers.CayleyConv2d,
        "SOC": layers.SOCConv2d,
        "LOT": layers.LOTConv2d,
        "SLL": partial(layers.SLLConv2d, activation=ReLU),
        "CPL": partial(layers.CPLConv2d, activation=ReLU),
    }
    free: dict[str, Any] = {
        "free + estimate": layers.UnconstrainedConv2d,
        "LiRes + estimate": layers.LiResConv2d,
        "centred LiRes + estimate": partial(layers.LiResConv2d, centering=True),
    }
    where = {"padding": 1, "input_size": (size, size)}
    patches = {"stride": 4, "padding": 0, "input_size": (size, size)}
    return {
        "plain": lambda: nn.Conv2d(n, n, 3, padding=1),
        **{k: (lambda cls=cls: WithEstimate(cls(n, n, 3, **where))) for k, cls in free.items()},
        **{k: partial(cls, n, n, 3, **where) for k, cls in ours.items()},
        "Cholesky patches, 4x4": partial(layers.CholeskyPatchConv2d, n, n, 4, **patches),
        **_conv_peers(n),
    }


def between_layers(n: int) -> dict[str, Make]:
    """What stands between convolutions of ``n`` channels; the first is a ReLU."""
    return {
        "ReLU": nn.ReLU,
        "MaxMin": lambda: activations.GroupSort(n, group_size=2),
        "GroupSort of 8": lambda: activations.GroupSort(n, group_size=8),
        "Householder": lambda: activations.Householder(n),
        "Householder of order 2": lambda: activations.Householder2(n),
        "smooth MaxMin": lambda: activations.SmoothMaxMin(n),
        "centring": lambda: layers.Centering(n),
        "L2-norm pooling, 2x2": layers.NormPool2d,
        "invertible downsampling, 2x2": lambda: layers.InvertibleDownsampling(n),
        **_between_peers(n),
    }


def _dense_peers(n: int) -> dict[str, Make]:
    found: dict[str, Make] = {}
    if importlib.util.find_spec("orthogonium"):
        from orthogonium import reparametrizers as r
        from orthogonium.layers import OrthoLinear
        from orthogonium.layers.conv.SLL.sll_layer import SDPBasedLipschitzDense

        cholesky = r.OrthoParams(orthogonalizer=r.BatchedCholeskyOrthogonalization)
        found[f"{ORTHOGONIUM} Björck (12 steps)"] = lambda: OrthoLinear(n, n)
        found[f"{ORTHOGONIUM} Cholesky"] = lambda: OrthoLinear(n, n, ortho_params=cholesky)
        found[f"{ORTHOGONIUM} exponential"] = lambda: OrthoLinear(
            n, n, ortho_params=r.EXP_ORTHO_PARAMS
        )
        found[f"{ORTHOGONIUM} SLL"] = lambda: SDPBasedLipschitzDense(n, n, n)
    if importlib.util.find_spec("deel"):
        from deel import torchlip

        found[f"{TORCHLIP} Björck"] = lambda: torchlip.SpectralLinear(n, n)
    return found


def _conv_peers(n: int) -> dict[str, Make]:
    found: dict[str, Make] = {}
    if importlib.util.find_spec("orthogonium"):
        from orthogonium.layers import AdaptiveOrthoConv2d
        from orthogonium.layers.conv.adaptiveSOC.ortho_conv import AdaptiveSOCConv2d
        from orthogonium.layers.conv.AOL.aol import AOLConv2D
        from orthogonium.layers.conv.SLL.sll_layer import SDPBasedLipschitzResBlock
        from orthogonium.legacy.block_ortho_conv import BCOP
        from orthogonium.legacy.cayley_ortho_conv import Cayley

        zeros = {"padding": 1, "padding_mode": "zeros"}
        found[f"{ORTHOGONIUM} AOC"] = lambda: AdaptiveOrthoConv2d(n, n, 3, **zeros)
        found[f"{ORTHOGONIUM} BCOP"] = lambda: BCOP(n, n, 3, padding=1, bias=False)
        found[f"{ORTHOGONIUM} AOL"] = lambda: AOLConv2D(n, n, 3, **zeros)
        # Its kernel grows with the series, and its own padding with the kernel.
        found[f"{ORTHOGONIUM} SOC"] = lambda: AdaptiveSOCConv2d(n, n, 3, padding=3)
        found[f"{ORTHOGONIUM} SLL"] = lambda: SDPBasedLipschitzResBlock(n, 1)
        found[f"{ORTHOGONIUM} Cayley convolution"] = lambda: Cayley(n, n, 3, padding=1)
    if importlib.util.find_spec("deel"):
        from deel import torchlip

        found[f"{TORCHLIP} reshaped kernel"] = lambda: torchlip.SpectralConv2d(n, n, 3, padding=1)
    return found


def _between_peers(n: int) -> dict[str, Make]:
    found: dict[str, Make] = {}
    if importlib.util.find_spec("orthogonium"):
        from orthogonium import layers as theirs

        found[f"{ORTHOGONIUM} MaxMin"] = theirs.MaxMin
        found[f"{ORTHOGONIUM} Householder"] = lambda: theirs.HouseHolder(n)
        found[f"{ORTHOGONIUM} Householder of order 2"] = lambda: theirs.HouseHolder_Order_2(n)
        found[f"{ORTHOGONIUM} centring"] = lambda: theirs.BatchCentering2D(n)
    if importlib.util.find_spec("deel"):
        from deel import torchlip

        found[f"{TORCHLIP} GroupSort2"] = torchlip.GroupSort2
        found[f"{TORCHLIP} GroupSort of 8"] = lambda: torchlip.GroupSort(8)
        found[f"{TORCHLIP} Householder"] = lambda: torchlip.HouseHolder(n)
        found[f"{TORCHLIP} centring"] = lambda: torchlip.BatchCentering(n)
        found[f"{TORCHLIP} L2-norm pooling"] = lambda: torchlip.ScaledL2NormPool2d(2)
        found[f"{TORCHLIP} invertible downsampling"] = lambda: torchlip.InvertibleDownSampling(2)
    return found


def compared_peers(folder: Path, kind: str, n: int) -> dict[str, Make]:
    """Layers of a clone of 1LipschitzLayersCompared; its dense ones are convolutions of 1x1."""
    if not (folder / "lipnn" / "layers").is_dir():
        raise SystemExit(f"expected a clone of {COMPARED}, got {folder}, without lipnn: --compared")
    sys.path.append(str(folder))
    cpl = importlib.import_module("lipnn.layers").CPLConv2d
    if kind == "dense":
        pixel = partial(nn.Unflatten, 1, (n, 1, 1))
        return {f"{COMPARED} CPL": lambda: nn.Sequential(pixel(), cpl(n, n, 1), nn.Flatten())}
    return {f"{COMPARED} CPL": lambda: cpl(n, n, 3)} if kind == "conv" else {}


def measure(makers: dict[str, Make], x: Tensor, repeats: int) -> dict[str, list[tuple[float, ...]]]:
    """Wall and CPU seconds of a pass, ``repeats`` rounds after two to warm up."""
    modules = {name: make() for name, make in makers.items()}
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in modules}
    upstream = {name: torch.randn_like(module(x)) for name, module in modules.items()}
    for repeat in range(repeats + 2):
        for name, module in modules.items():
            module.zero_grad()
            start = time.perf_counter(), time.process_time()
            module(x).backward(upstream[name])
            took = time.perf_counter() - start[0], time.process_time() - start[1]
            if repeat >= 2:
                times[name].append(took)
    return times


def ratio(times: dict[str, list[tuple[float, ...]]], name: str, base: str, column: int) -> float:
    """Median over the rounds of one layer's time over another's."""
    pairs = zip(times[name], times[base], strict=True)
    return median(mine[column] / other[column] for mine, other in pairs)


def main() -> None:
    """Time every layer and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["dense", "conv", "between"])
    parser.add_argument("--features", type=int, default=None)
    parser.add_argument("--size", type=int, default=16, help="side of the convolution's map")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--compared", type=Path, metavar="FOLDER", help=f"a clone of {COMPARED} to compare with"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    dense = arguments.kind == "dense"
    n = arguments.features or (1024 if dense else 64)
    batch = arguments.batch or (512 if dense else 128)
    shape = (batch, n) if dense else (batch, n, arguments.size, arguments.size)
    if arguments.kind == "conv":
        makers = conv_layers(n, arguments.size)
    else:
        makers = dense_layers(n) if dense else between_layers(n)
    if arguments.compared:
        makers |= compared_peers(arguments.compared, arguments.kind, n)
    plain = next(iter(makers))
    times = measure(makers, torch.randn(shape).requires_grad_(), arguments.repeats)
    print(
        f"{arguments.kind}, input {shape}, {torch.get_num_threads()} threads, {torch.__version__}"
    )
    head = f"{'layer':36} {'median ms':>9} {'/ ' + plain:>8}  {'CPU':>6}"
    print(f"{head}   CPU over the same method elsewhere")
    for name, values in times.items():
        others = [other for other in SAME_METHOD.get(name, ()) if other in times]
        beside = ", ".join(f"{ratio(times, name, other, 1):.2f} ({other})" for other in others)
        wall, cpu = (ratio(times, name, plain, column) for column in (0, 1))
        took = 1e3 * median(seconds for seconds, _ in values)
        print(f"{name:36} {took:9.1f} {wall:8.2f}  {cpu:6.2f}   {beside}")


if __name__ == "__main__":
    main()
