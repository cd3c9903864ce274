"""Bounds that a user's activation states are measured before anything rests on them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustcert
from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation, Slopes
from robustcert.network.local_error import counted


def bent(x: Tensor) -> Tensor:
    """Slope 1 below 3, slope -2 above."""
    return torch.minimum(x, 9 - 2 * x)


class Bent(nn.Module):
    def __init__(self, **stated: Any) -> None:
        super().__init__()
        self.stated = stated

    def forward(self, x: Tensor) -> Tensor:
        return bent(x)

    def fold(self) -> Activation:
        right = Activation(bent, {}, 2.0, error=counted(3.0, 9.0), slopes=Slopes(-2.0, 1.0))
        return replace(right, **self.stated)


def certified(**stated: Any) -> Tensor:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 40), Bent(**stated), nn.Linear(40, 3))
    return robustcert.certify(network, torch.rand(8, 4)).radius


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"lipschitz": 1.9}, "a Lipschitz constant of 1.9, .* outputs are 2 times as far apart"),
        ({"slopes": Slopes(0.0, 1.0)}, "slopes from 0 to 1, but slopes from -2 to 1 were measured"),
        ({"slopes": Slopes(-2.0, 0.5)}, "slopes from -2 to 0.5, but slopes from -2 to 1"),
    ],
)
def test_what_is_exceeded_is_named_with_its_class(stated: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsoundNetworkError, match=rf"1: test_stated\.Bent states {said}"):
        certified(**stated)


def test_what_holds_is_certified() -> None:
    assert (certified() > 0).any()
    assert torch.equal(certified(), certified(lipschitz=2.0))
