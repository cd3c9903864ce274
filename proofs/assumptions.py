"""Ask Coq what every claimed theorem rests on, and compare with the axioms that are allowed.

``python assumptions.py write`` prints a Coq file that asks; ``python assumptions.py check LOG``
reads the answers. Exit code 1: a theorem rests on something else.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Of the standard library's real numbers, and of classical logic.
ALLOWED = {
    "ClassicalDedekindReals.sig_forall_dec",
    "ClassicalDedekindReals.sig_not_dec",
    "FunctionalExtensionality.functional_extensionality_dep",
    "Classical_Prop.classic",
}
# Coq's primitive integers, which are no axioms but are listed with them.
PRIMITIVE = re.compile(r"PrimInt63\.\w+")
CLOSED = "Closed under the global context"


def claims() -> list[str]:
    """Names of the claimed theorems as ``File.theorem``, in the order of ``claims.txt``."""
    lines = (HERE / "claims.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def questions(names: list[str]) -> str:
    """A Coq file that prints what the theorems rest on."""
    files = dict.fromkeys(name.split(".")[0] for name in names)
    required = [f"From Robustcert Require {file}." for file in files]
    return "\n".join([*required, *(f"Print Assumptions Robustcert.{name}." for name in names)])


def answers(log: str) -> list[set[str]]:
    """Names of what each theorem rests on, read from what Coq printed.

    Raises:
        ValueError: a line is not understood.
    """
    found: list[set[str]] = []
    for line in log.splitlines():
        if line in (CLOSED, "Axioms:"):
            found.append(set())
        elif match := re.match(r"([\w.']+)( :.*)?$", line):
            found[-1].add(match[1])
        elif not line.startswith(" "):
            raise ValueError(f"expected the answers of Print Assumptions, got {line!r}")
    return found


def excess(used: set[str]) -> set[str]:
    """What is neither an allowed axiom nor a primitive integer."""
    return {name for name in used if name not in ALLOWED and not PRIMITIVE.fullmatch(name)}


def main(arguments: list[str]) -> int:
    """Write the questions, or check the answers."""
    names = claims()
    if arguments == ["write"]:
        sys.stdout.write(questions(names) + "\n")
        return 0
    found = answers(Path(arguments[1]).read_text())
    if len(found) != len(names):
        sys.stderr.write(f"make proofs: {len(found)} answers for {len(names)} theorems\n")
        return 1
    faults = [(name, excess(used)) for name, used in zip(names, found, strict=True) if excess(used)]
    for name, wrong in faults:
        sys.stderr.write(f"make proofs: {name} rests on {', '.join(sorted(wrong))}\n")
    if not faults:
        axioms = ", ".join(sorted(set().union(*found))) or "nothing"
        sys.stdout.write(f"{len(names)} theorems, which rest on {axioms}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
