"""Bounds by several threads are those by one, bit for bit, in the same arithmetic."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from robustcert.arithmetic.settings import loose_settings
from robustcert.certifiers import LipschitzCertifier, quick_bounds, together
from robustcert.errors import UnsoundNetworkError
from robustcert.network.fold import fold_network
from robustcert.network.linear import Convolution, Dense
from robustcert.network.network import PlainNetwork
from robustcert.norms.closeness import QUICK, closeness


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def network(seed: int = 0) -> PlainNetwork:
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 300),
        nn.ReLU(),
        nn.Linear(300, 10),
    )
    return fold_network(nn.Sequential(*layers), (3, 6, 6)).owned()


def test_bounds_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "LEAST_COST", 0)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(LipschitzCertifier().pairwise_bound(network()))
        assert torch.get_num_threads() == count
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("certifying", [False, True])
def test_threads_are_strict_and_as_close_as_the_one_that_asks(
    certifying: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "LEAST_COST", 0)
    torch.set_num_threads(2)
    seen: dict[str, list[Any]] = {}
    # Both threads have to come before either may go on.
    barrier = threading.Barrier(2, timeout=30)
    met: set[int] = set()

    def watched(kind: type) -> None:
        bound = kind.lipschitz_bound

        def lipschitz_bound(self: Any, input_shape: Any) -> float:
            name = threading.get_ident()
            if name != threading.main_thread().ident and name not in met:
                met.add(name)
                barrier.wait()
            state = [loose_settings(), closeness(), torch.get_num_threads()]
            seen[f"{name} {self.label} {id(self)}"] = state
            return float(bound(self, input_shape))

        monkeypatch.setattr(kind, "lipschitz_bound", lipschitz_bound)

    for kind in (Convolution, Dense):
        watched(kind)
    # What a thread is started with is not strict.
    torch.set_flush_denormal(True)
    try:
        with quick_bounds():
            if certifying:
                LipschitzCertifier().certify(network(), torch.rand(2, 3, 6, 6))
            else:
                LipschitzCertifier().pairwise_bound(network())
    finally:
        torch.set_flush_denormal(False)
    assert len(met) == 2
    assert all(state == [[], QUICK, 1] for state in seen.values())


def test_errors_are_those_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "LEAST_COST", 0)
    said = []
    for count in (1, 2):
        torch.set_num_threads(count)
        broken = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 9), nn.ReLU())
        for layer in (broken[1], broken[3]):
            layer.double().weight.data[0, 0] = 1e300
        with pytest.raises(UnsoundNetworkError) as error:
            LipschitzCertifier().pairwise_bound(fold_network(broken, (8,)))
        said.append(str(error.value))
        assert said[-1].startswith("1: ")
        assert "1e+300" in said[-1]
        assert torch.get_num_threads() == count
    assert said[0] == said[1]


@pytest.mark.parametrize("which", [1, 2])
def test_an_interruption_waits_for_what_is_begun_alone(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "LEAST_COST", 0)
    torch.set_num_threads(2)
    begun: list[str] = []

    def interrupted(operation: Any, _shape: Any) -> float:
        begun.append(operation.label)
        # The other thread is at work.
        if len(begun) == which:
            raise KeyboardInterrupt
        time.sleep(0.5)
        return 1.0

    monkeypatch.setattr(together, "operation_bound", interrupted)
    with pytest.raises(KeyboardInterrupt):
        together.bound_together(network())
    assert len(begun) <= 2
    assert torch.get_num_threads() == 2
