"""Lightning's trainer for a run: its callbacks and warnings."""

import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from robustcert.config.build import Config, build
from robustcert.config.schema import check_value
from robustcert.errors import ConfigError
from robustcert.training.cadence import Cadence
from robustcert.training.callbacks import AtomicCheckpointIO, EpochLog, OutlastSigterm, ProgressBar


def build_trainer(
    config: Config,
    run_dir: Path,
    allowed: tuple[str, ...],
    loggers: Sequence[Logger],
    callbacks: list[Callback],
) -> Trainer:
    """The trainer with the run's callbacks."""
    node = {key: value for key, value in config["trainer"].items() if key != "compile"}
    cluster: dict[str, Any] = {}
    for i, own in enumerate(node.pop("callbacks", None) or []):
        callbacks.append(_build(own, f"trainer.callbacks[{i}]", allowed, expected=Callback))
    for name, own in (config.get("callbacks") or {}).items():
        callbacks.append(_build(own, f"callbacks.{name}", allowed, expected=Callback))
    if node.get("check_val_every_n_epoch") is None and "val_check_interval" not in node:
        node.pop("check_val_every_n_epoch", None)
        callbacks.append(Cadence(config["loader"].get("batch_size", 1)))
    bar = node.get("enable_progress_bar", True) and sys.stdout.isatty()
    callbacks.append(ProgressBar() if bar else EpochLog())
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect() and "plugins" not in node:
        # The launcher puts a job back into the queue; Lightning would do so a second time.
        cluster["plugins"] = SLURMEnvironment(auto_requeue=False)
        callbacks.append(OutlastSigterm())
    with expected_warnings():
        trainer: Trainer = _build(
            {**node, "enable_progress_bar": bar},
            "trainer",
            allowed,
            expected=Trainer,
            logger=[*loggers] or False,
            callbacks=callbacks,
            default_root_dir=str(run_dir),
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            **cluster,
        )
    seldom = (trainer.check_val_every_n_epoch or 1) > (trainer.max_epochs or math.inf)
    if trainer.limit_val_batches == 0 or seldom:
        key = "check_val_every_n_epoch" if seldom else "limit_val_batches"
        raise ConfigError(f"trainer.{key}: {node[key]} leaves nothing to choose best.ckpt by")
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    return trainer


def compiler_of(node: Config) -> str | None:
    """The backend of torch.compile that ``trainer.compile`` asks for; None for none.

    Raises:
        ConfigError: there is no such backend.
    """
    asked = node.get("compile") or False
    check_value(asked, bool | str, "trainer.compile")
    if asked is False:
        return None
    name = "inductor" if asked is True else str(asked)
    if name not in torch.compiler.list_backends(exclude_tags=()):
        raise ConfigError(
            "trainer.compile: expected true, false or a backend of torch.compile "
            f"({', '.join(torch.compiler.list_backends())}), got {asked!r}"
        )
    return name


def _build(node: Config, key: str, allowed: Sequence[str], *, expected: type, **extra: Any) -> Any:
    """As :func:`build`, for Lightning's classes, which refuse by an exception of their own."""
    try:
        return build(node, key, allowed, expected=expected, **extra)
    except MisconfigurationException as error:
        raise ConfigError(f"{key}: {error}") from error


def guard_launch(trainer: Trainer, multirun: bool) -> None:
    """Refuse strategies that would start a sweep or a network twice."""
    launcher = trainer.strategy.launcher
    repeats = (
        isinstance(launcher, _SubprocessScriptLauncher)
        and not launcher.cluster_environment.creates_processes_externally
    )
    if multirun and trainer.num_devices > 1 and repeats:
        # Lightning would start each further rank by running this command again: the whole sweep.
        raise ConfigError(
            f"trainer.devices={trainer.num_devices}: this strategy starts its ranks by running the "
            "whole sweep again. In a sweep, let the scheduler start the ranks (Slurm), set "
            "trainer.strategy=ddp_fork on CPU, or set trainer.devices=1"
        )
    if getattr(launcher, "_start_method", None) == "spawn":
        raise ConfigError(
            "trainer.strategy: spawned ranks get the network by pickling, which constrained layers "
            "refuse: use ddp, or ddp_fork on CPU"
        )
    remote = any(isinstance(logger, WandbLogger) for logger in trainer.loggers)
    if isinstance(launcher, _MultiProcessingLauncher) and remote:
        raise ConfigError("logger=wandb does not follow forked ranks: use trainer.strategy=ddp")


@contextmanager
def expected_warnings() -> Iterator[None]:
    """A context in which warnings that a run provokes are silent."""
    with warnings.catch_warnings():
        for message in (
            # The data is in memory: worker processes would only copy it.
            ".*does not have many workers.*",
            # A resumed run is in its own folder.
            ".*Checkpoint directory.*exists and is not empty.*",
            # Metrics are logged per epoch, whatever the number of steps.
            ".*smaller than the logging interval.*",
            # Metrics are counts, added over the ranks already.
            ".*sync_dist=True.*",
            # Lightning 2.6 with torch 2.13.
            ".*LeafSpec.*",
            ".*isinstance.treespec.*",
            # Validation may be asked for less often than every epoch.
            ".*monitor='val/vra'.*could not find the monitored key.*",
            # Slurm is installed, and this run is not one of its jobs.
            ".*srun.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
