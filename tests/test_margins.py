"""The certified radius against its definition in a loop, estimated distances against true ones."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.activations import Grafted
from robustcert.attacks.gradient import margin_gradient
from robustcert.certifiers import LipschitzCertifier
from robustcert.margins import certified_radius, margins, row_distances, smallest_margin
from robustcert.metrics.kinks import unit_scores
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.objectives import HKR, CertificateRegularization


def radius_by_definition(logits: np.ndarray, target: int, pairwise: np.ndarray) -> float:
    """Least of margin over constant; 0 / 0 is a tie, x / 0 is infinite."""
    if not np.isfinite(logits).all():
        return math.nan
    radius = math.inf
    for j in range(len(logits)):
        margin, constant = float(logits[target] - logits[j]), float(pairwise[target, j])
        if j == target:
            continue
        if constant > 0:
            radius = min(radius, margin / constant)
        else:
            radius = min(radius, math.copysign(math.inf, margin) if margin else 0.0)
    return radius


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits on a coarse grid, so that they tie, some NaN or infinite; some constants are zero."""
    generator = np.random.default_rng(seed)
    classes = int(generator.integers(1, 6))
    logits = generator.integers(-3, 4, (40, classes)) / 2
    for value in (math.nan, math.inf, -math.inf):
        logits[generator.integers(40), generator.integers(classes)] = value
    pairwise = generator.uniform(0.1, 3, (classes, classes)) * generator.integers(0, 3, classes)
    np.fill_diagonal(pairwise, 0)
    target = generator.integers(0, classes, 40)
    return torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(pairwise)


@pytest.mark.parametrize("seed", range(30))
def test_radius_is_the_least_margin_over_its_constant(seed: int) -> None:
    logits, target, pairwise = random_case(seed)
    expected = [
        radius_by_definition(f.numpy(), int(y), pairwise.numpy())
        for f, y in zip(logits, target, strict=True)
    ]
    found = certified_radius(logits, target, pairwise)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0, equal_nan=True
    )


def test_margin_of_the_own_class_is_zero() -> None:
    logits = torch.randn(6, 4)
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    assert (margins(logits, target).gather(1, target[:, None]) == 0).all()
    assert (margins(logits, target)[0] == logits[0, 0] - logits[0]).all()


def test_the_nearest_boundary_need_not_be_that_of_the_runner_up() -> None:
    pairwise = torch.tensor([[0.0, 1.0, 10.0], [1.0, 0.0, 10.0], [10.0, 10.0, 0.0]])
    radius = certified_radius(torch.tensor([[3.0, 2.0, 0.0]]), torch.tensor([0]), pairwise)
    assert radius == pytest.approx(0.3)


@pytest.mark.parametrize(
    "logits",
    [
        [1.0, 1.0, 0.0],  # all maxima must not be masked together
        [0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],
        [math.nan, 0.0, 0.0],
        [1.0, 0.0, math.nan],
        [math.inf, 0.0, 0.0],
        [1.0, 0.0, -math.inf],
        [math.inf, math.inf, 0.0],
    ],
)
@pytest.mark.parametrize("constant", [0.0, 1.0, math.inf, math.nan])
def test_ties_wrong_classes_and_broken_logits_are_never_certified(
    logits: list[float], constant: float
) -> None:
    pairwise = torch.full((3, 3), constant).fill_diagonal_(0)
    assert not certified_radius(torch.tensor([logits]), torch.tensor([0]), pairwise) > 0


def test_infinite_or_unknown_constants_certify_nothing() -> None:
    logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    for constant in (math.inf, math.nan):
        pairwise = torch.tensor([[0.0, 1.0, constant]]).expand(3, 3)
        assert not certified_radius(logits, target, pairwise) > 0


@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (7, 3), (10, 64)])
def test_row_distances_are_the_distances(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = row_distances(weight)
    torch.testing.assert_close(found, torch.cdist(weight, weight), rtol=0, atol=1e-7)
    assert (found.diagonal() == 0).all()
    torch.testing.assert_close(row_distances(weight.float()).double(), found, rtol=0, atol=1e-3)


def test_row_distances_have_the_gradient_of_the_distances() -> None:
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(row_distances, (weight,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_and_zero_rows_have_a_finite_gradient(dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [3.0, -1.0]], dtype=dtype)
    rows.requires_grad_()
    distances = row_distances(rows)
    assert distances[0, 1] == distances[2, 3] == 0
    (gradient,) = torch.autograd.grad(distances.sum(), rows)
    assert gradient.isfinite().all()
    assert gradient[4].norm() > 0


def doubled(logits: Tensor, target: Tensor) -> Tensor:
    """A mutant of the theorem: margins twice as large."""
    return 2 * (logits.gather(1, target[:, None]) - logits)


def network() -> PlainNetwork:
    torch.manual_seed(0)
    return fold_network(nn.Sequential(nn.Linear(4, 4), Grafted(4), nn.Linear(4, 3)), (4,))


def regularized(logits: Tensor, target: Tensor, pairwise: Tensor) -> Tensor:
    loss = CertificateRegularization(gamma=1.0)(logits, target, pairwise, 0.0)
    return loss - F.cross_entropy(logits, target)


USERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "radius": certified_radius,
    "smallest margin": lambda f, y, k: smallest_margin(f, y),
    "reward for radii": regularized,
    "hinge of margins": lambda f, y, k: HKR()(f, y, k, 0.1),
    "attacked margin": lambda f, y, k: margin_gradient(network(), f.new_ones(6, 4), y)[0],
    "significance of units": lambda f, y, k: (
        unit_scores(network(), f.new_ones(6, 4), 0.1)[0].significance
    ),
    "certificate": lambda f, y, k: LipschitzCertifier().certify(network(), f.new_ones(6, 4)).radius,
}


@pytest.mark.parametrize("name", USERS)
def test_whoever_speaks_of_margins_takes_the_theorem(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    case = logits, logits.argmax(1), torch.ones(3, 3, dtype=torch.float64).fill_diagonal_(0)
    before = USERS[name](*case)
    monkeypatch.setattr(margins, "__code__", doubled.__code__)
    after = USERS[name](*case)
    assert (before != after).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_radius_has_a_finite_gradient_whatever_never_moves_apart(dtype: torch.dtype) -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 1.0]], dtype=dtype)
    pairwise = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 2.0], [2.0, 2.0, 0.0]], dtype=dtype)
    logits.requires_grad_()
    pairwise.requires_grad_()
    radius = certified_radius(logits, torch.tensor([0, 0, 0]), pairwise)
    assert radius.tolist() == [1.5, 0.0, -math.inf]
    gradients = torch.autograd.grad(radius.clamp(0, 9).sum(), (logits, pairwise))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][0].tolist() == [0.5, 0.0, -0.5]
