"""Empirical robust accuracy by projected gradient descent, as foolbox implements it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcert.attacks.budget import Budget, OutOfTime
from robustcert.attacks.clipping import around_clipped
from robustcert.attacks.gradient import Function, gradient_dtype, margin_gradient, shortened
from robustcert.network.network import PlainNetwork
from robustcert.network.units import in_units


class PlainModule(nn.Module):
    """A function of inputs as a torch module, which attack libraries expect."""

    def __init__(self, network: Function) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, C)``."""
        return self.network(x)


def pgd_survivors(
    network: PlainNetwork,
    x: Tensor,
    target: Tensor,
    radii: Sequence[float],
    *,
    steps: int = 40,
    seed: int = 0,
    seconds: float = math.inf,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    r"""Which samples stay correctly classified under an l2 PGD attack of each size.

    The attack (Madry et al. 2018, one random start) clips to [0, 1], as an image would be; so what
    survives is an upper estimate of the robust accuracy over images, not over all of :math:`R^d`.
    Columns are clipped to the ranges that the data state, see
    :mod:`robustcert.attacks.clipping`; other perturbations S u in a metric are not clipped.
    Gradients are float32, or float64 of a network with float64 constants; what they lead to is
    moved into the radius and evaluated in float64, and only a success there counts.

    Args:
        network: The network under attack, where the inputs are.
        x: Inputs in [0, 1], shape ``(N, *input_shape)``, see
            :func:`robustcert.network.units.in_units`.
        target: True classes, shape ``(N,)``.
        radii: Attack sizes in the units of certified radii.
        steps: Gradient steps per attack.
        seed: Of the random start.
        seconds: No evaluation of the network begins after so long.
        advance: Called with the number of samples that were attacked more, at every radius.

    Returns:
        Boolean, shape ``(len(radii), M)``, of the first M samples, which were attacked at every
        radius: all N in time. A sample broken at a radius is broken at larger ones.
    """
    budget = Budget(seconds)
    x = in_units(x).double()
    clipped = network.space.kind == "images" and network.space.metric is None
    bounds = (0.0, 1.0) if clipped else (-math.inf, math.inf)
    dtype = gradient_dtype(network, max(radii, default=0.0))

    def gradient(rows: Tensor) -> object:
        f, centre = around_clipped(network, x[rows].to(dtype))
        return margin_gradient(f, centre, target[rows])[0].sum().item()

    survivors = []
    every = torch.arange(len(x), dtype=torch.int64, device=x.device)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        for rows in budget.parts(every, gradient, steps * len(radii)):
            attack = _Attack(network, x[rows], target[rows], budget, dtype, bounds, steps)
            try:
                survivors.append(attack.survivors(radii))
            except OutOfTime:
                break
            advance(len(rows))
    none = torch.zeros(len(radii), 0, dtype=torch.bool, device=x.device)
    return torch.cat([none, *survivors], dim=1)


class _Attack:
    """PGD on the samples of a part."""

    def __init__(
        self,
        network: PlainNetwork,
        x: Tensor,
        target: Tensor,
        budget: Budget,
        dtype: torch.dtype,
        bounds: tuple[float, float],
        steps: int,
    ) -> None:
        import foolbox

        self.network, self.x, self.target, self.budget = network, x, target, budget
        self.dtype, self.bounds = dtype, bounds
        self.foolbox: Any = foolbox
        self.pgd = foolbox.attacks.L2PGD(steps=steps, random_start=True)

    def survivors(self, radii: Sequence[float]) -> Tensor:
        """Shape ``(len(radii), N)``; from the smallest radius to the largest."""
        with torch.no_grad():
            alive = self.budget.guarded(self.network)(self.x).argmax(1) == self.target
        survivors = torch.zeros(len(radii), len(self.x), dtype=torch.bool, device=self.x.device)
        for i in sorted(range(len(radii)), key=lambda i: radii[i]):
            rows = alive.nonzero()[:, 0]
            if len(rows):
                alive[rows[self._broken(rows, radii[i])]] = False
            survivors[i] = alive
        return survivors

    def _broken(self, rows: Tensor, radius: float) -> Tensor:
        """Whether an attack of a radius changes the prediction of a row, in float64."""
        f, start = around_clipped(self.network, self.x[rows].to(self.dtype))
        model = self.foolbox.PyTorchModel(
            PlainModule(self.budget.guarded(f)).eval(), bounds=self.bounds, device=start.device
        )
        labels = self.target[rows]
        _, found, _ = self.pgd(
            model, start, self.foolbox.criteria.Misclassification(labels), epsilons=radius
        )
        exact, centre = around_clipped(self.network, self.x[rows])
        # A shorter way from the centre stays between the bounds.
        point = centre + shortened(found.double().clamp(*self.bounds) - centre, radius)
        with torch.no_grad():
            return self.budget.guarded(exact)(point).argmax(1) != labels
