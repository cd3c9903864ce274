"""Global robustness: no pair of inputs is further apart than proved, and exact means exact."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.deployed import write_folder
from helpers.random_networks import random_network
from scipy.optimize import linprog
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.soundness.forgeries import Folder
from robustcert.attacks import largest_changes
from robustcert.certificate.claim import GLOBAL_CLAIM
from robustcert.certifiers import GlobalBounds, GlobalCertifier
from robustcert.certifiers.global_robustness.linear_program import (
    LinearProgram,
    branch,
    dual_bound,
    maximum,
)
from robustcert.certifiers.global_robustness.mip import (
    Effort,
    Encoding,
    change_bounds,
    exactly,
    mixed_change,
    tighten,
)
from robustcert.certifiers.global_robustness.twin import Domain, Twin
from robustcert.check import check
from robustcert.check.command import main
from robustcert.check.reader import UnreadableError
from robustcert.errors import UnsoundNetworkError
from robustcert.network.fold import fold_network
from robustcert.network.input_space import InputSpace, factor, scaling
from robustcert.network.network import PlainNetwork, output_bound, pairwise_bound
from robustcert.objectives import GlobalRobustness
from robustcert.relaxations.backward import Diagonal, Linear, Matrix, steps_of
from robustcert.relaxations.curves import Curve
from robustcert.runs.certify import certify

FOLDED = ["relu", "maxmin", "abs", "beta_abs"]
CURVED = ["smooth", "smooth_abs", "softplus", "tanh", "n_activation"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def box(inputs: int, delta: float, norm: Any = "linf") -> Domain:
    return Domain(torch.zeros(inputs).double(), torch.ones(inputs).double(), delta, norm)


def bounds(certifier: GlobalCertifier, network: PlainNetwork) -> GlobalBounds:
    """Of every output, and of the difference of the first two."""
    rows = torch.eye(3, dtype=torch.float64)
    rows = torch.cat([rows, rows[:1] - rows[1:2]])
    constants = torch.cat([output_bound(network), pairwise_bound(network)[:1, 1]])
    return certifier.bounds(network, rows, constants)


# Linear programmes


def random_program(generator: np.random.Generator, shift: float = 0.0) -> LinearProgram:
    rows, equal = generator.normal(size=(6, 5)), generator.normal(size=(2, 5))
    inside = generator.uniform(-1, 1, size=5)
    most = rows @ inside + generator.uniform(0, 1, size=6) - shift
    box = np.ones(5)
    return LinearProgram(csr_array(rows), most, csr_array(equal), equal @ inside, -box, box)


def test_any_multipliers_bound_and_those_of_the_solver_are_nearly_exact() -> None:
    generator = np.random.default_rng(0)
    for _ in range(15):
        program, goal = random_program(generator), generator.normal(size=5)
        found = maximum(program, goal)
        assert found.point is not None
        best = float(goal @ found.point)
        assert best - 1e-7 <= found.bound <= best + 1e-6
        for _ in range(20):
            rows, equal = generator.normal(size=6) * 2, generator.normal(size=2)
            assert dual_bound(program, goal, rows, equal) >= best - 1e-7


def test_infeasibility_is_proved_and_never_claimed_of_what_has_points() -> None:
    generator = np.random.default_rng(0)
    proved = [
        maximum(random_program(generator, shift), np.ones(5)).bound == -math.inf
        for shift in (0.0,) * 10 + (20.0,) * 10
    ]
    assert proved == [False] * 10 + [True] * 10


def test_branch_and_bound_agrees_with_trying_all_choices() -> None:
    generator = np.random.default_rng(0)
    for _ in range(4):
        program, goal = random_program(generator), generator.normal(size=5)
        loose = LinearProgram(
            program.rows, program.most + 1, program.equal[:0], np.zeros(0), np.zeros(5), np.ones(5)
        )
        best = -math.inf
        for choice in product((0.0, 1.0), repeat=3):
            low, high = loose.low.copy(), loose.high.copy()
            low[:3] = high[:3] = choice
            fixed = LinearProgram(loose.rows, loose.most, loose.equal, loose.value, low, high)
            best = max(best, maximum(fixed, goal).bound)
        found = branch(loose, goal, np.arange(3), nodes=100)
        assert found.closed
        assert found.bound == pytest.approx(best, abs=1e-6)
        stopped = branch(loose, goal, np.arange(3), nodes=2)
        assert stopped.bound >= best - 1e-9


# The encoding


def trace(network: PlainNetwork, x: Tensor) -> list[Tensor]:
    """Values before every step and after the last."""
    values = [x]
    for step in steps_of(network):
        if isinstance(step, Linear):
            rows = torch.eye(step.size(values[-1].abs()).shape[1], dtype=torch.float64)
            matrix, bias = step.pull(rows[None])
            values.append(values[-1] @ matrix[0].mT + bias)
        else:
            fixed = step.value(values[-1])
            values.append(torch.where(step.fixed, values[-1], fixed))
    return values


@pytest.mark.parametrize("activation", FOLDED)
@pytest.mark.parametrize("window", [None, 1])
def test_every_pair_satisfies_the_programme(activation: str, window: int | None) -> None:
    network = random_network(activation, inputs=2, width=6)
    domain, steps = box(2, 0.2), steps_of(network)
    twin = tighten(steps, domain, Effort())
    start = 0 if window is None else [isinstance(s, Curve) for s in steps].index(True)
    encoding = Encoding(twin, start, len(steps))
    program = encoding.program()
    x = torch.rand(2000, 2).double()
    other = (x + 0.4 * torch.rand(2000, 2) - 0.2).clamp(0, 1)
    one, two = trace(network, x), trace(network, other)
    torch.testing.assert_close(one[-1], network(x))
    point = np.full((2000, len(program.low)), np.nan)
    for (z, d), before, after in zip(encoding.blocks, one[start:], two[start:], strict=True):
        point[:, z], point[:, d] = before, after - before
    for fold in encoding.unstable:
        before, after = point[:, fold.y], point[:, fold.y] + point[:, fold.d]
        point[:, fold.signs] = np.stack([before > 0, after > 0], 2)
    assert (point >= program.low - 1e-12).all()
    assert (point <= program.high + 1e-12).all()
    assert (program.rows @ point.T <= program.most[:, None] + 1e-12).all()
    np.testing.assert_allclose(program.equal @ point.T - program.value[:, None], 0, atol=1e-12)


def dense(sizes: tuple[int, ...], bias: float = 0.3) -> PlainNetwork:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layer = nn.Linear(before, after)
        nn.init.normal_(layer.weight, std=1.5 / math.sqrt(before))
        nn.init.normal_(layer.bias, std=bias)
        layers += [layer, nn.ReLU()]
    return fold_network(nn.Sequential(*layers[:-1]), (sizes[0],))


Region = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def regions(network: PlainNetwork) -> list[Region]:
    """All linear pieces that meet the unit box: half-spaces ``G x <= h``, and ``f = A x + b``."""
    layers = [op for op in network.operations if hasattr(op, "weight")]
    weights = [op.weight.double().numpy() for op in layers]
    biases = [op.bias.double().numpy() for op in layers]
    size = network.input_shape[0]
    found = []
    for signs in product(*(product((0.0, 1.0), repeat=len(b)) for b in biases[:-1])):
        matrix, shift = np.eye(size), np.zeros(size)
        normals, offsets = [], []
        for weight, bias, sign in zip(weights, biases, signs, strict=False):
            matrix, shift = weight @ matrix, weight @ shift + bias
            turn = 1 - 2 * np.array(sign)
            normals.append(turn[:, None] * matrix)
            offsets.append(-turn * shift)
            matrix, shift = np.array(sign)[:, None] * matrix, np.array(sign) * shift
        g, h = np.concatenate(normals), np.concatenate(offsets)
        if linprog(np.zeros(size), g, h, bounds=[(0, 1)] * size).status == 0:
            found.append((g, h, weights[-1] @ matrix, weights[-1] @ shift + biases[-1]))
    return found


def brute_force(network: PlainNetwork, delta: float, row: np.ndarray) -> float:
    """The largest change of ``row . f``, one linear programme for each pair of linear pieces."""
    pieces, best = regions(network), -math.inf
    size = network.input_shape[0]
    near = np.block([[np.eye(size), -np.eye(size)], [-np.eye(size), np.eye(size)]])
    for (g, h, a, b), (k, m, c, d) in product(pieces, repeat=2):
        limits = np.block([[g, np.zeros((len(g), size))], [np.zeros((len(k), size)), k]])
        goal = np.concatenate([row @ a, -row @ c])
        found = linprog(
            goal,
            np.concatenate([limits, near]),
            np.concatenate([h, m, np.full(2 * size, delta)]),
            bounds=[(0, 1)] * (2 * size),
        )
        if found.status == 0:
            best = max(best, -float(found.fun) + float(row @ (d - b)))
    return best


def check_exact(sizes: tuple[int, ...], delta: float) -> None:
    network = dense(sizes)
    rows = torch.eye(sizes[-1], dtype=torch.float64)
    twin = tighten(steps_of(network), box(sizes[0], delta), Effort())
    proved, closed = change_bounds(twin, rows, exactly(Effort(nodes=20_000)))
    assert all(closed)
    for row, bound in zip(rows, proved.tolist(), strict=True):
        truth = brute_force(network, delta, row.numpy())
        assert bound == pytest.approx(truth, rel=1e-5)
        assert bound >= truth * (1 - 1e-9)
        solver = mixed_change(twin, row)
        assert solver.value == pytest.approx(truth, rel=1e-5)
        assert solver.dual_bound == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_exact_is_what_trying_all_activation_patterns_finds(seed: int) -> None:
    torch.manual_seed(seed)
    check_exact((2, 3, 2, 2), 0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "delta"), [((2, 4, 4, 2), 0.05), ((3, 3, 3, 2, 1), 0.2)])
def test_exact_is_what_trying_all_patterns_of_eight_neurons_finds(
    sizes: tuple[int, ...], delta: float
) -> None:
    check_exact(sizes, delta)


# The bounds


# The others are slow.
QUICK = {("relu", "linf"), ("maxmin", "linf"), ("tanh", "linf"), ("smooth", "l2")}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in product(FOLDED + CURVED, ("linf", "l2"))
]


@pytest.mark.parametrize(("activation", "norm"), CASES)
def test_no_pair_is_further_apart_than_proved(activation: str, norm: Any) -> None:
    network = random_network(activation, inputs=3, width=8)
    lp = norm == "linf" and activation in FOLDED
    certifier = GlobalCertifier([0, 1], 0.1, norm, "lp" if lp else "symbolic", tries=10_000)
    found = bounds(certifier, network)
    assert set(found.proved) == {"lipschitz", "symbolic", *(["lp"] if lp else [])}
    for bound in found.proved.values():
        assert (found.attacked <= bound + found.rounding).all()
    # Nor is the attack blind.
    assert (found.attacked > 0.1 * found.best).all()
    assert found.rounding < 1e-10


def test_more_effort_never_bounds_worse_and_each_step_pays() -> None:
    network = dense((2, 6, 6, 3))
    steps, domain, rows = steps_of(network), box(2, 0.1), torch.eye(3).double()
    symbolic = Twin(steps, domain).change(rows)
    short, _ = change_bounds(tighten(steps, domain, Effort(window=1)), rows, Effort(window=1))
    long = tighten(steps, domain, Effort())
    whole, _ = change_bounds(long, rows, Effort())
    refined, _ = change_bounds(long, rows, Effort(refine=4))
    late, closed = change_bounds(long, rows, Effort(deadline=0.0))
    chain = [symbolic, short, whole, refined]
    for worse, better in pairwise(chain):
        assert (better <= worse * (1 + 1e-6)).all()
        assert better.sum() < worse.sum() * (1 - 1e-3)
    assert (late >= whole * (1 - 1e-9)).all()
    assert not any(closed)
    seen = largest_changes(network, domain.low, domain.high, 0.1, "linf", rows)
    assert (seen <= refined).all()


def test_one_linear_layer_is_exact_in_both_norms() -> None:
    network = dense((5, 2))
    weight, rows = network.operations[0].weight.double(), torch.eye(2).double()  # type: ignore[attr-defined]
    steps = steps_of(network)
    for norm, length in (("linf", weight.abs().sum(1)), ("l2", weight.norm(dim=1))):
        domain = box(5, 0.01, norm)
        torch.testing.assert_close(Twin(steps, domain).change(rows), 0.01 * length)
        seen = largest_changes(network, domain.low, domain.high, 0.01, norm, rows)
        torch.testing.assert_close(seen, 0.01 * length, rtol=1e-3, atol=0)
    assert box(5, 0.01).distance("l2") == pytest.approx(0.01 * math.sqrt(5), rel=1e-8)
    assert box(5, 0.01, "l2").distance("l2") == 0.01
    # A box that is smaller than delta is what counts.
    assert box(5, 7.0).distance("l2") == pytest.approx(math.sqrt(5), rel=1e-8)
    assert box(5, 7.0, "l2").distance("l2") == pytest.approx(math.sqrt(5), rel=1e-8)
    assert (Twin(steps, box(5, 7.0)).change(rows) >= weight.abs().sum(1)).all()


def test_pairs_of_an_attack_stay_in_the_box_and_within_delta() -> None:
    visited: list[Tensor] = []

    class Watched:
        input_shape = (4,)

        def __call__(self, x: Tensor) -> Tensor:
            visited.append(x.detach())
            return x.square() + x.roll(1, 1)

    low, high = torch.full((4,), -1.0).double(), torch.tensor([0.0, 1, 2, 3]).double()
    for norm, order in (("linf", math.inf), ("l2", 2)):
        visited.clear()
        largest_changes(Watched(), low, high, 0.3, norm, torch.eye(4).double(), tries=50)  # type: ignore[arg-type]
        for one, two in zip(visited[::2], visited[1::2], strict=True):
            assert ((one >= low) & (one <= high)).all()
            assert ((two >= low) & (two <= high)).all()
            assert (torch.linalg.vector_norm(two - one, order, dim=1) <= 0.3).all()


# In a metric


SCALES = torch.tensor([3.0, 0.0, 0.5], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, -2.0], [0.0, 0.0], [0.5, 0.25]], dtype=torch.float64)


def in_metric(network: PlainNetwork, metric: Tensor) -> PlainNetwork:
    """Inputs measured by scales or by a matrix."""
    measure = scaling(metric) if metric.dim() == 1 else factor(metric)
    return replace(network, space=InputSpace("images", None, measure))


@pytest.mark.parametrize("metric", [SCALES, MATRIX], ids=["scales", "matrix"])
def test_one_linear_layer_is_exact_in_a_metric(metric: Tensor) -> None:
    network = dense((3, 3))
    matrix = metric.diag() if metric.dim() == 1 else metric
    moved = network.operations[0].weight.double() @ matrix  # type: ignore[attr-defined]
    for norm, length in (("linf", moved.abs().sum(1)), ("l2", moved.norm(dim=1))):
        certifier = GlobalCertifier([0, 1], 0.01, norm, "symbolic", tries=100)  # type: ignore[arg-type]
        found = bounds(certifier, in_metric(network, metric))
        torch.testing.assert_close(found.proved["symbolic"][:3], 0.01 * length)
        assert (found.proved["lipschitz"] >= found.proved["symbolic"] * (1 - 1e-6)).all()
        torch.testing.assert_close(found.attacked[:3], 0.01 * length, rtol=0.05, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("metric", [SCALES, MATRIX], ids=["scales", "matrix"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_pair_of_a_metric_is_further_apart_than_proved(norm: Any, metric: Tensor) -> None:
    for activation in ("relu", "maxmin", "smooth"):
        network = in_metric(random_network(activation, inputs=3, width=6), metric)
        exact = norm == "linf" and activation in FOLDED
        certifier = GlobalCertifier([0, 1], 0.1, norm, "exact" if exact else "symbolic", tries=2000)
        found = bounds(certifier, network)
        for bound in found.proved.values():
            assert (found.attacked <= bound + found.rounding).all()
        assert (found.attacked > 0.1 * found.best).all()
        if exact:
            # Of a programme without S the bounds are others.
            torch.testing.assert_close(found.solver, found.proved["exact"], rtol=1e-5, atol=1e-9)


def test_a_box_bounds_u_where_a_column_is_narrow() -> None:
    low, high = torch.zeros(3).double(), torch.tensor([1.0, 1.0, 1e-3]).double()
    scales = Diagonal(1, SCALES, torch.zeros_like(SCALES))
    spread = Domain(low, high, 0.1, "linf", scales).spread
    torch.testing.assert_close(spread, torch.tensor([0.1, 0.0, 2e-3]).double())
    shift = Domain(low, high, 0.1, "linf", scales).shift
    torch.testing.assert_close(shift, torch.tensor([0.3, 0.0, 1e-3]).double())
    # A matrix bounds no u by the box.
    matrix = Domain(low, high, 0.1, "linf", Matrix(2, MATRIX, torch.zeros(3).double()))
    assert (matrix.spread == 0.1).all()
    torch.testing.assert_close(matrix.shift, torch.tensor([0.3, 0.0, 1e-3]).double())


@pytest.mark.parametrize("metric", [SCALES, MATRIX], ids=["scales", "matrix"])
def test_pairs_of_an_attack_in_a_metric_stay_in_the_box_and_move_nothing_frozen(
    metric: Tensor,
) -> None:
    visited: list[Tensor] = []

    class Watched:
        input_shape = (3,)

        def __call__(self, x: Tensor) -> Tensor:
            visited.append(x.detach())
            return x.square() + x.roll(1, 1)

    low, high = torch.full((3,), -1.0).double(), torch.tensor([0.0, 1, 2]).double()
    back = torch.linalg.pinv(metric.diag() if metric.dim() == 1 else metric)
    eye = torch.eye(3).double()
    for norm, order in (("linf", math.inf), ("l2", 2)):
        visited.clear()
        largest_changes(Watched(), low, high, 0.3, norm, eye, metric=metric, tries=50)  # type: ignore[arg-type]
        for one, two in zip(visited[::2], visited[1::2], strict=True):
            assert ((one >= low) & (one <= high) & (two >= low) & (two <= high)).all()
            assert (one[:, 1] == two[:, 1]).all()
            u = (two - one) @ back.mT
            assert (torch.linalg.vector_norm(u, order, dim=1) <= 0.3 * (1 + 1e-9)).all()


# Training


def test_the_objective_bounds_the_loss_of_every_input_within_epsilon() -> None:
    network, epsilon = dense((3, 8, 4)), 0.2
    pairwise = pairwise_bound(network)
    x, target = torch.rand(50, 3).double(), torch.arange(50) % 4
    plain = GlobalRobustness(weight=0.0, temperature=0.5)
    bound = GlobalRobustness(weight=1.0, temperature=0.5)
    for sample, label in zip(x.split(1), target.split(1), strict=True):
        near = sample + epsilon * F.normalize(torch.randn(200, 3).double(), dim=1)
        losses = F.cross_entropy(network(near) / 0.5, label.expand(200), reduction="none")
        assert losses.max() <= bound(network(sample), label, pairwise, epsilon)
    assert plain(network(x), target, pairwise, epsilon) == F.cross_entropy(network(x) / 0.5, target)
    with pytest.raises(ValueError, match=r"objective\.weight"):
        GlobalRobustness(weight=-1.0)


# The certifier


def test_stable_samples_keep_their_prediction() -> None:
    network = dense((2, 8, 3), bias=1.0)
    certifier = GlobalCertifier([[0, 1], [0, 0.5]], delta=0.02, tries=100)
    x = torch.rand(400, 2).double()
    said = certifier.claim(network, x.split(150)).pairs
    assert said is not None
    assert said["samples"]["samples"] == 400
    assert said["samples"]["inside"] == int((x[:, 1] <= 0.5).sum())
    assert 0 < said["samples"]["stable"] <= said["samples"]["inside"]
    certifiable = 0
    for sample in x[x[:, 1] <= 0.5]:
        near = (sample + 0.04 * torch.rand(500, 2) - 0.02).clamp(0, 1)
        near[:, 1].clamp_(max=0.5)
        certifiable += len(network(near).argmax(1).unique()) == 1
    assert said["samples"]["stable"] <= certifiable
    outputs = torch.tensor([row["eps_bar"] for row in said["outputs"]])
    apart = torch.tensor(said["differences"])
    assert (apart <= (outputs[:, None] + outputs) * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"domain": None}, r"certifier\.domain"),
        ({"domain": [1, 0]}, r"certifier\.domain"),
        ({"domain": [0, 1, 2]}, r"certifier\.domain"),
        ({"domain": [[0, 1], 2]}, r"certifier\.domain"),
        ({"domain": [0, math.inf]}, r"certifier\.domain"),
        ({"delta": -0.1}, r"certifier\.delta"),
        ({"delta": math.nan}, r"certifier\.delta"),
        ({"norm": "l2", "method": "exact"}, r"certifier\.norm"),
        ({"window": 0}, r"certifier\.window"),
        ({"refine": -1}, r"certifier\.refine"),
        ({"nodes": 0}, r"certifier\.nodes"),
        ({"tries": 0}, r"certifier\.tries"),
        ({"seconds": 0}, r"certifier\.seconds"),
    ],
)
def test_impossible_options_are_refused_by_their_key(options: Any, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        GlobalCertifier(**{"domain": [0, 1], **options})


def test_networks_that_a_method_does_not_cover_are_refused_by_the_key() -> None:
    with pytest.raises(UnsoundNetworkError, match=r"certifier\.method=symbolic"):
        bounds(GlobalCertifier([0, 1], method="lp"), random_network("softplus"))
    image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    network = fold_network(image, (1, 4, 4))
    for method in ("symbolic", "exact"):
        with pytest.raises(UnsoundNetworkError, match=r"certifier\.method=lipschitz"):
            bounds(GlobalCertifier([0, 1], method=method), network)  # type: ignore[arg-type]
    found = bounds(GlobalCertifier([0, 1], method="lipschitz", tries=200), network)
    assert (found.attacked <= found.best).all()
    with pytest.raises(UnsoundNetworkError, match=r"certifier\.domain"):
        bounds(GlobalCertifier([[0, 1], [0, 1]]), network)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "global", dense((2, 4, 3)), GlobalCertifier([0, 1], tries=100))


Forgery = Callable[[Folder], Any]


def test_the_checker_never_verifies_what_it_did_not_prove(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = json.loads((folder / "global.json").read_text())
    assert (
        said["network"]
        == json.loads((folder / "certificate.json").read_text())["network"]["digest"]
    )
    assert set(said["rests_on"]) == {"lipschitz", "symbolic", "lp", "attacked"}
    assert all(row["attacked"] <= row["eps_bar"] for row in said["outputs"])
    assert main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "not covered: global.json" in printed
    assert "radii" in printed
    assert "VERIFIED" not in printed
    # Changed, it is not even what was written; left out of the list, it still lies there.
    (folder / "global.json").write_text(json.dumps(said | {"delta": 1.0}))
    assert any("global.json" in line for line in check(folder).mismatches)
    forged = Folder(folder)
    del forged.claim["files"]["global.json"]
    forged.save()
    report = check(folder)
    assert not report.verified
    assert "global.json" in report.uncovered[0]
    (folder / "global.json").unlink()
    assert check(folder).verified


def test_a_folder_in_a_metric_says_so_and_another_metric_is_refused(tmp_path: Path) -> None:
    network = in_metric(dense((3, 4, 3)), SCALES)
    certifier = GlobalCertifier([0, 1], method="symbolic", tries=50)
    path = write_folder(tmp_path / "global", network, certifier)
    said = json.loads((path / "global.json").read_text())
    assert "x' = x + S u of the domain" in said["statement"]
    assert said["norm"] == "linf norm of u"
    assert [line.partition(":")[0] for line in check(path).uncovered] == ["global.json"]
    forged = Folder(path)
    forged.metric["scale"] *= 10
    forged.save()
    with pytest.raises(UnreadableError, match="claim metric change"):
        check(path)


def smaller(said: dict[str, Any]) -> None:
    for row in said["outputs"]:
        row |= {key: value / 2 for key, value in row.items() if isinstance(value, float)}
    said["differences"] = [[value / 2 for value in row] for row in said["differences"]]


def all_stable(said: dict[str, Any]) -> None:
    said["samples"]["stable"] = said["samples"]["samples"]


FORGED_PAIRS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "smaller bounds": smaller,
    "more stable samples": all_stable,
    "a larger distance": lambda said: said.update(delta=1.0),
    "a larger box": lambda said: said.update(domain=[[-9.0, 9.0]]),
    "another norm": lambda said: said.update(norm="l2 norm of u"),
    "the statement of plain pairs": lambda said: said.update(statement=GLOBAL_CLAIM),
    "nothing": lambda said: said.clear(),
}


@pytest.mark.parametrize("name", FORGED_PAIRS)
def test_forged_pairs_in_a_metric_are_not_verified(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = in_metric(dense((3, 4, 3)), SCALES)
    certifier = GlobalCertifier([0, 1], method="symbolic", tries=50)
    path = write_folder(tmp_path / "global", network, certifier)
    said = json.loads((path / "global.json").read_text())
    FORGED_PAIRS[name](said)
    (path / "global.json").write_text(json.dumps(said))
    listed = Folder(path)
    listed.claim["files"]["global.json"] = hashlib.sha256(
        (path / "global.json").read_bytes()
    ).hexdigest()
    listed.save()
    assert main([str(path)]) == 1
    printed = capsys.readouterr().out
    assert "not covered: global.json: what it says of all pairs" in printed
    assert "VERIFIED" not in printed


@pytest.mark.slow
def test_a_run_is_certified_globally(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {
        "_target_": "robustcert.certifiers.GlobalCertifier",
        "domain": [0, 1],
        "method": "symbolic",
        "tries": 200,
    }
    checkpoint = str(tiny_run / "checkpoints" / "best.ckpt")
    output = tmp_path / "folder"
    attack = {"samples": 4, "steps": 2}
    metrics = certify(checkpoint, certifier=node, samples=40, output=str(output), attack=attack)
    said = json.loads((output / "global.json").read_text())
    assert metrics["global/eps_bar"] == max(row["eps_bar"] for row in said["outputs"])
    assert said["samples"]["inside"] == 40
    printed = capsys.readouterr().out
    assert "not proved" not in printed
    assert "proved: linear bounds of all differences" in printed
    assert "of the 40 samples in the domain keep their prediction" in printed
