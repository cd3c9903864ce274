"""The independent checker: proves a certificate folder's claims from its own files, or refuses.

It shares no code with the rest of the package, needs no torch, trusts no number in the folder and
runs with ``robustcert-check DIR``. What it does in turn, one module each:

* ``isolation`` starts Python so that it imports nothing from the current folder, ``supervisor``
  bounds the time of the check and outlives it, ``command`` prints the verdict;
* ``reader`` and ``folder`` read the folder as untrusted data, ``network`` its operations;
* ``memory`` is what it takes, by the shapes, and ``available`` what there is;
* ``effort`` is the time that it may take, by the formulas of ``cost``; ``expected`` tells it
  beforehand, and ``processes`` share the norms of large convolutions and exact samples;
* ``norms`` proves the claimed norm of every operation, with the products of ``exact_products``;
* ``semidefinite`` proves pairwise constants below the product of norms from given multipliers;
* ``activations`` knows every activation's constant, formula and rounding;
* ``forward`` evaluates the network with proved errors, in the formats of ``arithmetic`` and, with
  the numbers of ``fixed_point``, exactly;
* ``curvature`` bounds how far margins of smooth networks fall, with ``activation_curvature``;
* ``radii`` checks predictions and radii, by ``margins`` or, for quadratic logits, by ``quadratic``;
  ``share`` chooses the rows that are evaluated exactly; ``dataset`` compares the inputs with the
  files that they are from;
* ``intervals`` checks those of a regression, ``monotone`` directions;
* ``statement``, ``constants`` and ``samples`` check the claim's words, bounds and table, which
  ``verdict`` puts together.
"""

# mypy's own name: typing may not be imported before the start is known to be isolated.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from robustcert.check.activation_curvature import CURVATURES
    from robustcert.check.activations.kind import slopes_of
    from robustcert.check.activations.table import KINDS
    from robustcert.check.arithmetic import FLOAT64
    from robustcert.check.available import Free, free_memory
    from robustcert.check.expected import Expected, expected_time
    from robustcert.check.forward.batches import FLOAT_BYTES, batches, float_bytes
    from robustcert.check.forward.floating import evaluate
    from robustcert.check.intervals import (
        INTERVAL_FILES,
        IntervalRow,
        Means,
        means,
        parse_intervals,
    )
    from robustcert.check.isolation import supervised
    from robustcert.check.network.metric import change_in_words
    from robustcert.check.network.operation import Operation, walk
    from robustcert.check.network.reading import read_network
    from robustcert.check.reader import (
        FILES,
        METRIC,
        MULTIPLIERS,
        UnreadableError,
        parse_json,
        parse_radii,
        parse_safetensors,
        read_bytes,
        sha256,
    )
    from robustcert.check.report import Report
    from robustcert.check.statement import (
        INPUTS,
        METRIC_NORM,
        STATEMENTS,
        UNITS,
        VALUES,
        Space,
        task_of,
    )
    from robustcert.check.verdict import ProvedNetwork, check, prove_network

# What the rest of the package takes from here: a test holds that it imports nothing else.
__all__ = [
    "CURVATURES",
    "FILES",
    "FLOAT64",
    "FLOAT_BYTES",
    "INPUTS",
    "INTERVAL_FILES",
    "KINDS",
    "METRIC",
    "METRIC_NORM",
    "MULTIPLIERS",
    "STATEMENTS",
    "UNITS",
    "VALUES",
    "Expected",
    "Free",
    "IntervalRow",
    "Means",
    "Operation",
    "ProvedNetwork",
    "Report",
    "Space",
    "UnreadableError",
    "batches",
    "change_in_words",
    "check",
    "evaluate",
    "expected_time",
    "float_bytes",
    "free_memory",
    "means",
    "parse_intervals",
    "parse_json",
    "parse_radii",
    "parse_safetensors",
    "prove_network",
    "read_bytes",
    "read_network",
    "sha256",
    "slopes_of",
    "supervised",
    "task_of",
    "walk",
]

# The modules of these names, which are resolved on first use: `python -m robustcert.check` must not
# import NumPy before it knows that the current folder cannot take its place.
_NAMES = {
    "activation_curvature": ("CURVATURES",),
    "activations.kind": ("slopes_of",),
    "activations.table": ("KINDS",),
    "arithmetic": ("FLOAT64",),
    "available": ("Free", "free_memory"),
    "expected": ("Expected", "expected_time"),
    "forward.batches": ("FLOAT_BYTES", "batches", "float_bytes"),
    "forward.floating": ("evaluate",),
    "intervals": ("INTERVAL_FILES", "IntervalRow", "Means", "means", "parse_intervals"),
    "isolation": ("supervised",),
    "network.metric": ("change_in_words",),
    "network.operation": ("Operation", "walk"),
    "network.reading": ("read_network",),
    "reader": (
        *("FILES", "METRIC", "MULTIPLIERS", "UnreadableError", "parse_json", "parse_radii"),
        *("parse_safetensors", "read_bytes", "sha256"),
    ),
    "report": ("Report",),
    "statement": ("INPUTS", "METRIC_NORM", "STATEMENTS", "UNITS", "VALUES", "Space", "task_of"),
    "verdict": ("ProvedNetwork", "check", "prove_network"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(f"robustcert.check.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'robustcert.check' has no attribute {name!r}")
