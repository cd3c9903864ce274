"""What objectives and metrics see of a model: logits and constants, whatever kind it is of."""

import pytest
import torch
from helpers.configs import build_model
from torch import Tensor, nn

from robustcert.errors import UnknownLipschitz
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.margins import row_distances, smallest_margin
from robustcert.models import Subspaces
from robustcert.models.scores import TrainingScores, training_scores


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_model_with_constants_gives_its_logits_and_them() -> None:
    x, target = torch.rand(5, 2, 8, 8), torch.arange(5) % 3
    model = build_model("mlp", "aol", "maxmin")
    dense = nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.ReLU(), nn.Linear(4, 3))
    for module in (model, dense):
        scores = training_scores(module, x)
        assert torch.equal(scores.logits(target), module(x))
        assert torch.equal(scores.pairwise, pairwise_lipschitz_estimate(module))


def test_a_model_of_distances_gives_them_as_margins() -> None:
    model, x = Subspaces((4,), 3, per_class=2, rank=1), torch.rand(7, 4)
    prediction = model(x).argmax(1)
    for target in (prediction, (prediction + 1) % 3):
        logits = training_scores(model, x).logits(target)
        ahead = smallest_margin(logits, target)
        assert torch.equal(ahead > 0, target == prediction)


class Own(nn.Module):
    """A user's model, of which the package knows nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def training_scores(self, x: Tensor) -> TrainingScores:
        logits, pairwise = self(x), row_distances(self.weight)
        return TrainingScores(lambda target: logits, pairwise)


class Another(Own):
    """Another function than that of which its parent speaks."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_users_model_speaks_for_itself_and_not_for_its_children() -> None:
    model, x = Own(), torch.rand(2, 4)
    assert torch.equal(training_scores(model, x).pairwise, row_distances(model.weight))
    with pytest.raises(UnknownLipschitz, match="Another"):
        training_scores(Another(), x)
