"""Dense Cholesky layers of one shape, whose weights a training step makes together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from robustcert.layers.cholesky import CholeskyOrthogonal, chain_of
from robustcert.layers.constrained import ConstrainedLinear
from robustcert.network.overrides import constant_in_graphs

# Layers of one shape, each by its rule and the matrix that this is given.
Group = list[tuple[CholeskyOrthogonal, Tensor]]


@contextmanager
def constrained_together(model: nn.Module) -> Iterator[None]:
    """A context in which layers of one shape have weights that come from one computation.

    On an accelerator small factorisations one after the other would leave most of it idle. Ranks on
    one machine make a share each, which all of them get. Modules in evaluation mode, and so
    whatever is folded, make their own.

    Args:
        model: Any module, its parameters the same on every rank and left alone in the context.
    """
    groups = _groups(model) if _pays(model) else []
    for group in groups:
        for (rule, _), weight in zip(group, _weights(group), strict=True):
            rule.ready = weight
    try:
        yield
    finally:
        for group in groups:
            for rule, _ in group:
                rule.ready = None


def _pays(model: nn.Module) -> bool:
    # A CPU has enough to do with one matrix, which panels keep near it.
    return next((p.device.type for p in model.parameters()), "cpu") != "cpu"


def _groups(model: nn.Module) -> list[Group]:
    found: dict[tuple[Any, ...], Group] = {}
    for layer in model.modules():
        if not isinstance(layer, ConstrainedLinear):
            continue
        chain = chain_of(layer)
        if chain is not None and chain.rule.training:
            x = chain.matrix()
            found.setdefault((x.shape, chain.rule.ridge), []).append((chain.rule, x))
    return [group for group in found.values() if len(group) > 1]


def _weights(group: Group) -> Sequence[Tensor]:
    """The weights of a group, each rank's share made by itself."""
    rule, matrices = group[0][0], [x for _, x in group]
    rank, ranks = _share()
    if ranks == 1:
        return rule(torch.stack(matrices)).unbind()
    # Zeros with a gradient, of zeros, since DDP waits for one of every parameter.
    weights = [0 * x for x in matrices]
    if own := matrices[rank::ranks]:
        weights[rank::ranks] = rule(torch.stack(own)).unbind()
    return _SumOverRanks.apply(torch.stack(weights)).unbind()


@constant_in_graphs
def _share() -> tuple[int, int]:
    """This rank, and how many there are that share the work."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    ranks = distributed.get_world_size()
    # Over a network weights would travel for longer than it takes to make them.
    on_one_machine = ranks <= torch.accelerator.device_count()
    return (distributed.get_rank(), ranks) if on_one_machine else (0, 1)


class _SumOverRanks(torch.autograd.Function):
    """The sum of all ranks' tensors, on each of them, whose gradient is the sum of all theirs.

    The rank that makes a weight thus gets the gradient of all ranks' losses at it and the others
    none, so that the mean of the parameter's gradients over the ranks, which DDP takes, is that of
    ranks that each made the weight.
    """

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        return _added(own)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return _added(grad)


def _added(own: Tensor) -> Tensor:
    total = own.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total
