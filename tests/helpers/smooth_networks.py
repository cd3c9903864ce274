"""Smooth networks, and steps and gradients in them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from helpers.configs import build, names
from robustcert.activations import (
    NormPair,
    SmoothAbs,
    SmoothHouseholder,
    SmoothMaxMin,
    SmoothN,
    Softplus,
    Tanh,
)
from robustcert.layers import CholeskyLinear, UnconstrainedLinear
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork

Factory = Callable[[int], nn.Module]
COVERED: dict[str, Factory] = {
    "norm_pair": partial(NormPair, temperature=0.1),
    "smooth_abs": partial(SmoothAbs, temperature=0.1),
    "smooth_householder": partial(SmoothHouseholder, temperature=0.1),
    "smooth_maxmin": partial(SmoothMaxMin, temperature=0.1),
    "smooth_n": partial(SmoothN, temperature=0.1),
    "softplus": partial(Softplus, temperature=0.1, per_feature=True),
    "tanh": Tanh,
}


def dense(
    activation: Factory, orthogonal: bool = True, inputs: int = 3, width: int = 12, seed: int = 0
) -> PlainNetwork:
    torch.manual_seed(seed)
    layer = CholeskyLinear if orthogonal else UnconstrainedLinear
    modules: list[nn.Module] = []
    features = inputs
    for _ in range(2):
        nonlinearity = activation(width)
        modules += [layer(features, width), nonlinearity]
        features = getattr(nonlinearity, "out_features", width)
    net = nn.Sequential(*modules, nn.Linear(features, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        # No class wins everywhere.
        net[-1].bias -= net(torch.randn(500, inputs)).mean(0)
    return fold_network(net, (inputs,))


def convolutional(seed: int = 0) -> PlainNetwork:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        SmoothMaxMin(4, temperature=0.2, per_feature=True),
        nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding=2),
        NormPair(4, temperature=0.2),
        nn.Flatten(),
        nn.Linear(18, 6),
        Softplus(6, temperature=0.2),
        nn.Linear(6, 3),
    )
    return fold_network(net, (2, 6, 6))


NETWORKS: dict[str, Callable[[], PlainNetwork]] = {
    **{name: partial(dense, factory) for name, factory in COVERED.items()},
    **{f"free {name}": partial(dense, factory, False) for name, factory in COVERED.items()},
    "convolutional": convolutional,
}


def _others() -> dict[str, Callable[[], PlainNetwork]]:
    found = {}
    for name in names("activation"):
        operation = build("activation", name)(8).fold()
        if operation.jacobian is not None and operation.function.__name__ not in COVERED:
            found[name] = partial(dense, build("activation", name))
    return found


# With whatever else of conf/ states how its Jacobian changes; the checker need not know it.
EVERY = {**NETWORKS, **_others()}


def gradient(network: PlainNetwork, x: Tensor, pair: tuple[int, int]) -> Tensor:
    x = x.detach().requires_grad_()
    logits = network(x)
    (g,) = torch.autograd.grad((logits[:, pair[0]] - logits[:, pair[1]]).sum(), x)
    return g.flatten(1)


def points(network: PlainNetwork, count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *network.input_shape, dtype=torch.float64, generator=generator)


def steps_from(x: Tensor, length: Tensor, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    shape = (-1, *(1,) * (x.dim() - 1))
    return step * (length / step.flatten(1).norm(dim=1)).view(shape)
