"""A module with a forward of its own folds by what it calls of torch, or is refused by its line."""

import functools
import inspect
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb
from helpers.torch_modules import MODULES, drawn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from robustcert.activations import GroupSort
from robustcert.certifiers import certify
from robustcert.errors import UnknownLipschitz, UnsoundNetworkError
from robustcert.layers import CholeskyLinear
from robustcert.lipschitz import lipschitz_bound
from robustcert.network import torch_functions
from robustcert.network.agreement import DisagreementError
from robustcert.network.bounds import sequence_bound
from robustcert.network.branches import Sum
from robustcert.network.fold import fold_for, fold_network
from robustcert.network.network import PlainNetwork
from robustcert.network.torch_activations import (
    GELU,
    GELU_TANH,
    HARDSWISH,
    SILU,
    gelu_activation,
)

VALUES = torch.tensor([0.5, -1.5, 2.0, 0.25])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Calls(nn.Module):
    """A dense layer and a function of its output."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.function, self.calls = nn.Linear(4, 4), function, 0
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


class Block(nn.Module):
    """A residual block as it is written everywhere, in place where it can be."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down: nn.Module | None = None
        if inputs != outputs:
            short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.down = nn.Sequential(short, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.down is not None:
            identity = self.down(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Normalisation, stem, two blocks, global average and head."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Block(width, width), Block(width, 2 * width, 2))
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(2 * width, classes)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem((x - self.mean) / 0.25))
        x = F.adaptive_avg_pool2d(self.blocks(x), 1)
        return self.head(self.drop(torch.flatten(x, 1)))


def test_a_residual_network_folds_with_its_paths_and_certifies() -> None:
    net = ResNet()
    x = torch.rand(6, 3, 8, 8)
    network = fold_network(net, (3, 8, 8))
    sums = [op for op in network.operations if isinstance(op, Sum)]
    assert [op.name for op in sums] == ["blocks.0", "blocks.1"]
    assert [op.name for op in sums[0].branches[0]][:2] == ["blocks.0.conv1", "blocks.0.relu"]
    assert sums[0].branches[1] == ()
    assert net.training
    assert "forward" not in vars(net.stem[0])
    certified = certify(net, x)
    assert (certified.radius > 0).any()
    assert (certified.prediction == net.eval()(x).argmax(1)).all()
    net.double()
    difference = fold_network(net, (3, 8, 8))(x.double()) - net(x.double())
    assert difference.abs().max() <= 1e-12 * net(x.double()).abs().max()


def test_no_attack_changes_a_prediction_inside_its_radius() -> None:
    net, x = ResNet().double().eval(), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    certified = certify(net, x)
    moved = x.clone().requires_grad_(True)
    for _ in range(20):
        logits = net(moved)
        own = logits.gather(1, certified.prediction[:, None])[:, 0]
        rest = logits.scatter(1, certified.prediction[:, None], -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad((rest - own).sum(), moved)
        step = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
        offset = (moved - x).detach() + step * certified.radius.view(-1, 1, 1, 1) / 4
        norm = offset.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        shrink = (0.999 * certified.radius.view(-1, 1, 1, 1) / norm).clamp_max(1)
        moved = (x + offset * shrink).requires_grad_(True)
        assert (net(moved).argmax(1) == certified.prediction).all()


def test_modules_that_state_their_fold_are_one_step() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.sort = CholeskyLinear(4, 4), GroupSort(4)
            self.second = parametrizations.orthogonal(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.sort(self.first(x))) + x

    module = Mixed().double()
    operations = fold_for(module, (4,))
    assert isinstance(operations[-1], Sum)
    assert [op.name for op in operations[-1].branches[0]] == ["first", "sort", "second"]
    assert lipschitz_bound(module, (4,)) <= 2 + 1e-9
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(PlainNetwork((*operations,), (4,))(x), module(x))


def test_a_function_that_is_captured_as_another_is_found(monkeypatch: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Calls(F.silu))
    monkeypatch.setitem(torch_functions.RULES, F.silu, lambda x, inplace: [gelu_activation()])
    message = r"^1: what was captured of test_capture.Calls is another function than its forward"
    with pytest.raises(DisagreementError, match=message):
        certify(net, torch.rand(3, 4))


@functools.cache
def compiled() -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        function: Callable[[Tensor], Tensor] = torch.jit.script(positive_part)
    return function


def positive_part(x: Tensor) -> Tensor:
    return torch.relu(x)


def control_flow(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def a_number_of_the_data(x: Tensor) -> Tensor:
    return x * x.max().item()


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.numpy()))


def dropout_in_training(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5)


def random_of_torch(x: Tensor) -> Tensor:
    return x + torch.rand(4)


def random_of_python(x: Tensor) -> Tensor:
    factor = 1 + random.random()
    return x * factor


def random_of_numpy(x: Tensor) -> Tensor:
    return x * float(np.random.rand())


def swallowed(x: Tensor) -> Tensor:
    try:
        return F.dropout(x, 0.5)
    except ValueError:
        return x


def written_under_a_view(x: Tensor) -> Tensor:
    y = x.view(-1, 2, 2)
    x += 1
    return y.flatten(1)


def written_through_data(x: Tensor) -> Tensor:
    y = x.data
    y.mul_(2)
    return x + 1


def written_by_index(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def written_to_a_constant(x: Tensor) -> Tensor:
    return torch.zeros(len(x), 4).add_(x)


def unknown_function(x: Tensor) -> Tensor:
    return x.cumsum(1)


def places_of_entries(x: Tensor) -> Tensor:
    return x.gather(1, x.sort(1)[1])


def an_operator_of_torch(x: Tensor) -> Tensor:
    return torch.ops.aten.relu(x)


def compiled_code(x: Tensor) -> Tensor:
    return x + compiled()(x).mean(0)


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (4,))


def product(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def batch_size(x: Tensor) -> Tensor:
    return x / len(x)


def across_the_batch(x: Tensor) -> Tensor:
    return x - x.mean(0)


def mixed_batch(x: Tensor) -> Tensor:
    return x.reshape(-1, 2).reshape(-1, 4)


def other_precision(x: Tensor) -> Tensor:
    return x.half().float()


def by_sample(x: Tensor) -> Tensor:
    return x * torch.arange(len(x)).view(-1, 1)


def beside_the_batch(x: Tensor) -> Tensor:
    return torch.cat([x, x]).view(len(x), -1)


def first_input(x: Tensor) -> Tensor:
    return x + x[:1]


def turned(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten().view(-1, 4)


REFUSED: dict[Callable[[Tensor], Tensor], tuple[str, str]] = {
    control_flow: ("if x.sum() > 0", "values of an input decide"),
    a_number_of_the_data: ("x.max().item()", "item lets the values of an input decide"),
    through_numpy: ("x.numpy()", "numpy lets the values"),
    dropout_in_training: ("F.dropout(x, 0.5)", "dropout draws random numbers"),
    random_of_torch: ("torch.rand(4)", "rand draws random numbers"),
    random_of_python: ("x * factor", "what comes before mul draws random numbers"),
    random_of_numpy: ("np.random.rand", "draws random numbers"),
    swallowed: ("F.dropout(x, 0.5)", "dropout draws random numbers"),
    written_under_a_view: ("return y.flatten(1)", "changed in place by .* `x \\+= 1`"),
    written_through_data: ("return x + 1", "changed in place by .*`y.mul_\\(2\\)`"),
    written_by_index: ("x[:, 0] = 0", "__setitem__ changes in place"),
    written_to_a_constant: ("add_(x)", "add_ changes in place"),
    unknown_function: ("x.cumsum(1)", "cumsum is not known"),
    places_of_entries: ("x.gather(1, x.sort(1)[1])", "gives places of entries, which jump"),
    an_operator_of_torch: ("torch.ops.aten.relu(x)", "relu is not known"),
    compiled_code: ("compiled()(x)", "called by code that cannot be followed"),
    layer_norm: ("F.layer_norm", "its slope grows without bound"),
    product: ("x * torch.sigmoid(x)", "multiplies two values"),
    batch_size: ("x / len(x)", "another function for a batch of 2 inputs than for 3"),
    across_the_batch: ("x.mean(0)", "mean mixes the inputs of a batch"),
    mixed_batch: ("x.reshape(-1, 2)", "mixes the inputs of a batch"),
    other_precision: ("x.half().float()", "half is not known"),
    by_sample: ("torch.arange", "a constant for every input of the batch"),
    beside_the_batch: ("torch.cat", "cat mixes the inputs of a batch"),
    first_input: ("x[:1]", "__getitem__ mixes the inputs of a batch"),
    turned: ("x.transpose(0, 1)", "transpose mixes the inputs of a batch"),
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_what_is_not_one_known_function_is_refused_with_its_line(
    function: Callable[[Tensor], Tensor],
) -> None:
    code, reason = REFUSED[function]
    lines, first = inspect.getsourcelines(function)
    place = next(first + k for k, line in enumerate(lines) if code in line)
    module, _ = Calls(function), compiled()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(UnknownLipschitz, match=reason) as error:
        fold_network(module, (4,))
    assert f"test_capture.py:{place}, in {function.__name__}: `" in str(error.value)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert vars(module).keys() == vars(Calls(function)).keys()


class Counting(Calls):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


class Remembering(Calls):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.layer(x)


class Hidden(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_state_and_hooks_are_refused_and_the_module_is_as_it_was() -> None:
    counting, remembering = Counting(torch.relu), Remembering(torch.relu)
    with pytest.raises(UnknownLipschitz, match="or in another evaluation"):
        fold_network(counting, (4,))
    with pytest.raises(UnknownLipschitz, match="changes its seen"):
        fold_network(remembering, (4,))
    assert counting.calls == 0
    assert not remembering.seen.any()
    hooked = Hidden(torch.relu)
    hooked.layer.register_forward_hook(lambda m, x, y: 10 * y)
    with pytest.raises(UnknownLipschitz, match=r"^layer: .*Linear cannot be captured: .*hooks"):
        fold_network(hooked, (4,))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: torch.zeros(len(x), 4), "one tensor that depends on the input"),
        (lambda x: (x, x), "one tensor that depends on the input, got tuple"),
        (lambda x: x.undefined, "does not run on inputs of shape"),
        (lambda x: x.mean(1), "does not return at least one entry for every input"),
    ],
)
def test_an_output_that_is_none_is_refused(function: Any, reason: str) -> None:
    with pytest.raises(UnsoundNetworkError, match=reason):
        fold_network(Calls(function), (4,))


def test_inference_mode_changes_nothing() -> None:
    module, x = Calls(lambda x: torch.relu(x) + x), torch.rand(3, 4)
    expected = certify(module, x).radius
    with torch.inference_mode():
        assert torch.equal(certify(module, x.clone()).radius, expected)
        made = Calls(torch.relu)
        assert len(fold_network(made, (4,)).operations) == 2


def test_cached_weights_are_refused() -> None:
    module = Calls(torch.relu)
    parametrizations.orthogonal(module.layer)
    with parametrize.cached(), pytest.raises(UnsoundNetworkError, match="cached"):
        fold_network(module, (4,))


def test_what_is_computed_and_not_used_is_not_asked_about() -> None:
    def logged(x: Tensor) -> Tensor:
        x.abs().max()
        return x

    assert len(fold_network(Calls(logged), (4,)).operations) == 1


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_of_torch_is_its_operations_and_obeys_their_bound(kind: str) -> None:
    make, shape = MODULES[kind]
    module = drawn(make)
    operations = fold_for(nn.Sequential(nn.Identity(), module), shape)
    bound = sequence_bound(operations, shape)
    x = torch.cat([s * torch.randn(40, *shape, dtype=torch.float64) for s in (0.1, 1.0, 5.0)])
    y = x + 1e-3 * torch.randn_like(x)
    with torch.no_grad():
        first, second = module(x.clone()), module(y.clone())
        found = x
        for operation in operations:
            found = operation(found)
    assert (found - first).abs().max() <= 1e-12 * first.abs().max()
    ratio = (first - second).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert ratio.max() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("kind", MODULES)
def test_float32_stays_within_the_counted_rounding(kind: str) -> None:
    make, shape = MODULES[kind]
    for operation in fold_for(drawn(make).float(), shape):
        x = torch.cat([s * torch.randn(30, *shape) for s in (1e-3, 1.0, 30.0)])
        a, b = operation.rounding(shape, 2.0**-24)
        error = (operation(x).double() - operation(x.double())).flatten(1).norm(dim=1)
        assert (error <= a * x.double().flatten(1).norm(dim=1) + b).all()
        shape = operation.output_shape(shape)


def test_the_jump_of_softplus_at_its_threshold_is_charged() -> None:
    module = nn.Softplus(beta=0.5, threshold=20)
    x = torch.linspace(39, 45, 601, dtype=torch.float64)[:, None]
    (operation,) = fold_for(nn.Sequential(module), (1,))
    a, b = operation.rounding((1,), 2.0**-53)
    error = (module(x) - operation(x)).abs().max()
    assert 4e-9 < error <= b < 4.2e-9
    assert a < 1e-15


def test_slopes_of_gelu_by_tanh_stay_below_its_constant() -> None:
    # Ball arithmetic encloses the slope on every piece of [-8, 8]; its docstring has the rest.
    beta, kappa = (2 / arb.pi()).sqrt(), arb("0.044715")
    pieces = [(0, 8)]
    while pieces:
        centre, radius = pieces.pop()
        x = arb(centre, radius)
        tanh = (beta * x * (1 + kappa * x * x)).tanh()
        steep = beta * (1 + 3 * kappa * x * x)
        slope = (1 + tanh) / 2 + x / 2 * (1 - tanh * tanh) * steep
        if not abs(slope) < GELU_TANH:
            radius /= 2
            assert radius > 2**-20
            pieces += [(centre - radius, radius), (centre + radius, radius)]


@pytest.mark.parametrize(
    ("function", "constant", "place"),
    [
        (F.silu, SILU, 2.399357280515468),
        (F.gelu, GELU, 2**0.5),
        (F.hardswish, HARDSWISH, 2.9999999),
    ],
)
def test_largest_slopes_are_where_they_are_said_to_be(
    function: Any, constant: float, place: float
) -> None:
    x = torch.tensor([place], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    assert constant * (1 - 1e-5) <= slope <= constant


@pytest.mark.parametrize(
    ("kernel", "stride", "shared"), [(2, 2, 1), (3, 1, 9), (3, 2, 4), (2, 3, 1)]
)
def test_the_constant_of_max_pooling_is_attained(kernel: int, stride: int, shared: int) -> None:
    (operation,) = fold_for(nn.Sequential(nn.MaxPool2d(kernel, stride)), (1, 7, 7))
    changes = []
    for place in range(49):
        x = torch.zeros(1, 49, dtype=torch.float64)
        x[0, place] = 1
        changes.append(float(operation(x.view(1, 1, 7, 7)).norm()))
    assert max(changes) == shared**0.5
    assert shared**0.5 <= operation.lipschitz_bound((1, 7, 7)) <= shared**0.5 * (1 + 1e-12)


def test_the_page_lists_what_is_covered() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    (table,) = re.findall(r"\| module of torch \|.*?\n\n", page, re.DOTALL)
    cells = [line.split("|")[1] for line in table.splitlines()[2:] if line]
    listed = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert listed == {kind.split()[0] for kind in MODULES}
