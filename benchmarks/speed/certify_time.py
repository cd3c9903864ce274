"""Certification over prediction: a test set, validation, and the bounds of two large networks.

    ROBUSTCERT_DATA=data python -m benchmarks.speed.certify_time --parts test validation epoch
    python -m benchmarks.speed.certify_time --parts epoch --checkpoint RUN/checkpoints/last.ckpt

Ratios of work done in turn in one process, so that a busy machine slows both sides alike; medians
over repeats, in CPU seconds and in seconds on the clock. The bounds of a network are computed anew
in every repeat of ``test`` and ``epoch``; ``validation`` leaves out what is computed once an epoch.
With a checkpoint of ``experiment=cifar10_small``, ``epoch`` has its weights, else those of the
start.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.speed.architecture_time import chord
from benchmarks.speed.norm_bounds import MLP, VGG
from robustcert import models, norms
from robustcert.activations import GroupSort
from robustcert.certifiers import LipschitzCertifier
from robustcert.data import MNIST, to_unit
from robustcert.layers import AOLConv2d, CholeskyLinear
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.objectives import EMMA
from robustcert.runs.memory import keep_freed_memory
from robustcert.training.checkpoint import read_checkpoint
from robustcert.training.module import CertifiedClassifier

Work = Callable[[], object]
SHAPE = (1, 28, 28)


def compare(works: dict[str, Work], repeats: int) -> None:
    """Print the median times of ``works`` and their ratios to the first."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            cpu, clock = time.process_time(), time.perf_counter()
            work()
            if repeat:
                spent = time.process_time() - cpu, time.perf_counter() - clock
                times[name].append(spent)
    base = next(iter(times.values()))
    for name, spent in times.items():
        seconds = [median(values) for values in zip(*spent, strict=True)]
        ratios = [sorted(a[i] / b[i] for a, b in zip(spent, base, strict=True)) for i in range(2)]
        shown = [f"{median(r):.3f} ({r[0]:.3f} to {r[-1]:.3f})" for r in ratios]
        print(
            f"{name:44} CPU {seconds[0]:7.3f} s, ratio {shown[0]}; clock {seconds[1]:7.3f} s, "
            f"ratio {shown[1]}",
            flush=True,
        )


def mnist_network() -> torch.nn.Module:
    """The untrained 784-512-512-512-512-10 network; times do not depend on weights."""
    family = models.LayerFamily(CholeskyLinear, AOLConv2d)
    model = models.MLP(SHAPE, 10, width=512, depth=4, layer=family, activation=GroupSort)
    return model.eval()


def mnist() -> list[tuple[Tensor, Tensor]]:
    """Batches of 1024 images and labels of the test split."""
    source = MNIST(Path(os.environ.get("ROBUSTCERT_DATA", "data")) / "mnist")
    source.prepare()
    examples = source.read("test")
    rows = torch.arange(len(examples)).split(1024)
    return [(to_unit(examples.inputs[r]), examples.labels[r]) for r in rows]


def predict(
    network: PlainNetwork, batches: list[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> Work:
    """Plain inference, with constants that are in its precision already."""
    moved = network.to(torch.device("cpu"), dtype)

    @torch.inference_mode()
    def work() -> None:
        for x, _ in batches:
            moved(x.to(dtype)).argmax(1)

    return work


def test_split(repeats: int) -> None:
    """Certify the MNIST test split, from the trained modules on."""
    model, batches = mnist_network(), mnist()
    network = fold_network(model, SHAPE)
    certifier = LipschitzCertifier()

    def certify(network: PlainNetwork) -> None:
        for x, _ in batches:
            certifier.certify(network, x)

    works = {
        "float64 forward": predict(network, batches, torch.float64),
        "float32 forward": predict(network, batches, torch.float32),
        "certify: fold, bound, forward with error": lambda: certify(fold_network(model, SHAPE)),
        "certify: bounds known": lambda: certify(network),
    }
    compare(works, repeats)


def validated(model: torch.nn.Module, shape: tuple[int, ...]) -> CertifiedClassifier:
    """A module that validates a network."""
    return CertifiedClassifier(
        model,
        EMMA(0.1),
        input_shape=shape,
        num_classes=10,
        epsilon=0.3,
        radii=[0.1, 0.3, 0.5, 1.0, 1.58],
        optimizer=torch.optim.Adam,
    )


def validations(
    module: CertifiedClassifier, batches: list[tuple[Tensor, Tensor]]
) -> dict[str, Work]:
    """Validation with loss and accuracy, and with verified metrics, bounds left out."""
    network = module.folded()
    loss, accuracy = MeanMetric(), MulticlassAccuracy(10, average="micro")

    @torch.inference_mode()
    def plain() -> None:
        for x, target in batches:
            logits = network(x)
            loss.update(F.cross_entropy(logits, target), len(x))
            accuracy.update(logits.argmax(1), target)
        loss.compute(), accuracy.compute()

    @torch.inference_mode()
    def verified() -> None:
        for index, batch in enumerate(batches):
            module.validation_step(batch, index)
        for metric in (module.val_vra, *module._val_metrics.values()):
            metric.compute()

    return {"validation": plain, "validation with val/vra": verified}


def validation(repeats: int) -> None:
    """Validation with verified metrics over validation with loss and accuracy."""
    module = validated(mnist_network(), SHAPE)
    module.on_validation_epoch_start()
    compare(validations(module, mnist()), repeats)


def small(width: int, side: int) -> torch.nn.Module:
    """The network of ``cifar10_small``, with a trunk of so many channels on maps of so many pixels.

    Trained kernels differ from all others, those of the start are alike: they are moved a little.
    """
    torch.manual_seed(0)
    model = models.LiResNet(
        (3, 32, 32),
        10,
        width=width,
        depth=4,
        layer=chord(),
        activation=GroupSort,
        stem_kernel=32 // side + 2,
        stem_stride=32 // side,
        neck_channels=256,
        dense_width=512,
        dense_depth=2,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))
    return model


def epoch(repeats: int, checkpoint: Path | None = None) -> None:
    """An epoch's validation, bounds included, of the network of ``cifar10_small``."""
    model = small(64, 8)
    if checkpoint is not None:
        model.load_state_dict(read_checkpoint(checkpoint).model_state)
    module = validated(model, (3, 32, 32))
    batches = [(torch.rand(n, 3, 32, 32), torch.randint(10, (n,))) for n in (1024, 1024, 452)]
    plain, verified = validations(module, batches).values()

    def whole() -> None:
        # Folded anew, nothing is known of the constants.
        module.on_validation_epoch_start()
        verified()

    compare({"validation": plain, "val/vra, bounds included": whole}, repeats)


def trunks(repeats: int) -> None:
    """Bounds of trunks as validation and as certification have them, over quick ones."""
    for width, side in ((64, 8), (128, 8), (128, 16), (256, 8), (256, 16)):
        model = small(width, side)
        module, x = validated(model, (3, 32, 32)), torch.rand(1000, 3, 32, 32)

        def bounds(model: torch.nn.Module = model) -> Tensor:
            return LipschitzCertifier().pairwise_bound(fold_network(model, (3, 32, 32)))

        def certify(model: torch.nn.Module = model, x: Tensor = x) -> object:
            return LipschitzCertifier().certify(fold_network(model, (3, 32, 32)), x)

        quick, quickly = norms.quick_bounds()(bounds), norms.quick_bounds()(certify)
        larger = float((quick() / bounds()).nan_to_num().max())
        print(
            f"{width} channels on {side}x{side}: quick constants are {larger:.4f} times the close"
        )
        validate = module.on_validation_epoch_start
        compare({"quick bounds": quick, "validation": validate, "close bounds": bounds}, repeats)
        compare({"1,000 samples, quick bounds": quickly, "close bounds": certify}, 1)


def mlp_weights() -> list[Tensor]:
    """Weights of a 10M-parameter network."""
    torch.manual_seed(0)
    return [torch.randn(m, n) / n**0.5 for n, m in pairwise(MLP)]


def bound_mlp(weights: list[Tensor]) -> None:
    """Bounds of all its layers."""
    for weight in weights:
        norms.dense_norm_bound(weight)


def mlp(repeats: int) -> None:
    """Bounds of an MLP over singular values that are no bounds."""
    weights = mlp_weights()
    svd = [weight.double() for weight in weights]
    first = "import time; from benchmarks.speed import certify_time as c; "
    first += "w = c.mlp_weights(); t = time.perf_counter(); "
    first += "p = time.process_time(); c.bound_mlp(w); "
    first += "print(time.process_time() - p, time.perf_counter() - t)"
    here = Path(__file__).parents[2]
    for _ in range(3):
        command = [sys.executable, "-c", first]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        cpu, clock = map(float, done.stdout.split())
        print(f"first call of a process: CPU {cpu:.3f} s, clock {clock:.3f} s", flush=True)
    works: dict[str, Work] = {
        "torch.linalg.svdvals, float64": lambda: [torch.linalg.svdvals(w) for w in svd],
        "dense_norm_bound": lambda: bound_mlp(weights),
    }
    compare(works, repeats)


def vgg(repeats: int) -> None:
    """Bounds of a VGG-like network of 5M parameters."""
    torch.manual_seed(0)
    kernels = [torch.randn(m, n, 3, 3) / (9 * n) ** 0.5 for n, m, *_ in VGG]

    def bound() -> None:
        for kernel, (*_, side, stride) in zip(kernels, VGG, strict=True):
            norms.conv_norm_bound(kernel, side, stride, 1)

    compare({"conv_norm_bound of all layers": bound}, repeats)


PARTS: dict[str, Callable[[int], None]] = {
    "test": test_split,
    "validation": validation,
    "epoch": epoch,
}
PARTS |= {"trunks": trunks, "mlp": mlp, "vgg": vgg}


def main() -> None:
    """Time the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--checkpoint", type=Path, help="weights of cifar10_small, for epoch")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for part in arguments.parts:
        print(f"\n{PARTS[part].__doc__}")
        if part == "epoch":
            epoch(arguments.repeats, arguments.checkpoint)
        else:
            PARTS[part](arguments.repeats)


if __name__ == "__main__":
    main()
