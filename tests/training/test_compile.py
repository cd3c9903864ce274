"""Compiled training steps are one graph each, and compute what those as written do."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configs import build_model, input_shape, names
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import run
from torch import Tensor, nn

from robustcert.errors import ConfigError
from robustcert.models.scores import training_scores
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


def agree(model: nn.Module, objective: Any, shape: tuple[int, ...]) -> None:
    """A step of ``model`` as one graph, which leaves no room for the host, against the step."""
    other = copy.deepcopy(model)
    step = torch.compile(scored_loss, backend="aot_eager", fullgraph=True)
    batch = torch.rand(4, *shape), torch.tensor([0, 1, 2, 0])
    expected = gradients(model, scored_loss(training_scores, model, objective, batch, 0.3, 1.0))
    found = gradients(other, step(training_scores, other, objective, batch, 0.3, 1.0))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max() + 1e-3))


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
