"""The user's permission to build classes of their own packages: ``allow_targets``.

Light enough for commands to import it before they know whether they need torch.
"""

import os
import sys
from collections.abc import Sequence

# How it is typed behind train and certify; the other commands take it as well.
WORD = "allow_targets="


def as_flags(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``allow_targets=[a,b]`` as argparse has it: ``--allow-targets=[a,b]``."""
    flag = "--" + WORD.replace("_", "-")
    return [a.replace(WORD, flag, 1) if a.startswith(WORD) else a for a in arguments]


def packages(word: str) -> list[str]:
    """The packages of a list as it is typed: ``[a,b]``, or ``a,b``."""
    return [name.strip() for name in word.strip("[] ").split(",") if name.strip()]


def admit_working_folder(allow_targets: object) -> None:
    """Let modules beside the user's commands be imported, if some are allowed.

    As ``python -m`` does; last in the order, so that they shadow nothing.
    """
    if allow_targets and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
