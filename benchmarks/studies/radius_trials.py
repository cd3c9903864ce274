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
# What the networks are called in the table, and how they are typed.
DENSE = "model=mlp layer=cholesky model.pool=2"
SUBSPACES = "model=deep_subspaces layer=cholesky certifier=quadratic model.pool=2 model.rank=8"
TRUNK = "layer=chord model.width=64 model.stem_kernel=6 model.stem_stride=4 model.neck_channels=256"
NETWORKS = {
    "4 dense of 768": f"{DENSE} model.width=768 model.depth=4",
    "2 dense of 1024": f"{DENSE} model.width=1024 model.depth=2",
    "8 dense of 512": f"{DENSE} model.width=512 model.depth=8",
    "LiResNet": f"model=liresnet {TRUNK} model.depth=4 model.dense_width=512 model.dense_depth=2",
    "2 dense of 768, 8 subspaces": (f"{SUBSPACES} model.width=768 model.depth=2 model.per_class=8"),
    "2 dense of 768, smooth, 8 subspaces": (
        f"{SUBSPACES} model.width=768 model.depth=2 model.per_class=8 activation=smooth"
    ),
    "2 dense of 768, 16 subspaces": (
        f"{SUBSPACES} model.width=768 model.depth=2 model.per_class=16"
    ),
    "1 dense of 1024, 8 subspaces": (
        f"{SUBSPACES} model.width=1024 model.depth=1 model.per_class=8"
    ),
    "2 convolutions, 8 subspaces": (
        f"model=conv_subspaces certifier=quadratic {TRUNK} model.depth=2 model.per_class=8 "
        "model.rank=8"
    ),
}


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        radius: One of :data:`RADII`, trained for and judged by.
        epochs: What fits into the budget.
        network: One of :data:`NETWORKS`.
        temperature: Of the objective.
        end: Radius at the end of training, in multiples of the radius.
        lr: Learning rate.
        batch: Batch size.
    """

    radius: str
    epochs: int
    network: str
    temperature: float
    end: float = 2.0
    lr: float = 0.005
    batch: int = 256

    @property
    def overrides(self) -> list[str]:
        """What is typed after ``python train.py``."""
        return [
            *SHARED,
            *NETWORKS[self.network].split(),
            f"epsilon={RADII[self.radius]!r}",
            f"objective.temperature={self.temperature}",
            f"epsilon_schedule.end={self.end}",
            f"optimizer.lr={self.lr}",
            f"trainer.max_epochs={self.epochs}",
            f"+trainer.check_val_every_n_epoch={self.epochs}",
            f"loader.batch_size={self.batch}",
            *("certify=false", "seed=0"),
        ]


FOUR, TWO = "4 dense of 768", "2 dense of 768, 8 subspaces"
CORNERS = (
    Trial("1.0", 5, FOUR, 1.6, lr=0.006),
    Trial("1.0", 5, FOUR, 2.4, lr=0.006),
    Trial("1.0", 5, FOUR, 1.6, end=2.5, lr=0.006),
    Trial("1.0", 5, FOUR, 1.6, lr=0.012),
    Trial("1.0", 5, "2 dense of 1024", 1.6, lr=0.006),
    Trial("1.0", 5, "8 dense of 512", 1.6, lr=0.006),
    Trial("1.0", 8, FOUR, 1.6, lr=0.008, batch=512),
    Trial("1.0", 3, "LiResNet", 1.6),
    Trial("108/255", 5, FOUR, 0.6, end=2.5, lr=0.006),
    Trial("108/255", 3, "LiResNet", 0.6, end=2.5),
    Trial("108/255", 5, FOUR, 0.6, lr=0.006),
    Trial("108/255", 5, FOUR, 0.4, end=2.5, lr=0.006),
    Trial("108/255", 8, FOUR, 0.6, end=2.5, lr=0.008, batch=512),
)
CURVED = (
    Trial("1.0", 8, TWO, 1.6),
    Trial("1.0", 8, TWO, 2.4),
    Trial("1.0", 8, TWO, 1.6, end=2.5),
    Trial("1.0", 8, TWO, 1.6, lr=0.01),
    Trial("1.0", 7, "1 dense of 1024, 8 subspaces", 1.6),
    Trial("1.0", 6, "2 dense of 768, 16 subspaces", 1.6),
    Trial("1.0", 8, "2 dense of 768, smooth, 8 subspaces", 1.6),
    Trial("1.0", 4, "2 convolutions, 8 subspaces", 1.6),
    Trial("108/255", 8, TWO, 0.6, end=2.5),
    Trial("108/255", 4, "2 convolutions, 8 subspaces", 0.6, end=2.5),
    Trial("108/255", 8, TWO, 0.6),
    Trial("108/255", 8, TWO, 0.4, end=2.5),
    Trial("108/255", 6, "2 dense of 768, 16 subspaces", 0.6, end=2.5),
)
SIDES = {"corners": CORNERS, "subspaces": CURVED}
COLUMNS = (
    *("side", "for", "network", "T", "end", "rate", "batch", "parameters", "epochs"),
    *("accuracy", "36/255", "72/255", "108/255", "1.0"),
)


def train(overrides: list[str], folder: Path) -> Run:
    """A run of ``train.py`` in a process of one thread, unless it is finished already."""
    if not (folder / "results.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, str(ROOT / "train.py"), *overrides]
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
        *(side, trial.radius, trial.network),
        *(str(value) for value in (trial.temperature, trial.end, trial.lr, trial.batch)),
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
        runs = list(pool.map(train, [trial.overrides for *_, trial in trials], folders))
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|")
    for line in sorted(row(side, t, run) for (side, _, t), run in zip(trials, runs, strict=True)):
        print(line)
    print()
    for name, typed in NETWORKS.items():
        print(f"* {name}: `{typed}`")


if __name__ == "__main__":
    main()
