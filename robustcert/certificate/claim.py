"""The folder that certify.py writes: the claim, the folded network, the radii, the picture."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from robustcert import __version__
from robustcert.certificate.outputs import CertifiedOutputs
from robustcert.certificate.samples import (
    RADII,
    SAMPLES,
    CertifiedSplit,
    SampleFiles,
    positive_status,
)
from robustcert.certificate.space import metric_tensors, space_record
from robustcert.certifiers.base import FUNCTIONS as FUNCTIONS
from robustcert.certifiers.base import Claim, Proof, Task
from robustcert.check import METRIC, STATEMENTS
from robustcert.network.bounds import operation_bound, shapes
from robustcert.network.branches import Branched
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation
from robustcert.network.quadratics import split_quadratics

# 2: correct predictions are proved ones, and a sum's branches are counted in the digest.
# 3: what inputs are and how their distance is measured is part of the claim.
FORMAT = 3
SMOOTHED_CLAIM = (
    "Not proved: for every sample listed with radius r, with the confidence stated beside it, "
    "every input at l2 distance less than r from the sample gets the listed prediction from the "
    "smoothed classifier."
)
MONOTONE_CLAIM = (
    "For every feature with the direction 1 or -1, function R never falls or never rises when this "
    "feature grows and the others stay, anywhere in R^d; with two logits this is said of the "
    "second minus the first."
)
NETWORK = "network.safetensors"
MULTIPLIERS = "multipliers.safetensors"
# Beside the claim about samples, with certifiers that speak of all pairs of inputs.
GLOBAL = "global.json"
GLOBAL_CLAIM = (
    "For all inputs x and x' of the domain at distance of at most delta in the norm, every output "
    "of the network changes by at most its eps_bar, and the difference of two outputs by at most "
    "its entry of differences. Not proved again by the checker."
)

GLOBAL_METRIC_CLAIM = (
    "For all inputs x and x' = x + S u of the domain with u of at most delta in the norm, every "
    "output of the network changes by at most its eps_bar, and the difference of two outputs by at "
    "most its entry of differences. Not proved again by the checker."
)


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
    """Operations as plain dictionaries; their constants go into ``tensors``, uncopied."""
    described = []
    for i, operation in enumerate(operations):
        path = f"{prefix}{i}"
        names = {}
        for key, tensor in operation.tensors().items():
            names[key] = f"{path}.{key}"
            tensors[names[key]] = tensor
        entry: dict[str, Any] = {
            "kind": operation.kind,
            "name": operation.name,
            "options": operation.options(),
            "tensors": names,
        }
        if isinstance(operation, Branched):
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
    claim: Claim,
    split: CertifiedSplit,
    radii: Sequence[float],
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a certificate into a folder; see :func:`write_claim`."""
    for name in (SAMPLES, RADII):
        (folder / name).unlink(missing_ok=True)
    size = len(split.target)
    shape, dtype = split.inputs.shape[1:], split.inputs.dtype
    positive = positive_status(claim.smoothing)
    files = SampleFiles(folder, split.indices, split.target, shape, dtype, size, positive)
    files.append(split.inputs[:], split.certificates)
    return write_claim(folder, network, claim, split, radii, record or {})


def write_claim(
    folder: Path,
    network: PlainNetwork,
    claim: Claim,
    split: CertifiedSplit | CertifiedOutputs,
    radii: Sequence[float],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Write what a certificate has beside samples and radii; returns what certificate.json says.

    Args:
        folder: Holds the complete files of ``split``, those of :class:`SampleFiles` for classes.
        network: The certified network.
        claim: What the certifier says of it.
        split: Samples with their certificates, or with their outputs.
        radii: Radii at which certified samples are counted, or intervals stated.
        record: Provenance: configuration, checkpoint, dataset, environment, attack.

    Raises:
        OSError: a file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    operations = describe_operations(network.operations, "", tensors)
    # Copied: an operation may occur twice, and files hold no shared memory.
    copies = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    save_file(copies, folder / NETWORK)
    names = [NETWORK, *split.files]
    if claim.multipliers is not None:
        save_file(dict(claim.multipliers), folder / MULTIPLIERS)
        names.append(MULTIPLIERS)
    metric = metric_tensors(network.space)
    if metric:
        save_file(metric, folder / METRIC)
        names.append(METRIC)
    if claim.pairs is not None:
        _write_global(folder, network, claim.pairs)
        names.append(GLOBAL)
    written = {
        "format": FORMAT,
        "robustcert": __version__,
        "claim": _statement(network, claim),
        "network": {
            "input_shape": list(network.input_shape),
            "digest": network.digest(),
            "operations": operations,
        },
        "bounds": _bounds(network, claim),
        "pairwise": in_hexadecimal(claim.pairwise),
        "summary": split.summary(radii),
        **_constants(claim),
        **record,
        "files": {name: _digest(folder / name) for name in names},
    }
    text = json.dumps(written, indent=1, allow_nan=False)
    (folder / "certificate.json").write_text(text + "\n")
    return written


def in_hexadecimal(pairwise: Tensor | None) -> list[list[str]]:
    """Pairwise constants as rows of hexadecimal numbers; no row for None."""
    return [] if pairwise is None else [[k.hex() for k in row] for row in pairwise.tolist()]


def _statement(network: PlainNetwork, claim: Claim) -> dict[str, Any]:
    """The words of the claim."""
    proved = claim.smoothing is None
    space = space_record(network)
    words: dict[str, Any] = {"statement": SMOOTHED_CLAIM}
    if proved:
        words = {"statement": STATEMENTS[claim.task][space["norm"]]}
    if claim.task != Task.CLASSIFICATION:
        words["task"] = str(claim.task)
    if claim.monotone is not None:
        words["monotone"] = {"statement": MONOTONE_CLAIM, "directions": list(claim.monotone)}
    return {
        **words,
        **space,
        "functions": {key: FUNCTIONS[key] for key in claim.functions},
        "proof": str(claim.proof),
        **({} if proved else {"smoothing": claim.smoothing}),
    }


def _constants(claim: Claim) -> dict[str, list[str]]:
    """Constants of outputs, where the claim is about them."""
    if claim.lipschitz is None:
        return {}
    return {"lipschitz": [k.hex() for k in claim.lipschitz.tolist()]}


def _bounds(network: PlainNetwork, claim: Claim) -> list[dict[str, Any]]:
    """Bounds of the operations that radii rest on: those before quadratics, which have none."""
    quadratic = split_quadratics(network) if claim.proof == Proof.QUADRIC else None
    if quadratic is not None:
        return describe_bounds(quadratic[0])
    without = claim.pairwise is None and claim.lipschitz is None
    return [] if without else describe_bounds(network)


def _write_global(folder: Path, network: PlainNetwork, pairs: Mapping[str, Any]) -> None:
    said = {
        "format": FORMAT,
        "robustcert": __version__,
        "statement": GLOBAL_CLAIM if network.space.metric is None else GLOBAL_METRIC_CLAIM,
        "network": network.digest(),
        **pairs,
        "functions": {key: FUNCTIONS[key] for key in pairs["functions"]},
    }
    (folder / GLOBAL).write_text(json.dumps(said, indent=1, allow_nan=False) + "\n")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
