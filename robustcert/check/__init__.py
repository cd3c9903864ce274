"""The independent checker: proves a certificate folder's claims from its own files, or refuses.

It shares no code with the rest of the package, needs no torch, trusts no number in the folder and
runs with ``robustcert-check DIR``. What it does in turn, one file each:

* ``isolation`` starts Python so that it imports nothing from the current folder, ``supervisor``
  bounds the time of the check and outlives it, ``command`` prints the verdict;
* ``reader`` reads the folder as untrusted data, ``network`` its operations;
* ``norms`` proves the claimed norm of every operation, with those of ``exact_products``;
* ``semidefinite`` proves pairwise constants below the product of norms from given multipliers;
* ``activations`` knows every activation's constant, formula and rounding;
* ``forward`` evaluates the network with proved errors, in float64 and, in ``fixed_point``, exactly;
* ``curvature`` bounds how far margins of smooth networks fall, with ``activation_curvature``;
* ``radii`` checks predictions and radii, ``dataset`` the inputs;
* ``statement``, ``constants`` and ``samples`` check the claim's words, bounds and table, which
  ``verdict`` puts together.
"""

# mypy's own name: typing may not be imported before the start is known to be isolated.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from robustcert.check.reader import UnreadableError
    from robustcert.check.report import Report
    from robustcert.check.verdict import ProvedNetwork, check, prove_network

__all__ = ["ProvedNetwork", "Report", "UnreadableError", "check", "prove_network"]

# Resolved on first use: `python -m robustcert.check` must not import NumPy before it knows that the
# current folder cannot take its place.
_PLACES = {"UnreadableError": "reader", "Report": "report"}


def __getattr__(name: str) -> object:
    if name in __all__:
        import importlib

        place = _PLACES.get(name, "verdict")
        return getattr(importlib.import_module(f"robustcert.check.{place}"), name)
    raise AttributeError(f"module 'robustcert.check' has no attribute {name!r}")
