"""The training run: fit, keep the best checkpoint, certify it."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from robustcert.certifiers import strict_arithmetic
from robustcert.config.build import (
    COMMAND_LINE_TARGETS,
    RESUME_TARGETS,
    Config,
    build_certifier,
    build_data,
    build_dataset,
    build_module,
    named_certifiers,
    standardised,
)
from robustcert.config.schema import check_value, check_values
from robustcert.data import DataModule
from robustcert.errors import ConfigError, DivergedError, UnsoundNetworkError, typed
from robustcert.metrics.thresholds import check_radii
from robustcert.network.agreement import require_agreement
from robustcert.network.fold import fold_network
from robustcert.network.stated import own_modules
from robustcert.runs.attack import build_attack
from robustcert.runs.certify import certify
from robustcert.runs.certifying_device import checked_device, chosen_device, is_of_device
from robustcert.runs.conformal import check_coverage
from robustcert.runs.fresh import removed_unless
from robustcert.runs.loggers import begin, build_loggers, end, log_result
from robustcert.runs.results import new_row, processor, said_if_failed, write_row
from robustcert.runs.threads import threads
from robustcert.runs.trainer import build_trainer, compiler_of, expected_warnings, guard_launch
from robustcert.runs.training_memory import (
    is_accelerated,
    refused_if_too_large,
    require_training,
    tensors_of,
)
from robustcert.training.callbacks import (
    Begun,
    BestCheckpoint,
    CheckRanks,
    LastCheckpoint,
    RecordRun,
    SeedEpochs,
)
from robustcert.training.checkpoint import Checkpoint, read_checkpoint, score_of
from robustcert.training.module import CertifiedModule
from robustcert.training.stage import stage

log = logging.getLogger(__name__)

_SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("dataset", "model", "objective", "optimizer", "trainer"), dict),
    **dict.fromkeys(("loader", "epsilon_schedule", "certifier", "attack"), dict),
    "seed": int,
    "epsilon": float,
    "radii": list[float],
    "certify": bool,
    "resume": str | None,
    "allow_targets": list[str],
}


def train(
    config: Config,
    run_dir: Path,
    *,
    multirun: bool = False,
    command: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    new: bool | None = None,
) -> float:
    """Train, keep the best checkpoint by verified robust accuracy, and certify it.

    Args:
        config: The resolved configuration as a plain dictionary.
        run_dir: Folder of the run: ``checkpoints/``, ``metrics/``, ``certificate/`` and
            ``results.json`` go there.
        multirun: Whether this is one job of a sweep; what its folder holds is continued.
        command: What was typed, for ``results.json``.
        callbacks: Lightning callbacks, beside ours and those of ``trainer.callbacks``.
        new: Whether the folder was new before this process logged into it; by default, is now.

    Returns:
        The best score, ``val/vra`` of classes; NaN if nothing was trained to the end of an epoch.

    Raises:
        ConfigError: a setting is wrong; whatever can be checked is checked before training.
        DivergedError: weights became NaN or infinite.
        SystemExit: the run was interrupted; the message says how to continue.

    A run that fails before its first step leaves no folder, unless there was one before.
    """
    begun = Begun()
    with removed_unless(lambda: begun.begun or multirun, run_dir, new):
        return _train(config, run_dir, multirun, command, [begun, *callbacks])


def _train(
    config: Config,
    run_dir: Path,
    multirun: bool,
    command: Mapping[str, Any] | None,
    callbacks: Sequence[Callback],
) -> float:
    _check_settings(config)
    # A configuration out of a checkpoint may name less than one from the command line.
    targets = RESUME_TARGETS if config["resume"] else COMMAND_LINE_TARGETS
    resume = _find_resumed(config, run_dir, multirun)
    seed_everything(config["seed"], workers=True, verbose=False)
    allowed = (*targets, *config["allow_targets"])
    with stage("building the network and the trainer"):
        dataset = build_dataset(config, allowed)
        config = standardised(config, dataset)
        data = build_data(config, dataset, allowed)
        tensors = tensors_of(config["optimizer"])
        with refused_if_too_large(1 if is_accelerated(config["trainer"]) else tensors):
            module = build_module(config, dataset, allowed)
        _check_unit(config["epsilon"], module)
        module.compiler = compiler_of(config["trainer"])
        measure, validated_by = _check_certifier(config, module)
        before = _read_resumed(resume, module) if resume else None
        recorded = _record(config, data)
        loggers = build_loggers(config, run_dir, allowed)
        own = _callbacks(config, run_dir, module, recorded, measure)
        trainer = build_trainer(config, run_dir, allowed, loggers, [*own, *callbacks])
    require_training(module.model, tensors, trainer.strategy.root_device)
    if before and 0 <= (trainer.max_epochs or -1) < before.epoch:
        raise ConfigError(
            f"trainer.max_epochs: {trainer.max_epochs}, but {before.epoch} epochs of this run are "
            "done: set as many, or more to train further"
        )
    guard_launch(trainer, multirun)
    _announce(run_dir, module, trainer, before, validated_by)
    batch = (config["loader"].get("batch_size", 1), *module.input_shape)
    with threads(config.get("threads"), module.model, batch) as recorded["threads"]:
        return _run(config, recorded, run_dir, trainer, module, data, before, loggers, command)


def _run(
    config: Config,
    recorded: Config,
    run_dir: Path,
    trainer: Trainer,
    module: CertifiedModule,
    data: DataModule,
    before: Checkpoint | None,
    loggers: Sequence[Logger],
    command: Mapping[str, Any] | None,
) -> float:
    try:
        if trainer.is_global_zero:
            begin(loggers, before, _count_parameters(module))
        for logger in loggers:
            logger.log_hyperparams(recorded)
        _fit(trainer, module, data, before)
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return _score(trainer)
        return _finish(config, run_dir, trainer, module, loggers, command)
    finally:
        end(loggers)


def _check_settings(config: Config) -> None:
    check_values(config, _SETTINGS)
    for key in ("lr_schedule", "callbacks", "norm"):  # groups that may be left out
        check_value(config.get(key), dict | None, key)
    check_value(config.get("coverage"), float | None, "coverage")
    check_value(config.get("threads"), int | None, "threads")
    if config.get("threads") is not None and config["threads"] < 1:
        raise ConfigError(f"threads: expected a number above 0, got {config['threads']}")
    check_coverage(config.get("coverage"))
    if not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"seed: expected a number from 0 to 2**32 - 1, got {config['seed']}")
    if not config["epsilon"] > 0:
        raise ConfigError(f"epsilon: expected a radius above 0, got {config['epsilon']}")
    check_radii(config["radii"])
    # What is only needed after hours of training is checked before.
    for node in named_certifiers(config["certifier"]).values():
        build_certifier(node, config["allow_targets"])
    build_attack(config["attack"])
    check_value(config.get("certify_device"), str | None, "certify_device")
    if config.get("certify_device") is not None:
        checked_device(config["certify_device"], "certify_device")
    trainer = config["trainer"]
    for key in ("max_epochs", "max_steps"):
        if isinstance(trainer.get(key), int) and trainer[key] < 1:
            raise ConfigError(f"trainer.{key}: expected a number above 0, got {trainer[key]}")
    if str(trainer.get("precision")) in ("16-true", "bf16-true"):
        raise ConfigError(
            f"trainer.precision: {trainer['precision']} keeps the weights in half precision, in "
            "which no constraint holds: choose 32-true, bf16-mixed or 16-mixed"
        )


def _check_unit(epsilon: float, module: CertifiedModule) -> None:
    """Refuse a radius of images that no two of them are apart: one of pixels from 0 to 255, say."""
    widest = math.sqrt(math.prod(module.input_shape))
    if module.space.kind == "images" and module.space.metric is None and epsilon >= widest:
        raise ConfigError(
            f"epsilon: {epsilon:g} is more than any two inputs are apart in l2, {widest:.4g}: "
            "values are in [0, 1], so that a radius of pixels from 0 to 255 is divided by 255"
        )


def _check_certifier(config: Config, module: CertifiedModule) -> tuple[str, str]:
    """What validation counts, and a line that says so; or an error before training, not after."""
    network, said = fold_network(module.model, module.input_shape, module.space), ""
    if config["certify"] and own_modules(module.model):
        with strict_arithmetic():
            require_agreement(
                module.model,
                network,
                torch.empty(0, *module.input_shape, dtype=torch.float32, device="cpu"),
            )
    try:
        module.validation.check(network)
    except UnsoundNetworkError as error:
        if config["certify"]:
            raise ConfigError(f"certifier: {error}") from error
        module.validation = type(module.validation)()
        said = f", as certifier does not cover the network: {error}"
    validation = module.validation
    return validation.measure(network), validation.describe(network) + said


def _find_resumed(config: Config, run_dir: Path, multirun: bool) -> str | None:
    """The checkpoint to continue: the one that is asked for, or what a job of a sweep left."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if config["resume"] or not last.exists():
        return config["resume"]
    if not multirun:
        raise ConfigError(
            f"{run_dir} holds a run already: continue it with resume={last}, "
            "or choose another folder with hydra.run.dir=..."
        )
    return str(last)


def _record(config: Config, data: DataModule) -> Config:
    """The configuration as checkpoints keep it, with the digest of the generated images."""
    recorded = {key: value for key, value in config.items() if key != "resume"}
    if data.generated is not None:
        data.prepare_data()
        data.read_generated()
        recorded["loader"] = {**config["loader"], "generated_sha256": data.generated_sha256}
    return recorded


def _callbacks(
    config: Config, run_dir: Path, module: CertifiedModule, recorded: Config, measure: str
) -> list[Callback]:
    checkpoints = run_dir / "checkpoints"
    return [
        RecordRun(recorded, module.input_shape, module.num_classes),
        SeedEpochs(config["seed"]),
        CheckRanks(),
        BestCheckpoint(checkpoints, measure, module.score),
        LastCheckpoint(checkpoints),
    ]


def _read_resumed(resume: str, module: CertifiedModule) -> Checkpoint:
    checkpoint = read_checkpoint(resume)
    checkpoint.load_into(module.model)
    return checkpoint


def _announce(
    run_dir: Path,
    module: CertifiedModule,
    trainer: Trainer,
    before: Checkpoint | None,
    validated_by: str,
) -> None:
    if not trainer.is_global_zero:
        return
    log.info("run folder: %s", run_dir)
    log.info(
        "%s with %s parameters, on %s",
        type(module.model).__name__,
        f"{_count_parameters(module):,}",
        _device_name(trainer),
    )
    log.info("best.ckpt is chosen by %s, which counts the radii of %s", module.score, validated_by)
    if before and before.epoch == trainer.max_epochs:
        log.info(
            "all %d epochs are done, so that nothing is trained: train further with "
            "trainer.max_epochs=%d",
            *(before.epoch, 2 * before.epoch),
        )
    elif before:
        log.info("continuing after epoch %d", before.epoch)


def _fit(
    trainer: Trainer, module: CertifiedModule, data: DataModule, before: Checkpoint | None
) -> None:
    last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    path = str(before.path) if before else None
    try:
        with expected_warnings():
            trainer.fit(module, data, ckpt_path=path, weights_only=True if before else None)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns the first into the second, without a word on how to go on.
        when = "" if last.exists() else " in the first epoch"
        raise SystemExit(f"interrupted{when}: {_how_to_go_on(last)}") from error
    except torch.linalg.LinAlgError as error:
        raise DivergedError(trainer.current_epoch, str(error).splitlines()[0]) from error
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {error}") from error
    except RuntimeError as error:
        device = trainer.strategy.root_device
        if not is_of_device(error, device):
            raise
        raise ConfigError(
            f"trainer: {device} failed: {str(error).splitlines()[0]}. A new run takes less memory "
            f"with a smaller loader.batch_size or capacity; {_how_to_go_on(last)}"
        ) from error


def _how_to_go_on(last: Path) -> str:
    """How a run that ended in an epoch goes on."""
    return f"continue with resume={last}" if last.exists() else "there is no checkpoint yet"


def _finish(
    config: Config,
    run_dir: Path,
    trainer: Trainer,
    module: CertifiedModule,
    loggers: Sequence[Logger],
    command: Mapping[str, Any] | None,
) -> float:
    if not (run_dir / "checkpoints" / "best.ckpt").exists():
        every = (trainer.check_val_every_n_epoch or 1) * trainer.num_training_batches
        raise ConfigError(
            f"trainer: training ended after {trainer.global_step} steps, before the validation "
            f"that best.ckpt is chosen by: give it at least {every} steps, or validate earlier by "
            "+trainer.val_check_interval"
        )
    best = read_checkpoint(run_dir / "checkpoints" / "best.ckpt")
    score = score_of(best.metrics)
    log.info("best %s %.4f, in epoch %d: %s", module.score, score, best.epoch, best.path)
    last = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    results: dict[str, Any] = {
        **new_row(best.config, run_dir, command),
        "parameters": _count_parameters(module),
        "device": _device_name(trainer),
        "ranks": trainer.world_size,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "epochs": last.epoch,
        "best_epoch": best.epoch,
        "seconds": {
            "train": round(last.seconds, 3),
            "train_processor": round(last.processor_seconds, 3),
        },
        "metrics": best.metrics,
    }
    write_row(run_dir, results)
    if config["certify"]:
        with said_if_failed(run_dir, results):
            certified = _certify(config, best.path, trainer.strategy.root_device)
        folder = run_dir / "certificate"
        claim = json.loads((folder / "certificate.json").read_text())
        results["seconds"] |= {"certify": claim["seconds"], "attack": claim["attack"]["took"]}
        log_result(loggers, folder, certified, results["seconds"], last.step)
        results["metrics"] = {**best.metrics, **certified}
    write_row(run_dir, {**results, "status": "complete"})
    return score


def _score(trainer: Trainer) -> float:
    score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    return float("nan") if score is None else float(score)


def _certify(config: Config, best: Path, trained_on: torch.device) -> dict[str, float]:
    place = chosen_device(config.get("certify_device"), trained_on, "certify_device")
    try:
        return certify(
            str(best),
            output=str(best.parents[1] / "certificate"),
            certifier=config["certifier"],
            attack=config["attack"],
            device=str(place),
            allow_targets=config["allow_targets"],
        )
    except KeyboardInterrupt as error:
        raise SystemExit(
            f"interrupted: training is done, certify with {typed('certify')} {best}"
        ) from error


def _count_parameters(module: CertifiedModule) -> int:
    return sum(p.numel() for p in module.model.parameters())


def _device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
