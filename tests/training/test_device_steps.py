"""Training steps as an accelerator runs them: the host hands out work and reads no value.

Such a step is run on the CPU, with its questions about the device answered as for an accelerator.
"""

import copy
import sys
from functools import partial
from typing import Any

import pytest
import torch
from helpers.configs import build, build_any, build_model, input_shape, names
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustcert.layers import BROConv2d, cayley, fft
from robustcert.models.scores import output_scores, training_scores
from robustcert.objectives import EMMA
from robustcert.training.module import CertifiedClassifier, scored_loss

# Operations after which the host knows a value, or as many as there are.
READS = {
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
}


class WithoutReads(TorchDispatchMode):
    """Refuses operations of torch for which the host would wait on an accelerator."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in READS, name
        # Libraries decompose complex blocks one by one.
        assert not (name == "linalg_qr" and args[0].is_complex()), name
        # A list that becomes a tensor is copied to the device; a number goes with its kernel.
        assert not (name == "lift_fresh" and args[0].dim()), "torch.tensor of a list"
        if "index" in name:
            places = [t for a in args if isinstance(a, list) for t in a if isinstance(t, Tensor)]
            assert not any(place.dtype == torch.bool for place in places), f"{name} of a mask"
        return func(*args, **(kwargs or {}))


def answer_as_on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every module that asks take the way of an accelerator."""
    for name, module in list(sys.modules.items()):
        if name.startswith("robustcert.") and hasattr(module, "stays_on_device"):
            monkeypatch.setattr(module, "stays_on_device", lambda x: True)


@pytest.fixture
def _on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_as_on_device(monkeypatch)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def step(
    model: nn.Module, objective: Any, batch: tuple[Tensor, ...], scores: Any = training_scores
) -> list[Tensor]:
    """Loss and gradients of a training step."""
    model.zero_grad()
    loss = scored_loss(scores, model, objective, batch, 0.3, 1.5)[0]
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def reads_nothing(
    model: nn.Module, objective: Any, shape: tuple[int, ...], scores: Any = training_scores
) -> None:
    """A step reads nothing, once what all steps have in common is there."""
    target = torch.tensor([0, 1, 2, 0])
    target = target.float() if scores is output_scores else target
    batch = torch.rand(4, *shape), target
    step(model, objective, batch, scores)
    with WithoutReads():
        step(model, objective, batch, scores)


@pytest.mark.usefixtures("_on_device")
@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("layer", names("layer"))
def test_a_step_with_any_layer_reads_nothing(layer: str, model: str) -> None:
    reads_nothing(build_model(model, layer, "maxmin"), EMMA(0.3), input_shape(model))


@pytest.mark.usefixtures("_on_device")
@pytest.mark.parametrize("activation", names("activation"))
def test_a_step_with_any_activation_reads_nothing(activation: str) -> None:
    network = build_model("convnet", "unconstrained", activation)
    reads_nothing(network, EMMA(0.3), input_shape("convnet"))


@pytest.mark.usefixtures("_on_device")
@pytest.mark.parametrize("model", names("model"))
def test_a_step_of_any_model_reads_nothing(model: str) -> None:
    reads_nothing(build_any(model), EMMA(0.3), input_shape(model))


@pytest.mark.usefixtures("_on_device")
@pytest.mark.parametrize("name", names("objective"))
def test_a_step_with_any_objective_reads_nothing(name: str) -> None:
    objective = build("objective", name)
    real = hasattr(objective, "task")
    network = build_model("mlp", "aol", "maxmin", **({"num_classes": 1} if real else {}))
    scores = output_scores if real else training_scores
    reads_nothing(network, objective, input_shape("mlp"), scores)


@pytest.mark.usefixtures("_on_device")
def test_metrics_of_training_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CertifiedClassifier, "progress", 0.5)
    monkeypatch.setattr(CertifiedClassifier, "log", lambda *arguments, **options: None)
    module = CertifiedClassifier(
        build_model("mlp", "aol", "maxmin"),
        EMMA(0.3),
        input_shape=input_shape("mlp"),
        num_classes=3,
        epsilon=0.3,
        radii=[0.1, 0.3],
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    batch = torch.rand(4, *input_shape("mlp")), torch.tensor([0, 1, 2, 0])
    with WithoutReads():
        module.training_step(batch, 0).backward()
    assert module.train_vra.total == 4


@pytest.mark.parametrize("layer", names("layer"))
def test_a_step_that_reads_nothing_is_the_step(layer: str) -> None:
    network = build_model("convnet", layer, "maxmin")
    other = copy.deepcopy(network)
    batch = torch.rand(4, *input_shape("convnet")), torch.tensor([0, 1, 2, 0])
    expected = step(network, EMMA(0.3), batch)
    with pytest.MonkeyPatch.context() as patch:
        answer_as_on_device(patch)
        found = step(other, EMMA(0.3), batch)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max() + 1e-3))


@pytest.mark.usefixtures("_on_device")
def test_a_matrix_without_an_inverse_gives_nan_and_others_theirs() -> None:
    blocks = torch.randn(3, 4, 4)
    blocks[1] = torch.nan
    found = cayley.cayley(blocks)
    assert [bool(block.isfinite().all()) for block in found] == [True, False, True]
    singular = torch.stack([torch.eye(2), torch.zeros(2, 2), torch.ones(2, 2)])
    inverse = cayley._invert(singular, torch.empty_like(singular))
    assert bool(inverse[0].isfinite().all())
    assert bool(inverse[1:].isnan().all())


@pytest.mark.usefixtures("_on_device")
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_large_reflectors_read_nothing_either(
    ridge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fft, "MAX_KERNEL", 0)
    layer = BROConv2d(4, 4, 3, padding=1, input_size=(6, 6), ridge=ridge)
    x = torch.randn(2, 4, 6, 6)
    layer(x).sum().backward()
    with WithoutReads():
        layer(x).sum().backward()
