"""Trials behind the recipes of CIFAR-10 at large radii, as many for each side, in equal time.

    ROBUSTCERT_DATA=... python -m benchmarks.studies.radius_trials outputs/radius_trials

Networks with corners alone and networks that end in squared distances to subspaces are trained for
1.0 and for 108/255, each trial for as many epochs as its budget of processor time allows, and
judged by the validation split at the radius that it was trained for. Trials that are finished are
found again. Prints a table of all of them; nothing is certified.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from robustcert.report.runs import Run, read_run

ROOT = Path(__file__).parents[2]
AUGMENTATION = (
    "{_target_:robustcert.data.RandomCrop,padding:2,fill:reflect}",
    "{_target_:robustcert.data.RandomHorizontalFlip}",
)
SHARED = (
    *("dataset=cifar10", "~capacity", "loader.validation=0.05", "lr_schedule.warmup=0.02"),
    f"loader.augmentation=[{','.join(AUGMENTATION)}]",
)
RADII = {"1.0": 1.0, "108/255": 108 / 255}
DENSE = "model=mlp model.pool=2 layer=cholesky"
LIRESNET = (
    "model=liresnet layer=chord model.width=64 model.stem_kernel=6 model.stem_stride=4 "
    "model.neck_channels=256"
)
SUBSPACES = "model=deep_subspaces model.pool=2 layer=cholesky certifier=quadratic"
CONVOLUTIONS = (
    "model=conv_subspaces layer=chord certifier=quadratic model.width=64 model.stem_kernel=6 "
    "model.stem_stride=4 model.neck_channels=256"
)


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        radius: One of :data:`RADII`, trained for and judged by.
        epochs: What fits into the budget.
        network: Overrides that name the network.
        temperature: Of the objective.
        end: Radius at the end of training, in multiples of the radius.
        lr: Learning rate.
        more: Other overrides.
    """

    radius: str
    epochs: int
    network: str
    temperature: float
    end: float = 2.0
    lr: float = 0.005
    more: str = ""

    @property
    def overrides(self) -> list[str]:
        """What is typed after ``python train.py``."""
        return [
            *SHARED,
            *self.network.split(),
            f"epsilon={RADII[self.radius]!r}",
            f"objective.temperature={self.temperature}",
            f"epsilon_schedule.end={self.end}",
            f"optimizer.lr={self.lr}",
            f"trainer.max_epochs={self.epochs}",
            f"+trainer.check_val_every_n_epoch={self.epochs}",
            *self.more.split(),
            *("certify=false", "seed=0"),
        ]


FOUR = f"{DENSE} model.width=768 model.depth=4"
RESIDUAL = f"{LIRESNET} model.depth=4 model.dense_width=512 model.dense_depth=2"
TWO = f"{SUBSPACES} model.width=768 model.depth=2 model.per_class=8 model.rank=8"
BEHIND = f"{CONVOLUTIONS} model.depth=2 model.per_class=8 model.rank=8"
CORNERS = (
    Trial("1.0", 5, FOUR, 1.6, lr=0.006),
    Trial("1.0", 5, FOUR, 2.4, lr=0.006),
    Trial("1.0", 5, FOUR, 1.6, end=2.5, lr=0.006),
    Trial("1.0", 5, FOUR, 1.6, lr=0.012),
    Trial("1.0", 5, f"{DENSE} model.width=1024 model.depth=2", 1.6, lr=0.006),
    Trial("1.0", 5, f"{DENSE} model.width=512 model.depth=8", 1.6, lr=0.006),
    Trial("1.0", 8, FOUR, 1.6, lr=0.008, more="loader.batch_size=512"),
    Trial("1.0", 3, RESIDUAL, 1.6),
    Trial("108/255", 5, FOUR, 0.6, end=2.5, lr=0.006),
    Trial("108/255", 3, RESIDUAL, 0.6, end=2.5),
    Trial("108/255", 5, FOUR, 0.6, lr=0.006),
    Trial("108/255", 5, FOUR, 0.4, end=2.5, lr=0.006),
    Trial("108/255", 8, FOUR, 0.6, end=2.5, lr=0.008, more="loader.batch_size=512"),
)
CURVED = (
    Trial("1.0", 8, TWO, 1.6),
    Trial("1.0", 8, TWO, 2.4),
    Trial("1.0", 8, TWO, 1.6, end=2.5),
    Trial("1.0", 8, TWO, 1.6, lr=0.01),
    Trial(
        "1.0",
        7,
        f"{SUBSPACES} model.width=1024 model.depth=1 model.per_class=8 model.rank=8",
        1.6,
    ),
    Trial(
        "1.0",
        6,
        f"{SUBSPACES} model.width=768 model.depth=2 model.per_class=16 model.rank=8",
        1.6,
    ),
    Trial("1.0", 8, f"{TWO} activation=smooth", 1.6),
    Trial("1.0", 4, BEHIND, 1.6),
    Trial("108/255", 8, TWO, 0.6, end=2.5),
    Trial("108/255", 4, BEHIND, 0.6, end=2.5),
    Trial("108/255", 8, TWO, 0.6),
    Trial("108/255", 8, TWO, 0.4, end=2.5),
    Trial(
        "108/255",
        6,
        f"{SUBSPACES} model.width=768 model.depth=2 model.per_class=16 model.rank=8",
        0.6,
        end=2.5,
    ),
)


SIDES = {"corners": CORNERS, "subspaces": CURVED}
COLUMNS = (
    *("side", "trained for", "network", "T", "end", "rate", "parameters", "epochs (processor)"),
    *("accuracy", "36/255", "72/255", "108/255", "1.0"),
)


def train(trial: Trial, folder: Path) -> Run:
    """Its run, by ``train.py`` in a process of one thread, unless it is finished already."""
    if not (folder / "results.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, str(ROOT / "train.py"), *trial.overrides]
        words += [f"hydra.run.dir={folder.resolve()}"]
        with (folder / "printed.log").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(words, env=environment, stdout=log, stderr=log, check=True, cwd=ROOT)
    return read_run(folder, folder.name)


def row(side: str, trial: Trial, run: Run) -> str:
    """A line of the table."""
    chosen = run.metrics
    radii = [chosen[f"val/vra_{radius:.4g}"] for radius in run.config["radii"]]
    cells = [
        *(side, trial.radius, f"`{trial.network} {trial.more}`".replace(" `", "`")),
        *(str(value) for value in (trial.temperature, trial.end, trial.lr)),
        f"{run.results['parameters'] / 1e6:.2f}M",
        f"{trial.epochs} ({run.seconds['train_processor']:.0f} s)",
        *(f"{value:.3f}" for value in (chosen["val/accuracy"], *radii)),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run what is not finished and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--processes", type=int, default=2, help="trials at once, a thread each")
    options = parser.parse_args()
    trials = [(side, place, trial) for side in SIDES for place, trial in enumerate(SIDES[side])]
    # In turn, so that both sides have as much done whenever it is stopped.
    trials.sort(key=lambda item: item[1])
    folders = [options.out / f"{side}-{place}" for side, place, _ in trials]
    with ThreadPoolExecutor(options.processes) as pool:
        runs = list(pool.map(train, [trial for *_, trial in trials], folders))
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|")
    for line in sorted(row(side, t, run) for (side, _, t), run in zip(trials, runs, strict=True)):
        print(line)


if __name__ == "__main__":
    main()
