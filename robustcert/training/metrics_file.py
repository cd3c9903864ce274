"""``metrics.csv``: a row for the validation and one for the training of every epoch."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from robustcert.atomic import complete_file


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, whose file goes on where a run goes on.

    Lightning's own deletes the file that it finds, and truncates it to add a column.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> "Writer":
        """The writer of the file."""
        if not isinstance(self._experiment, Writer):
            self._experiment = Writer(self.log_dir)
        return self._experiment

    def keep(self, epochs: int, last: Mapping[str, float]) -> None:
        """Leave the rows of a run's first epochs.

        Args:
            epochs: How many.
            last: The row of the last one's training. Lightning logs it after the checkpoint, so
                that it is missing where the process was killed between the two.
        """
        path = Path(self.experiment.metrics_file_path)
        keys, rows = _read(path)
        kept: list[dict[str, Any]] = [r for r in rows if r["epoch"] and int(r["epoch"]) < epochs]
        added = [key for key in last if key not in ("epoch", "step")]
        if added and not any(
            int(row["epoch"]) == last["epoch"] and row.get(key) for row in kept for key in added
        ):
            kept.append(dict(last))
        if kept:
            _write(path, sorted({*keys, *kept[-1]}), kept)
        else:
            path.unlink(missing_ok=True)


class Writer(ExperimentWriter):
    """Appends rows; a new column replaces the file at once or not at all."""

    def save(self) -> None:
        """Append what was logged."""
        # Where the ranks were forked, the file has columns that this process never wrote.
        self.metrics_keys, _ = _read(Path(self.metrics_file_path))
        super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, _read(path)[1])

    def _check_log_dir_exists(self) -> None:
        """What is there is kept."""


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows, without a row whose writer was killed."""
    if not path.is_file():
        return [], []
    with path.open(newline="") as file:
        reader = csv.DictReader(line for line in file if line.endswith("\n"))
        rows = list(reader)
        return list(reader.fieldnames or []), rows


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with complete_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
