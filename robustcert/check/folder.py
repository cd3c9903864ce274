"""A certificate folder as read: nothing of it is proved yet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustcert.check.arithmetic import Arithmetic
from robustcert.check.memory import bytes_at_least
from robustcert.check.network.digest import digest
from robustcert.check.network.operation import Operation
from robustcert.check.network.reading import read_network
from robustcert.check.quadratic.network import covers
from robustcert.check.reader import (
    METRIC,
    MULTIPLIERS,
    Array,
    UnreadableError,
    keys,
    parse_json,
    parse_safetensors,
    read_bytes,
    require_memory,
    sha256,
    show,
)
from robustcert.check.report import Report
from robustcert.check.statement import (
    CLAIMS,
    FORMAT,
    MIN_OUTPUTS,
    Space,
    check_space,
    check_statement,
    task_of,
)

# File of the network's constants.
NETWORK = "network.safetensors"


def open_folder(folder: str | Path) -> Path:
    """The path of a folder that is there, in a process whose arithmetic proves what it should."""
    _check_arithmetic()
    folder = Path(folder)
    if not folder.is_dir():
        raise UnreadableError(f"{show(str(folder))}: no folder")
    return folder


def read_claim(
    folder: Path, names: Sequence[str]
) -> tuple[dict[str, bytes], dict[str, Any], list[Arithmetic], str]:
    """Files by name; certificate.json; the arithmetics that its claim is about; its proof."""
    content = {name: read_bytes(folder, name) for name in names}
    claim = parse_json(content["certificate.json"], "certificate.json")
    keys(claim, "certificate.json", {"format"})
    if claim["format"] != FORMAT or type(claim["format"]) is not int:
        raise UnreadableError(
            f"certificate.json: expected format {FORMAT}, got {show(claim['format'])}: certify the "
            "network again with this version (an older format does not say what its inputs are)"
        )
    keys(claim, "certificate.json", CLAIMS)
    deployed, proof = check_statement(claim["claim"])
    if proof == "lipsdp":
        content[MULTIPLIERS] = read_bytes(folder, MULTIPLIERS)
    if claim["claim"]["metric"] is not None:
        content[METRIC] = read_bytes(folder, METRIC)
    return content, claim, deployed, proof


def read_space(
    claim: dict[str, Any], content: dict[str, bytes], operations: tuple[Operation, ...]
) -> Space:
    """What the claim says of inputs and their distance."""
    tensors = parse_safetensors(content[METRIC], METRIC) if METRIC in content else None
    return check_space(claim["claim"], tensors, operations[0].input_shape)


def read_operations(
    claim: dict[str, Any], content: dict[str, bytes], report: Report
) -> tuple[tuple[Operation, ...], dict[str, Array]]:
    """The network's operations, whose digest is computed again, and its tensors."""
    tensors = parse_safetensors(content[NETWORK], NETWORK)
    least = MIN_OUTPUTS[task_of(claim["claim"])]
    operations = read_network(claim["network"], tensors, least)
    require_memory(bytes_at_least(operations), "the network's products")
    found = digest(operations[0].input_shape, operations)
    report.expect(claim["network"]["digest"] == found, f"network digest: it is {found}")
    if covers(operations) != (claim["claim"].get("proof") == "quadric"):
        raise UnreadableError("claim proof: quadric goes with networks that end in quadratics only")
    report.note("files", "sha256 and network digest recomputed")
    return operations, tensors


def _check_arithmetic() -> None:
    tiny = np.array([2.0**-1022, 1.0, 1.0])
    with np.errstate(all="ignore"):
        sums = tiny * 0.5 + np.array([0.0, 0.5 + 2.0**-53, 0.5 + 2.0**-53 + 2.0**-54])
    if sums[0] == 0 or sums[1] != 1 or sums[2] != 1 + 2.0**-52:
        raise UnreadableError(
            "this process does not round float64 to nearest, or flushes denormals"
        )


def check_files(claimed: Any, content: dict[str, bytes], report: Report) -> None:
    """Compare the hashes that a claim lists with those of the files that were read."""
    for name in sorted(content.keys() - {"certificate.json"}):
        found = sha256(content[name])
        report.expect(claimed[name] == found, f"{name}: its sha256 is {found}, not as claimed")
