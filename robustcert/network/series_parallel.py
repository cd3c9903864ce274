"""From a graph of values to operations in sequence, with branches where paths part and meet."""

from collections.abc import Iterator
from dataclasses import dataclass

from robustcert.errors import UnknownLipschitz, UnsoundNetworkError
from robustcert.network.branches import Branched, Concatenation, Sum
from robustcert.network.operation import Operation

# Maximum number of copies that a graph may need of its values and operations.
MAX_COPIES = 1000
# Maximum depth of branches in branches.
MAX_DEPTH = 20


@dataclass(frozen=True, eq=False)
class Value:
    """What a module computes at one place: of one value by operations, or of several put together.

    Attributes:
        operations: What is applied to the inputs, put together.
        inputs: Values that it is computed from; none for the input of the module.
        name: Path of the module that computes it.
        where: The line that does, in words.
        axis: The dimension of a sample along which the inputs stand side by side; None: they are
            added.
        unknown: Why it is not known; None where it is.
    """

    operations: tuple[Operation, ...] = ()
    inputs: tuple["Value", ...] = ()
    name: str = ""
    where: str = ""
    axis: int | None = None
    unknown: UnsoundNetworkError | None = None


def decomposed(output: Value) -> list[Operation]:
    """Operations from the input to a value, with branches wherever several values meet.

    The branches start at the dominator of the place where they meet, the last value through which
    all paths from the input to it lead. A value that is needed in several branches and is not where
    they start is computed in each of them; the function is the same.

    Raises:
        UnknownLipschitz: that makes more than MAX_COPIES copies, or branches more than MAX_DEPTH
            deep.
    """
    dominators = _dominators(output)
    seen: set[Value] = set()
    copies = 0

    def between(start: Value, end: Value, depth: int) -> list[Operation]:
        nonlocal copies
        backwards: list[Operation] = []
        while end is not start:
            copies += 1 + len(end.operations) if end in seen else 0
            if copies > MAX_COPIES or depth > MAX_DEPTH:
                raise UnknownLipschitz(
                    f"{end.where}: values that are used more than once do not meet where they "
                    "part: the graph is not series-parallel, and to make it so takes more than "
                    f"{MAX_COPIES} copies of its steps, or branches more than {MAX_DEPTH} deep. "
                    "Put the branches that start here together before anything else",
                    end.name,
                )
            seen.add(end)
            backwards += reversed(end.operations)
            if len(end.inputs) == 1:
                end = end.inputs[0]
                continue
            fork = dominators[end]
            backwards.append(_joined(end, [between(fork, v, depth + 1) for v in end.inputs]))
            end = fork
        return backwards[::-1]

    return between(next(iter(dominators)), output, 0)


def _joined(value: Value, branches: list[list[Operation]]) -> Branched:
    parts = tuple(map(tuple, branches))
    if value.axis is None:
        return Sum(parts, name=value.name)
    return Concatenation(parts, value.axis, name=value.name)


def _dominators(output: Value) -> dict[Value, Value]:
    """The nearest dominator of every value but the input's, which is its own, from the input on."""
    found: dict[Value, Value] = {}
    depth: dict[Value, int] = {}
    for value in in_order(output):
        nearest = value.inputs[0] if value.inputs else value
        for other in value.inputs[1:]:
            while other is not nearest:
                if depth[other] < depth[nearest]:
                    other, nearest = nearest, other
                other = found[other]
        found[value] = nearest
        depth[value] = depth[nearest] + 1 if value.inputs else 0
    return found


def in_order(output: Value) -> Iterator[Value]:
    """Everything that a value is computed from and itself, each behind its inputs."""
    seen: set[Value] = set()
    stack = [(output, False)]
    while stack:
        value, ready = stack.pop()
        if ready:
            yield value
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack += [(v, False) for v in reversed(value.inputs)]
