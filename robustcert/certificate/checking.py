"""What the independent checker will be able to do with a certificate."""

import json
from pathlib import Path

from torch import Tensor

from robustcert.certificate.claim import describe_operations
from robustcert.check import Expected, UnreadableError, expected_time, read_network
from robustcert.network.network import PlainNetwork


def check_in_words(folder: Path) -> str:
    """One line: the command that checks a folder, and what it will take."""
    try:
        said = str(expected_time(folder))
    except UnreadableError as error:
        said = _refused(error)
    return f"robustcert-check {folder}: {said}"


def check_beforehand(network: PlainNetwork, samples: int) -> str | None:
    """What the check of so many samples of a network will take, known before one is certified.

    None where it takes a few seconds.
    """
    tensors: dict[str, Tensor] = {}
    described = {
        "input_shape": network.input_shape,
        "digest": "",
        "operations": describe_operations(network.operations, "", tensors),
    }
    try:
        operations = read_network(
            # As a folder has it: lists for tuples.
            json.loads(json.dumps(described)),
            {name: tensor.cpu().numpy() for name, tensor in tensors.items()},
            least=1,
        )
    except UnreadableError as error:
        return _refused(error)
    expected = Expected.of(operations, samples)
    return None if expected.short else str(expected)


def _refused(error: UnreadableError) -> str:
    return f"will not check it: {error}"
