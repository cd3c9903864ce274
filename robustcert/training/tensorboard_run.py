"""TensorBoard beside a training run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from robustcert.training.pictures import PICTURES

try:
    import tensorboard
except ImportError as error:
    raise ImportError("TensorBoard is optional: pip install 'robustcert[tensorboard]'") from error

# The writer of events is torch's, which imports the package by itself.
assert tensorboard


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger, with a picture and a text for the certificate."""

    def log_certificate(self, folder: Path, seconds: Mapping[str, float]) -> None:
        """Log a certificate folder: its pictures as images, the claim and its table as a text.

        Args:
            folder: What :func:`robustcert.runs.certify.certify` wrote.
            seconds: Of training, certification and attack.
        """
        from matplotlib.image import imread

        writer: Any = self.experiment
        for name, key in PICTURES.items():
            if (folder / name).is_file():
                image = imread(folder / name)[..., :3]
                writer.add_image(f"certificate/{key}", image, dataformats="HWC")
        claim = json.loads((folder / "certificate.json").read_text())
        writer.add_text("certificate/claim", _described(claim, seconds))
        writer.flush()


def _described(claim: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """A claim in Markdown."""
    summary = claim["summary"]
    count = summary["samples"]
    rows = [(0.0, summary["correct"])]
    rows += [(row["decimal"], row["count"]) for row in summary["certified"]]
    table = [f"| {radius:.4g} | {number / count:.4f} |" for radius, number in rows]
    times = ", ".join(f"{key} {value:.1f} s" for key, value in seconds.items())
    lines = [
        claim["claim"]["statement"],
        "",
        f"Proof: {claim['claim']['proof']}; network {claim['network']['digest']}; {times}",
        "",
        f"| radius | share of {count} samples |",
        "| ---: | ---: |",
        *table,
    ]
    return "\n".join(lines)
