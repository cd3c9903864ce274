"""Empirical robust accuracy by projected gradient descent, as foolbox implements it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustcert.network.network import PlainNetwork
from robustcert.network.units import in_units


class PlainModule(nn.Module):
    """A folded network as a torch module, which attack libraries expect."""

    def __init__(self, network: PlainNetwork) -> None:
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
    Every success is evaluated again: it must lie within the radius and change the prediction.

    Args:
        network: The network under attack.
        x: Inputs in [0, 1], shape ``(N, *input_shape)``, see
            :func:`robustcert.network.units.in_units`.
        target: True classes, shape ``(N,)``.
        radii: Attack sizes in input units.
        steps: Gradient steps per attack.
        seed: Of the random start.
        advance: Called with 1 when the attack at a radius is over.

    Returns:
        Boolean, shape ``(len(radii), N)``; a sample broken at a radius is broken at larger ones.
    """
    import foolbox

    x = in_units(x)
    model = foolbox.PyTorchModel(PlainModule(network).eval(), bounds=(0, 1), device=x.device)
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
                _, adversarial, _ = attack(
                    model,
                    x[rows],
                    foolbox.criteria.Misclassification(target[rows]),
                    epsilons=radii[i],
                )
                with torch.no_grad():
                    distance = (adversarial - x[rows]).flatten(1).norm(dim=1)
                    broken = network(adversarial).argmax(1) != target[rows]
                alive[rows[broken & (distance <= radii[i] * (1 + 1e-6))]] = False
            survivors[i] = alive
            advance(1)
    return survivors
