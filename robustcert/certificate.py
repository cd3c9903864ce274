"""The folder that certify.py writes: the claim, the plain network, the radii, the picture."""

import csv
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, localcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from robustcert import __version__
from robustcert.certifiers import Certificates
from robustcert.plain import Operation, PlainNetwork, Sum, operation_bound, shapes

FORMAT = 1
CLAIM = (
    "For every sample listed as certified with radius r, every input at l2 distance less than r "
    "from the sample gets the listed prediction, as the unique largest logit."
)
SMOOTHED_CLAIM = (
    "Not proved: for every sample listed with radius r, with the confidence stated beside it, every "
    "input at l2 distance less than r from the sample gets the listed prediction from the smoothed "
    "classifier."
)
FUNCTIONS = {
    "R": "the real-valued function that the float constants of the network define",
    "F64": "the network evaluated in IEEE float64, summed in any order",
    "F32": "the network evaluated in IEEE float32, summed in any order, without TF32",
    "smoothed": "the classifier that returns the most probable class of the network under Gaussian "
    "noise of standard deviation sigma, in real arithmetic",
}


@dataclass(frozen=True)
class CertifiedSplit:
    """Certificates for the samples of a split.

    Attributes:
        inputs: Shape ``(N, *input_shape)``, uint8 or float32 as the dataset holds them.
        target: True classes, shape ``(N,)``.
        indices: Position of every sample in the official split.
        certificates: What the certifier said.
    """

    inputs: Tensor
    target: Tensor
    indices: Tensor
    certificates: Certificates

    @property
    def correct(self) -> Tensor:
        """Whether the prediction is the true class, shape ``(N,)``.

        Never where logits are NaN or overflow: then no class is the largest one.
        """
        found = self.certificates
        return (found.prediction == self.target) & torch.isfinite(found.margin)

    def certified_count(self, radius: float) -> int:
        """Samples that are correct and certified beyond ``radius``."""
        return int((self.correct & (self.certificates.radius > radius)).sum())

    def status(self, smoothing: dict[str, Any] | None) -> str:
        """What radii.csv calls a sample with a radius: certified, or true with some confidence."""
        return "certified" if smoothing is None else f"confidence {smoothing['confidence']}"

    def curve(self, points: int = 200) -> tuple[list[float], list[float]]:
        """Radii and verified robust accuracy up to the largest certified radius."""
        radius = torch.where(self.correct, self.certificates.radius, 0.0)
        finite = radius[torch.isfinite(radius)]
        top = float(finite.max()) if len(finite) else 0.0
        grid = torch.linspace(0, top * 1.02 or 1.0, points, dtype=torch.float64)
        return grid.tolist(), [(self.certified_count(float(r)) / len(radius)) for r in grid]


def decimal_floor(value: float, digits: int = 6) -> str:
    """Decimal of a nonnegative float, rounded down, never up."""
    if math.isinf(value):
        return "inf"
    # The largest float has 309 digits before the point.
    with localcontext(prec=310 + digits):
        floor = Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_FLOOR)
    return f"{floor:f}"


def describe_bounds(network: PlainNetwork) -> list[dict[str, Any]]:
    """Per operation: its bound and a value that the true constant is not below."""
    rows = []
    for operation, shape in shapes(network.operations, network.input_shape):
        lower = operation.lipschitz_lower(shape)
        rows.append(
            {
                "name": operation.name,
                "kind": operation.kind,
                "input_shape": list(shape),
                "bound": operation_bound(operation, shape).hex(),
                "lower": None if lower is None else float(lower).hex(),
            }
        )
    return rows


def describe_operations(
    operations: Sequence[Operation], prefix: str, tensors: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """Operations as plain dictionaries; their constants go into ``tensors``."""
    described = []
    for i, operation in enumerate(operations):
        path = f"{prefix}{i}"
        names = {}
        for key, tensor in operation.tensors().items():
            names[key] = f"{path}.{key}"
            # Copied: an operation may occur twice, and files hold no shared memory.
            tensors[names[key]] = tensor.cpu().clone(memory_format=torch.contiguous_format)
        entry: dict[str, Any] = {
            "kind": operation.kind,
            "name": operation.name,
            "options": operation.options(),
            "tensors": names,
        }
        if isinstance(operation, Sum):
            entry["branches"] = [
                describe_operations(branch, f"{path}.branch{b}.", tensors)
                for b, branch in enumerate(operation.branches)
            ]
        described.append(entry)
    return described


def is_certificate(folder: Path) -> bool:
    """Whether a folder is one that :func:`write_certificate` filled."""
    try:
        claim = json.loads((folder / "certificate.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(claim, dict) and {"robustcert", "claim"} <= claim.keys()


def write_certificate(
    folder: Path,
    network: PlainNetwork,
    pairwise: Tensor,
    split: CertifiedSplit,
    radii: Sequence[float],
    record: dict[str, Any],
    multipliers: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write a certificate into an empty folder and return the claim as written.

    Args:
        folder: An existing folder; see :func:`robustcert.atomic.complete_folder`.
        network: The certified network.
        pairwise: The pairwise constants that the radii rest on, shape ``(C, C)``.
        split: Samples with their certificates.
        radii: Radii at which certified samples are counted.
        record: Provenance: configuration, checkpoint, dataset, environment, attack; and
            ``functions``, the keys of :data:`FUNCTIONS` that the claim speaks of, and ``proof``,
            see :meth:`robustcert.certifiers.LipschitzCertifier.proof`; and ``smoothing``, what
            :meth:`robustcert.certifiers.LipschitzCertifier.smoothing` says of claims without proof.
        multipliers: What proves pairwise constants below the product of norms, see
            :meth:`robustcert.certifiers.LipschitzCertifier.multiplier_tensors`.

    Raises:
        OSError: a file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    operations = describe_operations(network.operations, "", tensors)
    save_file(tensors, folder / "network.safetensors")
    samples = {
        "inputs": split.inputs.cpu().contiguous(),
        "labels": split.target.cpu().contiguous(),
        "indices": split.indices.cpu().contiguous(),
    }
    save_file(samples, folder / "samples.safetensors")
    names = ["network.safetensors", "samples.safetensors", "radii.csv"]
    if multipliers is not None:
        save_file(multipliers, folder / "multipliers.safetensors")
        names.append("multipliers.safetensors")
    smoothing = record.get("smoothing")
    _write_radii(folder / "radii.csv", split, split.status(smoothing))
    count = len(split.target)
    correct = int(split.correct.sum())
    claim = {
        "format": FORMAT,
        "robustcert": __version__,
        "claim": {
            "statement": CLAIM if smoothing is None else SMOOTHED_CLAIM,
            "norm": "l2",
            "units": "input units: distances between inputs with values in [0, 1]",
            "domain": "all of R^d, no clipping",
            "inputs": "float32 values; a uint8 pixel p stands for float32(p / 255)",
            "functions": {key: FUNCTIONS[key] for key in record["functions"]},
            "proof": record.get("proof", "lipschitz"),
            **({} if smoothing is None else {"smoothing": smoothing}),
        },
        "network": {
            "input_shape": list(network.input_shape),
            "digest": network.digest(),
            "operations": operations,
        },
        "bounds": describe_bounds(network),
        "pairwise": [[k.hex() for k in row] for row in pairwise.tolist()],
        "summary": {
            "samples": count,
            "correct": correct,
            "certified": [
                {"radius": float(r).hex(), "decimal": float(r), "count": split.certified_count(r)}
                for r in radii
            ],
        },
        **{key: value for key, value in record.items() if key not in _CLAIMED},
        "files": {name: _digest(folder / name) for name in names},
    }
    text = json.dumps(claim, indent=1, allow_nan=False)
    (folder / "certificate.json").write_text(text + "\n")
    return claim


_CLAIMED = ("functions", "proof", "smoothing")


def _write_radii(path: Path, split: CertifiedSplit, positive: str) -> None:
    certificates = split.certificates
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["index", "label", "prediction", "correct", "status", "radius", "radius_hex", "margin"]
        )
        for index, label, prediction, correct, radius, margin in zip(
            split.indices.tolist(),
            split.target.tolist(),
            certificates.prediction.tolist(),
            split.correct.tolist(),
            certificates.radius.tolist(),
            certificates.margin.tolist(),
            strict=True,
        ):
            status = positive if radius > 0 else "abstain"
            writer.writerow(
                [
                    index,
                    label,
                    prediction,
                    int(correct),
                    status,
                    decimal_floor(radius),
                    float(radius).hex(),
                    f"{margin:.9g}",
                ]
            )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
