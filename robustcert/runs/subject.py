"""What is certified: a run's checkpoint, or an ONNX model from anywhere, with its data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from robustcert.certificate.places import checkpoint_of
from robustcert.certifiers import Certifier
from robustcert.certifiers.base import require_covered_metric
from robustcert.config.build import (
    CHECKPOINT_TARGETS,
    Config,
    build_certifier,
    build_dataset,
    build_parts,
    build_space,
    named_certifiers,
    standardised,
)
from robustcert.config.schema import check_call
from robustcert.data import Dataset, Parts
from robustcert.errors import ConfigError
from robustcert.metrics.thresholds import check_radii
from robustcert.models import Normalize
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.network.onnx import fitted, read_onnx
from robustcert.runs.module import restore_module
from robustcert.training.checkpoint import read_checkpoint


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with the objects that its configuration and the command line name.

    Attributes:
        path: The file that it is from.
        origin: What a certificate says of that file.
        config: Configuration of the run; of an ONNX model, its dataset and radii.
        certifier: What certifies it.
        named: The certifier's node.
        dataset: What its samples are from.
        parts: The dataset's.
        model: The network as a module.
        network: The network, folded.
        trained: Seconds of training until the checkpoint; 0 where that is not known.
    """

    path: Path
    origin: dict[str, Any]
    config: Config
    certifier: Certifier
    named: Config
    dataset: Dataset
    parts: Parts
    model: nn.Module
    network: PlainNetwork
    trained: float = 0.0

    def radii(self, given: list[float] | None) -> list[float]:
        """Radii of the table: those given, or those of training."""
        return check_radii(given or [*self.config["radii"], self.config["epsilon"]])


def read_run(
    checkpoint: str,
    certifier: Config | None,
    dataset: Mapping[str, Any],
    norm: Mapping[str, Any],
    allow_targets: Sequence[str],
) -> Subject:
    """Read a checkpoint and build what its configuration names; nothing is computed yet.

    Args:
        checkpoint: Its file, or the run's folder.
        certifier: Node of the certifier, or of several of which it is the first; None for that of
            training.
        dataset: Changes to the dataset's node.
        norm: Changes to the metric of training.
        allow_targets: Packages whose classes may be named, beside ours and torch.nn.
    """
    allowed = (*CHECKPOINT_TARGETS, *allow_targets)
    if "_target_" in dataset:
        raise ConfigError(
            "dataset: a checkpoint is certified on the dataset that it was trained on, of which "
            "dataset.root, dataset.checksum and dataset.download may change"
        )
    read = read_checkpoint(checkpoint_of(checkpoint))
    named = next(iter(_nodes(certifier, read.config).values()))
    proving = build_certifier(named, allow_targets)
    config = {**read.config, "dataset": {**read.config["dataset"], **_given(dataset)}}
    config["norm"] = {**(config.get("norm") or {}), **_given(norm)}
    source = build_dataset(config, allowed)
    if tuple(source.input_shape) != read.input_shape:
        raise ConfigError(
            f"dataset: the network of {read.path} takes inputs of shape {read.input_shape}, got "
            f"{tuple(source.input_shape)} from {source.name}"
        )
    config = standardised(config, source)
    model = restore_module(read, config, allowed)
    network = fold_network(model, read.input_shape, build_space(config, source))
    require_covered_metric(proving, network)
    parts = build_parts(config, source)
    said = {"file": read.path.name, "sha256": read.sha256, "epoch": read.epoch}
    origin = {"checkpoint": said}
    return Subject(
        *(read.path, origin, config, proving, named, source, parts, model, network),
        trained=read.seconds,
    )


def read_model(
    network: str,
    preprocessing: Mapping[str, Any],
    radii: Sequence[float | None],
    certifier: Config | None,
    dataset: Mapping[str, Any],
    norm: Mapping[str, Any],
    allow_targets: Sequence[str],
) -> Subject:
    """Read an ONNX file and build the dataset that the command line names.

    Raises:
        ConfigError: no dataset is named, or it does not fit the network.
        UnsoundNetworkError: see :func:`robustcert.network.onnx.read_onnx`.
    """
    if "_target_" not in dataset:
        raise ConfigError(
            f"dataset: {network} does not say on which samples: add dataset=mnist, or another name "
            "of conf/dataset"
        )
    wanted = [radius for radius in radii if radius is not None]
    if not wanted:
        raise ConfigError("radii: expected radii at which samples are counted: set radii=[0.5]")
    named = next(iter(_nodes(certifier, {}).values()))
    proving = build_certifier(named, allow_targets)
    config = {
        "dataset": _given(dataset),
        "preprocessing": dict(preprocessing),
        "norm": _given(norm),
        "radii": wanted,
        "epsilon": wanted[-1],
        "loader": {},
    }
    source = build_dataset(config, (*CHECKPOINT_TARGETS, *allow_targets))
    read = read_onnx(network)
    shape = tuple(source.input_shape)
    model = _standardised(fitted(read, shape), preprocessing, shape)
    folded = fold_network(model, shape, build_space(config, source))
    require_covered_metric(proving, folded)
    if read.classes < source.num_classes:
        raise ConfigError(
            f"dataset: {source.name} has {source.num_classes} classes, and {network} "
            f"{read.classes} outputs: choose the dataset that it was trained on"
        )
    parts = build_parts(config, source)
    path = Path(network)
    (digest, *others) = read.files.items()
    said = {"file": path.name, "sha256": digest[1], "opset": read.opset}
    origin = {"onnx": {**said, **({"constants": dict(others)} if others else {})}}
    return Subject(path, origin, config, proving, named, source, parts, model, folded)


def by_certifier(
    subject: Subject, certifier: Config | None, allow_targets: Sequence[str]
) -> dict[str, Subject]:
    """One subject for every certifier by name; that of the first is already in ``subject``."""
    (first, _), *others = _nodes(certifier, subject.config).items()
    found = {first: subject}
    for name, node in others:
        proving = build_certifier(node, allow_targets)
        require_covered_metric(proving, subject.network)
        found[name] = replace(subject, certifier=proving, named=node)
    return found


def _nodes(certifier: Config | None, config: Config) -> dict[str, Config]:
    """Certifiers' nodes by name: those that were asked for, or those of training."""
    return named_certifiers(config.get("certifier") if certifier is None else certifier)


def _given(dataset: Mapping[str, Any]) -> Config:
    """A dataset's options but those that are left open."""
    return {key: value for key, value in dataset.items() if value is not None}


def _standardised(
    module: nn.Module, preprocessing: Mapping[str, Any], shape: tuple[int, ...]
) -> nn.Module:
    """A network behind the standardisation of its inputs, if there is any."""
    given = _given(preprocessing)
    if not given:
        return module
    options = {"mean": [0.0], "std": [1.0], **given}
    check_call(Normalize, options, "preprocessing", frozenset({"channels"}))
    try:
        return nn.Sequential(Normalize(**options, channels=shape[0]), module)
    except ValueError as error:
        message = str(error).replace("normalization.", "preprocessing.")
        raise ConfigError(message) from error
