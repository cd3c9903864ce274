"""The certification run: a checkpoint or an ONNX model in, a certificate folder out."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robustcert import __version__
from robustcert.atomic import resumable_folder
from robustcert.certificate.claim import FORMAT, in_hexadecimal, is_certificate, write_claim
from robustcert.certificate.figures import draw_vra_curve
from robustcert.certificate.places import certificate_beside
from robustcert.certificate.samples import CertifiedSplit, SampleFiles, has_radii, positive_status
from robustcert.certifiers import Certificates, Claim, strict_arithmetic
from robustcert.config.build import Config, named_certifiers
from robustcert.data import Examples, Part, Stream, to_unit
from robustcert.errors import ConfigError
from robustcert.metrics.gradient_ratio import gradient_ratio
from robustcert.metrics.thresholds import check_radii
from robustcert.network.agreement import compared_rows, require_agreement
from robustcert.network.network import PlainNetwork
from robustcert.runs.attack import (
    Attack,
    RadiusAttack,
    attack_samples,
    build_attack,
    in_words,
    verified_of_attacked,
)
from robustcert.runs.console import Row, print_global, print_side_by_side, print_table, verified
from robustcert.runs.earlier import keep_earlier
from robustcert.runs.fallback import decided_by
from robustcert.runs.plane import draw_plane
from robustcert.runs.subject import Subject, by_certifier, read_model, read_run
from robustcert.training.stage import stage

log = logging.getLogger(__name__)

# Samples whose gradients say how tight the bound is: enough for a median.
_DIAGNOSED = 200
_AT_ONCE = 16


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

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: expected a number above 0, got {self.batch_size}")
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"samples: expected a number above 0 or null, got {self.samples}")
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
    output: str | None = None,
    batch_size: int = 1024,
    device: str = "cpu",
    allow_targets: list[str] | None = None,
    attack: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Certify a network on a split and write the certificate folder.

    Args:
        checkpoint: A run's ``checkpoints/best.ckpt``, or the run's folder.
        network: An ONNX file, in place of a checkpoint.
        preprocessing: ``mean`` and ``std`` that inputs of the ONNX model are standardised by, one
            or one per channel; they become the network's first layer.
        certifier: Node that names the certifier; :class:`LipschitzCertifier` by default. Nodes by
            name are certifiers that are compared: the first one's certificate is ``output``, that
            of another ``<output>-<name>``.
        split: Of the checkpoint's dataset.
        samples: Only the first so many of the split.
        radii: At which certified samples are counted; those of training by default.
        epsilon: One more radius, of an ONNX model; a checkpoint has its own.
        dataset: Changes to the dataset's node, such as ``{"root": ...}``; for an ONNX model, the
            whole node.
        output: Folder to write; what stands there is replaced. By default :func:`default_output`,
            where a certificate of other settings is kept.
        batch_size: Samples certified at once.
        device: Where to compute.
        allow_targets: Packages whose classes the checkpoint and ``certifier`` may name, beside ours
            and torch.nn.
        attack: Options of :class:`Attack`.

    Raises:
        ConfigError: a setting is wrong, or the default folder holds a certificate of others.

    Returns:
        ``<split>/accuracy`` and ``<split>/vra_<radius>``; of a further certifier
        ``<split>/<name>/vra_<radius>``.
    """
    attacking = build_attack(attack or {})
    options = _Options(split, samples, radii, batch_size, _device(device), attacking)
    nodes = named_certifiers(certifier)
    rest = next(iter(nodes.values())), dataset or {}, allow_targets or []
    if network is not None:
        if checkpoint is not None:
            raise ConfigError(f"network={network}: certifies no checkpoint besides: leave one out")
        read = read_model(network, preprocessing or {}, [*(radii or []), epsilon], *rest)
    elif checkpoint is not None:
        read = read_run(checkpoint, *rest)
    else:
        raise ConfigError("checkpoint: expected a checkpoint, or network=<an ONNX file>")
    subjects = by_certifier(read, nodes, allow_targets or [])
    folders = _folders(subjects, options, output)
    metrics: dict[str, float] = {}
    rows: dict[str, Row] = {}
    at_radii = RadiusAttack()
    for name, subject in subjects.items():
        rows[name], found = _certify_by(subject, options, folders[name], at_radii)
        prefix = f"{split}/{name}/" if metrics else f"{split}/"
        metrics |= {prefix + key.removeprefix(f"{split}/"): value for key, value in found.items()}
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
    names = {name: place.name + (f"-{name}" if i else "") for i, name in enumerate(subjects)}
    folders = {name: place.with_name(own) for name, own in names.items()}
    if output is None:
        settings = _thresholds(first, options), options.attack.samples
        for name, subject in subjects.items():
            keep_earlier(folders[name], subject.certifier, subject.named, *settings)
    return folders


def _certify_by(
    subject: Subject, options: _Options, folder: Path, at_radii: RadiusAttack
) -> tuple[Row, dict[str, float]]:
    """Certify by one certifier and write the folder; returns what is said of it, and metrics."""
    started = time.perf_counter()
    with strict_arithmetic() as arithmetic:
        prepared = _prepare(subject, options, arithmetic)
        # An error keeps all radii; a setting that was changed is one before the folder is complete.
        with (
            resumable_folder(folder, is_certificate, prepared.key, keep=has_radii) as partial,
            strict_arithmetic(),
        ):
            result = _certify(subject, options, prepared, partial)
            seconds = time.perf_counter() - started
            log.info("%d samples certified in %.1f s", len(result.target), seconds)
            attacked = _attack(subject, options, prepared, result, at_radii)
            with stage("comparing with the fallback, and drawing"):
                network, size, device = prepared.network, options.batch_size, options.device
                decided = decided_by(subject.certifier, network, result, size, device)
                written = _write(subject, options, prepared, result, attacked, seconds, partial)
    radii = _thresholds(subject, options)
    row = Row(written, verified_of_attacked(result, radii, attacked["samples"]), decided)
    return row, _tell(row, prepared.claim, folder)


def _prepare(subject: Subject, options: _Options, arithmetic: Mapping[str, Any]) -> _Prepared:
    """Read the samples, compare model and folded network, and claim what needs no radius."""
    source, network, batch_size = subject.dataset, subject.network, options.batch_size
    with stage(f"reading {source.name}"):
        source.prepare()
        stored = subject.parts.stored(options.split)
    count = len(stored) if options.samples is None else min(options.samples, len(stored))
    stored = stored.take(slice(count))
    # A stream is read in order, so that a damaged file keeps what is before it.
    streamed = isinstance(stored.inputs, Stream)
    rows = compared_rows(min(count, batch_size) if streamed else count)
    with stage("comparing model and folded network"):
        require_agreement(subject.model, network, stored.inputs[rows])
    moved = network.to(options.device)
    with strict_arithmetic(), stage("proving what holds for all samples"):
        batches = (to_unit(stored.inputs[part]) for part in _parts(count, batch_size))
        claim = subject.certifier.claim(moved, batches)
    record: dict[str, Any] = {
        "certifier": in_words(subject.named),
        **subject.origin,
        "config": in_words(subject.config),
        "dataset": {"name": source.name, "split": options.split, **source.provenance()},
        "arithmetic": {**arithmetic, "device": str(options.device), "dtype": str(claim.dtype)},
    }
    return _Prepared(moved, stored, claim, record, _key(record, network, claim, stored, batch_size))


def _certify(
    subject: Subject, options: _Options, prepared: _Prepared, folder: Path
) -> CertifiedSplit:
    """Certify batch after batch, from where an interrupted run stopped, into the folder's files."""
    stored, count = prepared.examples, len(prepared.examples)
    files = SampleFiles(
        folder,
        stored.indices,
        stored.labels,
        stored.inputs.shape[1:],
        stored.inputs.dtype,
        options.batch_size,
        positive_status(prepared.claim.smoothing),
    )
    if files.done:
        log.info("%d of %d samples were certified before: going on", files.done, count)
    batches = subject.parts.in_order(options.split, options.batch_size, files.done, count)
    with stage(f"certifying {count} samples", count) as advance:
        advance(files.done)
        for batch, _ in batches:
            found = subject.certifier.certify(prepared.network, to_unit(batch.to(options.device)))
            names = ("prediction", "radius", "margin", "error", "decided")
            files.append(batch, Certificates(*(getattr(found, name).cpu() for name in names)))
            advance(len(batch))
    return files.split(stored.inputs)


def _attack(
    subject: Subject,
    options: _Options,
    prepared: _Prepared,
    result: CertifiedSplit,
    at_radii: RadiusAttack,
) -> dict[str, Any]:
    """Attack the network at what was certified of it; a smoothed classifier is another function."""
    started = time.perf_counter()
    attack = options.attack
    if prepared.claim.smoothing is not None:
        attack = replace(attack, samples=0)
    radii = _thresholds(subject, options)
    attacked = attack_samples(subject.network, result, radii, attack, at_radii)
    return {**attacked, "took": round(time.perf_counter() - started, 3)}


def _write(
    subject: Subject,
    options: _Options,
    prepared: _Prepared,
    result: CertifiedSplit,
    attacked: Mapping[str, Any],
    seconds: float,
    folder: Path,
) -> dict[str, Any]:
    """Write the claim and the pictures beside samples and radii; returns certificate.json."""
    source, network, claim = subject.dataset, subject.network, prepared.claim
    record = {
        **prepared.record,
        "attack": attacked,
        "gradient_over_bound": _tightness(network, result, claim.pairwise),
        "seconds": round(seconds, 3),
    }
    written = write_claim(folder, network, claim, result, _thresholds(subject, options), record)
    count = len(result.target)
    draw_vra_curve(
        folder / "vra.png",
        result.curve(),
        accuracy=written["summary"]["correct"] / count,
        empirical=list(zip(attacked["radii"], attacked["accuracy"], strict=True)),
        samples=count,
        attacked=attacked["samples"],
        title=f"{source.name}, {options.split} split",
        label=verified(written),
    )
    if subject.network.input_shape == (2,):
        draw_plane(folder / "levels.png", subject.certifier, network, source)
    return written


def _tell(row: Row, claim: Claim, folder: Path) -> dict[str, float]:
    """Print what was certified; returns it as metrics."""
    print_table(row, folder)
    metrics = summarize(row.claim)
    if claim.pairs is not None:
        print_global(claim.pairs)
        metrics["global/eps_bar"] = max(row["eps_bar"] for row in claim.pairs["outputs"])
    return metrics


def _thresholds(subject: Subject, options: _Options) -> list[float]:
    """Radii at which certified samples are counted."""
    return check_radii(options.radii or [*subject.config["radii"], subject.config["epsilon"]])


def summarize(claim: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a claim: ``<split>/accuracy`` and ``<split>/vra_<radius>``.

    Without a proof it is ``<split>/smoothed_<radius>``.
    """
    summary, split = claim["summary"], claim["dataset"]["split"]
    name = "smoothed" if "smoothing" in claim["claim"] else "vra"
    metrics = {f"{split}/accuracy": summary["correct"] / summary["samples"]}
    for row in summary["certified"]:
        metrics[f"{split}/{name}_{row['decimal']:.4g}"] = row["count"] / summary["samples"]
    return metrics


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
        "pairwise": in_hexadecimal(claim.pairwise),
        "samples": hashlib.sha256(samples).hexdigest(),
        "inputs": [list(stored.inputs.shape), str(stored.inputs.dtype)],
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "versions": [__version__, torch.__version__, torch.backends.cpu.get_cpu_capability()],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _tightness(
    network: PlainNetwork, result: CertifiedSplit, pairwise: torch.Tensor | None
) -> dict[str, float] | None:
    if pairwise is None:
        return None
    x = to_unit(result.inputs[:_DIAGNOSED]).double()
    # A gradient for every class: of all samples at once they would be the peak of memory.
    parts = [gradient_ratio(network, part, pairwise.cpu()) for part in x.split(_AT_ONCE)]
    ratio = torch.cat(parts)
    # Logits that overflow have no gradient.
    ratio = ratio[torch.isfinite(ratio)]
    if not len(ratio):
        return None
    return {"median": float(ratio.median()), "max": float(ratio.max()), "samples": len(ratio)}


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
