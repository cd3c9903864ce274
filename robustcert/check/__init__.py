"""The independent checker: proves a certificate folder's claims from its own files, or refuses.

It shares no code with the rest of the package, needs no torch, trusts no number in the folder and
runs with ``python -m robustcert.check DIR``. What it does in turn, one file each:

* ``reader`` reads the folder as untrusted data, ``network`` its operations;
* ``norms`` proves the claimed norm of every operation, with the exact products of ``digits``;
* ``semidefinite`` proves pairwise constants below the product of norms from given multipliers;
* ``activations`` knows every activation's constant, formula and rounding;
* ``forward`` evaluates the network with proved errors, in float64 and, with ``fixed``, exactly;
* ``curvature`` bounds how far margins of smooth networks fall, with ``bends`` of activations;
* ``radii`` checks predictions and radii, ``verdict`` everything else, ``dataset`` the samples.
"""

from robustcert.check.reader import UnreadableError
from robustcert.check.report import Report
from robustcert.check.verdict import ProvedNetwork, check, prove_network

__all__ = ["ProvedNetwork", "Report", "UnreadableError", "check", "prove_network"]
