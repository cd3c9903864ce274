"""From a graph of values to operations in sequence: where paths part, they meet again in a sum."""

from collections.abc import Iterator
from dataclasses import dataclass

from robustcert.errors import UnknownLipschitz, UnsoundNetworkError
from robustcert.network.network import Sum
from robustcert.network.operation import Operation


@dataclass(frozen=True, eq=False)
class Value:
    """What a module computes at one place: of one value by operations, or the sum of several.

    Attributes:
        operations: What is applied to the sum of the inputs.
        inputs: Values that it is computed from; none for the input of the module.
        name: Path of the module that computes it.
        where: The line that does, in words.
        unknown: Why it is not known; None where it is.
    """

    operations: tuple[Operation, ...] = ()
    inputs: tuple["Value", ...] = ()
    name: str = ""
    where: str = ""
    unknown: UnsoundNetworkError | None = None


def decomposed(output: Value) -> list[Operation]:
    """Operations from the input to a value, with a :class:`Sum` of branches for every sum.

    The branches of a sum start at its dominator, the last value through which all paths from the
    input to the sum lead. Every value must be needed once then: the graph is series-parallel.

    Raises:
        UnknownLipschitz: a value is needed in two branches that do not start at it.
    """
    dominators = _dominators(output)
    seen: set[Value] = set()

    def between(start: Value, end: Value) -> list[Operation]:
        backwards: list[Operation] = []
        while end is not start:
            if end in seen:
                raise UnknownLipschitz(
                    f"{end.where}: this value is used more than once, and what is made of it does "
                    "not come together in one sum: the graph is not series-parallel. Add the "
                    "branches that start here before anything else is added",
                    end.name,
                )
            seen.add(end)
            backwards += reversed(end.operations)
            if len(end.inputs) == 1:
                end = end.inputs[0]
                continue
            fork = dominators[end]
            branches = tuple(tuple(between(fork, value)) for value in end.inputs)
            backwards.append(Sum(branches, name=end.name))
            end = fork
        return backwards[::-1]

    return between(next(iter(dominators)), output)


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
