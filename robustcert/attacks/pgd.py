"""Empirical robust accuracy by projected gradient descent, as foolbox implements it."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustcert.attacks.gradient import Function
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
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    r"""Which samples stay correctly classified under an l2 PGD attack of each size.

    The attack (Madry et al. 2018, one random start) clips to [0, 1], as an image would be; so what
    survives is an upper estimate of the robust accuracy over images, not over all of :math:`R^d`.
    Columns, and perturbations S u in a metric, are not clipped. A success is evaluated again: it is
    within the radius, with another prediction.

    Args:
        network: The network under attack.
        x: Inputs in [0, 1], shape ``(N, *input_shape)``, see
            :func:`robustcert.network.units.in_units`.
        target: True classes, shape ``(N,)``.
        radii: Attack sizes in the units of certified radii.
        steps: Gradient steps per attack.
        seed: Of the random start.
        advance: Called with 1 when the attack at a radius is over.

    Returns:
        Boolean, shape ``(len(radii), N)``; a sample broken at a radius is broken at larger ones.
    """
    import foolbox

    x = in_units(x)
    clipped = network.space.kind == "images" and network.space.metric is None
    bounds = (0.0, 1.0) if clipped else (-math.inf, math.inf)
    attack = foolbox.attacks.L2PGD(steps=steps, random_start=True)
    order = sorted(range(len(radii)), key=lambda i: radii[i])
    with torch.no_grad():
        alive = network(x).argmax(1) == target
    survivors = torch.zeros(len(radii), len(x), dtype=torch.bool, device=x.device)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        for i in order:
            if alive.any():
                rows = alive.nonzero()[:, 0]
                f, centre = network.around(x[rows])
                model = foolbox.PyTorchModel(PlainModule(f).eval(), bounds=bounds, device=x.device)
                _, adversarial, _ = attack(
                    model,
                    centre,
                    foolbox.criteria.Misclassification(target[rows]),
                    epsilons=radii[i],
                )
                with torch.no_grad():
                    distance = (adversarial - centre).flatten(1).norm(dim=1)
                    broken = f(adversarial).argmax(1) != target[rows]
                alive[rows[broken & (distance <= radii[i] * (1 + 1e-6))]] = False
            survivors[i] = alive
            advance(1)
    return survivors
