"""A frozen module has constant weights, and computes what the module computed last."""

from abc import ABC

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import robustcert
from robustcert.errors import UnknownLipschitz
from robustcert.lipschitz import fold_network


class Moving(nn.Module):
    """A division by a norm from a power iteration that goes on in evaluation."""

    vector: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("vector", torch.ones(features))

    def forward(self, weight: Tensor) -> Tensor:
        image = weight.detach().mT @ (weight.detach() @ self.vector)
        self.vector = image / image.norm()
        return weight / (weight @ self.vector).norm()


def test_a_module_that_moves_is_refused_and_its_frozen_copy_is_one_function() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    parametrize.register_parametrization(layer, "weight", Moving(6))
    module, x = nn.Sequential(layer, nn.Tanh()), torch.randn(5, 6)
    with pytest.raises(UnknownLipschitz, match=r"parametrizations.*robustcert\.freeze\(module\)"):
        fold_network(module, (6,))
    frozen = robustcert.freeze(module)
    # Whose class the copy had.
    assert module(x).shape == (5, 3)
    assert torch.equal(frozen(x), frozen(x))
    torch.testing.assert_close(fold_network(frozen, (6,))(x.double()).float(), frozen(x))
    assert (robustcert.certify(frozen, x).radius > 0).any()


def test_parametrizations_of_another_shape_and_of_several_tensors_become_constants() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh(), robustcert.layers.BROLinear(4, 3)
    )
    frozen, x = robustcert.freeze(module), torch.randn(5, 4)
    expected = module.eval()(x)
    torch.testing.assert_close(frozen(x), expected)
    nn.init.zeros_(module[0].parametrizations.weight.original)
    torch.testing.assert_close(frozen(x), expected)
    assert not any(map(parametrize.is_parametrized, frozen.modules()))


class Folded(nn.Module):
    """Absolute values, as a function and as a method, in place and not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.abs(x - 1).sub(0.5).abs_() + x.abs()


def test_absolute_values_are_captured() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    network = fold_network(Folded(), (4,))
    torch.testing.assert_close(network(x), Folded()(x.clone()))


class Abstract(nn.Linear, ABC):
    """A layer whose class has another metaclass than torch's."""


def test_a_layer_of_an_abstract_class_is_frozen() -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(parametrizations.spectral_norm(Abstract(4, 3))), torch.randn(5, 4)
    frozen = robustcert.freeze(module.eval())
    assert type(frozen[0]) is Abstract
    assert torch.equal(frozen(x), module(x))
