"""Whether plain values fit a signature: the schema of a configuration is what the code takes."""

import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from robustcert.errors import ConfigError


def check_call(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    key: str,
    provided: frozenset[str] = frozenset(),
    *,
    partial: bool = False,
) -> None:
    """Check that ``function(**arguments)`` binds and that plain values fit the annotations.

    Args:
        function: A class or a function.
        arguments: Plain values; a mapping with ``_target_`` stands for an object.
        key: Where the arguments stand in the configuration, for messages.
        provided: Parameters that the caller adds, which the arguments may not set.
        partial: Whether further parameters come later.

    Raises:
        ConfigError: a name is unknown or missing, or a value has the wrong type.
    """
    name = getattr(function, "__name__", str(function))
    parameters = inspect.signature(function).parameters
    hints = _hints(function)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    settable = [p for p in parameters if p not in provided and parameters[p].kind in kinds]
    catches_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for argument, value in arguments.items():
        path = join_key(key, argument)
        if argument in provided:
            raise ConfigError(f"{path}: is set by the program, not by the configuration")
        if argument not in settable and not catches_all:
            close = difflib.get_close_matches(argument, settable, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"{path}: {name} takes no {argument!r}; {hint}it takes {', '.join(settable)}"
            )
        check_value(value, hints.get(argument, Any), path)
    missing = [
        p
        for p in settable
        if parameters[p].default is inspect.Parameter.empty and p not in arguments
    ]
    if missing and not partial:
        first = join_key(key, missing[0])
        raise ConfigError(f"{key or name}: {', '.join(missing)} missing: set {first}=...")


def check_values(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Check that every key of ``hints`` is there with a value that fits."""
    for key, hint in hints.items():
        if key not in values:
            raise ConfigError(f"{key}: missing: set {key}=...")
        check_value(values[key], hint, key)


def check_value(value: Any, hint: Any, key: str) -> None:
    """Raise ``ConfigError`` unless a plain value is there and fits an annotation."""
    if value == "???":
        raise ConfigError(f"{key}: a value is needed: set {key}=...")
    if not matches(value, hint):
        one = isinstance(value, str | int | float) and matches([value], hint)
        advice = f": write {key}=[{value}]" if one else _as_number(value)
        raise ConfigError(f"{key}: expected {_describe(hint)}, got {value!r}{advice}")


def _as_number(value: Any) -> str:
    """Advice on the first fraction of a text or a list: 36/255 is no number to yaml."""
    for text in value if isinstance(value, list) else [value]:
        fraction = re.fullmatch(r"(\d+)/([1-9]\d*)", str(text))
        if fraction:
            return f": write {int(fraction[1]) / int(fraction[2]):.6g} for {text}"
    return ""


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value fits an annotation; nested nodes are judged where they are built."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (isinstance(value, Mapping) and "_target_" in value):
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint in (type(None), None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (str, Path):
        return isinstance(value, str)
    if origin in _SEQUENCES or hint in _SEQUENCES:
        return isinstance(value, list | tuple) and (
            not arguments
            or all(any(matches(v, a) for a in arguments if a is not Ellipsis) for v in value)
        )
    if origin in _MAPPINGS or hint in _MAPPINGS:
        return isinstance(value, Mapping)
    # Anything else is an object: only a nested node can make it.
    return not isinstance(value, str | int | float | list)


def join_key(key: str, name: str) -> str:
    """Dotted key."""
    return f"{key}.{name}" if key else name


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin is Sequence:
        return f"list[{', '.join(inspect.formatannotation(a) for a in arguments)}]"
    return "null" if hint is type(None) else inspect.formatannotation(hint)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = (
        inspect.getattr_static(function, "__init__") if isinstance(function, type) else function
    )
    try:
        return typing.get_type_hints(target)
    except NameError:  # an annotation that only type checkers can resolve
        return {}


_SEQUENCES = (list, tuple, Sequence)
_MAPPINGS = (dict, Mapping)
