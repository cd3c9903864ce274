"""Old names of modules that configurations and checkpoints may hold, for one release."""

import logging
from functools import cache

log = logging.getLogger(__name__)

# Every module that holds a class that a ``_target_`` can name, and where it is now.
MOVED = {
    "robustcert.callbacks": "robustcert.training.callbacks",
    "robustcert.callbacks.annealing": "robustcert.training.callbacks.annealing",
    "robustcert.callbacks.check_ranks": "robustcert.training.callbacks.check_ranks",
    "robustcert.callbacks.checkpoints": "robustcert.training.callbacks.checkpoints",
    "robustcert.callbacks.grafting": "robustcert.training.callbacks.grafting",
    "robustcert.callbacks.outlast_sigterm": "robustcert.training.callbacks.outlast_sigterm",
    "robustcert.callbacks.progress": "robustcert.training.callbacks.progress",
    "robustcert.callbacks.seed_epochs": "robustcert.training.callbacks.seed_epochs",
    "robustcert.callbacks.tightness": "robustcert.training.callbacks.tightness",
    "robustcert.certifiers.combined": "robustcert.certifiers.second_order.certifier",
    "robustcert.certifiers.global_robustness": "robustcert.certifiers.global_robustness.certifier",
    "robustcert.certifiers.lipsdp": "robustcert.certifiers.lipsdp.certifier",
    "robustcert.certifiers.local_lipschitz": "robustcert.certifiers.local_lipsdp.certifier",
    "robustcert.certifiers.quadric": "robustcert.certifiers.quadratic",
    "robustcert.layers.residual": "robustcert.layers.residual_block",
    "robustcert.metrics_file": "robustcert.training.metrics_file",
    "robustcert.module": "robustcert.training.module",
    "robustcert.optimizers": "robustcert.training.optimizers",
    "robustcert.optimizers.lookahead": "robustcert.training.optimizers.lookahead",
    "robustcert.optimizers.schedule_free": "robustcert.training.optimizers.schedule_free",
    "robustcert.schedules": "robustcert.training.schedules",
    "robustcert.sweep": "robustcert.runs.sweep",
}


def current_target(target: str, key: str) -> str:
    """Today's name of a ``_target_``; an old one is answered with a line that says the new one.

    Args:
        target: Dotted path of a class.
        key: Where it stands in the configuration.
    """
    module, _, name = target.rpartition(".")
    if module not in MOVED:
        return target
    new = f"{MOVED[module]}.{name}"
    _tell(f"{key}._target_", target, new)
    return new


@cache
def _tell(key: str, old: str, new: str) -> None:
    log.warning("%s: %s is called %s now: the old name ends with the next release", key, old, new)
