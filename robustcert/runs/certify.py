"""The certification run: a checkpoint in, a certificate folder out."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustcert import __version__
from robustcert.atomic import resumable_folder
from robustcert.certificate.claim import FORMAT, in_hexadecimal, is_certificate
from robustcert.certificate.places import certificate_beside, checkpoint_of
from robustcert.certificate.samples import has_radii
from robustcert.certificate.space import metric_tensors, space_record
from robustcert.certifiers import Certifier, Claim, strict_arithmetic
from robustcert.certifiers.base import require_covered_metric
from robustcert.certifiers.conformal import PredictionSets
from robustcert.certifiers.monotone import direction_costs, monotone_directions
from robustcert.config.build import (
    CHECKPOINT_TARGETS,
    Config,
    build_certifier,
    build_dataset,
    build_parts,
    build_space,
    standardised,
)
from robustcert.data import Dataset, Examples, Part, Parts, Stream, as_numbers
from robustcert.errors import ConfigError
from robustcert.metrics.thresholds import check_radii
from robustcert.network.agreement import compared_rows, require_agreement
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.runs import classification, regression
from robustcert.runs.attack import (
    Attack,
    build_attack,
    in_words,
)
from robustcert.runs.conformal import with_sets
from robustcert.runs.earlier import keep_earlier
from robustcert.runs.module import restore_module
from robustcert.training.checkpoint import Checkpoint, read_checkpoint

log = logging.getLogger(__name__)


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Tensors without a device are on the CPU, whatever the default device is."""
    with torch.device("cpu"):
        yield


@dataclass(frozen=True)
class _Options:
    """How much of which split is certified, where and in what portions, and how it is attacked."""

    split: Part
    samples: int | None
    radii: list[float] | None
    batch_size: int
    device: torch.device
    attack: Attack
    coverage: float | None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: expected a number above 0, got {self.batch_size}")
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"samples: expected a number above 0 or null, got {self.samples}")
        if self.coverage is not None and not 0 < self.coverage < 1:
            raise ConfigError(f"coverage: expected a share between 0 and 1, got {self.coverage}")
        if self.radii is not None:
            check_radii(self.radii)


@dataclass(frozen=True, eq=False)
class _Subject:
    """A checkpoint as read, with the objects that its configuration and the command line name."""

    checkpoint: Checkpoint
    config: Config
    certifier: Certifier
    named: Config  # the certifier's node
    dataset: Dataset
    parts: Parts
    model: torch.nn.Module
    network: PlainNetwork

    def radii(self, options: _Options) -> list[float]:
        """Radii of the table."""
        return check_radii(options.radii or [*self.config["radii"], self.config["epsilon"]])


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What is certified, on its device, and what is claimed of the network before any radius."""

    network: PlainNetwork
    examples: Examples
    claim: Claim
    record: dict[str, Any]
    key: str  # whatever the bits of a radius depend on


@_on_the_cpu()
def certify(
    checkpoint: str,
    *,
    certifier: Config | None = None,
    split: Part = "test",
    samples: int | None = None,
    radii: list[float] | None = None,
    dataset: Mapping[str, Any] | None = None,
    norm: Mapping[str, Any] | None = None,
    output: str | None = None,
    batch_size: int = 1024,
    device: str = "cpu",
    allow_targets: list[str] | None = None,
    attack: Mapping[str, Any] | None = None,
    coverage: float | None = None,
) -> dict[str, float]:
    """Certify a checkpoint's network on a split and write the certificate folder.

    Args:
        checkpoint: A run's ``checkpoints/best.ckpt``, or the run's folder.
        certifier: Node that names the certifier; :class:`LipschitzCertifier` by default.
        split: Of the checkpoint's dataset.
        samples: Only the first so many of the split.
        radii: At which certified samples are counted; those of training by default.
        dataset: Changes to the dataset's node, such as ``{"root": ...}``.
        norm: Changes to the metric of training, see :func:`robustcert.data.input_space`.
        output: Folder to write; what stands there is replaced. By default :func:`default_output`,
            where a certificate of other settings is kept.
        batch_size: Samples certified at once.
        device: Where to compute.
        allow_targets: Packages whose classes the checkpoint and ``certifier`` may name, beside ours
            and torch.nn.
        attack: Options of :class:`Attack`.
        coverage: Of conformal prediction sets; that of training by default.

    Raises:
        ConfigError: a setting is wrong, or the default folder holds a certificate of others.

    Returns:
        ``<split>/accuracy`` and ``<split>/vra_<radius>``, or a regression's metrics.
    """
    started = time.perf_counter()
    attacking = build_attack(attack or {})
    options = _Options(split, samples, radii, batch_size, _device(device), attacking, coverage)
    subject = _read(checkpoint, certifier or {}, dataset or {}, norm or {}, allow_targets or [])
    folder = Path(output) if output else default_output(subject.checkpoint.path, split, samples)
    _keep_earlier(folder if output is None else None, subject, options)
    with strict_arithmetic() as arithmetic:
        steps = _STEPS[subject.dataset.targets.task]
        prepared = _prepare(subject, options, arithmetic, steps)
        # An error keeps all radii; a setting that was changed is one before the folder is complete.
        writing = resumable_folder(folder, is_certificate, prepared.key, keep=has_radii)
        with writing as partial, strict_arithmetic():
            result = steps.certify(subject, options, prepared, partial)
            seconds = time.perf_counter() - started
            log.info("%d samples certified in %.1f s", len(result.target), seconds)
            attacked = steps.attack(subject, options, prepared, result)
            prepared = with_sets(subject, options, prepared, result, steps.sets)
            written = steps.write(subject, options, prepared, result, attacked, seconds, partial)
    return steps.tell(written, prepared.claim, folder, result)


def _keep_earlier(folder: Path | None, subject: _Subject, options: _Options) -> None:
    """Refuse to replace a certificate of other settings in a folder, if nobody named it."""
    if folder is None:
        return
    settings = subject.radii(options), options.attack.samples
    metric = space_record(subject.network)["metric"]
    keep_earlier(folder, subject.certifier, subject.named, *settings, metric)


def _read(
    checkpoint: str,
    certifier: Config,
    dataset: Mapping[str, Any],
    norm: Mapping[str, Any],
    allow_targets: Sequence[str],
) -> _Subject:
    """Read a checkpoint and build what its configuration names; nothing is computed yet."""
    allowed = (*CHECKPOINT_TARGETS, *allow_targets)
    proving = build_certifier(certifier, allow_targets)
    read = read_checkpoint(checkpoint_of(checkpoint))
    changed = {key: value for key, value in dataset.items() if value is not None}
    config = {**read.config, "dataset": {**read.config["dataset"], **changed}}
    config["norm"] = {
        **(config.get("norm") or {}),
        **{key: value for key, value in norm.items() if value is not None},
    }
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
    return _Subject(read, config, proving, certifier, source, parts, model, network)


def _prepare(
    subject: _Subject, options: _Options, arithmetic: Mapping[str, Any], steps: "_Steps"
) -> _Prepared:
    """Read the samples, compare model and folded network, and claim what needs no radius."""
    source, network, batch_size = subject.dataset, subject.network, options.batch_size
    source.prepare()
    stored = subject.parts.stored(options.split)
    count = len(stored) if options.samples is None else min(options.samples, len(stored))
    stored = stored.take(slice(count))
    # A stream is read in order, so that a damaged file keeps what is before it.
    streamed = isinstance(stored.inputs, Stream)
    rows = compared_rows(min(count, batch_size) if streamed else count)
    require_agreement(subject.model, network, stored.inputs[rows])
    moved = network.to(options.device)
    with strict_arithmetic():
        kind = network.space.kind
        batches = (as_numbers(stored.inputs[part], kind) for part in _parts(count, batch_size))
        claim = steps.claim(subject.certifier, moved, batches)
        # Directions are of the real-valued network, and so is every claim that has one function R.
        if claim.smoothing is None:
            claim = replace(claim, monotone=monotone_directions(network))
    costs = {} if claim.monotone is None else {"directions": direction_costs(network)}
    read = subject.checkpoint
    record: dict[str, Any] = {
        "certifier": in_words(subject.named),
        "checkpoint": {"file": read.path.name, "sha256": read.sha256, "epoch": read.epoch},
        "config": in_words(subject.config),
        "dataset": {"name": source.name, "split": options.split, **source.provenance()},
        **costs,
        "arithmetic": {**arithmetic, "device": str(options.device), "dtype": str(claim.dtype)},
    }
    return _Prepared(moved, stored, claim, record, _key(record, network, claim, stored, batch_size))


def default_output(checkpoint: Path, split: str, samples: int | None) -> Path:
    """``certificate`` in the run folder, or beside a checkpoint that is in none.

    Whatever differs from ``best.ckpt`` on the whole test split has its difference in the name, so
    that a quick look never replaces a run's certificate.
    """
    parts = [certificate_beside(str(checkpoint.resolve()))]
    parts += [split] if split != "test" else []
    parts += [str(samples)] if samples is not None else []
    return Path("-".join(parts))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: no float64 arithmetic on {name!r} here: {reason}") from error
    return device


def _key(
    record: Mapping[str, Any],
    network: PlainNetwork,
    claim: Claim,
    stored: Examples,
    batch_size: int,
) -> str:
    """Whatever the bits of a radius depend on: what was certified under it can be kept."""
    samples = b"".join(t.numpy().tobytes() for t in (stored.indices, stored.labels))
    content = {
        **record,
        "functions": claim.functions,
        "proof": claim.proof,
        "smoothing": claim.smoothing,
        "format": FORMAT,
        "network": network.digest(),
        "space": _space(network),
        "pairwise": in_hexadecimal(claim.pairwise),
        "samples": hashlib.sha256(samples).hexdigest(),
        "inputs": [list(stored.inputs.shape), str(stored.inputs.dtype)],
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "versions": [__version__, torch.__version__, torch.backends.cpu.get_cpu_capability()],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _space(network: PlainNetwork) -> list[str]:
    """The metric's bits, and what inputs are."""
    tensors = metric_tensors(network.space)
    bits = [hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in tensors.values()]
    return [network.space.kind, *map(str, network.space.names or ()), *tensors, *bits]


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


class _Steps(NamedTuple):
    """What a certification does differently for each task, in the order in which it does it."""

    claim: Callable[..., Claim]
    certify: Callable[..., Any]
    attack: Callable[..., dict[str, Any]]
    sets: Callable[..., PredictionSets]
    write: Callable[..., dict[str, Any]]
    tell: Callable[..., dict[str, float]]


_STEPS: Mapping[str, _Steps] = {
    "classification": _Steps(*classification.STEPS),
    "regression": _Steps(*regression.STEPS),
}
