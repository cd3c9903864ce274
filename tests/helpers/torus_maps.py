"""What holds for every layer that folds to a map on a torus."""

import torch
from torch import Tensor, nn

from robustcert.network.torus import TorusMap


def require_own_function(
    layer: nn.Module, operation: TorusMap, shape: tuple[int, ...], matrix: Tensor, *, within: float
) -> None:
    """It has the layer's values and gradients, norm 1, its shapes, and no more numbers."""
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(operation(x), layer(x), rtol=0, atol=within)
    seen = torch.randn_like(layer(x))
    own, other = (torch.autograd.grad(f(x), x, seen)[0] for f in (operation, layer))
    torch.testing.assert_close(own, other, rtol=0, atol=within)
    assert operation.lipschitz_bound(shape) == 1.0
    assert torch.linalg.matrix_norm(matrix, 2) <= 1 + 1e-12
    assert operation.output_shape(shape) == tuple(operation(x).shape[1:])
    assert sum(t.numel() for t in operation.tensors().values()) <= sum(
        p.numel() for p in layer.parameters()
    )
