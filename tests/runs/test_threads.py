"""A run's number of threads: what is asked for, the environment's, or one that fits."""

import logging
import time

import pytest
import torch
from helpers.configs import build_model, input_shape, layered_models
from torch import nn

from robustcert.layers import CayleyLinear
from robustcert.layers import product as layer_products
from robustcert.models.monotone import Monotone
from robustcert.runs import threads as room
from robustcert.runs.threads import VARIABLES, operations, suitable, threads
from robustcert.training import stage as stages

NETWORK = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 10))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(room, "cores", lambda: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 16)


def test_operations_are_counted() -> None:
    assert operations(NETWORK, (32, 100)) == 32 * 2 * (100 * 50 + 50 * 10)
    assert NETWORK.training


@pytest.mark.parametrize("model", layered_models())
def test_operations_of_weights_with_gradients_of_their_own_are_counted(model: str) -> None:
    network = build_model(model, "bcop", "maxmin", width=8)
    assert operations(network, (1, *input_shape(model))) > 0


def test_operations_are_the_same_in_whatever_library(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for narrow in (True, False):
        monkeypatch.setattr(layer_products, "_mkl_is_narrow", lambda narrow=narrow: narrow)
        counts.append(operations(CayleyLinear(512, 512), (64, 512)))
    assert counts[0] == counts[1] > 64 * 2 * 512**2


def test_operations_of_a_network_that_is_folded_to_be_evaluated_are_counted() -> None:
    network = Monotone(NETWORK, [1] * 100, input_shape=(100,), num_classes=1)
    assert operations(network, (1, 100)) >= operations(NETWORK, (1, 100))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("busy", "expected"), [(0.1, 8), (10.2, 6), (15.9, 1), (40.0, 1)])
def test_large_networks_have_the_free_cores(
    busy: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (busy, 0.0, 0.0))
    assert suitable(NETWORK, (32, 100)) == 1
    assert suitable(NETWORK, (100_000, 100)) == expected


@pytest.mark.usefixtures("quiet")
def test_counting_is_spoken_of_if_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stages, "MAX_SILENCE", 0.0)
    monkeypatch.setattr(room, "suitable", lambda *_: time.sleep(0.05) or 1)
    with caplog.at_level(logging.INFO), threads(None, NETWORK, (32, 100)):
        pass
    assert caplog.messages[0].startswith("counting the network's operations: ")


@pytest.mark.usefixtures("quiet")
def test_what_is_asked_for_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    with threads(None, NETWORK, (32, 100)) as chosen:
        assert chosen == torch.get_num_threads() == 1
    with threads(3, NETWORK, (32, 100)) as chosen:
        assert chosen == torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    with threads(None, NETWORK, (100_000, 100)) as chosen:
        assert chosen == before
