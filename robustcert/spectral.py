"""The public norm bounds, under the name that they always had; see :mod:`robustcert.norms`."""

from robustcert.norms.convolution import conv_norm_bound
from robustcert.norms.dense import dense_norm_bound

__all__ = ["conv_norm_bound", "dense_norm_bound"]
