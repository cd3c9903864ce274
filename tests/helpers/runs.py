"""Runs of the commands inside the test process: Hydra's imports and a subprocess cost seconds."""

import copy
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from lightning.pytorch import Callback

from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION
from robustcert.runs.commands import plain, register_resolvers
from robustcert.runs.train import train

TINY = (
    "capacity=tiny",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "attack.samples=16",
    "attack.steps=3",
)


# What the logger takes from Hydra's own configuration, which composing alone does not make.
WANDB = ("logger=wandb", "logger.id=1", "logger.group=a", "logger.job_type=b", "logger.tags=[]")


def compose(*overrides: str, name: str = "train") -> dict[str, Any]:
    """The configuration of a command line, as plain values."""
    return copy.deepcopy(_composed(overrides, name, os.environ.get("ROBUSTCERT_DATA")))


# Hydra takes a tenth of a second, and tests ask for the same command line again and again.
@functools.cache
def _composed(overrides: tuple[str, ...], name: str, data: str | None) -> dict[str, Any]:
    del data  # the configuration holds it
    register_resolvers()
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        return plain(hydra.compose(name, list(overrides)))


def run(folder: Path, *overrides: str, callbacks: Sequence[Callback] = ()) -> float:
    """``python train.py`` with a tiny network for two epochs, unless told otherwise."""
    return train(compose(*TINY, *overrides), folder, callbacks=callbacks)
