"""The outcome of a check, in words."""

from dataclasses import dataclass, field

# Maximum number of mismatches that are recorded in words; further ones are counted.
MAX_MISMATCHES = 10_000


@dataclass
class Report:
    """What was checked, in words, and every claim that does not hold or could not be proved.

    Attributes:
        checked: What was proved or recomputed from the folder's own files, by topic.
        compared: What was compared with the data given, by topic.
        said: What is taken from the folder as said, without any check.
        mismatches: Claims that are false, or whose proof failed.
        uncovered: What is claimed and cannot be proved here, whether it is true or not.
        more: Number of claims that do not hold and are not among ``mismatches``.
    """

    checked: list[tuple[str, str]] = field(default_factory=list)
    compared: list[tuple[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    more: int = 0

    @property
    def verified(self) -> bool:
        """Whether every claim was proved, but for what is listed as said."""
        return not self.mismatches and not self.uncovered

    def note(self, topic: str, what: str) -> None:
        """Record what was checked."""
        self.checked.append((topic, what))

    def expect(self, condition: bool, message: str) -> bool:
        """Record a mismatch unless the condition holds; beyond MAX_MISMATCHES, count it."""
        if not condition:
            if len(self.mismatches) < MAX_MISMATCHES:
                self.mismatches.append(message)
            else:
                self.more += 1
        return condition
