"""Time and excess of the sound norm bounds of two networks: a 10M-parameter MLP, a VGG-like net.

    python -m benchmarks.speed.norm_bounds
    python -m benchmarks.speed.norm_bounds --sweep
    python -m benchmarks.speed.norm_bounds --trunk 512 16

With ``--sweep``, the excess of convolutions of many kernels, strides, paddings and maps instead.
The excess is over a value that the true norm is not below, so it is itself an upper bound. The time
of one float64 SVD of the MLP's layers stands beside, for comparison. With ``--trunk WIDTH SIDE``,
the processor time of one residual 3x3 convolution of a LiResNet's trunk.
"""

import argparse
import time
from itertools import pairwise, product
from statistics import median

import torch

from robustcert import norms

MLP = (784, 2048, 2048, 2048, 10)
# channels in, channels out, input side, stride; all 3x3 with padding 1
VGG = (
    (3, 64, 32, 1),
    (64, 64, 32, 1),
    (64, 128, 32, 2),
    (128, 128, 16, 1),
    (128, 256, 16, 2),
    (256, 256, 8, 1),
    (256, 512, 8, 2),
    (512, 512, 4, 1),
)


def sweep() -> None:
    """Print the median and the largest ratios of bounds to values that the norms are not below."""
    found = []
    channels = ((1, 1), (3, 16), (16, 16))
    for size, stride, padding, side, (inputs, outputs) in product(
        (3, 5), (1, 2), (0, 1, 2), (16, 24, 32), channels
    ):
        kernel = torch.randn(outputs, inputs, size, size) / (size**2 * inputs) ** 0.5
        bound = norms.conv_norm_bound(kernel, side, stride, padding)
        lower = norms.conv_norm_lower(kernel, side, stride, padding, steps=120)
        name = f"{inputs} -> {outputs}, {size}x{size} on {side}x{side}, stride {stride}"
        found.append((bound / lower, f"{name}, padding {padding}"))
    found.sort(reverse=True)
    ratios = [ratio for ratio, _ in found]
    above = sum(ratio > 1.03 for ratio in ratios)
    print(f"{len(found)} convolutions: median {median(ratios):.4f}, {above} above 1.03; largest:")
    for ratio, name in found[:5]:
        print(f"{ratio:.4f}  {name}")


def networks() -> None:
    """Print one line per layer and the totals."""
    weights = [torch.randn(m, n) / n**0.5 for n, m in pairwise(MLP)]
    norms.dense_norm_bound(weights[-1])
    start = time.perf_counter()
    bounds = [norms.dense_norm_bound(w) for w in weights]
    total = time.perf_counter() - start
    for weight, bound in zip(weights, bounds, strict=True):
        excess = bound / norms.norm_lower(weight) - 1
        print(f"dense {weight.shape[1]:4} -> {weight.shape[0]:4}   excess {excess:.1e}")
    start = time.perf_counter()
    for weight in weights:
        torch.linalg.svdvals(weight.double())
    svd = time.perf_counter() - start
    print(f"MLP of {sum(w.numel() for w in weights):,} weights: {total:.2f} s; SVD {svd:.2f} s")
    total = 0.0
    for inputs, outputs, side, stride in VGG:
        kernel = torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5
        start = time.perf_counter()
        bound = norms.conv_norm_bound(kernel, side, stride, 1)
        elapsed = time.perf_counter() - start
        total += elapsed
        excess = bound / norms.conv_norm_lower(kernel, side, stride, 1) - 1
        print(
            f"conv {inputs:3} -> {outputs:3}, {side}x{side}, stride {stride}: excess {excess:.2%}, "
            f"{elapsed:.2f} s"
        )
    print(f"convolutions: {total:.2f} s")


def trunk(width: int, side: int) -> None:
    """Print what the bound of one residual convolution takes."""
    kernel = 0.1 * torch.randn(width, width, 3, 3) / width**0.5
    kernel[:, :, 1, 1] += torch.eye(width)
    start = time.process_time()
    bound = norms.conv_norm_bound(kernel, side, padding=1)
    elapsed = time.process_time() - start
    print(f"{width} channels, {side}x{side}: bound {bound:.6f}, {elapsed:.2f} processor s")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--trunk", nargs=2, type=int, metavar=("WIDTH", "SIDE"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if arguments.trunk:
        trunk(*arguments.trunk)
    else:
        sweep() if arguments.sweep else networks()


if __name__ == "__main__":
    main()
