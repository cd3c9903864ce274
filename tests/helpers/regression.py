"""Small regressions: a data file, and certificate folders that can be changed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.configs import build_model
from robustcert.certificate.claim import write_claim
from robustcert.certificate.outputs import CertifiedOutputs
from robustcert.certifiers import IntervalCertifier
from robustcert.certifiers.monotone import monotone_directions
from robustcert.models import Monotone
from robustcert.network.fold import fold_network
from robustcert.network.input_space import IMAGES, InputSpace
from robustcert.network.network import PlainNetwork

RADII = (0.05, 0.5)
SAMPLES = 12


def write_npz(path: Path, train: int = 200, test: int = 60, features: int = 3) -> Path:
    """A smooth function of columns in [0, 1] with noise, float64."""
    random = np.random.RandomState(0)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        x = random.rand(count, features)
        y = 2 * x[:, 0] - x[:, 1] ** 2 + 0.5 * np.sin(3 * x[:, -1]) + 0.1 * random.randn(count)
        arrays |= {f"x_{split}": x, f"y_{split}": y}
    np.savez(path, **arrays)
    return path


def network(
    directions: Sequence[int] | None = None,
    activation: str = "maxmin",
    space: InputSpace = IMAGES,
) -> PlainNetwork:
    sizes = {"input_shape": (3,), "num_classes": 1, "mean": [0.3], "std": [0.5], "width": 6}
    model = build_model("mlp", "unconstrained", activation, **sizes)
    if directions is not None:
        model = Monotone(model, directions, input_shape=(3,), num_classes=1).eval()
    return fold_network(model, (3,), space)


def certify(folder: Path, net: PlainNetwork, inputs: np.ndarray, targets: np.ndarray) -> Path:
    """A certificate folder of a network on the given samples."""
    folder.mkdir(parents=True)
    x, certifier = torch.from_numpy(inputs.astype(np.float32)), IntervalCertifier()
    claim = replace(certifier.claim(net), monotone=monotone_directions(net))
    y = torch.from_numpy(targets.astype(np.float32))
    split = CertifiedOutputs(x, y, torch.arange(len(x)), certifier.certify(net, x))
    split.write(folder, RADII)
    write_claim(folder, net, claim, split, RADII, {})
    return folder


class Folder:
    """A folder whose table and claim are changed and saved with hashes that fit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claim: dict[str, Any] = json.loads((path / "certificate.json").read_text())
        lines = (path / "intervals.csv").read_text().splitlines()
        self.head, self.rows = lines[0], [line.split(",") for line in lines[1:]]

    def set(self, row: int, column: int, value: float) -> None:
        self.rows[row][column] = repr(float(value))

    def get(self, row: int, column: int) -> float:
        return float(self.rows[row][column])

    def save(self) -> Path:
        text = "\n".join([self.head, *(",".join(row) for row in self.rows)]) + "\n"
        (self.path / "intervals.csv").write_text(text)
        for name in self.claim["files"]:
            content = (self.path / name).read_bytes()
            self.claim["files"][name] = hashlib.sha256(content).hexdigest()
        (self.path / "certificate.json").write_text(json.dumps(self.claim))
        return self.path

    def recount(self) -> None:
        """The summary of the table as it is now."""
        from robustcert.check.intervals import IntervalRow, _difference, _farthest, mean_up

        count = len(self.claim["summary"]["certified"])
        rows = [
            IntervalRow(
                int(r[0]),
                float(r[1]),
                float(r[2]),
                tuple((float(r[3 + 2 * k]), float(r[4 + 2 * k])) for k in range(count)),
            )
            for r in self.rows
        ]
        errors = [_farthest(row.target, row.prediction, row.prediction) for row in rows]
        self.claim["summary"]["mean_absolute_error"] = mean_up(errors)
        for k, entry in enumerate(self.claim["summary"]["certified"]):
            worst = [_farthest(row.target, *row.ends[k]) for row in rows]
            entry["mean_absolute_error"] = mean_up(worst)
            entry["width"] = mean_up([_difference(*row.ends[k]) for row in rows])
