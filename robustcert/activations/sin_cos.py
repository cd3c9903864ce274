"""The isometric lift of a line to a circle."""

import math

from torch import Tensor, nn

from robustcert.activations.features import along_features, join_pairs
from robustcert.activations.positive import Positive
from robustcert.network.activation import Activation
from robustcert.network.local_error import counted
from robustcert.network.operation import constant


def sin_cos(x: Tensor, frequency: Tensor) -> Tensor:
    """``(cos(frequency * x), sin(frequency * x)) / frequency``, interleaved."""
    frequency = along_features(frequency, x)
    phase = frequency * x
    return join_pairs(phase.cos() / frequency, phase.sin() / frequency)


class SinCos(nn.Module):
    r"""Wind every feature round a circle, :math:`x \mapsto (\cos \omega x, \sin \omega x)/\omega`.

    It has ``2 * num_features`` outputs, feature by feature, and it is an isometric immersion: its
    Jacobian has orthonormal columns. A smooth activation of equal width whose Jacobian is
    orthogonal everywhere is affine; more outputs than inputs leave room for curvature.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        frequency: Initial :math:`\omega`.
        learnable: Whether the frequency is trained, through its logarithm.
        per_feature: One frequency for each feature rather than one for the layer.

    Example:
        >>> activation = SinCos(1, frequency=2.0, learnable=False)
        >>> activation(torch.tensor([[0.5]]))  # (cos 1, sin 1) / 2
        tensor([[0.2702, 0.4207]])
    """

    def __init__(
        self,
        num_features: int,
        frequency: float = 1.0,
        learnable: bool = True,
        per_feature: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.out_features = 2 * num_features
        size = num_features if per_feature else None
        self.frequency = Positive("SinCos", "frequency", frequency, learnable, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, 2 C, *)``."""
        return sin_cos(x, self.frequency())

    def lipschitz_bound(self) -> float:
        """1: a curve of unit speed for every feature."""
        return 1.0

    def jacobian_lipschitz_bound(self) -> float:
        r""":math:`\omega`, the curvature of the circle."""
        return float(self.frequency().detach().max())

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        frequency = constant(self.frequency())
        # The phase is within u |omega x|, which moves the point by u |x|; cos and sin are within
        # 8u and the quotients add u: 9u/omega for the two outputs of a feature together.
        return Activation(
            function=sin_cos,
            constants={"frequency": frequency},
            lipschitz=1.0,
            jacobian_lipschitz=float(frequency.max()),
            error=counted(1.0, math.sqrt(0.5) * 9 / float(frequency.min())),
        )
