"""The operations of certificate.json with their tensors, read as untrusted data."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from robustcert.check.network.operation import BRANCHED, MAX_SIZE, Operation, Shape
from robustcert.check.network.parts import PARTS
from robustcert.check.network.rules import RULES, joined
from robustcert.check.reader import Array, UnreadableError, fail, items, keys, show, text, whole

# Maximum number of operations and branches: each costs a step for every batch of samples.
MAX_OPERATIONS = 5000
# Maximum number of values that all operations together make of one sample.
MAX_TOTAL_SIZE = 2**28
# Maximum depth of branches inside of branches.
MAX_DEPTH = 20


@dataclass
class _Reader:
    tensors: dict[str, Array]
    used: set[str] = field(default_factory=set)
    count: int = 0
    values: int = 0

    def sequence(
        self, described: Any, prefix: str, shape: Shape, depth: int
    ) -> tuple[tuple[Operation, ...], Shape]:
        operations = []
        for i, entry in enumerate(items(described, f"operations {prefix}")):
            operation = self.operation(entry, f"{prefix}{i}", shape, depth)
            operations.append(operation)
            shape = operation.output_shape
        return tuple(operations), shape

    def operation(self, entry: Any, path: str, shape: Shape, depth: int) -> Operation:
        where = f"operation {path}"
        self.add(1, where)
        if depth > MAX_DEPTH:
            raise UnreadableError(f"{where}: branches nested more than {MAX_DEPTH} deep")
        keys(entry, where, {"kind", "name", "options", "tensors"}, {"branches"})
        kind, name = text(entry["kind"], where), text(entry["name"], where)
        where = f"{where} ({show(name)})"
        options = keys(entry["options"], where, set())
        tensors = self.take(entry["tensors"], path, where)
        if ("branches" in entry) != (kind in BRANCHED):
            raise UnreadableError(f"{where}: branches belong to a sum or a concatenation only")
        if kind in BRANCHED:
            if tensors:
                raise UnreadableError(f"{where}: what has branches has no tensors")
            described = items(entry["branches"], where)
            self.add(len(described), where)
            read = [
                self.sequence(branch, f"{path}.branch{b}.", shape, depth + 1)
                for b, branch in enumerate(described)
            ]
            if not read:
                raise UnreadableError(f"{where}: it has no branches")
            outputs = joined(kind, options, [out for _, out in read], where)
            if math.prod(outputs) > MAX_SIZE:
                raise UnreadableError(f"{where}: output shape {outputs} is too large")
            branches = tuple(ops for ops, _ in read)
            return Operation(kind, name, path, options, {}, shape, outputs, branches)
        rule = RULES.get(kind)
        if rule is None:
            raise UnreadableError(f"{where}: unknown operation {show(kind)}")
        outputs = rule(options, tensors, shape, where)
        if any(n < 1 for n in outputs) or math.prod(outputs) > MAX_SIZE:
            raise UnreadableError(f"{where}: output shape {outputs} is empty or too large")
        self.values += math.prod(outputs)
        if self.values > MAX_TOTAL_SIZE:
            raise UnreadableError(f"{where}: more than {MAX_TOTAL_SIZE} values of a sample so far")
        found = Operation(kind, name, path, options, tensors, shape, outputs)
        if kind not in PARTS:
            return found
        parts = PARTS[kind](found, where)
        if parts[-1].output_shape != outputs:
            raise UnreadableError(f"{where}: its parts do not fit together")
        return replace(found, parts=parts)

    def add(self, count: int, where: str) -> None:
        """Count operations and branches."""
        self.count += count
        if self.count > MAX_OPERATIONS:
            raise UnreadableError(f"{where}: more than {MAX_OPERATIONS} operations and branches")

    def take(self, names: Any, path: str, where: str) -> dict[str, Array]:
        taken = {}
        for key, name in keys(names, where, set()).items():
            if name != f"{path}.{key}" or name not in self.tensors:
                raise UnreadableError(f"{where}: no tensor {show(name)} for {show(key)}")
            array = self.tensors[name]
            if (array.dtype.kind != "f") != (key == "index"):
                raise UnreadableError(f"{where}: {show(key)} is not floating point")
            if not np.isfinite(array).all():
                raise UnreadableError(f"{where}: {show(key)} contains NaN or infinity")
            self.used.add(name)
            taken[key] = array
        return taken


def read_network(
    described: Any, tensors: dict[str, Array], least: int = 2
) -> tuple[Operation, ...]:
    """The operations of ``certificate.json`` with their tensors, every shape checked.

    Args:
        described: What the file says of the network.
        tensors: Constants, by name.
        least: Minimum number of outputs.
    """
    keys(described, "network", {"input_shape", "digest", "operations"}, set())
    sizes = items(described["input_shape"], "network input_shape")
    if not 1 <= len(sizes) <= 4:
        raise fail("network input_shape", "1 to 4 sizes", sizes)
    shape = tuple(whole(n, "network input_shape", 1, MAX_SIZE) for n in sizes)
    if math.prod(shape) > MAX_SIZE:
        raise fail("network input_shape", f"at most {MAX_SIZE} values", sizes)
    reader = _Reader(tensors)
    operations, outputs = reader.sequence(described["operations"], "", shape, 0)
    unused = sorted(tensors.keys() - reader.used)
    if unused:
        raise UnreadableError(f"network.safetensors: no operation uses {show(unused[0])}")
    if not operations or len(outputs) != 1 or outputs[0] < least:
        said = "two logits" if least == 2 else f"{least} outputs"
        raise UnreadableError(f"network: expected at least {said}, got outputs {outputs}")
    return operations
