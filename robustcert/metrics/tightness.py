r"""How much of the distance to its own boundary a certificate proves, and what takes the rest.

For a sample with prediction y and certified radius r at distance d from the network's boundary,

.. math:: t = \frac rd \le \frac{m}{K d} = \underbrace{\frac{L_{low}}{K}}_{t_K} \cdot
    \underbrace{\frac{m}{L_{low}\, d}}_{t_{shape}}

where m is the margin over the class on the other side of the boundary, K the bound for that pair
and :math:`L_{low}` the steepest slope of that margin ever seen. The first factor is what a better
bound could win; the second one is lost to the shape of the function, whatever the bound. It is an
equality where the nearest class is also the one that determines a Lipschitz radius.

The distances come from outside: exact ones, or those of :func:`robustcert.attacks.ddn`, which are
upper ones and make every tightness a lower estimate.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from robustcert.network.network import PlainNetwork


def tightness(radius: Tensor, distance: Tensor) -> Tensor:
    r"""Share of the distance that is certified, :math:`t = r / d`.

    A distance from an attack is an upper one, and makes this a lower estimate; an exact distance
    makes it exact.

    Args:
        radius: Certified radii, shape ``(N,)``.
        distance: Distances to the boundary, shape ``(N,)``; infinite or NaN where none is known.

    Returns:
        Shape ``(N,)``, float64; NaN where no distance is known.
    """
    known = torch.isfinite(distance) & (distance > 0)
    return torch.where(known, radius.double() / distance.double(), torch.nan)


def steepest_slopes(network: PlainNetwork, x: Tensor, steps: int = 0) -> Tensor:
    r"""Largest gradient norms of logit i minus logit j that were seen, from below.

    In a metric S these are the slopes along u of x + S u.

    Args:
        network: The network.
        x: Inputs of shape ``(N, *input_shape)``.
        steps: Random search around the steepest points, one round for each step.

    Returns:
        Shape ``(C, C)``, float64, zero on the diagonal.
    """
    generator = torch.Generator().manual_seed(0)
    points = x.detach().double()
    best = _pair_slopes(network, points)
    scale = points.flatten(1).std(dim=0).norm() if len(points) > 1 else torch.tensor(1.0)
    for step in range(steps):
        noise = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points)
        size = float(scale) * 0.5 ** (1 + step) / max(1, points[0].numel()) ** 0.5
        moved = _pair_slopes(network, points + size * noise)
        better = (moved.flatten(1).amax(1) > best.flatten(1).amax(1)).view(
            -1, *(1,) * (points.dim() - 1)
        )
        points = torch.where(better, points + size * noise, points)
        best = torch.maximum(best, moved)
    return best.amax(0)


def split_tightness(
    margin: Tensor, pairwise: Tensor, slope: Tensor, distance: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The factors :math:`t_K` and :math:`t_{shape}`, both at most 1.

    A margin over a distance is a slope that was seen too: the mean one on the way to the boundary.

    Args:
        margin: Margins over the class beyond the boundary, shape ``(N,)``.
        pairwise: Bounds K for that pair, shape ``(N,)``.
        slope: Steepest gradient norms seen for that pair, shape ``(N,)``.
        distance: Distances at which that margin is used up, shape ``(N,)``.

    Returns:
        Two tensors of shape ``(N,)``, float64; NaN where no distance is known.
    """
    known = torch.isfinite(distance) & (distance > 0)
    mean_slope = torch.where(known, margin.double() / distance.double(), torch.nan)
    low = torch.maximum(slope.double(), mean_slope)
    return low / pairwise.double(), mean_slope / low


class Tightness(Metric):
    r"""Mean and worst quantile of the tightness :math:`t = r / d` over samples.

    Keeps every value, so that quantiles are exact; the result does not depend on the batches.

    Args:
        quantile: Which quantile stands for the worst case.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    values: list[Tensor]

    def __init__(self, quantile: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= quantile <= 1:
            raise ValueError(f"expected a quantile in [0, 1], got {quantile}")
        self.quantile = quantile
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, radius: Tensor, distance: Tensor) -> None:
        """Add samples of certified ``radius`` (N,) at ``distance`` (N,) from the boundary.

        Samples whose distance is not known are left out; a radius of 0 counts as 0.
        """
        value = tightness(radius, distance)
        self.values.append(value[~value.isnan()])

    def compute(self) -> dict[str, Tensor]:
        """The ``mean`` and the ``worst`` quantile; NaN if there was no sample."""
        values = torch.cat(list(self.values)) if isinstance(self.values, list) else self.values
        if values.numel() == 0:
            nothing = torch.tensor(torch.nan, dtype=torch.float64)
            return {"mean": nothing, "worst": nothing}
        # Not torch.quantile, which refuses more than 2^24 values.
        rank = min(int(self.quantile * values.numel()), values.numel() - 1)
        return {"mean": values.mean(), "worst": values.sort().values[rank]}


class CertifiabilityGap(Metric):
    r"""Area between the robust accuracy under attack and the verified one, up to a largest radius.

    .. math:: \int_0^R \bigl( A_{attack}(s) - \mathrm{VRA}(s) \bigr) ds
        = \frac1N \sum_{i \text{ correct}} \min(d_i, R) - \min(r_i, R)

    Args:
        largest: R, in input units.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    area: Tensor
    total: Tensor

    def __init__(self, largest: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not largest > 0:
            raise ValueError(f"expected a largest radius above 0, got {largest}")
        self.largest = largest
        self.add_state("area", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, radius: Tensor, distance: Tensor, correct: Tensor) -> None:
        """Add samples; an infinite ``distance`` means that no attack succeeded."""
        # A radius that is not a number certifies nothing.
        low = radius.double().nan_to_num(nan=0.0).clamp(0, self.largest)
        high = distance.double().clamp(0, self.largest)
        self.area += torch.where(correct, high - low, 0.0).sum()
        self.total += radius.numel()

    def compute(self) -> Tensor:
        """A scalar, in input units."""
        return self.area / self.total


def _pair_slopes(network: PlainNetwork, x: Tensor) -> Tensor:
    function, centre = network.around(x.detach())
    inputs = centre.requires_grad_()
    with torch.enable_grad():
        rows = [
            torch.autograd.grad(logit.sum(), inputs, retain_graph=True)[0].flatten(1)
            for logit in function(inputs).unbind(1)
        ]
    jacobian = torch.stack(rows, dim=1)
    return torch.cdist(jacobian, jacobian, compute_mode="donot_use_mm_for_euclid_dist")
