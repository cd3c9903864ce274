"""The folder that certify.py writes: the claim, the plain network, the radii, the picture."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from robustcert import __version__
from robustcert.certificate.samples import (
    RADII,
    SAMPLES,
    CertifiedSplit,
    SampleFiles,
    positive_status,
)
from robustcert.network.network import PlainNetwork, Sum, operation_bound, shapes
from robustcert.network.operation import Operation
from robustcert.network.quadratics import split_quadratics

# 2: correct predictions are proved ones, and a sum's branches are counted in the digest.
FORMAT = 2
CLAIM = (
    "For every sample listed as certified with radius r, every input at l2 distance less than r "
    "from the sample gets the listed prediction, as the unique largest logit."
)
SMOOTHED_CLAIM = (
    "Not proved: for every sample listed with radius r, with the confidence stated beside it, "
    "every input at l2 distance less than r from the sample gets the listed prediction from the "
    "smoothed classifier."
)
# Beside the claim about samples, with certifiers that speak of all pairs of inputs.
GLOBAL = "global.json"
GLOBAL_CLAIM = (
    "For all inputs x and x' of the domain at distance of at most delta in the norm, every output "
    "of the network changes by at most its eps_bar, and the difference of two outputs by at most "
    "its entry of differences. Not proved again by the checker."
)
FUNCTIONS = {
    "R": "the real-valued function that the float constants of the network define",
    "F64": "the network evaluated in IEEE float64, summed in any order",
    "F32": "the network evaluated in IEEE float32, summed in any order, without TF32",
    "smoothed": "the classifier that returns the most probable class of the network under Gaussian "
    "noise of standard deviation sigma, in real arithmetic",
}
# What of a record is said in the claim itself.
CLAIMED = ("functions", "proof", "smoothing")


def describe_bounds(network: PlainNetwork) -> list[dict[str, Any]]:
    """Per operation: what it is and its proved bound."""
    rows = []
    for operation, shape in shapes(network.operations, network.input_shape):
        rows.append(
            {
                "name": operation.name,
                "kind": operation.kind,
                "input_shape": list(shape),
                "bound": operation_bound(operation, shape).hex(),
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
    pairs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a certificate into a folder; see :func:`write_claim`."""
    for name in (SAMPLES, RADII):
        (folder / name).unlink(missing_ok=True)
    size = len(split.target)
    shape, dtype = split.inputs.shape[1:], split.inputs.dtype
    positive = positive_status(record.get("smoothing"))
    files = SampleFiles(folder, split.indices, split.target, shape, dtype, size, positive)
    files.append(split.inputs[:], split.certificates)
    return write_claim(folder, network, pairwise, split, radii, record, multipliers, pairs)


def write_claim(
    folder: Path,
    network: PlainNetwork,
    pairwise: Tensor,
    split: CertifiedSplit,
    radii: Sequence[float],
    record: dict[str, Any],
    multipliers: dict[str, Tensor] | None = None,
    pairs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write whatever a certificate has beside samples and radii, and return the claim as written.

    Args:
        folder: Holds the complete :class:`SampleFiles` of ``split``.
        network: The certified network.
        pairwise: The pairwise constants that the radii rest on, shape ``(C, C)``; of shape
            ``(0, 0)`` if they rest on none; then no bounds of operations are written either, but
            for those before quadratics.
        split: Samples with their certificates.
        radii: Radii at which certified samples are counted.
        record: Provenance: configuration, checkpoint, dataset, environment, attack; and
            ``functions``, the keys of :data:`FUNCTIONS` that the claim speaks of, and ``proof``,
            see :meth:`robustcert.certifiers.LipschitzCertifier.proof`; and ``smoothing``, what
            :meth:`robustcert.certifiers.LipschitzCertifier.smoothing` says of claims without proof.
        multipliers: What proves pairwise constants below the product of norms, see
            :meth:`robustcert.certifiers.LipschitzCertifier.multiplier_tensors`.
        pairs: What is claimed of all pairs of near inputs, see
            :meth:`robustcert.certifiers.LipschitzCertifier.global_claim`.

    Raises:
        OSError: a file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    operations = describe_operations(network.operations, "", tensors)
    save_file(tensors, folder / "network.safetensors")
    names = ["network.safetensors", SAMPLES, RADII]
    if multipliers is not None:
        save_file(multipliers, folder / "multipliers.safetensors")
        names.append("multipliers.safetensors")
    if pairs is not None:
        _write_global(folder, network, pairs)
        names.append(GLOBAL)
    smoothing = record.get("smoothing")
    # Quadratics have no bound, what is before them has.
    quadratic = split_quadratics(network) if record.get("proof") == "quadric" else None
    bounded = quadratic[0] if quadratic else network if len(pairwise) else None
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
        "bounds": [] if bounded is None else describe_bounds(bounded),
        "pairwise": [[k.hex() for k in row] for row in pairwise.tolist()],
        "summary": {
            "samples": count,
            "correct": correct,
            "undecided": int(split.undecided.sum()),
            "certified": [
                {"radius": float(r).hex(), "decimal": float(r), "count": split.certified_count(r)}
                for r in radii
            ],
        },
        **{key: value for key, value in record.items() if key not in CLAIMED},
        "files": {name: _digest(folder / name) for name in names},
    }
    text = json.dumps(claim, indent=1, allow_nan=False)
    (folder / "certificate.json").write_text(text + "\n")
    return claim


def _write_global(folder: Path, network: PlainNetwork, pairs: dict[str, Any]) -> None:
    said = {
        "format": FORMAT,
        "robustcert": __version__,
        "statement": GLOBAL_CLAIM,
        "network": network.digest(),
        **pairs,
        "functions": {key: FUNCTIONS[key] for key in pairs["functions"]},
    }
    (folder / GLOBAL).write_text(json.dumps(said, indent=1, allow_nan=False) + "\n")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
