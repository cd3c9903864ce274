"""The digest that names a network: SHA-256 of its definitions and constants."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from robustcert.check.network.operation import BRANCHED, Operation, Shape
from robustcert.check.reader import (
    Array,
)


def digest(input_shape: Shape, operations: tuple[Operation, ...]) -> str:
    """SHA-256 over all definitions and little-endian constants, in order."""
    total = hashlib.sha256(json.dumps(list(input_shape)).encode())
    for line, tensors in _lines(operations):
        total.update(json.dumps(line, sort_keys=True).encode())
        for key in sorted(tensors):
            total.update(key.encode())
            total.update(np.ascontiguousarray(tensors[key]).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _lines(operations: tuple[Operation, ...]) -> Iterator[tuple[dict[str, Any], dict[str, Array]]]:
    for op in operations:
        shapes = {key: [array.dtype.name, *array.shape] for key, array in op.tensors.items()}
        line = {"kind": op.kind, **op.options, "shapes": shapes}
        # The number of branches: without it, what follows could be taken for another branch.
        yield line | ({"branches": len(op.branches)} if op.kind in BRANCHED else {}), op.tensors
        for branch in op.branches:
            yield {"branch": len(branch)}, {}
            yield from _lines(branch)
