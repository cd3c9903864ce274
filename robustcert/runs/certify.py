"""The certification run: a checkpoint in, a certificate folder out."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from robustcert import __version__
from robustcert.atomic import resumable_folder
from robustcert.certificate.claim import FORMAT, is_certificate, write_claim
from robustcert.certificate.figures import draw_level_sets, draw_vra_curve
from robustcert.certificate.samples import CertifiedSplit, SampleFiles, has_radii, positive_status
from robustcert.certifiers import Certificates, LipschitzCertifier, strict_arithmetic
from robustcert.config.build import (
    CHECKPOINT_TARGETS,
    Config,
    build_certifier,
    build_data,
    build_dataset,
    build_model,
)
from robustcert.data import DataModule, Dataset, Examples, Stream, to_unit
from robustcert.errors import ConfigError
from robustcert.metrics.gradient_ratio import gradient_ratio
from robustcert.metrics.radii import check_radii
from robustcert.network.agreement import compared_rows, require_agreement
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.runs.attack import attack_samples, build_attack, in_words
from robustcert.runs.console import print_global, print_table, verified
from robustcert.training.checkpoint import Checkpoint, read_checkpoint

log = logging.getLogger(__name__)

# Samples whose gradients say how tight the bound is: enough for a median.
_DIAGNOSED = 200
_AT_ONCE = 16
# Points along each side of the unit square, for the picture of a network on the plane.
_GRID = 81


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Tensors without a device are on the CPU, whatever the default device is."""
    with torch.device("cpu"):
        yield


@_on_the_cpu()
def certify(
    checkpoint: str,
    *,
    certifier: Config | None = None,
    split: Literal["train", "validation", "test"] = "test",
    samples: int | None = None,
    radii: list[float] | None = None,
    dataset: Mapping[str, Any] | None = None,
    output: str | None = None,
    batch_size: int = 1024,
    device: str = "cpu",
    allow_targets: list[str] | None = None,
    attack: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Certify a checkpoint's network on a split and write the certificate folder.

    Args:
        checkpoint: A run's ``checkpoints/best.ckpt``.
        certifier: Node that names the certifier; :class:`LipschitzCertifier` by default.
        split: Of the checkpoint's dataset.
        samples: Only the first so many of the split.
        radii: At which certified samples are counted; those of training by default.
        dataset: Changes to the dataset's node, such as ``{"root": ...}``.
        output: Folder to write; see :func:`default_output`.
        batch_size: Samples certified at once.
        device: Where to compute.
        allow_targets: Packages whose classes the checkpoint may name, beside ours and torch.nn.
        attack: Options of :class:`Attack`.

    Returns:
        ``<split>/accuracy`` and ``<split>/vra_<radius>``.
    """
    started = time.perf_counter()
    allowed = (*CHECKPOINT_TARGETS, *(allow_targets or []))
    attacking = build_attack(attack or {})
    proving = build_certifier(certifier)
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected a number above 0, got {batch_size}")
    if samples is not None and samples < 1:
        raise ConfigError(f"samples: expected a number above 0 or null, got {samples}")
    if radii is not None:
        check_radii(radii)
    where = _device(device)
    read = read_checkpoint(checkpoint)
    config = dict(read.config)
    changed = {key: value for key, value in (dataset or {}).items() if value is not None}
    config["dataset"] = {**config["dataset"], **changed}
    thresholds = check_radii(radii or [*config["radii"], config["epsilon"]])
    folder = Path(output) if output else default_output(read.path, split, samples)

    source = build_dataset(config, allowed)
    if tuple(source.input_shape) != read.input_shape:
        raise ConfigError(
            f"dataset: the network of {read.path} takes inputs of shape {read.input_shape}, got "
            f"{tuple(source.input_shape)} from {source.name}"
        )
    model, network = _load_network(read, config, allowed)
    source.prepare()
    data = build_data(config, source, allowed)
    stored = data.stored(split)
    count = len(stored) if samples is None else min(samples, len(stored))
    stored = stored.take(slice(count))
    origin = {"name": source.name, "split": split, **source.provenance()}
    with strict_arithmetic() as arithmetic:
        # A stream is read in order, so that a damaged file keeps what is before it.
        streamed = isinstance(stored.inputs, Stream)
        rows = compared_rows(min(count, batch_size) if streamed else count)
        require_agreement(model, network, stored.inputs[rows])
        moved = network.to(where)
        with strict_arithmetic():
            pairwise = proving.pairwise_bound(moved)
        record: dict[str, Any] = {
            "functions": proving.functions,
            "proof": proving.proof(network),
            "certifier": in_words(certifier or {}),
            "checkpoint": {"file": read.path.name, "sha256": read.sha256, "epoch": read.epoch},
            "config": in_words(config),
            "dataset": origin,
            "arithmetic": {**arithmetic, "device": str(where), "dtype": str(proving.dtype)},
            "smoothing": proving.smoothing(),
        }
        if not proving.deterministic:
            # An attack on the network says nothing about the smoothed classifier.
            attacking = replace(attacking, samples=0)
        key = _key(record, network, pairwise, stored, batch_size)
        # Whatever fails after the first radius, all radii are kept; a setting that was changed is
        # an error before the folder is complete.
        with (
            resumable_folder(folder, is_certificate, key, keep=has_radii) as partial,
            strict_arithmetic(),
        ):
            result = _certify_all(proving, moved, data, split, stored, batch_size, where, partial)
            seconds = time.perf_counter() - started
            log.info("%d samples certified in %.1f s", count, seconds)
            batches = (to_unit(result.inputs[part]) for part in _parts(count, batch_size))
            pairs = proving.global_claim(network, batches)
            attacked = attack_samples(network, result, thresholds, attacking)
            record |= {
                "attack": {**attacked, "took": round(time.perf_counter() - started - seconds, 3)},
                "gradient_over_bound": _tightness(network, result, pairwise),
                "seconds": round(seconds, 3),
            }
            claim = write_claim(
                partial,
                network,
                pairwise,
                result,
                thresholds,
                record,
                proving.multiplier_tensors(moved),
                pairs,
            )
            draw_vra_curve(
                partial / "vra.png",
                result.curve(),
                accuracy=claim["summary"]["correct"] / count,
                empirical=list(zip(attacked["radii"], attacked["accuracy"], strict=True)),
                samples=count,
                attacked=attacked["samples"],
                title=f"{source.name}, {split} split",
                label=verified(claim),
            )
            if read.input_shape == (2,):
                _draw_plane(partial / "levels.png", proving, network, source)
    print_table(claim, folder)
    if pairs is None:
        return summarize(claim)
    print_global(pairs)
    return summarize(claim) | {"global/eps_bar": max(row["eps_bar"] for row in pairs["outputs"])}


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
    checkpoint = checkpoint.resolve()
    folder = checkpoint.parent
    parts = ["certificate"]
    parts += [checkpoint.stem] if checkpoint.stem != "best" else []
    parts += [split] if split != "test" else []
    parts += [str(samples)] if samples is not None else []
    return (folder.parent if folder.name == "checkpoints" else folder) / "-".join(parts)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: no float64 arithmetic on {name!r} here: {reason}") from error
    return device


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _load_network(
    checkpoint: Checkpoint, config: Config, allowed: Sequence[str]
) -> tuple[torch.nn.Module, PlainNetwork]:
    # Some initialisations do not exist in half precision; what they give is replaced.
    with _default_dtype(torch.float32):
        model = build_model(config, checkpoint.input_shape, checkpoint.num_classes, allowed)
    checkpoint.load_into(model)
    return model, fold_network(model.eval(), checkpoint.input_shape)


def _key(
    record: Mapping[str, Any],
    network: PlainNetwork,
    pairwise: torch.Tensor,
    stored: Examples,
    batch_size: int,
) -> str:
    """Whatever the bits of a radius depend on: what was certified under it can be kept."""
    samples = b"".join(t.numpy().tobytes() for t in (stored.indices, stored.labels))
    content = {
        **record,
        "format": FORMAT,
        "network": network.digest(),
        "pairwise": [[k.hex() for k in row] for row in pairwise.tolist()],
        "samples": hashlib.sha256(samples).hexdigest(),
        "inputs": [list(stored.inputs.shape), str(stored.inputs.dtype)],
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "versions": [__version__, torch.__version__, torch.backends.cpu.get_cpu_capability()],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _certify_all(
    certifier: LipschitzCertifier,
    network: PlainNetwork,
    data: DataModule,
    split: Literal["train", "validation", "test"],
    stored: Examples,
    batch_size: int,
    device: torch.device,
    folder: Path,
) -> CertifiedSplit:
    inputs, count = stored.inputs, len(stored)
    files = SampleFiles(
        folder,
        stored.indices,
        stored.labels,
        inputs.shape[1:],
        inputs.dtype,
        batch_size,
        positive_status(certifier.smoothing()),
    )
    if files.done:
        log.info("%d of %d samples were certified before: going on", files.done, count)
    for batch, _ in data.in_order(split, batch_size, files.done, count):
        found = certifier.certify(network, to_unit(batch.to(device)))
        names = ("prediction", "radius", "margin", "error", "decided")
        files.append(batch, Certificates(*(getattr(found, name).cpu() for name in names)))
    return files.split(inputs)


def _tightness(
    network: PlainNetwork, result: CertifiedSplit, pairwise: torch.Tensor
) -> dict[str, float] | None:
    if not len(pairwise):
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


def _draw_plane(
    path: Path, certifier: LipschitzCertifier, network: PlainNetwork, source: Dataset
) -> None:
    line = torch.linspace(0, 1, _GRID, dtype=torch.float64, device="cpu")
    grid = torch.cartesian_prod(line, line)
    found = certifier.certify(network, grid)
    distance = getattr(source, "distance", None)
    draw_level_sets(
        path,
        found.radius.view(_GRID, _GRID).numpy(),
        found.prediction.view(_GRID, _GRID).numpy(),
        truth=None if distance is None else distance(grid).view(_GRID, _GRID).numpy(),
        title=source.name,
    )
