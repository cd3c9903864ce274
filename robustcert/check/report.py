"""The report of a check: what was proved, what was taken as said, and what does not hold."""

from dataclasses import dataclass, field

# Maximum number of mismatches that are recorded in words; further ones are counted.
MAX_MISMATCHES = 10_000


@dataclass
class Report:
    """What a check found, in words: claims that were proved, and claims that do not hold.

    Attributes:
        checked: What was proved or recomputed from the folder's own files, by topic.
        compared: What was compared with the data given, by topic.
        said: What is taken from the folder as said, without any check.
        mismatches: Claims that are false, or whose proof failed.
        uncovered: Claims that this checker cannot prove, whether they are true or not.
        untried: Claims whose proof did not fit into the time or the limits, with what it needs.
        more: Number of claims that do not hold and are not among ``mismatches``.
        program: Whether the verified checker did the proving, which is about function R alone.
    """

    checked: list[tuple[str, str]] = field(default_factory=list)
    compared: list[tuple[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    more: int = 0
    program: bool = False

    @property
    def verified(self) -> bool:
        """Whether every claim was proved, apart from those in ``said``."""
        return not self.mismatches and not self.uncovered and not self.untried

    def note(self, topic: str, what: str) -> None:
        """Record that something was proved or recomputed."""
        self.checked.append((topic, what))

    def expect(self, condition: bool, message: str) -> bool:
        """Record a mismatch unless the condition holds; beyond MAX_MISMATCHES, count it."""
        if not condition:
            if len(self.mismatches) < MAX_MISMATCHES:
                self.mismatches.append(message)
            else:
                self.more += 1
        return condition
