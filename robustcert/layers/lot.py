"""Layer-wise orthogonal training of convolutions (Xu, Li and Li, arXiv 2210.11620)."""

import torch
from torch import Tensor

from robustcert.layers.bjorck import bjorck
from robustcert.layers.fft import FrequencyConstraint, FrequencyConv2d
from robustcert.network.orthogonal import POLAR_STEPS


class LOTFrequencies(FrequencyConstraint):
    r"""The polar factor :math:`(V V^*)^{-1/2} V` of every frequency's block, by Newton's steps.

    Every block is divided by :math:`\lVert V^* V \rVert_F^{1/2}` first; its singular values then
    stay in [0, 1] whatever the number of steps, and those that are not small end at 1. The paper's
    Frobenius norm of V is larger, which costs two steps more, and the product is needed anyway.

    Reference: Xu, Li and Li, `LOT: Layer-wise Orthogonal Training on Improving l2 Certified
    Robustness <https://arxiv.org/abs/2210.11620>`_, NeurIPS 2022.

    Example:
        >>> rule = LOTFrequencies(1, 1, stride=(1, 1), padding=(0, 0), period=(4, 4))
        >>> f"{rule(torch.full(rule.free_shape((1, 1)), 5.0)).sum():.4f}"  # of one number, its sign
        '1.0000'
    """

    rule = "polar"
    iterations = POLAR_STEPS

    def constrain(self, blocks: Tensor) -> Tensor:
        """Orthogonalise complex blocks ``(F, m, n)``."""
        if blocks.shape[1] < blocks.shape[2]:
            return self.constrain(blocks.mH).mH
        # A zero block stays zero, with gradient zero; its size squared would underflow.
        size = torch.view_as_real(blocks.detach().resolve_conj()).abs().amax((1, 2, 3))
        blocks = blocks / torch.where(size == 0, 1.0, size)[:, None, None]
        gram = blocks.mH @ blocks
        square = (gram.real.square() + gram.imag.square()).sum((1, 2), keepdim=True)
        scale = square.clamp_min(1e-30).pow(-0.25)
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return bjorck(blocks * scale, self.iterations, gram * scale.square() - identity)


class LOTConv2d(FrequencyConv2d):
    """Circular convolution with nearly orthonormal rows or columns by :class:`LOTFrequencies`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the free kernel, in input positions, or its height and width.
        stride: Step between output positions, one number or two.
        padding: That of the zero-padded convolution whose output size it has.
        input_size: ``(H, W)`` of the input.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = LOTConv2d(2, 4, 2, stride=2, input_size=(4, 4))
        >>> layer(torch.zeros(1, 2, 4, 4)).shape
        torch.Size([1, 4, 2, 2])
        >>> lipschitz_bound(layer, (2, 4, 4)) < 1.001
        True
    """

    constraint = LOTFrequencies
