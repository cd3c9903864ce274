"""The W&B run beside a training run: begun without needing a network, ended with its job."""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from robustcert.training.pictures import PICTURES

log = logging.getLogger(__name__)


def start(logger: WandbLogger, extra: Mapping[str, Any]) -> None:
    """Begin the run, offline where the server does not answer.

    The wait is ``logger.settings.init_timeout``. After one failure the jobs that follow in this
    process begin offline at once.

    Args:
        logger: Lightning's logger; only rank 0 holds a run.
        extra: What the run's configuration shows beside the options, such as ``parameters``.
    """
    import wandb

    try:
        run = logger.experiment
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0]
        log.warning(
            "W&B cannot be reached (%s): this run is kept in %s/wandb, send it later with "
            "'wandb sync'",
            reason,
            logger.save_dir,
        )
        os.environ["WANDB_MODE"] = "offline"
        run = logger.experiment
    run.config.update(dict(extra), allow_val_change=True)


def log_certificate(logger: WandbLogger, folder: Path, seconds: Mapping[str, float]) -> None:
    """Log a certificate folder: its pictures as images, the whole of it as an artifact.

    Args:
        logger: Lightning's logger.
        folder: What :func:`robustcert.runs.certify.certify` wrote.
        seconds: Of training, certification and attack, for the summary.
    """
    import wandb

    run = logger.experiment
    images = {
        f"certificate/{key}": wandb.Image(str(folder / name))
        for name, key in PICTURES.items()
        if (folder / name).is_file()
    }
    # Under one prefix: W&B groups its panels by it.
    run.log(images)
    run.summary.update({f"seconds/{key}": value for key, value in seconds.items()})
    artifact = wandb.Artifact(f"certificate-{run.id}", type="certificate")
    # Read where they are, in the run folder: an offline run keeps no second copy of the samples.
    artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def finish() -> None:
    """End the run, as failed if an exception is on its way.

    One process may run many jobs; without this the next one would log into this one's run.
    """
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=int(sys.exc_info()[0] is not None))
