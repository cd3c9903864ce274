"""Products by oneDNN are those by MKL, up to the order of sums, in every kind of derivative."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap
from torch.nn import functional as F

from robustcert.layers import product as subject
from robustcert.layers.product import gram, linear, product, products

Binary = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors whose vectors MKL leaves alone, and for small matrices."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(subject, "_mkl_is_narrow", lambda: True)
    monkeypatch.setattr(subject, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(subject, "MIN_SIDE", 1)
    monkeypatch.setattr(subject, "MIN_IN_STACK", 0)


def uses_onednn(function: Callable[[], Any]) -> bool:
    """Whether a product went to oneDNN."""
    with torch.profiler.profile() as found:
        function()
    return any(event.name == "mkldnn::_linear_pointwise" for event in found.events())


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x,
    "columns": lambda x: x.mT.contiguous().mT,
    "a part of a larger one": lambda x: F.pad(x, (3, 2, 1, 4))[1:-4, 3:-2],
    "columns of a larger one": lambda x: F.pad(x.mT, (3, 2, 1, 4))[1:-4, 3:-2].mT,
}


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_products_and_gradients_are_those_of_torch(left: str, right: str) -> None:
    a = LAYOUTS[left](torch.randn(7, 5) / 4).requires_grad_()
    b = LAYOUTS[right](torch.randn(5, 4) / 4).requires_grad_()
    assert uses_onednn(lambda: product(a, b))
    found = []
    for of in (product, torch.matmul):
        y = of(a, b)
        first = torch.autograd.grad(y.sin().sum(), (a, b), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (a, b))
        found.append((y, *first, *second))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


# What torch's own forward mode is made of.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (product, torch.matmul),
        (lambda a, b: gram(a) @ b, lambda a, b: a.mT @ a @ b),
        (lambda a, b: linear(a, b.mT, b[0]), lambda a, b: F.linear(a, b.mT, b[0])),
    ],
    ids=["product", "gram", "linear"],
)
def test_transforms_see_the_product(mine: Binary, other: Binary) -> None:
    a, b, many = torch.randn(5, 5), torch.randn(5, 4), torch.randn(3, 5, 5)
    assert uses_onednn(lambda: mine(a, b))

    def all_of(f: Binary) -> list[Tensor]:
        return [
            f(a, b),
            vmap(f, (0, None))(many, b),
            vmap(lambda x: f(a, x), 2)(torch.randn(5, 4, 3, generator=fixed())),
            vmap(grad(lambda x: f(x, b).sin().sum()))(many),
            jacrev(f)(a, b),
            jacfwd(f)(a, b),
            jacfwd(jacrev(lambda x: f(x, b).sin().sum()))(a),
        ]

    for x, y in zip(all_of(mine), all_of(other), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def fixed() -> torch.Generator:
    """The same numbers each time."""
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "function",
    [
        lambda a: product(a.double(), a.double()),
        lambda a: product(a[None], a[None]),
        lambda a: gram(torch.complex(a, a)),
    ],
)
def test_what_is_no_matrix_of_float32_is_left_to_torch(function: Any) -> None:
    assert not uses_onednn(lambda: function(torch.randn(5, 5)))


def test_no_product_leaves_torch_where_onednn_is_off() -> None:
    """As in strict arithmetic, in which certificates are computed."""
    a = torch.randn(5, 5)
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert not uses_onednn(lambda: product(a, a))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(a, a).dtype == torch.bfloat16


@pytest.mark.parametrize("by_columns", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_stacks_are_those_of_torch(by_columns: tuple[bool, bool]) -> None:
    a, b = torch.randn(3, 7, 5), torch.randn(3, 5, 4)
    a, b = (x.mT.contiguous().mT if c else x for x, c in zip((a, b), by_columns, strict=True))
    with torch.no_grad():
        assert uses_onednn(lambda: products(a, b))
        torch.testing.assert_close(products(a, b), a @ b, rtol=1e-5, atol=1e-5)


def test_products_of_stacks_that_are_recorded_have_their_derivatives() -> None:
    a, b = torch.randn(3, 7, 5, requires_grad=True), torch.randn(3, 5, 4)
    (slope,) = torch.autograd.grad(products(a, b).sum(), a)
    torch.testing.assert_close(slope, b.sum(-1)[:, None].expand(3, 7, 5))
