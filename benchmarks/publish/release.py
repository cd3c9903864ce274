"""Copy a run's certified network into docs/pretrained, without what its checking does not need.

    python -m benchmarks.publish.release outputs/<run> mnist_1.58

The folder is verified first, and the copy again. It holds the claim, the folded network, the radii,
and the samples: as they are where they are few, else as SHA-256 digests, which the checker looks up
in the dataset's own files (``--data``). Where the data lay on this machine is left out.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.publish.results import Refused, command_of
from benchmarks.soundness.verdicts import certificate_digest, data_files, verdict
from robustcert.check.reader import METRIC, MULTIPLIERS
from robustcert.report.runs import read_run

PRETRAINED = Path(__file__).parents[2] / "docs" / "pretrained"
INDEX = "index.json"
MAX_BYTES = 5_000_000
# Samples of more bytes become digests.
MAX_SAMPLE_BYTES = 200_000


class NotReleasedError(ValueError):
    """A run that is not fit to be handed out, and why."""


def release(run_folder: Path, name: str, out: Path = PRETRAINED) -> Path:
    """Copy the certificate of a run to ``out/name`` and enter it in the index.

    Raises:
        NotReleasedError: the checker does not verify it, no command is recorded, it names a place
            on this machine, or all of ``out`` would be larger than ``MAX_BYTES``.
    """
    source = run_folder / "certificate"
    record = json.loads((source / "certificate.json").read_text())
    data = data_files(record)
    try:
        command = f"{command_of(read_run(run_folder, name))} seed={record['config']['seed']}"
    except Refused as error:
        raise NotReleasedError(str(error)) from error
    _demand(source, data)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / name
        copy.mkdir()
        for file in ("network.safetensors", "radii.csv", MULTIPLIERS, METRIC):
            if (source / file).exists():
                shutil.copyfile(source / file, copy / file)
        _copy_samples(source / "samples.safetensors", copy / "samples.safetensors", bool(data))
        record["config"]["dataset"].pop("root", None)
        for text in _strings(record):
            if text.startswith(("/", "~")):
                raise NotReleasedError(f"certificate.json names a place on this machine: {text}")
        for file in record["files"]:
            record["files"][file] = hashlib.sha256((copy / file).read_bytes()).hexdigest()
        (copy / "certificate.json").write_text(json.dumps(record, indent=1) + "\n")
        _demand(copy, data)
        others = [p for p in out.rglob("*") if p.is_file() and p.parent.name != name]
        size = sum(p.stat().st_size for p in [*others, *copy.iterdir()])
        if size > MAX_BYTES:
            raise NotReleasedError(f"{size:,} bytes with it, more than {MAX_BYTES:,}")
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(copy, out / name)
    _enter(out / INDEX, name, command, record, certificate_digest(out / name))
    return out / name


def _demand(folder: Path, data: Sequence[Path]) -> None:
    found = verdict(folder, data)
    if not found.verified:
        raise NotReleasedError(f"{folder}: the checker did not verify it: {found.said}")


def _copy_samples(source: Path, target: Path, from_files: bool) -> None:
    tensors = load_file(source)
    inputs = tensors.get("inputs")
    if from_files and inputs is not None and inputs.nbytes > MAX_SAMPLE_BYTES:
        digests = [hashlib.sha256(x.tobytes()).digest() for x in tensors.pop("inputs")]
        tensors["digests"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    save_file(tensors, target)


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _strings(value)


def _enter(path: Path, name: str, command: str, record: dict[str, Any], digest: str) -> None:
    index = json.loads(path.read_text()) if path.exists() else {}
    summary = record["summary"]
    index[name] = {
        "command": command,
        "dataset": record["dataset"]["name"],
        "certificate": digest,
        "network": record["network"]["digest"],
        "accuracy": summary["correct"] / summary["samples"],
        "verified": {
            f"{row['decimal']:.4g}": row["count"] / summary["samples"]
            for row in summary["certified"]
        },
    }
    path.write_text(json.dumps(dict(sorted(index.items())), indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Release one run; 1 if it is refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, default=PRETRAINED)
    options = parser.parse_args(arguments)
    try:
        folder = release(options.run, options.name, options.out)
    except NotReleasedError as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
