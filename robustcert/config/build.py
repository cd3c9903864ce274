"""From a plain configuration to objects.

A node names its class by ``_target_``, as for Hydra's ``instantiate``, and the constructor's
signature is the schema. All names and values of a node are checked before anything is called, and
the class that was judged is the one that is called.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from robustcert.certifiers import Certifier, LipschitzCertifier
from robustcert.config.moved_targets import current_target
from robustcert.config.schema import check_call, check_value, join_key
from robustcert.data import Dataset, InputSpace, Parts, input_space, standardisation
from robustcert.data.targets import Classes
from robustcert.errors import ConfigError
from robustcert.models import Monotone

if TYPE_CHECKING:
    from robustcert.data.datamodule import DataModule
    from robustcert.training.module import CertifiedModule

Config = dict[str, Any]
# What a command line may name, and what a checkpoint may: to be certified, and to be trained on.
COMMAND_LINE_TARGETS = ("robustcert", "torch", "lightning")
CHECKPOINT_TARGETS = ("robustcert", "torch.nn")
RESUME_TARGETS = (
    *CHECKPOINT_TARGETS,
    "torch.optim",
    "lightning.pytorch.trainer",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
)
# Options of a loader that say what the parts of a dataset are.
_PARTS = ("validation", "num_workers", "calibration")
_REFUSALS = (ValueError, TypeError, RuntimeError, OSError, ImportError)


def build(
    node: Config, key: str, allowed: Sequence[str], *, expected: type = object, **extra: Any
) -> Any:
    """The object that a node describes.

    Args:
        node: Plain dictionary with ``_target_``; with ``_partial_: true`` it stands for the class
            with these arguments bound.
        key: Where the node stands in the configuration, for messages.
        allowed: Packages that a target may come from.
        expected: Class that the object must be of.
        extra: Further arguments for the constructor.

    Raises:
        ConfigError: a target is not allowed or does not exist, a key is unknown or missing, a value
            has the wrong type, or the constructor refuses it.
    """
    if "_target_" not in node:
        raise ConfigError(f"{key}: needs a _target_, the class to build")
    check(node, key, allowed, frozenset(extra), expected)
    return _construct(node, key, allowed, extra)


def check(
    node: Config,
    key: str,
    allowed: Sequence[str],
    provided: frozenset[str] = frozenset(),
    expected: type = object,
) -> None:
    """Check a node and all nodes in it; see :func:`build`."""
    arguments = _arguments(node)
    for name, value in arguments.items():
        if name in ("_args_", "_recursive_", "_convert_"):
            raise ConfigError(f"{join_key(key, name)}: only _target_ and _partial_ are supported")
        _check_nested(value, join_key(key, name), allowed)
    if "_target_" not in node:
        return
    cls = resolve(node["_target_"], key, allowed)
    if not issubclass(cls, expected):
        raise ConfigError(f"{key}: expected a {expected.__name__}, got {cls.__name__}")
    check_call(cls, arguments, key, provided, partial=bool(node.get("_partial_")))


def resolve(target: Any, key: str, allowed: Sequence[str]) -> type:
    """The class that a dotted path names, if it is a class of an allowed package.

    The path is judged before it is imported, and then the class itself: a module that ours imports
    is not ours, nor is a function a class.
    """
    target = current_target(target, key) if isinstance(target, str) else target
    module_name, _, name = str(target).rpartition(".")
    # A package on the way to an allowed one is imported with it, as lightning.pytorch is.
    on_the_way = any(package.startswith(module_name + ".") for package in allowed)
    if not (_inside(module_name, allowed) or on_the_way):
        package = str(target).partition(".")[0]
        raise ConfigError(
            f"{key}._target_: {target!r} is not allowed: it is not in {', '.join(allowed)}"
            + ("" if package in sys.stdlib_module_names else _remedy(package))
        )
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_: no class {target!r}: {error}") from error
    if not isinstance(cls, type) or not _inside(cls.__module__, allowed):
        raise ConfigError(f"{key}._target_: {target!r} is not a class of {', '.join(allowed)}")
    return cls


def _remedy(package: str) -> str:
    return f". If you trust it, add allow_targets=[{package}] to the command line"


def build_dataset(config: Config, allowed: Sequence[str]) -> Dataset:
    """The reader of the configured dataset."""
    return build(config["dataset"], "dataset", allowed, expected=Dataset)


def build_space(config: Config, dataset: Dataset) -> InputSpace:
    """What the dataset's inputs are, in the metric of ``norm``.

    Raises:
        ConfigError: a scale or a frozen feature does not fit the dataset.
    """
    # A checkpoint of an earlier version has no such options.
    options = {k: v for k, v in (config.get("norm") or {}).items() if v is not None}
    check_call(input_space, options, "norm", frozenset({"dataset"}))
    try:
        return input_space(dataset, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def standardised(config: Config, dataset: Dataset) -> Config:
    """The configuration with the word ``training`` replaced by numbers.

    They are mean and standard deviation of every column or channel, over the training split: those
    of the normalisation, and as ``norm.scale`` the standard deviations.
    """
    asked = []
    for section, *names in (
        ("normalization", "mean", "std"),
        ("model", "mean", "std"),
        ("norm", "scale"),
    ):
        for key in names:
            word = (config.get(section) or {}).get(key)
            if word == "training":
                asked.append((section, key))
            elif isinstance(word, str) and section != "norm":
                raise ConfigError(
                    f"{section}.{key}: expected a list of numbers, or the word training for those "
                    f"of the training split, got {word!r}"
                )
    if not asked:
        return config
    dataset.prepare()
    mean, std = standardisation(dataset)
    for section, key in asked:
        numbers = mean if key == "mean" else std
        config = config | {section: config[section] | {key: numbers}}
    return config


def build_data(config: Config, dataset: Dataset, allowed: Sequence[str]) -> "DataModule":
    """Batches of a dataset for training."""
    # Imported here, as the module is below: certification builds neither, and needs no Lightning.
    from robustcert.data.datamodule import DataModule

    loader = dict(config["loader"])
    augmentation = loader.pop("augmentation", None) or []
    modules = [build(a, f"loader.augmentation[{i}]", allowed) for i, a in enumerate(augmentation)]
    provided = {"dataset": dataset, "augmentation": modules, "seed": config["seed"]}
    check_call(DataModule, loader, "loader", frozenset(provided))
    return DataModule(**loader, **provided)


def build_parts(config: Config, dataset: Dataset) -> Parts:
    """The parts of a dataset, cut as training cuts them."""
    loader = {k: v for k, v in config["loader"].items() if k in _PARTS}
    check_call(Parts, loader, "loader", frozenset({"dataset"}))
    return Parts(dataset, **loader)


def build_model(
    config: Config, input_shape: Sequence[int], num_classes: int, allowed: Sequence[str]
) -> nn.Module:
    """The untrained network; with ``model.monotone`` it is the g of a :class:`Monotone`."""
    node = dict(config["model"])
    directions = node.pop("monotone", None)
    shape = tuple(input_shape)
    outputs = num_classes if directions is None else 1
    model = build(
        node, "model", allowed, expected=nn.Module, input_shape=shape, num_classes=outputs
    )
    if directions is None:
        return model
    check_value(directions, list[int], "model.monotone")
    try:
        return Monotone(model, directions, input_shape=shape, num_classes=num_classes)
    except ValueError as error:
        raise ConfigError(f"model.monotone: {error}") from error


def build_module(config: Config, dataset: Dataset, allowed: Sequence[str]) -> "CertifiedModule":
    """The LightningModule around model, objective, optimizer and schedules.

    Raises:
        ConfigError: as for :func:`build`, or the objective is for other targets.
    """
    from robustcert.training.tasks import MODULES

    schedule = config.get("lr_schedule")
    objective = build(config["objective"], "objective", allowed)
    task, made_for = dataset.targets.task, getattr(objective, "task", Classes.task)
    if made_for != task:
        raise ConfigError(
            f"objective: {type(objective).__name__} is for {made_for}, but the targets of "
            f"{dataset.name} are for {task}: {_OBJECTIVES[task]}"
        )
    module, validation = MODULES[task]
    return module(
        build_model(config, dataset.input_shape, dataset.targets.outputs, allowed),
        objective,
        input_shape=dataset.input_shape,
        num_classes=dataset.targets.outputs,
        epsilon=float(config["epsilon"]),
        radii=[float(radius) for radius in config["radii"]],
        optimizer=build(config["optimizer"], "optimizer", allowed),
        epsilon_schedule=build(config["epsilon_schedule"], "epsilon_schedule", allowed),
        lr_schedule=schedule and build(schedule, "lr_schedule", allowed),
        validation=_build_validation(config, validation),
        space=build_space(config, dataset),
    )


# What to set for each kind of targets.
_OBJECTIVES = {
    "classification": "set objective=emma or another of conf/objective",
    "regression": "set objective=squared, huber or quantile",
}


def _build_validation(config: Config, kind: Callable[..., Any]) -> Any:
    """The configured certifier as validation uses it."""
    # A checkpoint of an earlier version has no such options.
    options = dict(config.get("validation") or {})
    check_call(kind, options, "validation", frozenset({"certifier"}))
    # Of several, the first one's certificate is the run's.
    first = next(iter(named_certifiers(config.get("certifier")).values()))
    certifier = build_certifier(first, config.get("allow_targets") or ())
    try:
        return kind(certifier, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _arguments(node: Mapping[str, Any]) -> Config:
    return {k: v for k, v in node.items() if k not in ("_target_", "_partial_")}


def _check_nested(value: Any, key: str, allowed: Sequence[str]) -> None:
    if isinstance(value, Mapping):
        check(dict(value), key, allowed)
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            _check_nested(entry, f"{key}[{i}]", allowed)


def _construct(value: Any, key: str, allowed: Sequence[str], extra: Config) -> Any:
    if isinstance(value, list):
        return [_construct(entry, f"{key}[{i}]", allowed, {}) for i, entry in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    arguments = {
        name: _construct(entry, join_key(key, name), allowed, {})
        for name, entry in _arguments(value).items()
    }
    if "_target_" not in value:
        return arguments
    cls = resolve(value["_target_"], key, allowed)
    if value.get("_partial_"):
        return functools.partial(cls, **arguments, **extra)
    try:
        return cls(**arguments, **extra)
    except ConfigError:
        raise
    except _REFUSALS as error:
        raise ConfigError(f"{key}: {error}") from error


def _inside(module: str, allowed: Sequence[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in allowed)


def build_certifier(node: Config | None, allow_targets: Sequence[str] = ()) -> Certifier:
    """The certifier that a node names, of this package or of one that the user allows.

    Args:
        node: Node with ``_target_``; :class:`LipschitzCertifier` without any.
        allow_targets: Packages that it may come from beside ours.

    Raises:
        ConfigError: as for :func:`build`.
    """
    if not node:
        return LipschitzCertifier()
    return build(node, "certifier", ("robustcert", *allow_targets), expected=Certifier)


def named_certifiers(node: Config | None) -> dict[str, Config]:
    """Nodes of certifiers by name: several, or the one that a node is, under an empty name.

    Raises:
        ConfigError: one of several is no node.
    """
    if not node or "_target_" in node:
        return {"": node or {}}
    for name, own in node.items():
        if not isinstance(own, Mapping) or "_target_" not in own:
            raise ConfigError(
                f"certifier.{name}: expected a node with _target_, got {own!r}: choose certifiers "
                "by certifier=[lipschitz,second_order]"
            )
    return dict(node)
