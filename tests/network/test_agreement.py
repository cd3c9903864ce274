"""A fold that speaks of another function than forward is found before anything is certified."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import run
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from robustcert.activations import GroupSort
from robustcert.certifiers import certify
from robustcert.errors import UnsoundNetworkError
from robustcert.layers import LiResConv2d, UnconstrainedLinear
from robustcert.models import Classifier, Head
from robustcert.network.activation import Activation, Slopes
from robustcert.network.agreement import DisagreementError, compared_rows, require_agreement
from robustcert.network.fold import fold, fold_children, fold_network
from robustcert.network.linear import Dense
from robustcert.network.operation import Operation
from robustcert.runs.certify import certify as certify_checkpoint


def relu() -> Activation:
    return Activation(torch.relu, {}, lipschitz=1.0, slopes=Slopes(0.0, 1.0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Fivefold(nn.Module):
    """Folds into its layer, and computes five times that."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 5 * self.layer(x)

    def fold(self) -> list[Operation]:
        return fold_children(("layer", self.layer))


class Shifted(nn.Module):
    """Calls itself a ReLU."""

    def __init__(self, num_features: int = 4) -> None:
        super().__init__()
        self.out_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.relu(x - 0.1)

    def lipschitz_bound(self) -> float:
        return 1.0

    def fold(self) -> Activation:
        return relu()


class OnlyNegative(nn.Module):
    """A ReLU that leaks where inputs in [0, 1] of a layer without negative weights never are."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x)

    def fold(self) -> Activation:
        return relu()


class ByPrecision(nn.Module):
    """What it says in float64, and something else in any other precision."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * (1 if x.dtype == torch.float64 else 1.1)

    def fold(self) -> Activation:
        return relu()


class Copied(nn.Module):
    """Its copies are honest."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(2 * torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def fold(self) -> Dense:
        return Dense(self.weight.detach() * (1 if self.weight[0, 0] == 1 else 0.5))

    def __deepcopy__(self, memo: Any) -> "Copied":
        made = Copied()
        made.weight = nn.Parameter(torch.eye(4) * 3)
        return made


class Switched(nn.Module):
    """Applies its children in another order than it folds them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.second(x))

    def fold(self) -> list[Operation]:
        return fold_children(("first", self.first), ("second", self.second))


WRONG: dict[str, tuple[Any, str]] = {
    "another factor": (lambda: Fivefold(), r"^the fold\(\) of test_agreement\.Fivefold"),
    "deep inside": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Shifted()), Fivefold()),
        r"^1\.1: the fold\(\) of test_agreement\.Shifted is another function than its forward: "
        r"they differ by .* where the largest value is .* Nothing is certified",
    ),
    "elsewhere than at the inputs": (
        lambda: nn.Sequential(nn.Identity(), OnlyNegative(), nn.Linear(4, 2)),
        r"^1: .*OnlyNegative",
    ),
    "in another precision": (lambda: nn.Sequential(ByPrecision(), nn.Linear(4, 2)), "ByPrecision"),
    "in a copy": (lambda: Copied(), "Copied"),
    "children in another order": (lambda: Switched(), r"^the fold\(\) of test_agreement\.Switched"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_fold_is_named_and_nothing_is_certified(kind: str) -> None:
    make, message = WRONG[kind]
    with pytest.raises(DisagreementError, match=message):
        certify(make(), torch.rand(10, 4))


def test_an_activation_that_trains_as_another_is_found_by_certify_py(tmp_path: Path) -> None:
    options = (
        "model.activation._target_=test_agreement.Shifted",
        "layer=unconstrained",
        "~model.activation.group_size",
        "allow_targets=[test_agreement]",
    )
    data = np.random.RandomState(0).rand(60, 5).astype(np.float32)
    labels = (data.sum(1) > 2.5).astype(np.int64)
    np.savez(tmp_path / "d.npz", x_train=data, y_train=labels, x_test=data, y_test=labels)
    source = ("dataset=npz", f"dataset.root={tmp_path / 'd.npz'}", "model=mlp")
    with pytest.raises(DisagreementError, match=r"backbone\.\d+: the fold\(\) of .*Shifted"):
        run(tmp_path / "run", *source, *options)
    # Before it is trained, and so is a network that was trained without.
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", *source, *options, "trainer.max_epochs=1", "certify=false")
    with pytest.raises(DisagreementError):
        certify_checkpoint(
            str(tmp_path / "run" / "checkpoints" / "best.ckpt"), allow_targets=["test_agreement"]
        )


def right() -> dict[str, nn.Module]:
    normed = parametrizations.spectral_norm(nn.Linear(4, 4))
    conv = LiResConv2d(2, 2, 3, padding=1, input_size=(1, 2))
    return {
        "torch": nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
        "spectral_norm": nn.Sequential(normed, nn.Linear(4, 3)),
        "power iteration": Classifier(
            nn.Sequential(UnconstrainedLinear(4, 4), GroupSort(4)), Head(4, 3)
        ),
        "convolution": nn.Sequential(nn.Unflatten(1, (2, 1, 2)), conv, nn.Flatten())[1:],
        "float64": nn.Sequential(nn.Linear(4, 3)).double(),
        "bfloat16": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).bfloat16(),
        "no tensors": nn.Sequential(nn.ReLU()),
        "a tie everywhere": nn.Sequential(zeroed(nn.Linear(4, 3))),
    }


def zeroed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module


@pytest.mark.parametrize("kind", right())
@pytest.mark.parametrize("count", [0, 1, 50, 200])
def test_what_is_folded_rightly_is_left_exactly_as_it_was(kind: str, count: int) -> None:
    module = right()[kind].train()
    x = torch.rand(count, *((2, 1, 2) if kind == "convolution" else (4,)))
    state = copy.deepcopy(module.state_dict())
    random = torch.get_rng_state()
    require_agreement(module, fold_network(module, x.shape[1:]), x)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert all(m.training for m in module.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert len(fold(module)) > 0


def test_bytes_and_values_that_are_no_numbers_can_be_compared() -> None:
    module = right()["torch"]
    network = fold_network(module, (4,))
    require_agreement(module, network, torch.randint(0, 256, (9, 4), dtype=torch.uint8))
    require_agreement(module, network, torch.full((9, 4), torch.nan))
    require_agreement(module, network, torch.full((9, 4), 1e308, dtype=torch.float64))


class Loose(nn.Module):
    """Holds a tensor that float64 does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.zeros(1))
        self.loose = torch.eye(4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.loose

    def fold(self) -> Dense:
        return Dense(self.loose.T)


class Unique(Fivefold):
    """Cannot be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("there is only one of me")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def fold(self) -> list[Operation]:
        return fold_children(("layer", self.layer))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Loose(),
            r"Loose does not run in torch\.float64, as a copy, so that it cannot be compared",
        ),
        (Unique(), r"Unique cannot be copied .* there is only one of me"),
    ],
    ids=["Loose", "Unique"],
)
def test_what_cannot_be_compared_is_an_error(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsoundNetworkError, match=message):
        certify(module, torch.rand(5, 4))


def test_rows_are_spread_over_all_inputs() -> None:
    assert compared_rows(0).tolist() == []
    assert compared_rows(3).tolist() == [0, 1, 2]
    rows = compared_rows(10_000)
    assert len(rows) == 32
    assert rows.diff().unique().tolist() in ([312], [312, 313])
