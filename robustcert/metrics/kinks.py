"""Kinks of piecewise linear units near samples, and which of them a network can do without."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcert.margins import smallest_margin
from robustcert.network.activation import Activation, Slopes
from robustcert.network.network import PlainNetwork

# Maximum number of entries of the seeds of batched gradients, which bounds their memory.
_MAX_SEED_ENTRIES = 2**24


@dataclass(frozen=True)
class UnitScores:
    """What grafting knows of the units of one activation, over some samples.

    Attributes:
        name: Of the activation in the network.
        density: Share of samples and positions at which the kink lies within epsilon, shape (U,).
        significance: Mean norm of the gradient of the margin by the unit's outputs, shape (U,).
        inputs: Of the activation at the samples, shape ``(N, C, *)``.
    """

    name: str
    density: Tensor
    significance: Tensor
    inputs: Tensor

    @property
    def score(self) -> Tensor:
        """Density of kinks removed for each unit of significance that is put at stake."""
        tiny = torch.finfo(self.significance.dtype).tiny
        return self.density / self.significance.clamp(min=tiny)


def kinks_within(network: PlainNetwork, x: Tensor, epsilon: float) -> Tensor:
    r"""Share of piecewise linear units whose kink lies within epsilon, to first order.

    A unit counts if its input is nearer to the kink than epsilon times the norm of the gradient of
    that input at the sample, which is exact for the first layer and a linearisation further on.
    ReLU, absolute values, MaxMin and what of them has been grafted are looked at: a grafted unit is
    counted and has no kink. Others have no single kink.

    Args:
        network: The network.
        x: Inputs of shape ``(N, *input_shape)``.
        epsilon: Distance in input units; in a metric, in units of u.

    Returns:
        Shape ``(N,)``; NaN where no unit was looked at.
    """
    near = [part.flatten(1) for _, part in _near_folds(network, x, epsilon)]
    if not near:
        return torch.full((len(x),), torch.nan, dtype=torch.float64)
    return torch.cat(near, dim=1).double().mean(1)


@torch.enable_grad()
def unit_scores(network: PlainNetwork, x: Tensor, epsilon: float) -> list[UnitScores]:
    """Scores of the units of every grafted activation, in the network's order.

    Args:
        network: The network.
        x: Inputs of shape ``(N, *input_shape)``.
        epsilon: Distance within which a kink counts, in input units; in a metric, in units of u.
    """
    z, values, results = x.detach().double(), {}, {}
    for operation in network.operations:
        if not z.requires_grad and _is_grafted(operation):
            z = z.requires_grad_()
        values[operation.name], z = z, operation(z)
        if _is_grafted(operation):
            results[operation.name] = z
    if not results:
        return []
    prediction = z.argmax(1)
    ahead = smallest_margin(z, prediction)
    slopes = torch.autograd.grad(ahead.sum(), list(results.values()))
    significance = dict(zip(results, slopes, strict=True))
    scores = []
    for operation, near in _near_folds(network, x, epsilon):
        name = operation.name
        if name in significance:
            _, units, positions = near.shape
            slope = significance[name].reshape(len(x), units, -1, positions).norm(dim=2)
            density = near.double().mean((0, 2))
            scores.append(UnitScores(name, density, slope.mean((0, 2)), values[name].detach()))
    return scores


def _near_folds(
    network: PlainNetwork, x: Tensor, epsilon: float
) -> Iterator[tuple[Activation, Tensor]]:
    """Activations with kinks, and which kinks are near, shape ``(N, units, positions)``."""
    points = x.detach().double()
    for index, operation in enumerate(network.operations):
        if not isinstance(operation, Activation) or not _has_one_fold(operation):
            continue
        inputs = _unit_inputs(network, index, _in_pairs(operation))
        count = inputs(points[:1]).numel()
        parts = points.split(max(1, _MAX_SEED_ENTRIES // count**2))
        near = torch.cat([_near(network, inputs, part, epsilon) for part in parts])
        if _is_grafted(operation):
            near = near & (operation.tensors()["graft"] == 0).to(near.device)[:, None]
        yield operation, near


def _unit_inputs(network: PlainNetwork, index: int, pairs: bool) -> Callable[[Tensor], Tensor]:
    """What is 0 at the kinks, as a function of samples, of shape ``(N, units, positions)``."""

    def inputs(z: Tensor) -> Tensor:
        for operation in network.operations[:index]:
            z = operation(z)
        z = z.flatten(2) if z.dim() > 2 else z[:, :, None]
        return (z[:, 0::2] - z[:, 1::2]) / 2**0.5 if pairs else z

    return inputs


@torch.enable_grad()
def _near(
    network: PlainNetwork, inputs: Callable[[Tensor], Tensor], x: Tensor, epsilon: float
) -> Tensor:
    point, centre = network.balls(x)
    points = centre.clone().requires_grad_()
    values = inputs(point(points))
    flat = values.flatten(1)
    each = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
    seeds = each[:, None].expand(-1, len(x), -1)
    (rows,) = torch.autograd.grad(flat, points, seeds, is_grads_batched=True)
    lengths = rows.flatten(2).norm(dim=2).T.reshape(values.shape)
    return (values.abs() <= epsilon * lengths).detach()


def _is_grafted(operation: object) -> bool:
    return isinstance(operation, Activation) and operation.function.__name__ == "grafted"


def _in_pairs(operation: Activation) -> bool:
    if _is_grafted(operation):
        return bool(operation.constants["pairs"])
    return operation.slopes is not None and operation.slopes.pairs


def _has_one_fold(operation: Activation) -> bool:
    folded = operation.function.__name__ in ("relu", "absolute", "group_sort")
    return _is_grafted(operation) or (folded and isinstance(operation.slopes, Slopes))
