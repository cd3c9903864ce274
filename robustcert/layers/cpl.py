"""Convex potential layers (Meunier et al., arXiv 2110.12690)."""

import torch
from torch import Tensor

from robustcert.layers.residual_block import ResidualConv2d, ResidualLinear
from robustcert.norms.estimates import conv_power_iteration, gram_iteration, power_iteration

# Number of power iterations of a training step.
ITERATIONS = 2


class CPLLinear(ResidualLinear):
    r"""Dense :math:`x \mapsto x - \frac{2}{\lVert W \rVert^2} W^\top s(W x + b)`.

    A step of gradient descent on a convex potential, hence 1-Lipschitz. The norm is taken by Gram
    iteration, which errs on the large side; in training by a power iteration that goes on from step
    to step, which errs on the small side and takes a fraction of the time.

    Reference: Meunier, Delattre, Araujo and Allauzen, `A dynamical system perspective for Lipschitz
    neural networks <https://arxiv.org/abs/2110.12690>`_, ICML 2022.

    Example:
        >>> layer = CPLLinear(3, 3, activation=ReLU, bias=False)
        >>> _ = torch.nn.init.eye_(layer.weight)
        >>> layer(torch.tensor([[0.5, -0.25, 1.5]])).detach()  # -|x|
        tensor([[-0.5000, -0.2500, -1.5000]])
    """

    vector: Tensor

    def prepare(self) -> None:
        """Make the vector of the power iteration."""
        self.register_buffer("vector", torch.randn_like(self.weight[0].detach()))

    def scale(self) -> Tensor:
        """One over the norm for every row."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return inverse(gram_iteration(self.weight)).expand(len(self.weight))

    def training_scale(self) -> Tensor:
        """One over an estimate of the norm, for every row."""
        with torch.autocast(self.weight.device.type, enabled=False):
            norm, vector = power_iteration(self.weight, self.vector, ITERATIONS)
            self.vector.copy_(vector)
            return inverse(norm).expand(len(self.weight))


class CPLConv2d(ResidualConv2d):
    r"""Convolutional :math:`x \mapsto x - \frac{2}{\lVert W \rVert^2} W^\top s(W x + b)`.

    The norm of the zero-padded convolution is at most that of the circular one on a map enlarged by
    the padding; Gram iteration runs on its frequencies.

    Example:
        >>> layer = CPLConv2d(2, 2, 3, padding=1, input_size=(5, 5), activation=ReLU)
        >>> x, y = torch.randn(2, 2, 5, 5)[:, None]
        >>> bool(torch.dist(layer(x), layer(y)) <= torch.dist(x, y))
        True
    """

    vector: Tensor

    def prepare(self) -> None:
        """Make the map of the power iteration."""
        shape = (1, self.weight.shape[1], *self.input_size)
        self.register_buffer("vector", self.weight.detach().new_empty(shape).normal_())

    def scale(self) -> Tensor:
        """One over the norm for every row."""
        kernel = self.weight.shape[-1]
        period = [max(side + self.padding, kernel) for side in self.input_size]
        with torch.autocast(self.weight.device.type, enabled=False):
            blocks = torch.fft.rfft2(self.weight, s=period).flatten(2).permute(2, 0, 1)
            # Only the largest norm has a gradient: the others are not differentiated at all.
            largest = complex_gram_iteration(blocks.detach()).argmax()
            norm = complex_gram_iteration(blocks[largest][None])[0]
            return inverse(norm).expand(len(self.weight))

    def training_scale(self) -> Tensor:
        """One over an estimate of the norm, for every row."""
        with torch.autocast(self.weight.device.type, enabled=False):
            norm, vector = conv_power_iteration(
                self.weight, self.vector, ITERATIONS, padding=self.padding
            )
            self.vector.copy_(vector)
            return inverse(norm).expand(len(self.weight))


def inverse(norm: Tensor) -> Tensor:
    """One over a norm; 1 for a zero weight, which any scale suits."""
    return 1 / torch.where(norm == 0, 1.0, norm)


def complex_gram_iteration(blocks: Tensor, iterations: int = 6) -> Tensor:
    """Norms of complex matrices ``(F, m, n)`` by Gram iteration, rounding apart from above.

    The scales are taken out before every product and held constant, as in
    :func:`robustcert.norms.estimates.gram_iteration`.
    """
    matrix = blocks if blocks.shape[1] >= blocks.shape[2] else blocks.mH
    logarithm = torch.zeros(len(matrix), dtype=matrix.real.dtype, device=matrix.device)
    for step in range(iterations):
        size = torch.view_as_real(matrix.detach().resolve_conj()).abs().amax((1, 2, 3))
        size = torch.where(size == 0, 1.0, size)
        logarithm = logarithm + size.log() / 2**step
        matrix = matrix / size[:, None, None]
        matrix = matrix.mH @ matrix
    squares = (matrix.real.square() + matrix.imag.square()).sum((1, 2))
    zero = squares == 0
    root = torch.where(zero, 1.0, squares).log() / 2 ** (iterations + 1)
    return torch.where(zero, 0.0, (root + logarithm).exp())
