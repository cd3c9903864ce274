"""Time of the deployed predictor over that of the plain forward pass.

Batches of 256, interleaved in one process, in CPU time; the median of the ratios of pairs, so that
other work on the machine falls on both. `python -m benchmarks.speed.predictor_time [--rounds N]`
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from robustcert.activations import GroupSort
from robustcert.certificate.predictor import Predictor
from robustcert.layers import AOLConv2d, CholeskyLinear
from robustcert.models import MLP, LayerFamily
from robustcert.network.fold import fold_network
from robustcert.network.network import pairwise_bound

LAYERS = LayerFamily(dense=CholeskyLinear, conv=AOLConv2d)


def seconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def main() -> None:
    """Print a line for each network and arithmetic."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)  # CPU time counts every thread's
    sizes = {"width": 512, "depth": 4, "layer": LAYERS, "activation": GroupSort}
    models = {
        "digits 64-128x3-10": MLP((1, 8, 8), 10, **sizes | {"width": 128, "depth": 3}),
        "MNIST 784-512x4-10": MLP((1, 28, 28), 10, **sizes),
        "CIFAR-10 3072-1024x8-10": MLP((3, 32, 32), 10, **sizes | {"width": 1024, "depth": 8}),
    }
    shapes = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
    print("network, arithmetic: forward pass [ms], predictor [ms], median ratio (quartiles)")
    for (name, model), shape in zip(models.items(), shapes, strict=True):
        network = fold_network(model, shape)
        pairwise = pairwise_bound(network)
        for dtype in ("float64", "float32"):
            predictor = Predictor(network, pairwise, dtype=dtype)
            x = torch.rand(256, *shape, dtype=predictor.dtype)
            pairs = []
            for _ in range(options.rounds):
                with torch.no_grad():
                    plain = seconds(lambda n=predictor.network, x=x: n(x))
                pairs.append((plain, seconds(lambda p=predictor, x=x: p(x))))
            pairs = pairs[len(pairs) // 6 :]
            ratio = statistics.quantiles([b / a for a, b in pairs], n=4)
            plain, whole = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"{name}, {dtype}: {plain:.2f}, {whole:.2f}, "
                f"{ratio[1]:.3f} ({ratio[0]:.3f} to {ratio[2]:.3f})"
            )


if __name__ == "__main__":
    main()
