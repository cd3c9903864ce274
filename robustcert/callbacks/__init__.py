"""What happens beside training: checkpoints, progress, seeds, tightness."""

from robustcert.callbacks.check_ranks import CheckRanks
from robustcert.callbacks.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    RecordRun,
)
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
    "LogTightness",
    "OutlastSigterm",
    "ProgressBar",
    "RecordRun",
    "SeedEpochs",
]
