"""The commands, for console scripts that an earlier version installed."""

from robustcert.runs.commands import certify, train

__all__ = ["certify", "train"]
