"""How much a tighter Lipschitz bound could still gain."""

import torch
from torch import Tensor

from robustcert.arithmetic.products import untested_products
from robustcert.network.network import PlainNetwork
from robustcert.network.units import network_inputs


def gradient_ratio(network: PlainNetwork, x: Tensor, pairwise: Tensor) -> Tensor:
    r"""Share of the pairwise Lipschitz bounds that the gradients at samples attain.

    .. math:: \max_{i \ne j} \frac{\lVert \nabla (f_i - f_j)(x) \rVert_2}{K_{ij}} \le 1

    A global bound can never fall below a gradient norm, so the largest ratio over the samples is
    how far, at best, a sound one may still shrink for the pair that attains it. Near 1, as in
    orthogonal networks with norm-preserving activations, no tighter global bound pays; if it is
    small, :class:`~robustcert.certifiers.LipSDPCertifier` may. No proof rests on it.

    Args:
        network: The network.
        x: Inputs of shape ``(N, *input_shape)``.
        pairwise: Bounds of shape ``(C, C)``, such as those of
            :meth:`LipschitzCertifier.pairwise_bound`. Pairs with the bound 0 are left out.

    Returns:
        Shape ``(N,)``, float64.
    """
    function, inputs = network.around(network_inputs(x, network.input_shape).double().detach())
    inputs.requires_grad_()
    with torch.enable_grad(), untested_products():
        logits = function(inputs)
        gradients = [
            torch.autograd.grad(logit.sum(), inputs, retain_graph=True)[0].flatten(1)
            for logit in logits.unbind(1)
        ]
    jacobian = torch.stack(gradients, dim=1)
    distance = torch.cdist(jacobian, jacobian, compute_mode="donot_use_mm_for_euclid_dist")
    bound = pairwise.to(distance)
    return torch.where(bound > 0, distance / bound, 0.0).flatten(1).amax(1)
