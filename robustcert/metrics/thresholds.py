"""Radii at which certified samples are counted."""

import math
from collections.abc import Sequence

from robustcert.errors import ConfigError


def check_radii(radii: Sequence[float]) -> list[float]:
    """The radii in increasing order, each once.

    Raises:
        ConfigError: there is none, or one is not a number above 0.
    """
    if not radii or not all(0 < r < math.inf for r in radii):
        raise ConfigError(
            f"radii: expected a list of radii above 0, got {list(radii)!r}: set radii and epsilon"
        )
    return sorted({float(r) for r in radii})
