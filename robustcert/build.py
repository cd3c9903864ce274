"""From a plain configuration to objects: the only file of the package that knows Hydra.

A node names its class by ``_target_``; the constructor's signature is the schema. Names are checked
against an allow-list and values against the annotations before anything is called.
"""

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from robustcert.data import DataModule, Dataset
from robustcert.module import CertifiedClassifier

Config = dict[str, Any]
# What a command line may name, and what a file from elsewhere may.
COMMAND_LINE_TARGETS = ("robustcert", "torch", "lightning")
CHECKPOINT_TARGETS = ("robustcert", "torch.nn")


class ConfigError(ValueError):
    """A configuration that cannot be built; the message names the key."""


def build(
    node: Config, key: str, allowed: Sequence[str], *, expected: type | None = None, **extra: Any
) -> Any:
    """The object that a node describes.

    Args:
        node: Plain dictionary with ``_target_``.
        key: Where the node stands in the configuration, for messages.
        allowed: Packages that a target may come from.
        expected: Class that the object must be of.
        extra: Further arguments for the constructor.

    Raises:
        ConfigError: a target is not allowed or does not exist, a key is unknown or missing, a value
            has the wrong type, or the constructor refuses it.
    """
    check(node, key, allowed, provided=set(extra))
    try:
        built = instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{key}: {cause}") from cause
    if expected is not None and not isinstance(built, expected):
        raise ConfigError(f"{key}: expected a {expected.__name__}, got {type(built).__name__}")
    return built


def build_dataset(config: Config, allowed: Sequence[str]) -> Dataset:
    """The reader of the configured dataset."""
    return build(config["dataset"], "dataset", allowed, expected=Dataset)


def build_data(config: Config, dataset: Dataset, allowed: Sequence[str]) -> DataModule:
    """Splits and batches of a dataset."""
    loader = dict(config["loader"])
    augmentation = loader.pop("augmentation", None) or []
    modules = [build(a, f"loader.augmentation[{i}]", allowed) for i, a in enumerate(augmentation)]
    check_call(DataModule, loader, "loader", provided={"dataset", "augmentation", "seed"})
    return DataModule(dataset, **loader, augmentation=modules, seed=config["seed"])


def build_model(
    config: Config, input_shape: Sequence[int], num_classes: int, allowed: Sequence[str]
) -> nn.Module:
    """The untrained network."""
    return build(
        config["model"],
        "model",
        allowed,
        expected=nn.Module,
        input_shape=tuple(input_shape),
        num_classes=num_classes,
    )


def build_module(config: Config, dataset: Dataset, allowed: Sequence[str]) -> CertifiedClassifier:
    """The LightningModule around model, objective, optimizer and schedules."""
    epsilon, radii = config["epsilon"], config["radii"]
    if not matches(epsilon, float) or not epsilon > 0:
        raise ConfigError(f"epsilon: expected a radius above 0, got {epsilon!r}")
    if not radii or not all(matches(r, float) and r > 0 for r in radii):
        raise ConfigError(f"radii: expected a list of radii above 0, got {radii!r}")
    return CertifiedClassifier(
        build_model(config, dataset.input_shape, dataset.num_classes, allowed),
        build(config["objective"], "objective", allowed),
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        epsilon=float(epsilon),
        radii=[float(r) for r in radii],
        optimizer=build(config["optimizer"], "optimizer", allowed),
        epsilon_schedule=build(config["epsilon_schedule"], "epsilon_schedule", allowed),
        lr_schedule=build(config["lr_schedule"], "lr_schedule", allowed),
    )


def check(node: Config, key: str, allowed: Sequence[str], provided: set[str]) -> None:
    """Check a node and all nodes in it; see :func:`build`."""
    arguments = {k: v for k, v in node.items() if k not in ("_target_", "_partial_")}
    for name, value in arguments.items():
        _check_nested(value, f"{key}.{name}", allowed)
    if "_target_" in node:
        cls = resolve(node["_target_"], key, allowed)
        check_call(cls, arguments, key, provided, partial=bool(node.get("_partial_")))


def _check_nested(value: Any, key: str, allowed: Sequence[str]) -> None:
    if isinstance(value, Mapping):
        if "_args_" in value or "_recursive_" in value or "_convert_" in value:
            raise ConfigError(f"{key}: only _target_ and _partial_ are supported")
        check(dict(value), key, allowed, provided=set())
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            _check_nested(entry, f"{key}[{i}]", allowed)


def resolve(target: Any, key: str, allowed: Sequence[str]) -> type:
    """The class that a dotted path names, if it is a class of an allowed package.

    The path is judged, and then the class itself: ``robustcert.run.os`` is not ours.
    """
    module_name, _, name = str(target).rpartition(".")
    if not _inside(module_name, allowed):
        raise ConfigError(
            f"{key}._target_: {target!r} is not allowed: it is not in {', '.join(allowed)}. If you "
            f"trust it, add allow_targets=[{str(target).split('.')[0]}] to the command line"
        )
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_: no class {target!r}: {error}") from error
    if not isinstance(cls, type) or not _inside(cls.__module__, allowed):
        raise ConfigError(f"{key}._target_: {target!r} is not a class of {', '.join(allowed)}")
    return cls


def _inside(module: str, allowed: Sequence[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in allowed)


def check_call(
    cls: type,
    arguments: Mapping[str, Any],
    key: str,
    provided: set[str],
    *,
    partial: bool = False,
) -> None:
    """Check that ``cls(**arguments)`` binds and that plain values fit the annotations."""
    parameters = inspect.signature(cls).parameters
    catches_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = typing.get_type_hints(inspect.getattr_static(cls, "__init__"))
    settable = [p for p in parameters if p not in provided and parameters[p].kind != 4]
    for argument, value in arguments.items():
        if argument not in parameters and not catches_all:
            close = difflib.get_close_matches(argument, settable, n=1)
            hint = f"did you mean {close[0]}? It" if close else "It"
            raise ConfigError(
                f"{key}.{argument}: {cls.__name__} takes no {argument!r}; {hint} takes "
                f"{', '.join(settable)}"
            )
        if value == "???":
            raise ConfigError(f"{key}.{argument}: a value is needed: set {key}.{argument}=...")
        if not matches(value, hints.get(argument, Any)):
            wanted = inspect.formatannotation(hints[argument])
            raise ConfigError(f"{key}.{argument}: expected {wanted}, got {value!r}")
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in arguments
        and p.name not in provided
    ]
    if missing and not partial:
        raise ConfigError(
            f"{key}: {cls.__name__} needs {', '.join(missing)}: set {key}.{missing[0]}=..."
        )


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value fits an annotation; nested nodes are judged where they are built."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (isinstance(value, Mapping) and "_target_" in value):
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint is type(None):
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
        if not isinstance(value, list | tuple):
            return False
        return not arguments or all(
            any(matches(entry, a) for a in arguments if a is not Ellipsis) for entry in value
        )
    # Anything else is an object: only a nested node can make it.
    return not isinstance(value, str | int | float | list)


_SEQUENCES = (list, tuple, Sequence, typing.Sequence)
