"""Several processes prove the bounds of a network together, each its share."""

from collections.abc import Callable

import pytest
import torch

from robustcert import norms
from robustcert.errors import UnsoundNetworkError
from robustcert.network.branches import Sum
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork, pairwise_bound
from robustcert.network.operation import Operation
from robustcert.network.shared_bounds import Proved, share_bounds

RANKS = 3


def network(seed: int = 0) -> PlainNetwork:
    """Dense operations of several sizes, one of them in a branch."""
    torch.manual_seed(seed)
    first, second, inner, head = (torch.randn(n, m) for n, m in ((7, 5), (7, 7), (7, 7), (3, 7)))
    branched = Sum(((), (Dense(inner),)))
    operations: tuple[Operation, ...] = (Dense(first), Dense(second), branched, Dense(head))
    return PlainNetwork(operations, (5,))


def proved_by_all(make: Callable[[int], PlainNetwork]) -> list[Proved]:
    """What every process hands over; each has a network of its own."""
    handed: list[Proved] = []

    def gather(own: Proved) -> list[Proved]:
        handed.append(own)
        return []

    for rank in range(RANKS):
        share_bounds(make(rank), rank, RANKS, gather)
    return handed


def test_together_they_prove_what_one_proves(monkeypatch: pytest.MonkeyPatch) -> None:
    handed = proved_by_all(lambda rank: network())
    expected = pairwise_bound(network())
    assert [len(found) for found, _ in handed] == [1, 1, 1]

    mine = network()
    counted = []
    whole = norms.dense_norm_bound
    monkeypatch.setattr(norms, "dense_norm_bound", lambda w: counted.append(1) or whole(w))
    share_bounds(mine, 0, RANKS, lambda own: [own, *handed[1:]])
    assert torch.equal(pairwise_bound(mine), expected)
    assert len(counted) == len(handed[0][0])


def test_a_bound_of_other_constants_is_not_taken() -> None:
    lies: list[Proved] = [(dict.fromkeys(found, 0.0), None) for found, _ in proved_by_all(network)]
    mine = network(seed=9)
    share_bounds(mine, 0, RANKS, lambda own: [own, *lies])
    assert torch.equal(pairwise_bound(mine), pairwise_bound(network(seed=9)))


def test_all_fail_where_one_fails() -> None:
    mine = network()
    failed: Proved = ({}, ("its bound cannot be proved", "model.head"))
    with pytest.raises(UnsoundNetworkError, match=r"model\.head: its bound cannot be proved"):
        share_bounds(mine, 0, RANKS, lambda own: [own, failed])


def test_a_process_that_fails_still_tells_the_others() -> None:
    told: list[Proved] = []

    def gather(own: Proved) -> list[Proved]:
        told.append(own)
        return [own]

    large = torch.full((2, 2), 1e308, dtype=torch.float64)
    one = PlainNetwork((Dense(large), Dense(torch.eye(2))), (2,))
    with pytest.raises(UnsoundNetworkError):
        share_bounds(one, 0, 1, gather)
    assert told[0][1] is not None
