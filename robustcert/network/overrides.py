"""Whether a module computes what its class says, or something was put over it."""

import sys
from abc import ABCMeta
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as registry
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

F = TypeVar("F", bound=Callable[..., Any])

# How torch gets from `module(x)` to `module.forward(x)`.
_CALLING = ("__call__", "_wrapped_call_impl", "_call_impl", "_slow_forward")
# Methods that decide what any module computes.
_OF_EVERY_MODULE = (*_CALLING, "__getattr__", "__getattribute__")
# What a class of torch may be given without another output.
_HARMLESS = {"reset_parameters", "extra_repr"}
# What Python puts into a class whose metaclass is ABCMeta.
_ABSTRACT = {"_abc_impl", "__abstractmethods__"}
# Methods that decide what a container holds.
_COUNTING = {"__iter__", "__len__", "__getitem__", *_OF_EVERY_MODULE}


def constant_in_graphs(function: F) -> F:
    """Mark a function whose result is a constant of whatever graph torch compiles around it.

    What ``torch.compiler.assume_constant_result`` does, without its import of ``torch._dynamo``,
    which takes as long as that of torch itself.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class as it was written, beneath the one that ``register_parametrization`` makes."""
    cls = type(module)
    if torch.compiler.is_compiling():
        # Classes are no part of a graph: that torch made this one was found when it was folded.
        return cls.__bases__[0] if "parametrizations" in module._modules else cls
    return cls.__bases__[0] if _made_by_parametrize(module) else cls


def override_of(module: nn.Module) -> str | None:
    """What may give a module another output than its class says, in words; None of nothing.

    Hooks of the backward pass are none. What a user's class does in its own ``forward`` is for
    :func:`own_method` and for comparing outputs.
    """
    own = vars(module)
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which may change its output: remove them"
    if registry._global_forward_hooks or registry._global_forward_pre_hooks:
        return (
            "forward hooks of all modules are registered: remove them, see torch.nn.modules.module"
        )
    if getattr(module, "_compiled_call_impl", None) is not None:
        return (
            "it was compiled in place by .compile(), and what runs is not its forward: load its "
            "state_dict into a module that is not compiled"
        )
    cls = type(module)
    above = cls.__mro__[: cls.__mro__.index(nn.Module)]
    for name in (*_CALLING, "forward"):
        if name in own:
            return f"its {name} is overridden on the instance: delete it, or define a class"
    for name in (*_CALLING, "__getattribute__"):
        if any(name in vars(c) for c in above):
            return f"its {name} is overridden: define forward and fold instead"
    if altered := _altered(nn.Module, _OF_EVERY_MODULE, _OF_EVERY_MODULE):
        return f"torch.nn.Module.{altered} was replaced, which changes every module: put it back"
    written = class_of(module)
    if written in _AT_IMPORT:
        for c in written.__mro__[: written.__mro__.index(nn.Module)]:
            names = filter(_counts, _AT_IMPORT[c].keys() | vars(c).keys())
            if altered := _altered(c, ("forward",), names):
                return f"{c.__module__}.{c.__qualname__}.{altered} was replaced: put it back"
        for name in own:
            if callable(getattr(written, name, None)):
                return f"its {name} is overridden on the instance: delete it"
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and type(tensor) not in (torch.Tensor, nn.Parameter):
            kind = type(tensor).__qualname__
            return (
                f"its {name} is a {kind}, which may compute in another way: make it a torch.Tensor"
            )
    return None


def own_method(module: nn.Module, method: str) -> Any:
    """A method that speaks for a module's ``forward``, bound to it; None without one.

    It must be of the class that ``forward`` is of, since a subclass that overrides ``forward``
    alone would hand on its parent's claim, and have been written where ``forward`` was: what is put
    into a class later has another place.
    """
    if method in module.__dict__ or not _speaks_for_forward(class_of(module), method):
        return None
    return getattr(module, method)


@constant_in_graphs
def _speaks_for_forward(cls: type[nn.Module], method: str) -> bool:
    """Whether a class has a method that was written where its ``forward`` was."""
    mro = cls.__mro__
    forward, own = (next((c for c in mro if key in vars(c)), None) for key in ("forward", method))
    if own is None or own is not forward:
        return False
    return _place(vars(own)[method]) == _place(vars(own)["forward"])


def _place(function: Any) -> tuple[str | None, str]:
    """Module and class in which a function was written; wrappers keep those of what they wrap."""
    if isinstance(function, staticmethod | classmethod):
        function = function.__func__
    name = getattr(function, "__qualname__", "")
    return getattr(function, "__module__", None), name.rpartition(".")[0]


def _made_by_parametrize(module: nn.Module) -> bool:
    """Whether torch made the module's class, and what it put there is all that is there."""
    cls = type(module)
    lists = module._modules.get("parametrizations")
    if type(lists) is not nn.ModuleDict or len(cls.__bases__) != 1 or not len(lists):
        return False
    # Python names the module of an abstract class's metaclass, and adds to the class.
    place, added = ("abc", _ABSTRACT) if type(cls) is ABCMeta else (parametrize.__name__, set())
    if (cls.__module__, cls.__name__) != (place, f"Parametrized{cls.__bases__[0].__name__}"):
        return False
    names = set(lists._modules)
    if set(vars(cls)) - {"__module__", "__doc__", "__slotnames__", *added} != names | (
        {"__getstate__", "__deepcopy__"} & set(vars(cls))
    ):
        return False
    functions = [vars(cls)[name] for name in ("__getstate__", "__deepcopy__") if name in vars(cls)]
    for name in names:
        if type(vars(cls)[name]) is not property:
            return False
        functions += [vars(cls)[name].fget, vars(cls)[name].fset]
    return all(_is_of(function, parametrize.__name__) for function in functions) and all(
        type(entry) is parametrize.ParametrizationList for entry in lists._modules.values()
    )


def _is_of(function: Any, module: str) -> bool:
    """Whether a function's code is from the file of a module, whatever it calls itself."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == sys.modules[module].__file__


def _altered(cls: type[nn.Module], functions: Iterable[str], names: Iterable[str]) -> str | None:
    """The first name that is no longer in a class of torch as torch wrote it; None of none.

    Functions are known by the file of their code, so that it does not matter when they were
    replaced; everything else as it was at import.
    """
    before, now = _AT_IMPORT[cls], vars(cls)
    for name in functions:
        if name in now and not _is_of(now[name], cls.__module__):
            return name
    return next((name for name in names if now.get(name) is not before.get(name)), None)


def _counts(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name in _COUNTING if dunder else name not in _HARMLESS


# The classes of torch that are known by name, and theirs above them.
_AT_IMPORT: dict[type[nn.Module], dict[str, Any]] = {
    cls: dict(vars(cls))
    for cls in (
        nn.Module,
        nn.Sequential,
        nn.Linear,
        _ConvNd,
        nn.Conv2d,
        nn.Flatten,
        nn.ReLU,
        nn.Identity,
    )
}
