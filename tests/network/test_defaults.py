"""Nothing that is proved depends on torch's default dtype or default device."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configs import build, names
from torch import Tensor, nn

from robustcert.activations import LinearSpline
from robustcert.certifiers import LipSDPCertifier
from robustcert.errors import UnsoundNetworkError
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork

PACKAGE = Path(__file__).parents[2] / "robustcert"
# Parts that only train, draw data, or show results.
UNPROVED = {
    *("data", "metrics", "objectives", "report", "ground_truth/plane.py"),
    *("training/callbacks", "training/optimizers"),
}
# Parts whose modules may be constructed in the default dtype, as those of torch are.
MODULES = {"activations", "layers", "models", "training/module.py"}
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "ones"),
    *("rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"),
    *("tril_indices", "triu_indices"),
}
OUTPUTS = 3


@contextmanager
def defaults(dtype: torch.dtype, device: str = "cpu") -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


DTYPES = [torch.bfloat16, torch.float16, torch.float64]


def network(activation: str) -> nn.Module:
    """A small classifier with constants that narrower formats would round."""
    torch.manual_seed(1)
    first, second = (build("activation", activation)(8) for _ in range(2))
    layers = (
        *(nn.Linear(4, 8), first, nn.Linear(first.out_features, 8), second),
        nn.Linear(second.out_features, OUTPUTS),
    )
    module = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def quadrics() -> nn.Module:
    torch.manual_seed(1)
    return build("model", "subspaces", input_shape=(4,), num_classes=OUTPUTS, per_class=2, rank=2)


def crossed() -> list[Any]:
    """Every certifier with every activation; in fast tests one of a kind."""
    found = []
    for activation, certifier in product((*names("activation"), "quadrics"), names("certifier")):
        fast = certifier == "lipschitz" or activation == "maxmin"
        fast = fast or (activation == "quadrics" and certifier == "quadratic")
        slow = () if fast else pytest.mark.slow
        found.append(pytest.param(activation, certifier, marks=slow))
    return found


# So few steps of a search that a test of it is fast.
SMALL: dict[str, dict[str, Any]] = {
    "smoothing": {"n": 50, "n0": 10},
    "global_robustness": {"tries": 20, "seconds": 1e6, "nodes": 20},
    "lipsdp": {"iterations": 2},
    "local_lipsdp": {"rounds": 2, "iterations": 1},
}


def statements(certifier: str, module: nn.Module, x: Tensor) -> list[object]:
    """Whatever is said of a network: its digest, its constants, radii, bounds of pairs."""
    net = fold_network(module, (4,))
    found = build("certifier", certifier, **SMALL.get(certifier, {}))
    said: list[object] = [net.digest()]
    try:
        claim = found.claim(net, [x])
        said += [claim.pairwise]
        result = found.certify(net, x)
        said += [result.prediction, result.radius, result.margin, result.error]
        said += sorted((claim.multipliers or {}).items())
        said += [{**(claim.pairs or {}), "seconds": None}]
        if certifier == "second_order":
            said.append(found.adversarial_distance(net, x))
    except UnsoundNetworkError as error:
        said.append(str(error))
    return said


def equal(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        return same and torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0))
    if isinstance(first, tuple) and isinstance(second, tuple):
        return all(map(equal, first, second))
    return first == second


@pytest.mark.parametrize(("activation", "certifier"), crossed())
def test_what_is_proved_is_the_same_under_all_defaults(activation: str, certifier: str) -> None:
    model = quadrics() if activation == "quadrics" else network(activation)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    expected = statements(certifier, model, x)
    for dtype in DTYPES:
        with defaults(dtype, "meta"):
            found = statements(certifier, model, x)
        assert len(found) == len(expected)
        for k, (first, second) in enumerate(zip(found, expected, strict=True)):
            assert equal(first, second), (dtype, k)


# What was wrong before: slopes were rounded to the default dtype on their way to float64.


def splines(slope: float, depth: int, dtype: torch.dtype) -> PlainNetwork:
    """Logits ``(y, -y)`` of ``y = slope**depth x``: they tie at 0, at distance x."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        spline = LinearSpline(1, num_knots=3).to(dtype)
        nn.init.constant_(spline.raw_slopes, slope)
        layers.append(spline)
    head = nn.Linear(1, 2, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    return fold_network(nn.Sequential(*layers, head), (1,))


def broken_inside(net: PlainNetwork, x: Tensor) -> bool:
    result = LipSDPCertifier(iterations=0).certify(net, x)
    inside = x - result.radius[:, None] * (1 - 1e-7)
    return bool((net(inside).argmax(1) != result.prediction).any())


def test_slopes_are_not_rounded_to_the_default_dtype() -> None:
    # bfloat16 rounds the slope down by 0.0018.
    net, x = splines(0.998, 2, torch.float32), torch.tensor([[4.92]], dtype=torch.float64)
    with defaults(torch.bfloat16):
        assert not broken_inside(net, x)


def test_slopes_of_a_deep_network_are_not_rounded_to_float32() -> None:
    # Rounded down by half a unit of float32, 450 times: more than the room of a certificate.
    slope = 1 - 2.0**-24 + 2.0**-25 * (1 - 2.0**-10)
    net = splines(slope, 450, torch.float64)
    assert not broken_inside(net, torch.ones(1, 1, dtype=torch.float64))


# The rule that holds it: every tensor names what it is made of.


def within(path: Path, places: set[str]) -> bool:
    """Whether a file of the package is one of some files, or in one of some folders."""
    name = path.relative_to(PACKAGE).as_posix()
    return any(name == place or name.startswith(place + "/") for place in places)


def proving_modules() -> list[Path]:
    paths = (
        path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "check"
    )
    return sorted(p for p in paths if not within(p, UNPROVED))


def unnamed(source: str, constructors: bool) -> list[int]:
    """Lines of tensor factories that leave their dtype or device to torch's defaults."""
    tree = ast.parse(source)
    allowed: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and constructors:
            allowed.update(ast.walk(node))
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or node in allowed:
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg for keyword in node.keywords}
        factory = called.startswith("torch.") and called.removeprefix("torch.") in FACTORIES
        scalars = [isinstance(_scalar(a), (int, float)) for a in node.args[1:]]
        unnamed_choice = called == "torch.where" and len(scalars) == 2 and all(scalars)
        if unnamed_choice or (factory and not {"dtype", "device"} <= given):
            lines.append(node.lineno)
    return sorted(lines)


def _scalar(node: ast.expr) -> object:
    """A number written out, else None."""
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    if ast.unparse(node) in ("math.inf", "math.nan", "torch.inf", "torch.nan"):
        return 0.0
    return node.value if isinstance(node, ast.Constant) else None


@pytest.mark.parametrize("path", proving_modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_tensor_names_its_dtype_and_device(path: Path) -> None:
    constructors = within(path, MODULES)
    assert unnamed(path.read_text(), constructors) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.tensor((low, high)).double()",
        "torch.zeros(3, dtype=torch.float64)",
        "torch.arange(3, device=x.device)",
        "torch.where(mask, -1.0, math.inf)",
    ],
)
def test_the_rule_finds(line: str) -> None:
    assert unnamed(line, constructors=False) == [1]
