r"""The table of all activations: their Lipschitz constants, and how their formulas are rounded.

Every function in the table is 1-Lipschitz for constants that ``features`` accepts, except those of
``torch_functions.py``, which has their constants:

* ``relu``, ``absolute``, ``identity``, ``beta_abs``, ``n_activation`` (for corners in order) and
  ``linear_spline`` (for slopes in [-1, 1]) act on each entry by a continuous function with slopes
  in [-1, 1]; so do ``tanh``, ``softplus`` (a sigmoid), ``smooth_abs`` (:math:`x / \sqrt{x^2 +
  \tau^2}`) and ``smooth_n``, whose slope is :math:`2 \sigma(p) + 2 \sigma(q) - 1` with
  :math:`p + q = (t_1 - t_2) / \tau \le 0`, hence in [-1, 1].
* ``grafted``: of disjoint units, some are ReLUs or sorted pairs and the others lines, or exchanged
  pairs of lines, with slopes in [-1, 1].
* ``group_sort``: sorted lists are the closest pairing of two lists. ``smooth_maxmin``: its Jacobian
  is a convex combination of the identity and the exchange, ``norm_pair``: that of each output is
  :math:`z / \sqrt{|z|^2 + \tau^2}` and groups are disjoint. ``sin_cos``: a curve of unit speed.
* ``householder`` and ``smooth_householder`` leave the component across the normal alone and apply
  the (smooth) absolute value to the one along it, whatever the normal's length.
* ``norm_pool``: the norm of each of some disjoint windows is 1-Lipschitz in that window.
* ``householder2`` is an isometry on each of four sectors and continuous: with rays at angles t1 <
  t2 < t3 < t4 = t1 - t2 + t3 + pi, both compositions of reflections agree on every ray. That needs
  the sectors to be between 0 and pi wide, which is checked exactly.

Rounding. ``rounding`` returns (a, b) such that the formula, evaluated with unit roundoff u, stays
within :math:`u (a |z| + b \sqrt n)` of the real function in the l2 norm, n being the number of
outputs. It is assumed that exp, log1p, tanh, cos, sin and hypot are within 4 ulp, that is 8u. The
counts below are of first order: factors 1 + d, \|d\| <= c u, of all roundings, K being the sum of
their c. Within those ranges no derivative by a d, taken with the sizes of values that are counted
here, grows by more than (1 + u)^{2 K}, or by 1 + 2^-15 besides where an exponential's argument is
wrong relatively (3 u times at most 104 in float32, 745 in float64, beyond which it underflows). For
K u <= 2^-6 that is below 1.032, so 17/16 of the count bounds all orders; ``features`` accepts no
constants that lead to more than 2^18 roundings, which is K u <= 2^-6 for u = 2^-24.

* ``grafted``: a product within \|x\| and a sum within \|x\| + \|b\|.
* ``n_activation``: one rounding of an output within \|z\| + \|N(0)\|. ``tanh``: 8.
* ``householder``: inner product 2, squared length 2, quotient 1, doubled and times the normal: 10;
  the product with the normal 2, the difference 1. ``householder2``: 13 for each of two reflections,
  and 14 for a point in the wrong sector: the fourth ray is wrong by 5.7, a comparison by 1, and two
  isometries that agree on a ray differ by twice the distance to it.
* ``linear_spline`` with m pieces on each side and radius R: the value at a knot m - 1, slope times
  knot 1, their difference and its product with the step 2 each, a wrong piece 6, all times R; 2
  \|x\| for the last product and sum.
* ``softplus``: the exponent is wrong by 1 (2 in ``smooth_maxmin``), which moves the result by at
  most 0.28 for each; exp 8, halved by log1p; log1p 8 log 2; product and sum log 2 each, all times
  tau; \|x\| for the sum. ``smooth_n``: that twice, doubled, with arguments that are rounded
  themselves, then two differences: 7 \|x\| + 8 c + 52 tau, c being the corners' distance to 0.
* ``smooth_abs``: hypot 8 (\|x\| + tau), difference \|x\|. ``norm_pair``: 8 for each hypot.
* ``norm_pool``, of n entries: squares 1, sums n, which the root halves, and 1 for itself; scaling
  for another 2. Squares that underflow, sqrt n 2^-511 or, in float32, sqrt n 2^-63: 2^-38 sqrt n.
* ``sin_cos``: phase \|x\|, cos and sin 8 and quotient 1, over omega and both outputs together.
* ``smooth_householder``: the unit normal 9, the inner product with it 11; 33 \|z\| + 8 tau for the
  change along it, 20 \|z\| for the product with the normal, 1 for the sum.
"""

from collections.abc import Mapping

from robustcert.check.activations.kind import Kind
from robustcert.check.activations.piecewise_linear import PIECEWISE_LINEAR
from robustcert.check.activations.pooling import POOLING
from robustcert.check.activations.smooth import SMOOTH
from robustcert.check.activations.torch_functions import TORCH

# Every activation that the checker knows, by its name.
KINDS: Mapping[str, Kind] = {**PIECEWISE_LINEAR, **SMOOTH, **POOLING, **TORCH}
