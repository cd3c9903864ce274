"""Numbers as strangers wrote them."""

import math
from typing import Any

from robustcert.check import UnreadableError

# Maximum number of radii of an entry.
MAX_RADII = 32


def number(value: Any, most: float = math.inf) -> float:
    """A finite number from 0 to ``most``.

    Raises:
        UnreadableError: it is none.
    """
    if type(value) not in (int, float) or not 0 <= value <= most or math.isinf(value):
        raise UnreadableError(f"reported: expected a number from 0 to {most:g}")
    return float(value)
