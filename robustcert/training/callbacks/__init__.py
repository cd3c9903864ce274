"""What happens beside training: checkpoints, progress, seeds, measurements, averages, annealing."""

from robustcert.training.callbacks.annealing import TemperatureAnnealing
from robustcert.training.callbacks.begun import Begun
from robustcert.training.callbacks.check_ranks import CheckRanks
from robustcert.training.callbacks.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    RecordRun,
)
from robustcert.training.callbacks.early_stopping import EarlyStopping
from robustcert.training.callbacks.gradients import LogGradients
from robustcert.training.callbacks.grafting import LinearityGrafting
from robustcert.training.callbacks.outlast_sigterm import OutlastSigterm
from robustcert.training.callbacks.progress import EpochLog, ProgressBar
from robustcert.training.callbacks.seed_epochs import SeedEpochs
from robustcert.training.callbacks.tightness import LogTightness
from robustcert.training.callbacks.weight_averaging import WeightAveraging

__all__ = [
    "AtomicCheckpointIO",
    "Begun",
    "BestCheckpoint",
    "CheckRanks",
    "EarlyStopping",
    "EpochLog",
    "LastCheckpoint",
    "LinearityGrafting",
    "LogGradients",
    "LogTightness",
    "OutlastSigterm",
    "ProgressBar",
    "RecordRun",
    "SeedEpochs",
    "TemperatureAnnealing",
    "WeightAveraging",
]
