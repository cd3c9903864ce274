"""What certainly does not fit into memory is refused before it is tried, and nothing else."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configs import build, names
from helpers.configs import read as read_option
from helpers.runs import run
from torch import nn
from torch.nn.utils import parametrize

from robustcert.activations import ReLU
from robustcert.certificate import memory
from robustcert.certificate.memory import (
    MAX_BATCH,
    MAX_VALUE_BYTES,
    certification_need,
    default_batch,
    largest_value,
)
from robustcert.certifiers import CROWNCertifier, LipschitzCertifier
from robustcert.check import Free
from robustcert.errors import ConfigError
from robustcert.network.linear import Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.runs import certify as certifying
from robustcert.runs import training_memory
from robustcert.runs.certify import certify
from robustcert.runs.training_memory import (
    is_accelerated,
    refused_if_too_large,
    require_training,
    tensors_of,
)

CPU = torch.device("cpu")
ADAM = {"_target_": "torch.optim.Adam"}


def leave(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """So many bytes are free, and parameters are counted one by one."""
    monkeypatch.setattr(memory, "free_memory", lambda: Free(size, "as a test has it"))
    monkeypatch.setattr(training_memory, "_STEP", 1)


# Training


def test_a_network_is_refused_before_the_rest_of_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[nn.Module] = []
    each = 4 * (8 * 8 + 8)
    leave(monkeypatch, 3 * 2 * each)
    message = r"model, in training: at least .* of memory are needed, and .* \(as a test has it\)"
    layers = (made.append(nn.Linear(8, 8)) for _ in range(100))
    with pytest.raises(ConfigError, match=message), refused_if_too_large(tensors_of(ADAM)):
        list(layers)
    # Of the third one, gradients and moments do not fit.
    assert len(made) == 2
    nn.Linear(8, 8)
    # The whole is looked at too, however small its parts are.
    monkeypatch.setattr(training_memory, "_STEP", 2**40)
    layers = (made.append(nn.Linear(8, 8)) for _ in range(3))
    with pytest.raises(ConfigError, match=message), refused_if_too_large(tensors_of(ADAM)):
        list(layers)


def test_a_parameter_is_counted_once_however_often_it_is_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave(monkeypatch, 3 * 4 * 8 * 8)
    with refused_if_too_large(tensors_of(ADAM)):
        layer = nn.Linear(8, 8, bias=False)
        parametrize.register_parametrization(layer, "weight", nn.Identity())
        other = nn.Module()
        other.register_parameter("shared", layer.parametrizations.weight.original)
        del layer, other
        gc.collect()
        # What is gone takes nothing.
        nn.Linear(8, 8, bias=False)
    with pytest.raises(ConfigError), refused_if_too_large(tensors_of(ADAM)):
        nn.Linear(8, 9)


def test_a_run_that_cannot_fit_is_refused_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 1000)
    with pytest.raises(ConfigError, match="choose a smaller model or capacity"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_parameters_have_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    leave(monkeypatch, 3 * 4 * 8 * 8)
    with pytest.raises(ConfigError, match="model, in training"):
        require_training(model, 4, CPU)
    model[0].requires_grad_(False)
    require_training(model, 4, CPU)


@pytest.mark.parametrize("name", names("optimizer"))
def test_no_optimizer_keeps_less_than_is_counted(name: str) -> None:
    pytest.importorskip("pytorch_optimizer")
    pytest.importorskip("schedulefree")
    layer = nn.Linear(16, 16, bias=False)
    optimizer = build("optimizer", name)(layer.parameters())
    layer(torch.ones(2, 16)).sum().backward()
    if hasattr(optimizer, "train"):  # one that averages
        optimizer.train()
    optimizer.step()
    # Whatever is kept, in optimizers that hold another one too.
    kept = {id(t): t.numel() for t in tensors_in(vars(optimizer)) if t.numel() == 256}
    kept.pop(id(layer.weight), None)
    counted = tensors_of(read_option("optimizer", name))
    assert counted - 2 <= len(kept)


def tensors_in(value: Any, depth: int = 6) -> list[torch.Tensor]:
    """Tensors in containers and objects."""
    if isinstance(value, torch.Tensor):
        return [value]
    if depth == 0 or isinstance(value, str | type):
        return []
    inside = value.values() if isinstance(value, dict) else value
    if isinstance(value, torch.optim.Optimizer):
        inside = vars(value).values()
    elif not isinstance(value, dict | list | tuple | set):
        return []
    return [tensor for part in inside for tensor in tensors_in(part, depth - 1)]


def test_what_is_trained_elsewhere_needs_its_parameters_here_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not is_accelerated({"accelerator": "cpu"})
    assert is_accelerated({"accelerator": "gpu"})
    for there in (True, False):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda there=there: there)
        assert is_accelerated({"accelerator": "auto"}) == there


# Certification


def network(inputs: int = 64, width: int = 32) -> PlainNetwork:
    torch.manual_seed(0)
    first, last = torch.randn(width, inputs), torch.randn(3, width)
    parts = (Flatten(), Dense(first), ReLU(width).fold(), Dense(last))
    return PlainNetwork(parts, (1, 1, inputs))


def test_a_batch_that_does_not_fit_is_refused_and_one_that_does_is_named(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, found = str(tmp_path / "certificate"), []
    options: dict[str, Any] = {"samples": 20, "attack": {"samples": 0}, "output": output}
    original = certifying.certification_need

    def limited(*arguments: Any) -> memory.Need:
        need = original(*arguments)
        found.append(need.of(7))
        leave(monkeypatch, need.of(8) - 1)
        return need

    monkeypatch.setattr(certifying, "certification_need", limited)
    with pytest.raises(ConfigError, match=r"certifying 10 samples at once: .*: set batch_size=7 "):
        certify(str(tiny_run), batch_size=10, **options)
    assert list(tmp_path.iterdir()) == []
    certify(str(tiny_run), batch_size=7, **options)
    # As many as there are, at most.
    with pytest.raises(ConfigError, match="certifying 20 samples at once"):
        certify(str(tiny_run), **options)
    assert found


def test_where_no_sample_fits_none_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    need = certification_need(network(), LipschitzCertifier())
    leave(monkeypatch, need.of(1) - 1)
    with pytest.raises(ConfigError, match="certify it where there is more"):
        memory.require_certification(need, 1, CPU)
    leave(monkeypatch, need.of(1))
    memory.require_certification(need, 1, CPU)
    # Of other certifiers only one sample is sure to be evaluated at once.
    assert certification_need(network(), CROWNCertifier()).each == 0


@pytest.mark.parametrize("inputs", [10, 2**17, 2**17 + 1, 10**6, 2**28])
def test_samples_at_once_follow_from_shapes(inputs: int) -> None:
    wide = PlainNetwork((Flatten(), Dense(torch.zeros(1, 1).expand(2, inputs))), (1, 1, inputs))
    assert largest_value(wide) == inputs
    batch = default_batch(wide)
    assert batch & (batch - 1) == 0
    assert batch == 1 or 8 * batch * inputs <= MAX_VALUE_BYTES
    assert batch == MAX_BATCH or 8 * 2 * batch * inputs > MAX_VALUE_BYTES


def test_what_an_accelerator_keeps_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("memory_reserved", 700), ("memory_allocated", 400)):
        monkeypatch.setattr(torch.cuda, name, lambda _device, size=size: size)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100, 9000))
    device = torch.device("cuda:0")
    memory.require_memory(400, device, "it", "nothing")
    with pytest.raises(ConfigError, match=r"are free \(on cuda:0\): nothing"):
        memory.require_memory(401, device, "it", "nothing")


KEEPING = """
import re
import torch
from robustcert.certificate.memory import free_for

def resident():
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

blocks = [torch.ones(2**22, dtype=torch.uint8) for _ in range(100)]
del blocks
before = resident()
free_for(10**18, torch.device("cpu"))
print(before - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="another C library")
def test_what_this_process_keeps_in_vain_is_given_back_before_anything_is_refused() -> None:
    # Of its own accord the C library returns neither these blocks nor the heap that they are in.
    keeping = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    command, environment = [sys.executable, "-c", KEEPING], {**os.environ, **keeping}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) > 2**28


# What is told is never above what is taken

PEAK = """
import re, sys
import torch
sys.path.insert(0, sys.argv[1])

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
CERTIFY = f"""{PEAK}
from runs.test_memory_limits import network
from robustcert.certificate.memory import certification_need
from robustcert.certifiers import LipschitzCertifier
certifier, large, x = LipschitzCertifier(), network(8192, 1024), torch.rand(1000, 1, 1, 8192)
small = network()
certifier.certify(small, torch.rand(2, 1, 1, 64))
before = peak()
moved = large.to(torch.device("cpu"))
certifier.claim(moved)
certifier.certify(moved, x)
print(certification_need(large, certifier).of(len(x)), peak() - before)
"""
TRAIN = f"""{PEAK}
from robustcert.runs.training_memory import tensors_of
model = torch.nn.Linear(4096, 4096)
inputs = torch.rand(2, 4096)
optimizer = torch.optim.NAdam(model.parameters())
before = peak()
model(inputs).sum().backward()
optimizer.step()
size = sum(4 * p.numel() for p in model.parameters())
print((tensors_of({{"_target_": "torch.optim.NAdam"}}) - 1) * size, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it asks the kernel for the peak")
@pytest.mark.parametrize("program", [CERTIFY, TRAIN], ids=["certification", "training"])
def test_no_network_takes_less_than_it_is_said_to_take_at_least(program: str) -> None:
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", program, tests]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told, taken = map(int, done.stdout.split())
    assert 2**26 < told <= taken
