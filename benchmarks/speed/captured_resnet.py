"""A ResNet-18 as others train it: captured, certified and checked, and how tight its constant is.

    python -m benchmarks.speed.captured_resnet --size 224 --samples 2

Weights are random (Kaiming), statistics of BatchNorm are those of random inputs. The composition of
exact norms has the norm of every convolution, found from below by Lanczos, in place of its bound.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcert import norms
from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import LipschitzCertifier
from robustcert.check import check
from robustcert.data import to_unit
from robustcert.network.bounds import operation_bound, sequence_bound, shapes
from robustcert.network.branches import Sum
from robustcert.network.fold import fold_network
from robustcert.network.linear import Convolution, Dense
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation, Shape


class Block(nn.Module):
    """Two convolutions of 3x3 with BatchNorm, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the outputs' channels."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    """Stem of 7x7 and max-pooling, four stages of two blocks, global average and head.

    Reference: He et al., `Deep residual learning for image recognition
    <https://arxiv.org/abs/1512.03385>`_, CVPR 2016.
    """

    def __init__(self, classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages = []
        for k in range(4):
            inputs, outputs = width * 2 ** max(k - 1, 0), width * 2**k
            stages.append(
                nn.Sequential(
                    Block(inputs, outputs, 1 if k == 0 else 2), Block(outputs, outputs, 1)
                )
            )
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, classes)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def random_resnet(classes: int, width: int, size: int) -> ResNet18:
    """A network with random weights, whose statistics are those of some random inputs."""
    torch.manual_seed(0)
    net = ResNet18(classes, width)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(m, nn.BatchNorm2d):
            # The average over all batches, of which there is one.
            m.momentum = None
    with torch.no_grad():
        net(torch.rand(4, 3, size, size))
    return net.eval()


def exact_bound(operations: Sequence[Operation], shape: Shape) -> float:
    """The composition of the same operations with norms found from below."""
    bound = 1.0
    for operation, inputs in shapes(operations, shape):
        if isinstance(operation, Sum):
            bound *= sum(exact_bound(branch, inputs) for branch in operation.branches)
        elif isinstance(operation, Convolution):
            bound *= norms.conv_norm_lower(
                operation.weight,
                (inputs[1], inputs[2]),
                operation.stride,
                operation.padding,
                operation.dilation,
                operation.groups,
            )
        elif isinstance(operation, Dense):
            bound *= float(torch.linalg.matrix_norm(operation.weight.double(), 2))
        else:
            bound *= operation_bound(operation, inputs)
    return bound


def certified_folder(folder: Path, network: PlainNetwork, samples: int) -> None:
    """Write the certificates of random images."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(
        0, 256, (samples, *network.input_shape), dtype=torch.uint8, generator=generator
    )
    certifier = LipschitzCertifier()
    certificates = certifier.certify(network, to_unit(inputs))
    split = CertifiedSplit(inputs, certificates.prediction, torch.arange(samples), certificates)
    write_certificate(folder, network, certifier.claim(network), split, [0.01])


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long something took, by the clock and of processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    print(
        f"{what} in {time.perf_counter() - clock:.1f} s, "
        f"{time.process_time() - processor:.1f} s of processor time"
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2)
    options = parser.parse_args()
    net, shape = (
        random_resnet(options.classes, options.width, options.size),
        (3, options.size, options.size),
    )

    with timed("captured"):
        network = fold_network(net, shape)
    print(f"{len(network.operations)} operations")
    with timed("bounded"):
        bound = sequence_bound(network.operations, shape)
    exact = exact_bound(network.operations, shape)
    print(f"bound {bound:.6g}, {bound / exact:.4f} of the composition of exact norms")
    with tempfile.TemporaryDirectory() as folder:
        with timed(f"{options.samples} samples certified"):
            certified_folder(Path(folder), network, options.samples)
        with timed("checked"):
            report = check(Path(folder), exact=0, seed=0)
        print(report.mismatches or "verified")


if __name__ == "__main__":
    main()
