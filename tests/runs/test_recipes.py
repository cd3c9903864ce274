"""Recipes of published networks: two steps, and a certificate that the checker verifies."""

from pathlib import Path

import pytest
from helpers.miniatures import write_cifar10, write_image_folder
from helpers.runs import compose

from robustcert.check import check
from robustcert.config.command_line import CONFIG_DIR
from robustcert.runs.train import train

# What makes a network a miniature.
NARROW = {"width": 16, "depth": 2, "neck_channels": 16, "dense_width": 16, "dense_depth": 2}
# Sizes in the ratio of the composed ones, 1024 and 2048 channels of 32 blocks.
MINIATURES: dict[str | None, dict[str, int]] = {
    "lipnext_64m": {"width": 16, "depth": 4},
    "lipnext_256m": {"width": 32, "depth": 4},
}
RECIPES = sorted(
    path.stem
    for path in (CONFIG_DIR / "experiment").glob("*.yaml")
    if path.read_text().splitlines()[1].startswith("# Recipe")
    and path.stem.endswith(("cifar10", "imagenet"))
)
# Each by itself, and those with sizes of the paper at these.
CASES = [
    *((experiment, None) for experiment in RECIPES),
    ("lipnext_cifar10", "lipnext_64m"),
    ("lipnext_cifar10", "lipnext_256m"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "capacity"), CASES)
def test_a_recipe_trains_and_is_certified_in_miniature(
    experiment: str, capacity: str | None, tmp_path: Path
) -> None:
    typed = [f"experiment={experiment}", *([f"capacity={capacity}"] if capacity else [])]
    if experiment.endswith("imagenet"):
        # A thousand classes of its own are another dataset's.
        root = write_image_folder(tmp_path / "data", side=224)
        typed += ["dataset=image_folder", "dataset.size=224", "dataset.resize=224"]
    else:
        root = write_cifar10(tmp_path / "data", records=8)
        typed += ["dataset.checksum=warn"]
    composed = compose(*typed, f"dataset.root={root}")
    narrow = {**NARROW, **MINIATURES.get(capacity, {})}
    config = {
        **composed,
        "model": {
            **composed["model"],
            **{k: v for k, v in narrow.items() if composed["model"].get(k) is not None},
        },
        "loader": {**composed["loader"], "batch_size": 8, "validation": 0.25},
        "trainer": {**composed["trainer"], "max_epochs": 1, "limit_train_batches": 2},
        "attack": {**composed["attack"], "samples": 4, "steps": 2},
        "validation": {"samples": 4},
    }
    config["trainer"].pop("check_val_every_n_epoch", None)
    folder = tmp_path / "run"
    train(config, folder)
    report = check(folder / "certificate", exact=1, seed=0)
    assert report.verified, [*report.mismatches, *report.untried]
