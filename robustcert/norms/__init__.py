"""Norms of linear maps: from above (bounds, for proofs) and from below (estimates, for training).

Functions named ``*_bound`` or ``*_bounds`` never return less than the true value of the map given,
rounding included. ``power_iteration``, ``gram_iteration`` and ``*_lower`` promise no such thing.
"""

from robustcert.norms.closeness import quick_bounds
from robustcert.norms.convolution import circular_conv_norm_bound, conv_norm_bound
from robustcert.norms.dense import dense_norm_bound, gram_bound, row_distance_bounds
from robustcert.norms.device import computed_on
from robustcert.norms.estimates import (
    conv_norm_lower,
    conv_power_iteration,
    gram_iteration,
    norm_lower,
    power_iteration,
)
from robustcert.norms.scalars import hypot_up, product_up, sqrt_up, sum_up

__all__ = [
    "circular_conv_norm_bound",
    "computed_on",
    "conv_norm_bound",
    "conv_norm_lower",
    "conv_power_iteration",
    "dense_norm_bound",
    "gram_bound",
    "gram_iteration",
    "hypot_up",
    "norm_lower",
    "power_iteration",
    "product_up",
    "quick_bounds",
    "row_distance_bounds",
    "sqrt_up",
    "sum_up",
]
