"""The certification run: a checkpoint in, a certificate folder out."""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustcert import __version__
from robustcert.atomic import resumable_folder
from robustcert.attacks import Budget
from robustcert.certificate.checking import check_beforehand
from robustcert.certificate.claim import FORMAT, in_hexadecimal, is_certificate
from robustcert.certificate.memory import (
    MAX_BATCH,
    certification_need,
    default_batch,
    require_certification,
)
from robustcert.certificate.places import certificate_beside
from robustcert.certificate.samples import has_radii
from robustcert.certificate.space import metric_tensors, space_record
from robustcert.certifiers import Claim, bounds_on, strict_arithmetic
from robustcert.certifiers.conformal import PredictionSets
from robustcert.certifiers.monotone import direction_costs, monotone_directions
from robustcert.config.build import Config, build_certifier, named_certifiers
from robustcert.data import Examples, Part, Stream, as_numbers
from robustcert.errors import ConfigError
from robustcert.metrics.thresholds import check_radii
from robustcert.network.agreement import compared_rows, require_agreement
from robustcert.network.network import PlainNetwork
from robustcert.runs import classification, regression
from robustcert.runs.attack import Attack, RadiusAttack, build_attack, in_words
from robustcert.runs.certifying_device import chosen_device, failures_named
from robustcert.runs.conformal import check_coverage, with_sets
from robustcert.runs.console import Row, print_side_by_side
from robustcert.runs.duration import tell_beforehand
from robustcert.runs.earlier import keep_earlier
from robustcert.runs.own_classes import naming_classes
from robustcert.runs.subject import Subject, by_certifier, read_model, read_run
from robustcert.training.stage import stage

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
    at_radii: RadiusAttack = field(default_factory=RadiusAttack)  # shared by all certifiers
    budget: Budget = field(default_factory=lambda: Budget(math.inf))  # of what is not proved

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: expected a number above 0, got {self.batch_size}")
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"samples: expected a number above 0 or null, got {self.samples}")
        check_coverage(self.coverage)
        if self.radii is not None:
            check_radii(self.radii)


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
    checkpoint: str | None = None,
    *,
    network: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    certifier: Config | None = None,
    split: Part = "test",
    samples: int | None = None,
    radii: list[float] | None = None,
    epsilon: float | None = None,
    dataset: Mapping[str, Any] | None = None,
    norm: Mapping[str, Any] | None = None,
    output: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    allow_targets: list[str] | None = None,
    attack: Mapping[str, Any] | None = None,
    coverage: float | None = None,
) -> dict[str, float]:
    """Certify a network on a split and write the certificate folder.

    Args:
        checkpoint: A run's ``checkpoints/best.ckpt``, or the run's folder.
        network: An ONNX file, in place of a checkpoint.
        preprocessing: ``mean`` and ``std`` that inputs of the ONNX model are standardised by, one
            or one per channel; they become the network's first layer.
        certifier: Node that names the certifier; that of training by default, and of an ONNX model
            :class:`LipschitzCertifier`. Of nodes by name, the first one's certificate is
            ``output``, that of another ``<output>-<name>``.
        split: Of the checkpoint's dataset.
        samples: Only the first so many of the split.
        radii: At which certified samples are counted; those of training by default.
        epsilon: One more radius, of an ONNX model; a checkpoint has its own.
        dataset: Changes to the dataset's node, ``{"root": ...}`` say; all of an ONNX model's.
        norm: Changes to the metric of training, see :func:`robustcert.data.input_space`.
        output: Folder to write; what stands there is replaced. A name alone is a folder beside that
            of :func:`default_output`, which is the default; there, a certificate of other settings
            is kept.
        batch_size: Samples certified at once; by default :data:`MAX_BATCH`, or fewer of a network
            with large values.
        device: Where to certify, to attack and to prove bounds of operations. By default an
            accelerator that is there, if its float64 is exact, and else the CPU.
        allow_targets: Packages whose classes may be named, beside ours and torch.nn.
        attack: Options of :class:`Attack`.
        coverage: Of conformal prediction sets; that of training by default.

    Raises:
        ConfigError: a setting is wrong, or the default folder holds a certificate of others.

    Returns:
        ``<split>/accuracy`` and ``<split>/vra_<radius>``, or a regression's metrics; of a further
        certifier ``<split>/<name>/vra_<radius>``.
    """
    attacking = build_attack(attack or {})
    place = chosen_device(device)
    batch = MAX_BATCH if batch_size is None else batch_size
    options = _Options(split, samples, radii, batch, place, attacking, coverage)
    certifier = _chosen(certifier)
    # What was typed is refused before anything is read.
    for node in named_certifiers(certifier).values():
        build_certifier(node, allow_targets or [])
    rest = certifier, dataset or {}, norm or {}, allow_targets or []
    if (checkpoint is None) == (network is None):
        raise ConfigError("expected a checkpoint, or network=<an ONNX file>, and not both")
    if network is not None:
        read = read_model(network, preprocessing or {}, [*(radii or []), epsilon], *rest)
    else:
        read = read_run(str(checkpoint), *rest)
    if batch_size is None:
        options = replace(options, batch_size=default_batch(read.network))
    return _certify_by_each(by_certifier(read, certifier, allow_targets or []), options, output)


def _chosen(node: Config | None) -> Config | None:
    """One certifier's node, or several, without the empty target of conf/certify.yaml; or None."""
    return {k: v for k, v in (node or {}).items() if k != "_target_" or v is not None} or None


def _certify_by_each(
    subjects: Mapping[str, Subject], options: _Options, output: str | None
) -> dict[str, float]:
    """Certify by one certifier after the other, and compare them where there are several."""
    folders = _folders(subjects, options, output)
    trained = next(iter(subjects.values())).trained
    options = replace(options, attack=options.attack.limited(trained, len(subjects)))
    metrics: dict[str, float] = {}
    rows: dict[str, Row] = {}
    for name, subject in subjects.items():
        row, found = _certify_by(subject, options, folders[name])
        rows |= {} if row is None else {name: row}
        own = f"/{name}/" if metrics else "/"
        metrics |= {key.replace("/", own, 1): value for key, value in found.items()}
    if len(rows) > 1:
        print_side_by_side(rows)
    return metrics


def _folders(
    subjects: Mapping[str, Subject], options: _Options, output: str | None
) -> dict[str, Path]:
    """Where each certificate goes; what stands in a default place and says else is kept."""
    first = next(iter(subjects.values()))
    default = default_output(first.path, options.split, options.samples)
    place = Path(output) if output else default
    if output and os.path.basename(output) == output:
        place = default.with_name(output)
    names = {name: place.name + (f"-{name}" if i else "") for i, name in enumerate(subjects)}
    folders = {name: place.with_name(own) for name, own in names.items()}
    if output is None:
        settings = first.radii(options.radii), options.attack.samples
        metric = space_record(first.network)["metric"]
        for name, subject in subjects.items():
            keep_earlier(folders[name], subject.certifier, subject.named, *settings, metric)
    return folders


def _certify_by(
    subject: Subject, options: _Options, folder: Path
) -> tuple[Row | None, dict[str, float]]:
    """Certify by one certifier and write the folder; returns what is said of it, and metrics."""
    started = time.perf_counter()
    steps = _STEPS[subject.dataset.targets.task]
    with failures_named(options.device), bounds_on(options.device):
        with strict_arithmetic() as arithmetic:
            prepared = _prepare(subject, options, arithmetic, steps)
        # An error keeps all radii; a setting that was changed is one before the folder is complete.
        writing = resumable_folder(folder, is_certificate, prepared.key, keep=has_radii)
        with writing as partial:
            with strict_arithmetic():
                result = steps.certify(subject, options, prepared, partial)
            seconds = time.perf_counter() - started
            log.info("%d samples certified in %.1f s", len(result.target), seconds)
            # Attacks prove nothing: they are made in whatever arithmetic is fast.
            options = replace(options, budget=options.attack.budget())
            with naming_classes({**subject.config, "certifier": subject.named}):
                attacked = steps.attack(subject, options, prepared, result)
                prepared = with_sets(subject, options, prepared, result, steps.sets)
            with strict_arithmetic(), stage("writing and drawing"):
                found = steps.write(subject, options, prepared, result, attacked, seconds, partial)
    return steps.tell(found, prepared.claim, folder)


def _prepare(
    subject: Subject, options: _Options, arithmetic: Mapping[str, Any], steps: "_Steps"
) -> _Prepared:
    """Read the samples, compare model and folded network, and claim what needs no radius."""
    source, network, batch_size = subject.dataset, subject.network, options.batch_size
    with stage(f"reading {source.name}"):
        source.prepare()
        stored = subject.parts.stored(options.split)
    count = len(stored) if options.samples is None else min(options.samples, len(stored))
    stored = stored.take(slice(count))
    need = certification_need(network, subject.certifier)
    require_certification(need, min(batch_size, count), options.device)
    _tell_beforehand(subject, count, options.device)
    # A stream is read in order, so that a damaged file keeps what is before it.
    streamed = isinstance(stored.inputs, Stream)
    rows = compared_rows(min(count, batch_size) if streamed else count)
    with stage("comparing model and folded network"):
        require_agreement(subject.model, network, stored.inputs[rows])
    moved = network.to(options.device)
    with strict_arithmetic(), stage("proving what holds for all samples"):
        kind = network.space.kind
        batches = (as_numbers(stored.inputs[part], kind) for part in _parts(count, batch_size))
        claim = steps.claim(subject.certifier, moved, batches)
        # Directions are of the real-valued network, and so is every claim that has one function R.
        if claim.smoothing is None:
            claim = replace(claim, monotone=monotone_directions(network))
    costs = {} if claim.monotone is None else {"directions": direction_costs(network)}
    record: dict[str, Any] = {
        "certifier": in_words(subject.named),
        **subject.origin,
        "config": in_words(subject.config),
        "dataset": {"name": source.name, "split": options.split, **source.provenance()},
        **costs,
        "arithmetic": {**arithmetic, "device": str(options.device), "dtype": str(claim.dtype)},
    }
    return _Prepared(moved, stored, claim, record, _key(record, network, claim, stored, batch_size))


def _tell_beforehand(subject: Subject, count: int, device: torch.device) -> None:
    """Say what certification and its check will take, where that is much."""
    with stage("counting operations"):
        check = check_beforehand(subject.network, count)
    if check is not None:
        log.info("robustcert-check, of what is certified here: %s", check)
    tell_beforehand(
        *(subject.network, subject.path, count, subject.trained),
        accelerated=device.type != "cpu",
    )


def default_output(checkpoint: Path, split: str, samples: int | None) -> Path:
    """``certificate`` in the run folder, or beside a checkpoint that is in none.

    Whatever differs from ``best.ckpt`` on the whole test split has its difference in the name, so
    that a quick look never replaces a run's certificate.
    """
    parts = [certificate_beside(str(checkpoint.resolve()))]
    parts += [split] if split != "test" else []
    parts += [str(samples)] if samples is not None else []
    return Path("-".join(parts))


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
    write: Callable[..., Any]  # what is told
    tell: Callable[..., tuple[Row | None, dict[str, float]]]


_STEPS: Mapping[str, _Steps] = {
    "classification": _Steps(*classification.STEPS),
    "regression": _Steps(*regression.STEPS),
}
