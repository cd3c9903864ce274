"""Large random orthogonal matrices are orthogonal and uniform; small ones are as torch's."""

import pytest
import torch
from torch import nn

from robustcert.layers import orthogonal_start
from robustcert.layers.orthogonal_start import MAX_FACTORED, orthogonal_


@pytest.mark.parametrize("shape", [(1100, 300), (300, 1100), (8, 48, 5, 5), (1, 2000)])
def test_large_ones_have_orthonormal_rows_or_columns(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = orthogonal_(torch.empty(shape)).flatten(1).double()
    gram = weight @ weight.mT if len(weight) <= weight.shape[1] else weight.mT @ weight
    assert float((gram - torch.eye(len(gram), dtype=torch.float64)).abs().max()) < 1e-5


def test_small_ones_are_those_of_torch() -> None:
    weights = torch.empty(2, 20, MAX_FACTORED)
    for weight, fill in zip(weights, (orthogonal_, nn.init.orthogonal_), strict=True):
        torch.manual_seed(3)
        fill(weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize("panel", [1, 2, 128])
@pytest.mark.parametrize("shape", [(3, 3), (4, 2)])
def test_reflections_are_uniform(
    shape: tuple[int, int], panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a uniform matrix: the moments of an entry, of two in a row and in a column, of a minor, and
    # of the trace, against their exact values and four standard errors.
    monkeypatch.setattr(orthogonal_start, "MAX_FACTORED", 0)
    monkeypatch.setattr(orthogonal_start, "PANEL", panel)
    torch.manual_seed(0)
    n, q = shape[0], torch.stack([orthogonal_(torch.empty(shape)) for _ in range(1000)])
    a, b, c, d = q[:, 0, 0], q[:, 0, 1], q[:, 1, 0], q[:, 1, 1]
    last = q[:, -1, -1]
    for value, mean in [
        *((x, 0.0) for x in (a, b, c, d, last, a * b, a * c, a * d, b * c, a * last)),
        *((x * x, 1 / n) for x in (a, b, c, d, last)),
        *((x**4, 3 / (n * (n + 2))) for x in (a, b, c, d, last)),
        *((x * x * y * y, 1 / (n * (n + 2))) for x, y in ((a, b), (a, c))),
        (a * a * d * d, (n + 1) / ((n - 1) * n * (n + 2))),
        (a * b * c * d, -1 / ((n - 1) * n * (n + 2))),
    ]:
        error = float(value.std()) / len(q) ** 0.5
        assert abs(float(value.mean()) - mean) < 4 * error
