"""Every public layer of deel-torchlip and orthogonium folds by what it computes.

A layer certifies as it is, or once its moving weights are frozen. No class promises anything here:
constants are proved, and compared with samples.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

import robustcert
from robustcert.errors import UnsoundNetworkError
from robustcert.lipschitz import fold_network, lipschitz_bound
from robustcert.network.agreement import require_agreement

MAP, VECTOR, LINE = (4, 8, 8), (8,), (4, 8)


class Residual(nn.Module):
    """Where a layer of two arguments is used."""

    def __init__(self, join: nn.Module) -> None:
        super().__init__()
        self.inner, self.join = nn.Conv2d(4, 4, 3, padding=1), join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.join(x, self.inner(x))
        return out


@dataclass(frozen=True)
class Case:
    """How a class is built and what it takes.

    Attributes:
        build: From the class to a module.
        shape: Of an input.
        frozen: Whether it folds once its weights are frozen.
    """

    build: Callable[[Any], nn.Module]
    shape: tuple[int, ...] = MAP
    frozen: bool = False


def conv(**options: Any) -> Callable[[Any], nn.Module]:
    return lambda c: c(4, 4, 3, padding=1, **options)


def inner() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


TORCHLIP = {
    "FrobeniusConv2d": Case(conv()),
    "FrobeniusLinear": Case(lambda c: c(8, 3), VECTOR),
    "FullSort": Case(lambda c: c(), VECTOR),
    "GroupSort": Case(lambda c: c(4)),
    "GroupSort2": Case(lambda c: c()),
    "HouseHolder": Case(lambda c: c(4)),
    "InvertibleDownSampling": Case(lambda c: c(2)),
    "InvertibleUpSampling": Case(lambda c: c(2)),
    "LPReLU": Case(lambda c: c(4)),
    "LayerCentering": Case(lambda c: c(4)),
    "BatchCentering": Case(lambda c: c(4)),
    "BatchLipNorm": Case(lambda c: c(4)),
    "LipResidual": Case(lambda c: Residual(c())),
    "MaxMin": Case(lambda c: c()),
    "PadConv1d": Case(conv(), LINE),
    "PadConv2d": Case(conv()),
    "ScaleBiasLayer": Case(lambda c: c(0.5, 4)),
    "ScaledAdaptativeL2NormPool2d": Case(lambda c: c((1, 1))),
    "ScaledAdaptiveAvgPool2d": Case(lambda c: c((1, 1))),
    "ScaledAvgPool2d": Case(lambda c: c(2)),
    "ScaledL2NormPool2d": Case(lambda c: c(2)),
    "Sequential": Case(lambda c: c(nn.Flatten(), nn.Tanh())),
    "SymmetricPad": Case(lambda c: c(2)),
    "SpectralConv1d": Case(conv(), LINE),
    "SpectralConv2d": Case(conv()),
    "SpectralConvTranspose2d": Case(conv()),
    "SpectralLinear": Case(lambda c: c(8, 3), VECTOR),
}
CIRCULAR = Case(lambda c: c(4, 4, 3), frozen=True)
STRIDED = Case(lambda c: c(4, 4, 4, stride=2, padding=1), frozen=True)
SERIES = Case(lambda c: c(4, 4, 3))
ORTHOGONIUM = {
    "AOCLipschitzResBlock": Case(lambda c: c(4, 1, 3), frozen=True),
    "AOLConv2D": Case(conv()),
    "AOLConvTranspose2D": Case(conv()),
    "Abs": Case(lambda c: c()),
    "AdditiveResidual": Case(lambda c: c(inner())),
    "BatchCentering2D": Case(lambda c: c(4)),
    "BcopRkoConv2d": Case(
        lambda c: c(4, 8, 4, stride=2, padding=1, padding_mode="zeros"), frozen=True
    ),
    "BcopRkoConvTranspose2d": replace(
        STRIDED, build=lambda c: c(8, 4, 4, stride=2, padding=1), shape=(8, 8, 8)
    ),
    "ChannelShuffle": Case(lambda c: c(2, 2)),
    "ConcatResidual": Case(lambda c: c(nn.Conv2d(2, 2, 1))),
    "FastBlockConv2d": CIRCULAR,
    "FastBlockConvTranspose2D": Case(conv(), frozen=True),
    "HouseHolder": Case(lambda c: c(4)),
    "HouseHolder_Order_2": Case(lambda c: c(4)),
    "L2NormResidual": Case(lambda c: c(inner())),
    "LayerCentering2D": Case(lambda c: c(4)),
    "MaxMin": Case(lambda c: c()),
    "OrthoLinear": Case(lambda c: c(8, 3), VECTOR, frozen=True),
    "PrescaledAdditiveResidual": Case(lambda c: c(inner())),
    "RKOConv2d": Case(lambda c: c(4, 4, 2, stride=2, padding=0, padding_mode="zeros"), frozen=True),
    "RkoConvTranspose2d": replace(STRIDED, build=lambda c: c(4, 4, 2, stride=2)),
    "SDPBasedLipschitzDense": Case(lambda c: c(8, 8, 8), VECTOR),
    "SDPBasedLipschitzResBlock": Case(lambda c: c(4, 1)),
    "SLLxAOCLipschitzResBlock": Case(lambda c: c(4, 4, 1), frozen=True),
    "SoftHuber": Case(lambda c: c()),
    "UnitNormLinear": Case(lambda c: c(8, 3), VECTOR, frozen=True),
    "AdaptiveOrthoConv2d": CIRCULAR,
    "AdaptiveOrthoConvTranspose2d": Case(conv(), frozen=True),
    "AdaptiveSOCConv2d": SERIES,
    "AdaptiveSOCConvTranspose2d": Case(conv()),
    "FastSOC": SERIES,
    "SOCTranspose": Case(conv()),
    "SOCRkoConv2d": Case(
        lambda c: c(4, 8, 4, stride=2, padding=1, padding_mode="zeros"), frozen=True
    ),
    "SOCRkoConvTranspose2d": Case(lambda c: c(4, 4, 4, stride=2, padding=1), frozen=True),
}
CASES = {"deel.torchlip": TORCHLIP, "orthogonium.layers": ORTHOGONIUM}
# Losses, and parts of layers.
NO_LAYERS = re.compile("Loss|Reparametrizer|Trivializer|Parametrizer|Exponential|Skew|^ExpParams")


def layers_of(package: str) -> dict[str, Any]:
    """Classes and factories of layers that a package defines in public modules."""
    if find_spec(package.partition(".")[0]) is None or find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'robustcert[bridges]'")
    root = importlib.import_module(package)
    found: dict[str, Any] = {}
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            own = getattr(value, "__module__", "") == module.__name__ and name[0] != "_"
            own = own and value.__name__ == name
            factory = inspect.isfunction(value) and "Conv" in name
            if own and ((inspect.isclass(value) and issubclass(value, nn.Module)) or factory):
                found[name] = value
    return {name: value for name, value in found.items() if not NO_LAYERS.search(name)}


def evaluated(case: Case, layer: Any) -> tuple[nn.Module, torch.Tensor]:
    """A classifier that ends in the layer, after a few steps in training mode, and inputs."""
    torch.manual_seed(0)
    module = nn.Sequential(case.build(layer), nn.Flatten())
    x = torch.randn(32, *case.shape)
    for _ in range(3):
        module.train()(x)
    # Running sums become means at the first evaluation.
    module.eval()(x)
    return module, x


PARAMETERS = [
    pytest.param(
        package,
        name,
        id=f"{package.partition('.')[0]}-{name}",
    )
    for package, cases in CASES.items()
    for name, case in cases.items()
]


@pytest.mark.parametrize("package", CASES)
def test_every_public_layer_is_tried(package: str) -> None:
    assert sorted(CASES[package]) == sorted(layers_of(package))


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name"), PARAMETERS)
def test_a_layer_folds_by_what_it_computes(package: str, name: str) -> None:
    case, layer = CASES[package][name], layers_of(package)[name]
    module, x = evaluated(case, layer)
    if case.frozen:
        with pytest.raises(UnsoundNetworkError, match=r"robustcert\.freeze|not run .*float64"):
            require_agreement(module, fold_network(module, case.shape), x)
        module = robustcert.freeze(module)
    network = fold_network(module, case.shape)
    require_agreement(module, network, x)
    bound = lipschitz_bound(module, case.shape)
    x = x.double()
    near = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    moved = (network(near) - network(x)).norm(dim=1)
    assert (moved <= bound * (near - x).flatten(1).norm(dim=1) * (1 + 1e-9)).all()


TIGHT = {
    "deel.torchlip": ("LayerCentering", "MaxMin"),
    "orthogonium.layers": (
        *("LayerCentering2D", "SDPBasedLipschitzDense", "SDPBasedLipschitzResBlock"),
        *("SLLxAOCLipschitzResBlock", "AOCLipschitzResBlock"),
    ),
}


@pytest.mark.parametrize("package", TIGHT)
def test_what_has_a_constant_of_1_as_a_whole_is_bounded_as_a_whole(package: str) -> None:
    layers = layers_of(package)
    for name in TIGHT[package]:
        case = CASES[package][name]
        module, x = evaluated(case, layers[name])
        module = robustcert.freeze(module) if case.frozen else module
        require_agreement(module, fold_network(module, case.shape), x)
        assert lipschitz_bound(module, case.shape) < 1 + 1e-5, name


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 5)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_block_between_convolutions_reads_what_its_fused_kernels_do(
    stride: int, kernel: int, groups: int
) -> None:
    layer = layers_of("orthogonium.layers")["SLLxAOCLipschitzResBlock"]
    torch.manual_seed(0)
    built = layer(4, 8, 2, kernel_size=kernel, stride=stride, groups=groups)
    module = robustcert.freeze(nn.Sequential(built, nn.Flatten()).eval())
    for shape in ((4, 8, 8), (4, 7, 9)):
        network = fold_network(module, shape)
        require_agreement(module, network, torch.randn(16, *shape))
        assert lipschitz_bound(module, shape) < 1 + 1e-5


def test_what_a_peer_promises_is_not_believed() -> None:
    # The class aims at 1, and its truncated series ends above it.
    layer = layers_of("orthogonium.layers")["SOCTranspose"]
    module, _ = evaluated(ORTHOGONIUM["SOCTranspose"], layer)
    assert 1.01 < lipschitz_bound(module, MAP) < 1.1


def test_a_network_of_a_peer_certifies_in_one_line() -> None:
    torchlip = layers_of("deel.torchlip")
    torch.manual_seed(0)
    spectral, sort = torchlip["SpectralLinear"], torchlip["GroupSort2"]
    net = torchlip["Sequential"](spectral(8, 16), sort(), spectral(16, 16), sort(), spectral(16, 3))
    net.eval()
    x = torch.rand(16, 8)
    found = robustcert.certify(net, x)
    assert (found.prediction == net(x).argmax(1)).all()
    assert found.radius.max() > 0
    assert lipschitz_bound(net, (8,)) < 1.001


def test_a_twin_is_not_believed_of_a_class_that_was_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = layers_of("orthogonium.layers")["SoftHuber"]
    module = nn.Sequential(layer())
    assert lipschitz_bound(module, VECTOR) == 1
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, z: 2 * forward(self, z))
    with pytest.raises(UnsoundNetworkError, match=r"sqrt|pow"):
        lipschitz_bound(module, VECTOR)


def test_sectors_that_are_too_narrow_are_refused() -> None:
    module = layers_of("orthogonium.layers")["HouseHolder_Order_2"](4)
    nn.init.zeros_(module.theta1)
    with pytest.raises(UnsoundNetworkError, match="expected theta1 and theta2 between"):
        fold_network(nn.Sequential(module, nn.Flatten()), MAP)
