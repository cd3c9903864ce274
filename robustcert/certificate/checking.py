"""What the independent checker will be able to do with a certificate folder."""

from pathlib import Path

from robustcert.check import UnreadableError, expected_time


def check_in_words(folder: Path) -> str:
    """One line: the command that checks a folder, and what it will take."""
    try:
        said = str(expected_time(folder))
    except UnreadableError as error:
        said = f"will not check it: {error}"
    return f"robustcert-check {folder}: {said}"
