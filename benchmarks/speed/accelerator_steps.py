"""Training steps and float64 throughput on a device, a row of a table for each.

Networks of the published architectures as a training takes them, over their unconstrained twins
and beside the operations of published code (:mod:`benchmarks.speed.published_arithmetic`); with
bfloat16 units and compiled, as ``trainer.precision=bf16-mixed`` and ``trainer.compile`` have it.
:mod:`benchmarks.accelerator` writes its page with these rows.
"""

import gc
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.architecture_time import MAXMIN, Step, chord, plain_conv, step_of
from benchmarks.speed.published_arithmetic import PublishedNetwork
from robustcert import layers
from robustcert.activations import BetaAbs, ReLU
from robustcert.attacks import pgd_survivors
from robustcert.certifiers import LipschitzCertifier, bounds_on, strict_arithmetic
from robustcert.layers.together import constrained_together
from robustcert.models import (
    LayerFamily,
    LipConvNet,
    LipNeXt,
    LiResNet,
    PatchFamily,
    ResidualFamily,
)
from robustcert.models.scores import training_scores
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.objectives import EMMA
from robustcert.training.module import scored_loss

SHAPE, CLASSES, RADIUS, STEPS = (3, 32, 32), 10, 36 / 255, 20
TWIN = LayerFamily(nn.Linear, plain_conv)
MANIFOLD = PatchFamily(layers.ManifoldLinear, layers.ManifoldPatchConv2d, layers.AOLConv2d)
REFLECTORS = partial(layers.BROConv2d, margin=2)
BRONET = PatchFamily(layers.CholeskyResidualLinear, layers.CholeskyPatchConv2d, REFLECTORS)
CPL = ResidualFamily(
    partial(layers.CPLLinear, activation=ReLU),
    partial(layers.CPLConv2d, activation=ReLU),
    LayerFamily(layers.AOLLinear, layers.AOLConv2d),
)
# The layers that LipConvNet is made of in the papers that compare them.
LIP_CONVNETS = {
    "AOL": LayerFamily(layers.AOLLinear, layers.AOLConv2d),
    "BCOP": LayerFamily(layers.CayleyLinear, layers.BCOPConv2d),
    "block reflectors": LayerFamily(layers.BROLinear, REFLECTORS),
    "Cayley": LayerFamily(layers.CayleyLinear, layers.CayleyConv2d),
    "CPL": CPL,
    "LOT": LayerFamily(layers.BjorckLinear, layers.LOTConv2d),
    "SOC": LayerFamily(layers.ExponentialLinear, layers.SOCConv2d),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks, and how their steps are taken.

    Attributes:
        width: Channels of LiResNet++, BRONet and LipNeXt; a sixteenth of it, of LipConvNet's first.
        depth: Their blocks; LipConvNet has five convolutions a block, or so many.
        batch: Images of a step.
        repeats: Steps that are timed, after two to warm up.
        backend: Of torch.compile.
    """

    width: int
    depth: int
    batch: int
    repeats: int
    backend: str


def liresnet(sizes: Sizes, family: LayerFamily) -> nn.Module:
    """LiResNet++, BRONet or their twin, by its layers."""
    return LiResNet(
        SHAPE,
        CLASSES,
        width=sizes.width,
        depth=sizes.depth,
        layer=family,
        activation=MAXMIN,
        neck_channels=sizes.width,
        dense_depth=8,
    )


def lip_convnet(sizes: Sizes, family: LayerFamily) -> nn.Module:
    """LipConvNet of any layers."""
    return LipConvNet(
        SHAPE,
        CLASSES,
        width=max(4, sizes.width // 16),
        depth=min(5, sizes.depth),
        layer=family,
        activation=MAXMIN,
        downsample=layers.InvertibleDownsampling,
    )


def lipnext(sizes: Sizes, family: LayerFamily) -> nn.Module:
    """LipNeXt of any layers."""
    return LipNeXt(
        SHAPE,
        CLASSES,
        width=sizes.width,
        depth=sizes.depth,
        layer=family,
        activation=BetaAbs,
        pool=layers.NormPool2d,
    )


class Batch:
    """Random images and classes on a device.

    Args:
        device: Where.
        count: How many.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self.device = device
        self.x = torch.rand(count, *SHAPE, device=device)
        self.y = torch.randint(CLASSES, (count,), device=device)

    def certified(
        self, model: nn.Module, *, half: bool = False, backend: str | None = None
    ) -> Step:
        """A training step of a network with constants."""
        scored = scored_loss
        if backend is not None:
            scored = torch.compile(scored_loss, backend=backend)
        objective = EMMA(0.2)

        def loss() -> Tensor:
            with self._units(half):
                batch = self.x, self.y
                return scored(training_scores, model, objective, batch, RADIUS, 1.0)[0]

        return step_of(model, loss)

    def plain(self, model: nn.Module, *, half: bool = False) -> Step:
        """A step of a twin, by cross-entropy."""

        def loss() -> Tensor:
            with self._units(half):
                return F.cross_entropy(model(self.x), self.y)

        return step_of(model, loss)

    def published(self, sizes: Sizes, *, reflects: bool) -> Step:
        """A step by the operations of published code."""
        objective = EMMA(0.2)
        model = PublishedNetwork(
            width=sizes.width,
            depth=sizes.depth,
            dense_width=4 * sizes.width,
            dense_depth=8,
            reflects=reflects,
        )

        def loss() -> Tensor:
            logits, constants = model(self.x)
            return objective(logits, self.y, constants, RADIUS)

        return step_of(model, loss)

    def _units(self, half: bool) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)


def weight_step(features: int, context: Callable[[nn.Module], AbstractContextManager]) -> Step:
    """Weights of 8 equal dense layers, with gradients, in a context for all of them."""
    model = nn.Sequential(*(layers.CholeskyResidualLinear(features, features) for _ in range(8)))

    def step() -> None:
        model.zero_grad()
        with context(model):
            weights = [layer.weight for layer in model]
        torch.autograd.backward(weights, weights)

    return step


def cases(device: torch.device, sizes: Sizes) -> list[tuple[str, str, Callable[[], Step]]]:
    """Title of the network, name of the step and what makes it; the first of a title is its base.

    Compiled steps come last: the compiler takes minutes.
    """
    batch, size = Batch(device, sizes.batch), f"{sizes.width} x {sizes.depth}"
    found, compiled = [], []

    def add(title: str, name: str, make: Callable[[], Step]) -> None:
        found.append((title, name, make))

    def own(title: str, name: str, build: Callable, family: LayerFamily) -> None:
        certified = lambda **how: batch.certified(build(sizes, family), **how)  # noqa: E731
        add(title, name, certified)
        add(title, f"{name}, bfloat16", partial(certified, half=True))
        compiled.append((title, f"{name}, compiled", partial(certified, backend=sizes.backend)))

    def twin(title: str, build: Callable) -> None:
        add(title, "nn.Linear, nn.Conv2d", lambda: batch.plain(build(sizes, TWIN)))
        half = partial(batch.plain, half=True)
        add(title, "nn.Linear, nn.Conv2d, bfloat16", lambda: half(build(sizes, TWIN)))

    title = f"LiResNet++, {size}"
    twin(title, liresnet)
    own(title, "Cholesky residual dense", liresnet, chord())
    reflecting = chord(layers.BROLinear)
    add(title, "BRO dense", lambda: batch.certified(liresnet(sizes, reflecting)))
    add(title, "published operations", partial(batch.published, sizes, reflects=False))
    title = f"BRONet, {size}"
    twin(title, liresnet)
    own(title, "block reflector convolutions", liresnet, BRONET)
    add(title, "published operations", partial(batch.published, sizes, reflects=True))
    title = f"LipNeXt, {size}"
    twin(title, lipnext)
    own(title, "manifold", lipnext, MANIFOLD)
    title = f"LipConvNet, {max(4, sizes.width // 16)} x {min(5, sizes.depth)}"
    twin(title, lip_convnet)
    for name, family in LIP_CONVNETS.items():
        build = partial(lip_convnet, sizes, family)
        add(title, name, lambda build=build: batch.certified(build()))
    title = f"weights of 8 Cholesky layers of {4 * sizes.width}"
    add(title, "one by one", partial(weight_step, 4 * sizes.width, nullcontext))
    add(title, "together", partial(weight_step, 4 * sizes.width, constrained_together))
    return found + compiled


def timed(step: Step, device: torch.device, repeats: int) -> tuple[float, str]:
    """Median seconds of a step, after two to warm up, and the most memory taken meanwhile."""
    on_gpu, taken = device.type == "cuda", []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        step()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        if repeat >= 2:
            taken.append(time.perf_counter() - start)
    most = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if on_gpu else "not known"
    return median(taken), most


def step_rows(device: torch.device, sizes: Sizes) -> Iterator[str]:
    """Rows on training steps over those of unconstrained twins, and on what weights take.

    Raises:
        RuntimeError: some steps failed; after all rows.
    """
    first: dict[str, float] = {}
    failed = []
    for title, name, make in cases(device, sizes):
        torch.manual_seed(0)
        try:
            with torch.device(device):
                step = make()
            seconds, most = timed(step, device, sizes.repeats)
        except torch.OutOfMemoryError:
            yield f"| {title}: {name} | out of memory | | |"
        except Exception:
            traceback.print_exc()
            failed.append(name)
            yield f"| {title}: {name} | failed | | |"
        else:
            over = seconds / first.setdefault(title, seconds)
            yield f"| {title}: {name} | {1e3 * seconds:.1f} ms | {over:.2f} | {most} |"
        step = None
        # Modules and their hooks are circles, which hold memory until they are looked for.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if failed:
        raise RuntimeError(f"steps failed: {', '.join(failed)}")


def throughput_rows(device: torch.device, sizes: Sizes, samples: int) -> Iterator[str]:
    """Rows on float64: bounds, and images a second of forward passes, certificates and attacks.

    Bounds are those of a certificate, by the device where it proves them.
    """
    for title, family in (("LiResNet++", chord()), ("BRONet", BRONET)):
        torch.manual_seed(0)
        network = fold_network(liresnet(sizes, family).eval(), SHAPE).to(device)
        start = time.perf_counter()
        with bounds_on(device):
            LipschitzCertifier().claim(network)
        row = [f"{title}, {sizes.width} x {sizes.depth}", f"{time.perf_counter() - start:.1f} s"]
        works = float64_work(network, torch.rand(samples, *SHAPE, device=device))
        for work in works:
            seconds, most = timed(work, device, sizes.repeats)
            row.append(f"{samples / seconds:.3g}")
        yield f"| {' | '.join(row)} | {most} |"


def float64_work(network: PlainNetwork, x: Tensor) -> tuple[Step, Step, Step]:
    """A forward pass in float64, certificates and attacks of a batch."""
    certifier = LipschitzCertifier()
    target = certifier.certify(network, x).prediction

    def forward() -> None:
        with strict_arithmetic(), torch.no_grad():
            network(x.double())

    return (
        forward,
        partial(certifier.certify, network, x),
        partial(pgd_survivors, network, x, target, [RADIUS], steps=STEPS),
    )
