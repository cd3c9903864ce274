"""Training on until Slurm really ends the job."""

import signal

from lightning.pytorch import Callback, LightningModule, Trainer


class OutlastSigterm(Callback):
    """Ignores SIGTERM; for Slurm jobs.

    Slurm sends it to announce that it will kill the job, and puts a preempted job back into the
    queue only if it was still there to be killed; Lightning would leave at the announcement.
    Nothing is lost: ``last.ckpt`` is written every epoch.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handler that Lightning has just set; it puts the old one back at the end."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
