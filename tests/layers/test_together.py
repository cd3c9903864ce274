"""Weights made together are those of layers that make their own, on one rank and on several."""

import copy
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import run
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from robustcert.activations import GroupSort
from robustcert.layers import (
    AOLConv2d,
    CholeskyLinear,
    CholeskyOrthogonal,
    CholeskyResidualLinear,
    cholesky,
    together,
)
from robustcert.layers.together import constrained_together
from robustcert.models import MLP, LayerFamily
from robustcert.models.scores import training_scores
from robustcert.network.fold import fold
from robustcert.objectives import EMMA
from robustcert.training.module import scored_loss

# The compiler's own.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(together, "_pays", lambda model: True)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what is orthogonalised."""
    shapes: list[tuple[int, ...]] = []
    function = cholesky.regularised_factor

    def counted(x: Tensor, ridge: float) -> Tensor:
        shapes.append(tuple(x.shape))
        return function(x, ridge)

    monkeypatch.setattr(cholesky, "regularised_factor", counted)
    return shapes


def layers() -> Any:
    """Wide, square and tall layers of a shape each, one of another, and two without a rule."""
    wide = [CholeskyLinear(9, 5) for _ in range(3)]
    square = [CholeskyResidualLinear(6, 6), CholeskyLinear(6, 6), CholeskyResidualLinear(6, 6)]
    tall = [CholeskyLinear(4, 7, ridge=0.1) for _ in range(2)]
    free = parametrize.remove_parametrizations(CholeskyLinear(9, 5), "weight")
    return nn.ModuleList([*wide, *square, *tall, CholeskyLinear(5, 4), nn.Linear(9, 5), free])


def gradients(model: Any, weights: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    loss = sum((w * torch.randn(w.shape, generator=generator)).sum() for w in weights)
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.dim() == 2]))  # type: ignore[arg-type]


def test_layers_of_one_shape_have_their_own_weights_from_one_factorisation(
    made: list[tuple[int, ...]],
) -> None:
    model = layers()
    expected = [layer.weight for layer in model]
    slopes = gradients(model, expected)
    made.clear()
    with constrained_together(model):
        assert sorted(made) == [(2, 4, 7), (3, 5, 9), (3, 6, 6)]
        found = [layer.weight for layer in model]
    assert made[3:] == [(4, 5)]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(model, found), slopes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(530, 540), (540, 530)])
def test_a_stack_in_panels_is_orthogonalised_as_its_matrices(
    rows: int, columns: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, rows, columns, dtype=torch.float64, requires_grad=True)
    probe, rule = torch.randn_like(x), CholeskyOrthogonal()
    expected = torch.stack([rule(matrix) for matrix in x])
    if not waits:
        # As on an accelerator.
        monkeypatch.setattr(cholesky, "stays_on_device", lambda x: True)
    found = rule(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    slopes = [torch.autograd.grad((w * probe).sum(), x)[0] for w in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-9 * float(slopes[1].abs().max()))


def test_a_matrix_without_a_factor_has_weights_of_nan_where_the_host_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(3, 4, 4)
    monkeypatch.setattr(cholesky, "stays_on_device", lambda x: True)
    x[1, 2, 3] = torch.nan
    w = CholeskyOrthogonal()(x)
    assert w[1].isnan().any()
    assert w[[0, 2]].isfinite().all()
    gram = torch.diag(torch.tensor([1.0, -1.0])).expand(2, 2, 2)
    assert cholesky.cholesky_factor(gram).isnan().all()


def test_what_is_folded_or_evaluated_makes_its_own_weight() -> None:
    model = layers()
    with constrained_together(model):
        before = [layer.weight for layer in model]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        # Training has the weights of the step's beginning, nothing else has.
        assert torch.equal(model[0].weight, before[0])
        folded = [operation.tensors()["weight"] for layer in model for operation in fold(layer)]
        evaluated = [layer.eval().weight for layer in model]
    after = [layer.weight for layer in model.train()]
    for w, own, constant, old in zip(after, evaluated, folded, before, strict=True):
        assert torch.equal(own, w)
        assert torch.equal(constant.to(w), w)
        assert old is w or not torch.equal(old, w)


def test_a_step_that_fails_leaves_no_weight_behind() -> None:
    model = layers()
    with suppress(KeyError), constrained_together(model):
        raise KeyError
    assert not [rule for rule in model.modules() if getattr(rule, "ready", None) is not None]


def test_a_cpu_makes_one_weight_after_the_other(
    monkeypatch: pytest.MonkeyPatch, made: list[tuple[int, ...]]
) -> None:
    monkeypatch.undo()
    model = layers()
    with constrained_together(model):
        assert not made


def test_ranks_in_turn_have_all_weights_and_the_mean_of_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ranks = nn.ModuleList(CholeskyLinear(9, 5) for _ in range(3)), 2
    expected = [layer.weight for layer in model]
    slopes = gradients(model, expected)
    whole, mean = torch.stack(expected).detach(), [torch.zeros_like(w) for w in expected]
    for rank in range(ranks):
        others = whole.clone()
        others[rank::ranks] = 0
        # What the other ranks would send: their weights, then the gradient of an equal loss.
        sent = iter([lambda total, others=others: total.add_(others), lambda grad: grad.mul_(2)])
        monkeypatch.setattr(together, "_share", lambda rank=rank: (rank, ranks))
        monkeypatch.setattr(distributed, "all_reduce", lambda own, sent=sent: next(sent)(own))
        with constrained_together(model):
            found = [layer.weight for layer in model]
        torch.testing.assert_close(found, expected)
        for total, own in zip(mean, gradients(model, found), strict=True):
            total += own / ranks
    torch.testing.assert_close(mean, slopes, rtol=1e-5, atol=1e-6)


# A training step


class Step(nn.Module):
    """The loss of a batch, as a module for DDP."""

    def __init__(self, depth: int, *, compiled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        family = LayerFamily(CholeskyResidualLinear, AOLConv2d)
        sizes: dict[str, Any] = {"width": 16, "depth": depth, "layer": family}
        self.model = MLP((1, 4, 4), 3, **sizes, activation=GroupSort)
        self.compiled = compiled

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Any = scored_loss
        if self.compiled:
            loss = torch.compile(scored_loss, backend="aot_eager", fullgraph=True)
        return loss(training_scores, self.model, EMMA(0.3), (x, y), 0.3, 1.0)[0]


def trained(step: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The state after four steps."""
    optimizer = torch.optim.SGD(step.parameters(), lr=0.5, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        step(x, y).backward()
        optimizer.step()
    return copy.deepcopy(step.state_dict())


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(12, 1, 4, 4, generator=generator)
    return x, torch.randint(3, (12,), generator=generator)


def train_rank(rank: int, ranks: int, depth: int, compiled: bool, folder: str) -> None:
    """One of several processes, each with its part of the batch."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    together._pays = lambda model: True
    together.torch.accelerator.device_count = lambda: ranks  # type: ignore[assignment]
    assert together._share() == (rank, ranks)
    x, y = (values.chunk(ranks)[rank] for values in batch())
    state = trained(DistributedDataParallel(Step(depth, compiled=compiled)), x, y)
    torch.save(state, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def train_ranks(ranks: int, depth: int, compiled: bool, folder: Path) -> list[dict[str, Tensor]]:
    given = (ranks, depth, compiled, str(folder))
    spawn(train_rank, given, nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


# Of three ranks and two layers, one rank has nothing to make.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "depth", "compiled"), [(2, 3, False), (3, 2, False), (2, 3, True)]
)
def test_ranks_that_share_the_layers_train_the_network_of_one_process(
    ranks: int, depth: int, compiled: bool, tmp_path: Path
) -> None:
    states = train_ranks(ranks, depth, compiled, tmp_path)
    for state, other in pairwise(states):
        assert all(torch.equal(state[key], other[key]) for key in state)
    start = Step(depth).state_dict()
    expected = trained(Step(depth), *batch())
    found = {key.removeprefix("module."): value for key, value in states[0].items()}
    assert not torch.allclose(expected["model.head.raw"], start["model.head.raw"], atol=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_step_makes_weights_together_in_one_graph(made: list[tuple[int, ...]]) -> None:
    torch.compiler.reset()
    steps = Step(3, compiled=True), Step(3)
    made.clear()
    found, expected = (trained(step, *batch()) for step in steps)
    assert made == [(3, 16, 16)] * 8
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


def test_a_run_that_makes_weights_together_resumes_bit_for_bit(
    tmp_path: Path, made: list[tuple[int, ...]]
) -> None:
    options = ("layer=cholesky", "certify=false")
    run(tmp_path / "straight", *options)
    assert (2, 64, 64) in made
    with pytest.raises(Killed):
        run(tmp_path / "broken", *options, callbacks=[Kill(1)])
    resume(tmp_path / "broken")
    assert_same_run(tmp_path / "straight", tmp_path / "broken")
