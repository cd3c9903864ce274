"""What happens beside training: checkpoints, progress, seeds, tightness, grafting, annealing."""

from robustcert.callbacks.annealing import TemperatureAnnealing
from robustcert.callbacks.check_ranks import CheckRanks
from robustcert.callbacks.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    RecordRun,
)
from robustcert.callbacks.grafting import LinearityGrafting
from robustcert.callbacks.outlast_sigterm import OutlastSigterm
from robustcert.callbacks.progress import EpochLog, ProgressBar
from robustcert.callbacks.seed_epochs import SeedEpochs
from robustcert.callbacks.tightness import LogTightness

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "CheckRanks",
    "EpochLog",
    "LastCheckpoint",
    "LinearityGrafting",
    "LogTightness",
    "OutlastSigterm",
    "ProgressBar",
    "RecordRun",
    "SeedEpochs",
    "TemperatureAnnealing",
]
