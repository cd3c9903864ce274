"""Compiled training steps are one graph each, and compute what those as written do."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configs import build, build_any, build_model, input_shape, names
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import run
from torch import Tensor, nn

from robustcert.errors import ConfigError
from robustcert.layers import BROConv2d, fft
from robustcert.models.scores import output_scores, training_scores
from robustcert.network.overrides import constant_in_graphs
from robustcert.objectives import EMMA
from robustcert.runs.trainer import compiler_of
from robustcert.training.checkpoint import read_checkpoint
from robustcert.training.module import scored_loss

# The compiler's own.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def agree(
    model: nn.Module,
    objective: Any,
    shape: tuple[int, ...],
    *,
    scores: Any = training_scores,
    mixed: bool = False,
    stretch: float = 1.0,
) -> None:
    """A step of ``model`` as one graph, which leaves no room for the host, against the step."""
    other = copy.deepcopy(model)
    step = torch.compile(scored_loss, backend="aot_eager", fullgraph=True)
    target = torch.tensor([0, 1, 2, 0])
    batch = [torch.rand(4, *shape), target.float() if scores is output_scores else target]
    if mixed:
        batch += [target.flip(0), torch.tensor(0.7)]
    expected = gradients(model, scored_loss(scores, model, objective, batch, 0.3, stretch))
    found = gradients(other, step(scores, other, objective, batch, 0.3, stretch))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-4, atol=1e-5 * float(b.double().abs().max() + 1e-3)
        )


def gradients(model: nn.Module, outputs: tuple[Tensor, ...]) -> list[Tensor]:
    outputs[0].backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return [*(output.detach() for output in outputs), *found, *model.buffers()]


@pytest.mark.slow
@pytest.mark.parametrize("layer", names("layer"))
def test_a_step_with_any_layer_is_one_graph(layer: str) -> None:
    agree(build_model("convnet", layer, "maxmin", width=4), EMMA(0.3), input_shape("convnet"))


@pytest.mark.slow
@pytest.mark.parametrize("activation", names("activation"))
def test_a_step_with_any_activation_is_one_graph(activation: str) -> None:
    agree(build_model("mlp", "unconstrained", activation, width=8), EMMA(0.3), input_shape("mlp"))


@pytest.mark.slow
@pytest.mark.parametrize("model", names("model"))
def test_a_step_of_any_model_is_one_graph(model: str) -> None:
    agree(build_any(model), EMMA(0.3), input_shape(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", names("objective"))
def test_a_step_with_any_objective_is_one_graph(name: str) -> None:
    objective = build("objective", name)
    real = hasattr(objective, "task")
    network = build_model("mlp", "aol", "maxmin", **({"num_classes": 1} if real else {}))
    scores = output_scores if real else training_scores
    agree(network, objective, input_shape("mlp"), scores=scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emma", "logit_annealing"])
def test_a_step_of_mixed_images_in_a_metric_is_one_graph(name: str) -> None:
    network = build_model("mlp", "aol", "maxmin")
    agree(network, build("objective", name), input_shape("mlp"), mixed=True, stretch=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_step_with_large_reflectors_is_one_graph(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gram matrices of few taps come from the taps, of many from the blocks.
    monkeypatch.setattr(fft, "MAX_KERNEL", 0)
    shape = (2, 6, 6)
    layer = BROConv2d(2, 4, kernel, padding=kernel // 2, input_size=shape[1:], ridge=0.1)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(4 * 36, 3))
    agree(model, EMMA(0.3), shape)


@pytest.mark.slow
def test_a_compiled_run_resumes_and_is_the_run_as_written(tmp_path: Path) -> None:
    options = ("trainer.max_epochs=2", "layer=unconstrained")
    straight, broken, plain = (tmp_path / name for name in ("straight", "broken", "plain"))
    run(straight, *options, "trainer.compile=aot_eager")
    with pytest.raises(Killed):
        run(broken, *options, "trainer.compile=aot_eager", callbacks=[Kill(1)])
    resume(broken)
    assert_same_run(straight, broken)
    run(plain, *options)
    found, expected = (
        read_checkpoint(folder / "checkpoints" / "last.ckpt").model_state
        for folder in (straight, plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.compile: .*got 'fast'"):
        compiler_of({"compile": "fast"})
    with pytest.raises(ConfigError, match=r"trainer\.compile"):
        compiler_of({"compile": 2})


@pytest.mark.slow
def test_a_function_is_marked_as_torch_marks_it() -> None:
    def one() -> int:
        return 1

    def two() -> int:
        return 2

    assert vars(constant_in_graphs(one)) == vars(torch.compiler.assume_constant_result(two)) != {}
