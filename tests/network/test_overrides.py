"""Whatever people put over a module's forward is refused by its name, before it is certified."""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry
from torch.nn.utils import parametrizations, parametrize

from robustcert.activations import GroupSort
from robustcert.errors import UnknownLipschitz
from robustcert.lipschitz import lipschitz_estimate
from robustcert.network.fold import fold
from robustcert.network.linear import Dense
from robustcert.network.operation import Operation


class Doubled(nn.Module):
    """A user's module with its plain form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x @ self.weight.T

    def fold(self) -> Operation:
        return Dense(2 * self.weight.detach())

    def lipschitz_estimate(self) -> Tensor:
        return 2 * torch.linalg.matrix_norm(self.weight, 2)


def ten(_module: nn.Module, x: Tensor) -> Tensor:
    return 10 * x


def ten_of(_module: nn.Module, _inputs: Any, y: Tensor) -> Tensor:
    return 10 * y


Way = Callable[[nn.Module], Any]


def instance(name: str) -> Way:
    return lambda m: vars(m).__setitem__(name, types.MethodType(ten, m))


@contextmanager
def of_class(cls: Any, **attributes: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in attributes.items():
            patch.setattr(cls, name, value, raising=False)
        yield


def subclassed(module: nn.Module, **attributes: Any) -> None:
    module.__class__ = type("Mine", (type(module),), attributes)


def weighted(module: nn.Module) -> None:
    class Tenfold(Tensor):
        @classmethod
        def __torch_function__(
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = super().__torch_function__(function, types, args, kwargs or {})
            return 10 * found if function is nn.functional.linear else found

    module._parameters["weight"] = module.weight.detach().as_subclass(Tenfold)


def wraps_forward(module: nn.Module) -> Any:
    @functools.wraps(type(module).forward)
    def forward(_module: nn.Module, x: Tensor) -> Tensor:
        return 10 * x

    return of_class(type(module), forward=forward)


def posing(module: nn.Module) -> None:
    """A class that says of itself what one made by register_parametrization does."""
    written = type(module)
    cls = type(f"Parametrized{written.__name__}", (written,), {"forward": ten})
    cls.__module__ = parametrize.__name__
    module.__class__ = cls
    module.parametrizations = nn.ModuleDict({"bias": nn.Identity()})


def parametrized(module: nn.Module) -> None:
    parametrize.register_parametrization(module, "weight", nn.Identity())


def parametrized_then(**attributes: Any) -> Way:
    def change(module: nn.Module) -> None:
        parametrized(module)
        for name, value in attributes.items():
            setattr(type(module), name, value)

    return change


WAYS: dict[str, Way] = {
    # On the instance.
    "forward": instance("forward"),
    "a bound forward": lambda m: setattr(m, "forward", types.MethodType(ten, m)),
    "a partial forward": lambda m: setattr(m, "forward", functools.partial(ten, m)),
    "_call_impl": instance("_call_impl"),
    "_wrapped_call_impl": instance("_wrapped_call_impl"),
    "_slow_forward": instance("_slow_forward"),
    "_compiled_call_impl": instance("_compiled_call_impl"),
    ".compile()": lambda m: m.compile(backend="eager"),
    # Hooks.
    "forward hook": lambda m: m.register_forward_hook(ten_of),
    "forward hook with keywords": lambda m: m.register_forward_hook(
        lambda m, x, k, y: 10 * y, with_kwargs=True
    ),
    "forward hook that is always called": lambda m: m.register_forward_hook(
        ten_of, always_call=True
    ),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(lambda m, x: (10 * x[0],)),
    "forward pre-hook with keywords": lambda m: m.register_forward_pre_hook(
        lambda m, x, k: ((10 * x[0],), k), with_kwargs=True
    ),
    "old weight_norm": lambda m: nn.utils.weight_norm(m),
    "global forward hook": lambda m: registry.register_module_forward_hook(ten_of),
    "global forward pre-hook": lambda m: registry.register_module_forward_pre_hook(
        lambda m, x: (10 * x[0],)
    ),
    # On the class, or with another class.
    "class with __call__": lambda m: subclassed(m, __call__=ten),
    "class with _call_impl": lambda m: subclassed(m, _call_impl=ten),
    "class with _wrapped_call_impl": lambda m: subclassed(m, _wrapped_call_impl=ten),
    "class with _compiled_call_impl": lambda m: subclassed(m, _compiled_call_impl=ten),
    "class with __getattribute__": lambda m: subclassed(
        m, __getattribute__=lambda s, n: object.__getattribute__(s, n)
    ),
    "class with forward": lambda m: subclassed(m, forward=ten),
    "Module.__call__": lambda m: of_class(nn.Module, __call__=ten),
    "Module._call_impl": lambda m: of_class(nn.Module, _call_impl=ten),
    "Module._compiled_call_impl": lambda m: of_class(nn.Module, _compiled_call_impl=ten),
    "Module.__getattribute__": lambda m: of_class(
        nn.Module, __getattribute__=lambda s, n: object.__getattribute__(s, n)
    ),
    "forward of the class": lambda m: of_class(type(m), forward=ten),
    "parametrized, then a forward": parametrized_then(forward=ten),
    "posing as parametrized": posing,
    "compiled": lambda m: torch.compile(m, backend="eager"),
}
# What is known of torch's own classes only.
LINEAR: dict[str, Way] = {
    "a wrapped forward of the class": wraps_forward,
    "a weight of the class": lambda m: of_class(nn.Linear, weight=property(lambda m: torch.eye(4))),
    "a class with a weight": lambda m: subclassed(m, weight=property(lambda m: torch.eye(4))),
    "a class with parametrizations": lambda m: subclassed(
        m, forward=ten, parametrizations=nn.ModuleDict({"bias": nn.Identity()})
    ),
    "parametrized, then another weight": parametrized_then(
        weight=property(lambda m: 10 * torch.eye(4))
    ),
    "a tensor with its own arithmetic": weighted,
}


def tried(module: nn.Module, way: Way) -> Iterator[tuple[nn.Module, Any]]:
    made = way(module)
    undo = made if hasattr(made, "remove") or hasattr(made, "__exit__") else None
    if hasattr(undo, "__enter__") and not hasattr(undo, "remove"):
        undo.__enter__()
    try:
        yield (made if isinstance(made, nn.Module) else module), undo
    finally:
        if hasattr(undo, "remove"):
            undo.remove()
        elif undo is not None:
            undo.__exit__(None, None, None)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), Doubled], ids=["Linear", "Doubled"])
@pytest.mark.parametrize("kind", [*WAYS, *LINEAR])
def test_whatever_is_put_over_a_module_is_refused(make: Callable[[], nn.Module], kind: str) -> None:
    if kind in LINEAR and make is Doubled:
        make = functools.partial(nn.Linear, 4, 4, bias=False)
    for claim in (fold, lipschitz_estimate, lambda m: fold(nn.Sequential(m))):
        for module, _ in tried(make(), (WAYS | LINEAR)[kind]):
            with pytest.raises(UnknownLipschitz, match="no Lipschitz bound is known"):
                claim(module)
    # All of it can be undone.
    fold(make())


HARMLESS: dict[str, Way] = {
    "backward hook": lambda m: m.register_full_backward_hook(lambda m, i, o: None),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(lambda m, o: None),
    "global backward hook": lambda m: registry.register_module_full_backward_hook(
        lambda m, i, o: None
    ),
    "state_dict hooks": lambda m: m.register_state_dict_post_hook(lambda *a: None),
    "a note": lambda m: setattr(m, "note", "mine"),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "reset_parameters": lambda m: of_class(nn.Linear, reset_parameters=lambda m: None),
    "parametrized": parametrized,
    "spectral_norm": parametrizations.spectral_norm,
    "parametrized twice": lambda m: [parametrized(m), parametrized(m)][1],
    "parametrized and back": lambda m: [
        parametrized(m),
        parametrize.remove_parametrizations(m, "weight"),
    ][0],
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_leaves_outputs_alone_is_no_override(kind: str) -> None:
    for module, _ in tried(nn.Linear(4, 4), HARMLESS[kind]):
        # Spectral normalisation takes a step of power iteration with every call in training.
        module.eval()
        (operation,) = fold(module)
        x = torch.rand(3, 4)
        torch.testing.assert_close(operation(x), module(x))


def test_a_method_counts_where_it_was_written_with_forward() -> None:
    made = type("Made", (nn.Module,), {"forward": Doubled.forward, "fold": Doubled.fold})
    module = made()
    module.weight = nn.Parameter(torch.eye(4))
    assert len(fold(module)) == 1

    class Decorated(Doubled):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

        @functools.cache  # noqa: B019
        def fold(self) -> Operation:
            return super().fold()

    assert len(fold(Decorated())) == 1


def test_a_class_of_ours_whose_forward_was_replaced_is_refused() -> None:
    with of_class(GroupSort, forward=ten), pytest.raises(UnknownLipschitz):
        fold(GroupSort(4))
    assert len(fold(GroupSort(4))) == 1
