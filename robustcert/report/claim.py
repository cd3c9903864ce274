"""A certificate folder as arrays, read by the independent checker's strict reader.

Nothing is executed and nothing is taken from a checkpoint: logits are computed again from the plain
network in the folder. Reading proves nothing; that is what ``robustcert-check`` is for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check import (
    FILES,
    FLOAT64,
    FLOAT_BYTES,
    UnreadableError,
    batches,
    evaluate,
    float_bytes,
    parse_json,
    parse_radii,
    parse_safetensors,
    read_bytes,
    read_network,
    sha256,
    walk,
)
from robustcert.errors import ReportError

# Of certificate.json, see robustcert.certificate.claim.
FORMAT = 3


@dataclass(frozen=True)
class Folder:
    """A certificate folder and what its claim says of itself.

    Attributes:
        folder: The folder.
        record: ``certificate.json``.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the run; empty for a certificate made without one."""
        return self.record.get("config") or {}

    @property
    def metric(self) -> dict[str, Any] | None:
        """The claim's entry about a metric on inputs; None for their l2 distance."""
        found: dict[str, Any] | None = self.record["claim"]["metric"]
        return found

    @property
    def units(self) -> str:
        """What radii are measured in, in two words."""
        return "input units" if self.metric is None else "units of u"

    @property
    def split(self) -> str:
        """Which split the samples are of."""
        return str((self.record.get("dataset") or {}).get("split", "given"))

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str((self.record.get("dataset") or {}).get("name", "samples"))

    @property
    def radii(self) -> list[float]:
        """Radii at which certified samples are counted, or intervals stated."""
        return [float(row["decimal"]) for row in self.record["summary"]["certified"]]

    @property
    def epsilon(self) -> float:
        """Radius that was trained for, or the middle one of the table."""
        return float(self.config.get("epsilon") or self.radii[len(self.radii) // 2])


@dataclass(frozen=True)
class Claim(Folder):
    """What a certificate folder says of N samples.

    Attributes:
        inputs: Shape ``(N, *input_shape)``, uint8 or float32 as stored.
        labels: True classes, shape ``(N,)``.
        indices: Positions in the official split, shape ``(N,)``.
        prediction: Classes, shape ``(N,)``.
        correct: Whether the label is predicted, whatever rounding does, shape ``(N,)``.
        radius: Certified radii, 0 where nothing is certified, shape ``(N,)``.
        logits: Shape ``(N, C)``, float64.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    prediction: NDArray[np.int64]
    correct: NDArray[np.bool_]
    radius: NDArray[np.float64]
    logits: NDArray[np.float64]

    def unit_inputs(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float64]:
        """Inputs of some samples in [0, 1]."""
        return to_unit(self.inputs[rows])


def to_unit(inputs: NDArray[Any]) -> NDArray[np.float64]:
    """Inputs in [0, 1]; a byte p stands for the float32 nearest to p / 255."""
    if inputs.dtype == np.uint8:
        inputs = inputs.astype(np.float32) / np.float32(255)
    return inputs.astype(np.float64)


# Logits at inputs in the units of radii, float64.
Logits = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def read_claim(folder: Path, logits: Logits | None = None) -> Claim:
    """Read a certificate folder and evaluate its network at its samples.

    Args:
        folder: The certificate folder.
        logits: Its network, if that has classes which the checker does not know.

    Raises:
        ReportError: a file is missing, damaged, changed since, or of another format.
    """
    with refusing(folder):
        return _read(folder, logits)


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """What is wrong with a folder, in one line that names it.

    Raises:
        ReportError: it is missing, malformed or not complete.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder")
    try:
        yield
    except UnreadableError as error:
        raise ReportError(f"{folder}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{folder / 'certificate.json'}: not complete: {error!r}") from error


def read_record(folder: Path) -> dict[str, Any]:
    """``certificate.json`` of this version's format.

    Raises:
        ReportError: it is of another format.
        UnreadableError: it cannot be read.
    """
    record = parse_json(read_bytes(folder, "certificate.json"), "certificate.json")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        version = record.get("format") if isinstance(record, dict) else None
        raise ReportError(
            f"{folder / 'certificate.json'}: format {version!r}; this version reads {FORMAT}: "
            "certify the checkpoint again"
        )
    return record


def read_files(folder: Path, record: Mapping[str, Any], names: Sequence[str]) -> dict[str, bytes]:
    """The files of these names beside ``certificate.json``, each with the hash that it states.

    Raises:
        ReportError: one has changed.
        UnreadableError: one cannot be read.
    """
    content = {name: read_bytes(folder, name) for name in names if name != "certificate.json"}
    for name, digest in record["files"].items():
        if name in content and sha256(content[name]) != digest:
            raise ReportError(f"{folder / name}: not the file that the certificate was written for")
    return content


def _read(folder: Path, logits: Logits | None) -> Claim:
    record = read_record(folder)
    if "smoothing" in record["claim"]:
        raise ReportError(
            f"{folder}: its radii are of a smoothed classifier and not proved, and a report shows "
            "what is proved of the network; see certificate.json and vra.png instead"
        )
    content = read_files(folder, record, FILES)
    tensors = parse_safetensors(content["samples.safetensors"], "samples.safetensors")
    if "inputs" not in tensors:
        raise ReportError(
            f"{folder} holds digests in place of its samples, which a report shows: certify its "
            "run again"
        )
    rows = parse_radii(content["radii.csv"], len(tensors["labels"]))
    if logits is None:
        found = _logits(record, content["network.safetensors"], tensors["inputs"])
    else:
        found = logits(to_unit(tensors["inputs"]))
    return Claim(
        folder,
        record,
        tensors["inputs"],
        np.array(tensors["labels"]),
        np.array(tensors["indices"]),
        np.array([row.prediction for row in rows]),
        np.array([row.correct for row in rows]),
        np.array([row.radius for row in rows]),
        found,
    )


def _logits(record: dict[str, Any], weights: bytes, inputs: NDArray[Any]) -> NDArray[np.float64]:
    """Logits of the folder's network, by the checker's reader."""
    operations = read_network(record["network"], parse_safetensors(weights, "network.safetensors"))
    # Errors are not asked for, so the norms that they would grow by do not matter.
    norms = dict.fromkeys((operation.path for operation in walk(operations)), 1.0)
    parts = batches(len(inputs), float_bytes(operations), FLOAT_BYTES)
    return np.concatenate(
        [evaluate(operations, to_unit(inputs[part]), norms, [FLOAT64]).values for part in parts]
    )
