"""Activations of other packages that are ours: found by :mod:`robustcert.network.overrides`.

What they compute is compared with the module when a network is captured and when it is certified,
as for a module that states its own fold.
"""

import sys
from typing import Any

from robustcert.activations.group_sort import GroupSort
from robustcert.errors import UnsoundNetworkError
from robustcert.network.operation import Operation
from robustcert.network.overrides import state_fold


def _group_sort(module: Any) -> Operation:
    """Groups of neighbouring features in increasing order."""
    size, factor = module.group_size, module._coefficient_lip
    if size is None or factor != 1:
        raise UnsoundNetworkError(
            f"expected a group_size and a coefficient of 1, got {size} and {factor}: their folds "
            "depend on the number of features"
        )
    return GroupSort(size, size).fold()


_torchlip: Any = sys.modules.get("deel.torchlip.modules.activation")
if _torchlip is not None:
    state_fold(_torchlip.GroupSort, _group_sort)
    state_fold(_torchlip.GroupSort2, _group_sort)
