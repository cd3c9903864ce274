"""The loggers of a run: one or several, of which each keeps what it can show."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from robustcert.config.build import Config, build, resolve
from robustcert.config.schema import check_value
from robustcert.errors import ConfigError
from robustcert.training.checkpoint import Checkpoint
from robustcert.training.metrics_file import MetricsFile
from robustcert.training.wandb_run import finish, log_certificate, start


def build_loggers(config: Config, run_dir: Path, allowed: tuple[str, ...]) -> list[Logger]:
    """The loggers that the configuration names, writing into the run's folder.

    ``logger`` is one node, or several by name: ``logger=[csv,tensorboard]``.
    """
    node = config.get("logger") or {}
    check_value(node, dict, "logger")
    if not node or "_target_" in node:
        return [_build(node, "logger", run_dir, allowed)] if node else []
    for name, own in node.items():
        check_value(own, dict, f"logger.{name}")
    return [_build(own, f"logger.{name}", run_dir, allowed) for name, own in node.items()]


def _build(node: Config, key: str, run_dir: Path, allowed: tuple[str, ...]) -> Logger:
    parameters = inspect.signature(resolve(node.get("_target_"), key, allowed)).parameters
    takes_folder = "save_dir" in parameters
    folder = {"save_dir": str(run_dir)} if takes_folder and "save_dir" not in node else {}
    try:
        return build(node, key, allowed, expected=Logger, **folder)
    except MisconfigurationException as error:
        raise ConfigError(f"{key}: {error}") from error


def begin(loggers: Sequence[Logger], before: Checkpoint | None, parameters: int) -> None:
    """Begin or continue the logs, on the first rank.

    Args:
        loggers: The run's.
        before: The checkpoint that it continues, if it does.
        parameters: Number of the network's.
    """
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            logger.keep(before.epoch if before else 0, before.training_row if before else {})
        if isinstance(logger, WandbLogger):
            start(logger, {"parameters": parameters})


def log_result(
    loggers: Sequence[Logger],
    folder: Path,
    metrics: Mapping[str, float],
    seconds: Mapping[str, float],
    step: int,
) -> None:
    """Log a certificate: its numbers everywhere, its pictures and itself where they can be shown.

    Args:
        loggers: The run's.
        folder: The certificate.
        metrics: What was certified.
        seconds: Of training, certification and attack.
        step: Optimizer steps of training.
    """
    for logger in loggers:
        logger.log_metrics(dict(metrics), step=step)
        logger.save()
        if isinstance(logger, WandbLogger):
            log_certificate(logger, folder, seconds)
        own: Any = getattr(logger, "log_certificate", None)
        if own is not None:
            own(folder, seconds)


def end(loggers: Sequence[Logger]) -> None:
    """End all logs."""
    for logger in loggers:
        logger.finalize("finished")
    finish()
