"""One run, several loggers: each keeps the same numbers, and the certificate as it can show it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import compose
from matplotlib.image import imread

from robustcert.errors import ConfigError
from robustcert.runs.commands import several
from robustcert.runs.train import train
from robustcert.training.tensorboard_run import TensorBoard

TYPED = ("capacity=tiny", "trainer.max_epochs=1", "trainer.enable_progress_bar=false")
# On the plane there are level sets beside the curve.
PLANE = ("dataset=moons", "attack.samples=8", "attack.steps=2", "attack.seconds=0")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loggers") / "run"
    train(compose(*several(["logger=[csv,tensorboard]"]), *TYPED, *PLANE), folder)
    return folder


@pytest.mark.slow
def test_metrics_pictures_and_certificate_reach_every_logger(run_folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder / "tensorboard"))
    events.Reload()
    with (run_folder / "metrics" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    logged = {key: float(value) for row in rows for key, value in row.items() if value}
    for key in ("val/vra", "val/acr", "train/loss", "test/accuracy"):
        assert events.Scalars(key)[-1].value == pytest.approx(logged[key], rel=1e-6)
    for name, key in (("vra.png", "vra_curve"), ("levels.png", "level_sets")):
        (shown,) = events.Images(f"certificate/{key}")
        path = run_folder / f"{key}.png"
        path.write_bytes(shown.encoded_image_string)
        written = imread(run_folder / "certificate" / name)[..., :3]
        np.testing.assert_allclose(imread(path)[..., :3], written, atol=1 / 255)
    (text,) = events.Tensors("certificate/claim/text_summary")
    said = text.tensor_proto.string_val[0].decode()
    claim = json.loads((run_folder / "certificate" / "certificate.json").read_text())
    assert claim["network"]["digest"] in said
    assert f"share of {claim['summary']['samples']} samples" in said


def test_a_logger_of_several_that_is_none_is_named(tmp_path: Path) -> None:
    config = compose(*TYPED)
    for node, message in (
        ({"a": {"_target_": "torch.nn.Linear", "in_features": 1}}, "logger.a: expected a Logger"),
        ({"a": 3}, "logger.a: expected dict"),
    ):
        with pytest.raises(ConfigError, match=message):
            train({**config, "logger": node}, tmp_path / "run")


def test_the_logger_keeps_its_events_in_the_run(tmp_path: Path) -> None:
    logger = TensorBoard(str(tmp_path), name=None, version="tensorboard")
    assert Path(logger.log_dir) == tmp_path / "tensorboard"
