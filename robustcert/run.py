"""The two runs: training, up to a certified best checkpoint, and certifying a checkpoint."""

import csv
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from rich.console import Console
from rich.table import Table

from robustcert.attacks import pgd_survivors
from robustcert.build import (
    CHECKPOINT_TARGETS,
    COMMAND_LINE_TARGETS,
    Config,
    ConfigError,
    build,
    build_data,
    build_dataset,
    build_model,
    build_module,
)
from robustcert.certificate import CertifiedSplit, write_certificate
from robustcert.certifiers import Certificates, LipschitzCertifier, strict_arithmetic
from robustcert.checkpoint import CheckpointError, RecordRun, read_checkpoint
from robustcert.data import to_unit
from robustcert.figures import draw_vra_curve
from robustcert.lipschitz import fold_network
from robustcert.plain import PlainNetwork

log = logging.getLogger(__name__)


def train(config: Config, run_dir: Path, *, multirun: bool = False) -> float:
    """Train, keep the best checkpoint by verified robust accuracy, and certify it.

    Args:
        config: The resolved configuration as a plain dictionary.
        run_dir: Folder of the run; checkpoints go to ``checkpoints/``, metrics to ``metrics/``, the
            certificate to ``certificate/``.
        multirun: Whether this is one job of several in this process.

    Returns:
        The best ``val/vra``.
    """
    _guard_launch(config, multirun)
    seed_everything(config["seed"], workers=True, verbose=False)
    allowed = (*COMMAND_LINE_TARGETS, *config["allow_targets"])
    dataset = build_dataset(config, allowed)
    data = build_data(config, dataset, allowed)
    module = build_module(config, dataset, allowed)
    log.info("run folder %s", run_dir)
    checkpoints = ModelCheckpoint(
        dirpath=run_dir / "checkpoints",
        filename="best",
        monitor="val/vra",
        mode="max",
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    recorded = {key: value for key, value in config.items() if key != "resume"}
    callbacks: list[Callback] = [
        RecordRun(recorded, module.input_shape, dataset.num_classes),
        checkpoints,
    ]
    if config["trainer"].get("enable_progress_bar", True):
        callbacks.append(RichProgressBar())
    logger = build(config["logger"], "logger", allowed, expected=Logger)
    try:
        trainer: Trainer = build(
            config["trainer"],
            "trainer",
            allowed,
            expected=Trainer,
            logger=logger,
            callbacks=callbacks,
            default_root_dir=str(run_dir),
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
        )
        logger.log_hyperparams(recorded)
        resume = config.get("resume")
        if resume and isinstance(logger, CSVLogger):
            _keep_rows(logger, read_checkpoint(resume).epoch)
        with warnings.catch_warnings():
            # The loader holds the data in memory: more processes would only copy it.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not.*")
            trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
        best = float(checkpoints.best_model_score or float("nan"))
        log.info("best val/vra %.4f: %s", best, checkpoints.best_model_path)
        if config["certify"] and trainer.is_global_zero:
            summary = certify(
                {
                    "checkpoint": checkpoints.best_model_path,
                    "certifier": config["certifier"],
                    "attack": config["attack"],
                    "allow_targets": config["allow_targets"],
                }
            )
            logger.log_metrics(summary, step=trainer.global_step)
        return best
    finally:
        logger.finalize("finished")
        _finish_wandb()


def certify(options: Config) -> dict[str, float]:
    """Certify a checkpoint's network on a split and write the certificate folder.

    Args:
        options: The keys of ``conf/certify.yaml``; ``checkpoint`` and ``certifier`` are needed.

    Returns:
        ``<split>/accuracy`` and ``<split>/vra_<radius>``.
    """
    started = time.perf_counter()
    checkpoint = read_checkpoint(options["checkpoint"])
    allowed = (*CHECKPOINT_TARGETS, *options.get("allow_targets", []))
    config = dict(checkpoint.config)
    changed = {k: v for k, v in options.get("dataset", {}).items() if v is not None}
    config["dataset"] = {**config["dataset"], **changed}
    radii = _radii(options.get("radii") or sorted({*config["radii"], config["epsilon"]}))
    certifier: LipschitzCertifier = build(options["certifier"], "certifier", allowed)
    dataset = build_dataset(config, allowed)
    if tuple(dataset.input_shape) != checkpoint.input_shape:
        raise ConfigError(
            f"dataset: the network of {checkpoint.path} takes inputs of shape "
            f"{checkpoint.input_shape}, got {tuple(dataset.input_shape)} from {dataset.name}"
        )
    network = fold_network(_load_model(checkpoint, config, allowed), checkpoint.input_shape)
    data = build_data(config, dataset, allowed)
    split = options.get("split", "test")
    dataset.prepare()
    stored = data.stored(split)
    count = _count(options.get("samples"), len(stored))
    device = torch.device(options.get("device", "cpu"))
    inputs, target = stored.inputs[:count], stored.labels[:count]
    with strict_arithmetic() as arithmetic:
        certificates = _certify_all(
            certifier, network.to(device), inputs, options.get("batch_size", 1024), device
        )
        result = CertifiedSplit(inputs, target, stored.indices[:count], certificates)
        seconds = time.perf_counter() - started
        attack = _attack(network, result, radii, options.get("attack", {}))
    folder = Path(options.get("output") or checkpoint.path.parent.parent / "certificate")
    record = {
        "functions": certifier.functions,
        "checkpoint": {
            "file": checkpoint.path.name,
            "sha256": checkpoint.sha256,
            "epoch": checkpoint.epoch,
        },
        "config": config,
        "dataset": {"name": dataset.name, "split": split, **dataset.provenance()},
        "arithmetic": {**arithmetic, "device": str(device), "dtype": str(certifier.dtype)},
        "attack": attack,
        "seconds": round(seconds, 3),
    }
    claim = write_certificate(folder, network, result, radii, record)
    accuracy = claim["summary"]["correct"] / count
    draw_vra_curve(
        folder / "vra.png",
        result.curve(),
        accuracy=accuracy,
        empirical=list(zip(attack["radii"], attack["accuracy"], strict=True)),
        samples=count,
        attacked=attack["samples"],
        title=f"{dataset.name}, {split} split",
    )
    summary = {f"{split}/accuracy": accuracy}
    for row in claim["summary"]["certified"]:
        summary[f"{split}/vra_{row['decimal']:.4g}"] = row["count"] / count
    _print_table(claim, attack, folder, split)
    return summary


def _guard_launch(config: Config, multirun: bool) -> None:
    trainer = config["trainer"]
    several = trainer.get("devices", 1) not in (1, "1", [0]) or trainer.get("num_nodes", 1) != 1
    strategy = str(trainer.get("strategy", "auto"))
    if multirun and several and "fork" not in strategy and "SLURM_NTASKS" not in os.environ:
        # Lightning would start each further rank by running this command again: the whole sweep.
        raise ConfigError(
            f"trainer.strategy={strategy} with trainer.devices={trainer.get('devices')} starts its "
            "ranks by running the whole sweep again. In a sweep, let the scheduler start the ranks "
            "(Slurm), set trainer.strategy=ddp_fork on CPU, or set trainer.devices=1"
        )


def _keep_rows(logger: CSVLogger, epochs: int) -> None:
    # The logger deletes the metrics that it finds; put back those of the epochs already done.
    path = Path(logger.log_dir) / "metrics.csv"
    rows = list(csv.DictReader(path.open(newline=""))) if path.is_file() else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Previous log files.*")
        writer = logger.experiment
    writer.metrics = [row for row in rows if float(row["epoch"] or 0) < epochs]
    writer.save()


def _finish_wandb() -> None:
    # One process may run many jobs; without this the next one would log into this one's run.
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


def _load_model(checkpoint: Any, config: Config, allowed: Sequence[str]) -> torch.nn.Module:
    model = build_model(config, checkpoint.input_shape, checkpoint.num_classes, allowed)
    try:
        model.load_state_dict(checkpoint.model_state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path}: its weights do not fit the architecture that it names: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval()


def _radii(radii: Sequence[float]) -> list[float]:
    if not all(isinstance(r, int | float) and r > 0 for r in radii):
        raise ConfigError(f"radii: expected a list of radii above 0, got {list(radii)!r}")
    return sorted(float(r) for r in radii)


def _count(samples: int | None, available: int) -> int:
    if samples is not None and not (isinstance(samples, int) and samples > 0):
        raise ConfigError(f"samples: expected a number above 0 or null, got {samples!r}")
    return available if samples is None else min(samples, available)


def _certify_all(
    certifier: LipschitzCertifier,
    network: PlainNetwork,
    inputs: torch.Tensor,
    batch_size: int,
    device: torch.device,
) -> Certificates:
    parts = [
        certifier.certify(network, to_unit(batch.to(device))) for batch in inputs.split(batch_size)
    ]
    return Certificates(
        *(
            torch.cat([getattr(part, name) for part in parts]).cpu()
            for name in ("prediction", "radius", "margin", "error")
        )
    )


def _attack(
    network: PlainNetwork, result: CertifiedSplit, radii: Sequence[float], options: Config
) -> dict[str, Any]:
    samples, steps = options.get("samples", 256), options.get("steps", 40)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(result.target), generator=generator)[:samples]
    record: dict[str, Any] = {
        "method": "foolbox L2PGD, one random start, clipped to [0, 1]",
        "samples": len(rows),
        "steps": steps,
        "radii": list(radii),
        "accuracy": [],
    }
    if len(rows) == 0:
        return {**record, "radii": []}
    x = to_unit(result.inputs[rows]).double()
    survivors = pgd_survivors(network, x, result.target[rows], radii, steps=steps)
    record["accuracy"] = [float(s.double().mean()) for s in survivors]
    certified = result.certificates.radius[rows] > torch.tensor(radii)[:, None].double()
    broken = certified & result.correct[rows] & ~survivors
    if broken.any():
        index = int(result.indices[rows][broken.any(0)][0])
        raise RuntimeError(
            f"a certificate is broken: PGD changes the prediction of sample {index} inside its "
            "certified radius. This is a defect of robustcert; nothing was written"
        )
    record["broken"] = 0
    return record


def _print_table(claim: dict[str, Any], attack: dict[str, Any], folder: Path, split: str) -> None:
    count = claim["summary"]["samples"]
    empirical = dict(zip(attack["radii"], attack["accuracy"], strict=True))
    table = Table(title=f"{claim['dataset']['name']}, {split} split, {count} samples")
    table.add_column("radius", justify="right")
    table.add_column("verified", justify="right")
    table.add_column(f"under PGD ({attack['samples']})", justify="right")
    table.add_row("0", f"{claim['summary']['correct'] / count:.4f}", "", end_section=True)
    for row in claim["summary"]["certified"]:
        under = empirical.get(row["decimal"])
        table.add_row(
            f"{row['decimal']:.4g}",
            f"{row['count'] / count:.4f}",
            "" if under is None else f"{under:.4f}",
        )
    Console().print(table)
    for name in ("certificate.json", "radii.csv", "network.safetensors", "vra.png"):
        Console(soft_wrap=True).print(f"  {folder / name}")
