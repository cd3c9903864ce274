"""Centering: what training subtracts, what evaluation keeps, and that ranks agree on it."""

from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from robustcert.layers import Centering, LiResConv2d
from robustcert.lipschitz import lipschitz_bound, lipschitz_estimate
from robustcert.network.fold import fold


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def means(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1).mean(1)


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 4, 3)])
def test_training_subtracts_the_batch_mean_and_evaluation_the_running_one(shape: Any) -> None:
    module, x = Centering(6, momentum=0.25), 3 + torch.randn(16, *shape)
    y = module(x)
    torch.testing.assert_close(means(y), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(module.mean, 0.25 * means(x))
    module(x + 1)
    expected = 0.75 * 0.25 * means(x) + 0.25 * means(x + 1)
    torch.testing.assert_close(module.mean, expected)

    module.eval()
    before = module.mean.clone()
    shift = before.view(-1, *(1,) * (len(shape) - 1))
    assert torch.equal(module(x), x - shift)
    assert torch.equal(module.mean, before)  # evaluation moves nothing
    for batch in (1, 16):  # and a sample's output does not depend on the others
        torch.testing.assert_close(module(x)[:batch], module(x[:batch]), rtol=0, atol=0)


def test_the_folded_translation_is_the_evaluated_module() -> None:
    module = Centering(3)
    for _ in range(4):
        module(2 + torch.randn(8, 3, 4, 4))
    (operation,) = fold(module.train())  # folding reads the running mean, not a batch's
    x = torch.randn(8, 3, 4, 4)
    assert torch.equal(operation(x), module.eval()(x))
    assert lipschitz_bound(module, (3, 4, 4)) == 1
    assert lipschitz_estimate(module).item() == 1


def test_the_gradient_goes_through_the_batch_mean() -> None:
    x = torch.randn(8, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    module = Centering(3).double()
    assert torch.autograd.gradcheck(module, (x,))
    assert torch.autograd.gradgradcheck(lambda z: module(z).sin(), (x,))
    # What moves a whole channel moves nothing: x - mean has no slope in that direction.
    (gradient,) = torch.autograd.grad((module(x) * torch.randn(8, 3, 2, 2)).sum(), x)
    torch.testing.assert_close(means(gradient), torch.zeros(3).double(), rtol=0, atol=1e-12)


def test_every_rank_keeps_the_mean_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two ranks in turn: each adds what the other would send.
    batches = [torch.randn(8, 3) + k for k in range(2)]
    found = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    for mine, other in (batches, batches[::-1]):
        monkeypatch.setattr(distributed, "all_reduce", lambda m, other=other: m.add_(means(other)))
        module = Centering(3)
        # The batch's own mean is subtracted: only what evaluation will use is shared.
        torch.testing.assert_close(module(mine), mine - means(mine))
        found.append(module.mean)
    torch.testing.assert_close(*found)
    torch.testing.assert_close(found[0], 0.1 * means(torch.cat(batches)))


@pytest.mark.parametrize("channels", [3, 4])
def test_a_centred_residual_convolution_centres_its_branch(channels: int) -> None:
    options = {"padding": 1, "input_size": (5, 4)}
    module = LiResConv2d(3, channels, 3, **options, centering=True, bias=False)  # type: ignore[arg-type]
    x = torch.randn(8, 3, 5, 4)
    branch = module(x) - x if channels == 3 else module(x)
    torch.testing.assert_close(means(branch), torch.zeros(channels), rtol=0, atol=1e-5)
    assert module.centering is not None
    # The mean of one image is that of the batch: so is its gradient.
    free = F.conv2d(x, module.weight, padding=1)
    expected = free - means(free - x if channels == 3 else free).view(-1, 1, 1)
    torch.testing.assert_close(module(x), expected)
    probe = torch.randn_like(expected)
    slopes = [
        torch.autograd.grad((y * probe).sum(), list(module.parameters()))
        for y in (module(x), expected)
    ]
    torch.testing.assert_close(*slopes)
    module.eval()
    (operation,) = fold(module)
    assert torch.equal(operation.tensors()["bias"], -module.centering.mean)
    torch.testing.assert_close(operation(x), module(x))


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, float("nan")])
def test_the_momentum_is_a_share(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"momentum in \(0, 1\]"):
        Centering(3, momentum)
