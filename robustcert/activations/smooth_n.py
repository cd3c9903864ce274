"""The N-activation with both corners rounded off."""

import torch
from torch import Tensor, nn

from robustcert.activations.features import along_features
from robustcert.activations.n_activation import Corners
from robustcert.activations.positive import Positive, over_least
from robustcert.activations.softplus import softplus
from robustcert.network.activation import Activation, Slopes, constant_of
from robustcert.network.jacobian import LocalJacobian, bump_chord
from robustcert.network.local_error import counted
from robustcert.network.operation import constant


def smooth_n(x: Tensor, corners: Tensor, temperature: Tensor) -> Tensor:
    """A zigzag of slopes 1, -1, 1 with smooth corners, of shape ``(2, C)``."""
    low, high = (along_features(corner, x) for corner in corners)
    return 2 * softplus(x - high, temperature) - 2 * softplus(low - x, temperature) - x


class SmoothN(nn.Module):
    r"""N-activation with smooth corners :math:`t_1 \le t_2`, learned for every feature.

    .. math:: S(x) = 2 s(x - t_2) - 2 s(t_1 - x) - x, \quad s(y) = \tau \log(1 + e^{y/\tau})

    With ReLU for s this is the N-activation, which is at most :math:`2 \tau \log 2` away.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        temperature: Initial :math:`\tau`.
        learnable: Whether the temperature is trained, through its logarithm.
        per_feature: One temperature for each feature rather than one for the layer.
        lr_factor: Learning rate of the corners under SGD, relative to that of other parameters.

    Example:
        >>> activation = SmoothN(2, temperature=0.5, learnable=False)
        >>> activation(torch.tensor([[-1.5, -1.5]])).detach()
        tensor([[ 1.5486, -1.5000]])
    """

    def __init__(
        self,
        num_features: int,
        temperature: float = 0.05,
        learnable: bool = True,
        per_feature: bool = False,
        lr_factor: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_features = self.out_features = num_features
        size = num_features if per_feature else None
        self.temperature = Positive("SmoothN", "temperature", temperature, learnable, size)
        self.corners = Corners("SmoothN", num_features, lr_factor)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return smooth_n(x, self.corners(), self.temperature())

    def lipschitz_bound(self) -> float:
        r"""1: the slope lies in (-1, 1].

        It is :math:`2 \sigma(p) + 2 \sigma(q) - 1` with :math:`p = (x - t_2)/\tau` and
        :math:`q = (t_1 - x)/\tau \le -p`, so that :math:`\sigma(p) + \sigma(q) \le 1`.
        """
        return 1.0

    def jacobian_lipschitz_bound(self) -> float:
        r""":math:`1/(2 \tau)`: two positive terms of at most that size are subtracted."""
        return over_least(0.5, self.temperature())

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        temperature, corners = constant(self.temperature()), constant(self.corners())
        # With c = max(t1, -t2, 0), the positive parts of x - t2 and of t1 - x, one of which is 0,
        # add up to at most |x| + c. The rounding of y = x - t2 moves s by u |y| sigma(y/tau) <=
        # u (y+ + 0.28 tau), and s errs by u (y+ + 12 tau): 2 s and 2 s together by u (4 |x| + 4 c +
        # 49.2 tau). The two differences round by at most u (2 |x| + 2 c + 1.4 tau) and
        # u (|x| + 2 c + 1.4 tau).
        offset = float(torch.cat((corners[0], -corners[1])).max().clamp(min=0))
        return Activation(
            function=smooth_n,
            constants={"corners": corners, "temperature": temperature},
            lipschitz=1.0,
            jacobian_lipschitz=over_least(0.5, temperature),
            error=counted(7.0, 8 * offset + 52 * float(temperature.max())),
            slopes=Slopes(-1.0, 1.0),
            jacobian=smooth_n_jacobian,
        )


def smooth_n_jacobian(operation: Activation, z: Tensor, centre: Tensor) -> LocalJacobian:
    """The Jacobian at computed values z, and how fast it changes around them."""
    tau = along_features(constant_of(operation, "temperature", z), z)
    low, high = (along_features(c, z) for c in constant_of(operation, "corners", z))
    # The corner itself may be far larger than the distance to it.
    doubt = centre + 2.0**-50 * float(torch.maximum(low.abs(), high.abs()).max())

    def derivative(t: Tensor) -> Tensor:
        return (t / tau).sigmoid()

    slope = 2 * derivative(z - high) + 2 * derivative(low - z) - 1
    chords = [bump_chord(t, doubt, 0.25 / tau, derivative) for t in (z - high, low - z)]

    def chord(reach: Tensor) -> Tensor:
        # One term rises where the other one falls: the change is no more than the larger one's.
        return 2 * torch.maximum(*(c(reach) for c in chords))

    return LocalJacobian(lambda u: slope * u, torch.abs, chord)
