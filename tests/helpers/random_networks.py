"""Random piecewise linear networks, and points around a sample."""

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.configs import build, build_model, names
from robustcert.errors import UnsoundNetworkError
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.relaxations.curves import Curve, Smooth, curve_of


def _curve(name: str) -> Curve | None:
    try:
        return curve_of(build("activation", name)(8).fold(), 8)
    except UnsoundNetworkError:
        return None


# Activations of conf/ that linear bounds cover, and those among them that are piecewise linear.
WITH_LINES = [name for name in names("activation") if _curve(name) is not None]
COVERED = [name for name in WITH_LINES if not isinstance(_curve(name), Smooth)]


def random_network(
    activation: str, inputs: int = 3, width: int = 12, depth: int = 2
) -> PlainNetwork:
    sizes = {"input_shape": (inputs,), "num_classes": 3, "mean": [0.3], "std": [0.5]}
    model = build_model("mlp", "unconstrained", activation, width=width, depth=depth, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return fold_network(model, (inputs,))


def points_in(x: Tensor, radius: Tensor, count: int) -> Tensor:
    """Points of the balls, half of them on their spheres, shape ``(count, N, d)``."""
    length = torch.rand(count, len(x), 1, dtype=x.dtype).pow(1 / x.shape[1])
    length[::2] = 1
    return x + radius[:, None] * length * F.normalize(torch.randn(count, *x.shape).double(), dim=2)


def margins_and_slopes(network: PlainNetwork, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions ``(N,)``, margins over every class and the lengths of their gradients."""
    x = x.clone().requires_grad_()
    logits = network(x)
    own = logits.argmax(1)
    margin = logits.gather(1, own[:, None]) - logits
    gradients = [torch.autograd.grad(m.sum(), x, retain_graph=True)[0] for m in margin.unbind(1)]
    return own, margin.detach(), torch.stack([g.norm(dim=1) for g in gradients], 1)
