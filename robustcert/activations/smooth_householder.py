"""The Householder activation with its fold rounded off."""

import torch
from torch import Tensor, nn

from robustcert.activations.features import (
    along_features,
    check_groups,
    join_pairs,
    split_pairs,
)
from robustcert.activations.householder import MAXMIN_ANGLE
from robustcert.activations.positive import Positive, over_least
from robustcert.network.activation import Activation, constant_of
from robustcert.network.jacobian import LocalJacobian, bump_chord, unit_slope
from robustcert.network.local_error import counted
from robustcert.network.operation import constant


def smooth_householder(x: Tensor, normal: Tensor, temperature: Tensor) -> Tensor:
    """A smooth absolute value along mirror normals of shape ``(2, C/2)``."""
    a, b = split_pairs(x)
    u, v = (along_features(n, a) for n in normal / torch.hypot(*normal))
    temperature = along_features(temperature, a)
    along = u * a + v * b
    change = torch.hypot(along, temperature) - temperature - along
    return join_pairs(a + change * u, b + change * v)


class SmoothHouseholder(nn.Module):
    r"""Replace the component of every pair along a mirror normal by its smooth absolute value.

    The component s becomes :math:`\sqrt{s^2 + \tau^2} - \tau`; the one across stays. With the
    initial mirrors, which ``learn_normal=False`` keeps, it is another smooth MaxMin: away from
    ties it tends to MaxMin, shifted by :math:`\tau` across the mirror, like :math:`\tau^2 / |s|`,
    where log-sum-exp does so exponentially.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``; even.
        temperature: Initial :math:`\tau`.
        learnable: Whether the temperature is trained, through its logarithm.
        per_feature: One temperature for each pair rather than one for the layer.
        learn_normal: Whether the mirrors are trained.

    Example:
        >>> activation = SmoothHouseholder(2, temperature=0.5, learnable=False, learn_normal=False)
        >>> activation(torch.tensor([[3.0, 1.0]]))
        tensor([[1.2929, 2.7071]])
    """

    def __init__(
        self,
        num_features: int,
        temperature: float = 0.05,
        learnable: bool = True,
        per_feature: bool = False,
        learn_normal: bool = True,
    ) -> None:
        super().__init__()
        check_groups("SmoothHouseholder", num_features, 2)
        self.num_features = self.out_features = num_features
        size = num_features // 2 if per_feature else None
        self.temperature = Positive(
            "SmoothHouseholder", "temperature", temperature, learnable, size
        )
        angle = torch.full((num_features // 2,), MAXMIN_ANGLE)
        self.angle = nn.Parameter(angle, requires_grad=learn_normal)

    def normal(self) -> Tensor:
        """Mirror normals, shape ``(2, C/2)``."""
        return torch.stack((self.angle.cos(), self.angle.sin()))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return smooth_householder(x, self.normal(), self.temperature())

    def lipschitz_bound(self) -> float:
        r"""1: its singular values are 1 and :math:`|s| / \sqrt{s^2 + \tau^2}`."""
        return 1.0

    def jacobian_lipschitz_bound(self) -> float:
        r""":math:`1/\tau`, the second derivative of the smooth absolute value at 0."""
        return over_least(1.0, self.temperature())

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        temperature = constant(self.temperature())
        # The unit normal is within 9u and s within 11u |z|. The change, of size at most 2 |z|,
        # errs by 22u |z| through s, by 8u (|z| + tau) through hypot and by 3u |z| through the two
        # differences; its product with the normal adds 20u |z| and the sum u |z|. The 8u tau of
        # a pair is spread over two outputs.
        return Activation(
            function=smooth_householder,
            constants={"normal": constant(self.normal()), "temperature": temperature},
            lipschitz=1.0,
            jacobian_lipschitz=over_least(1.0, temperature),
            error=counted(54.0, 5.7 * float(temperature.max())),
            jacobian=smooth_householder_jacobian,
        )


def smooth_householder_jacobian(operation: Activation, z: Tensor, centre: Tensor) -> LocalJacobian:
    """The Jacobian at computed values z, and how fast it changes around them."""
    a, b = split_pairs(z)
    normal = constant_of(operation, "normal", z)
    p, q = (along_features(n, a) for n in normal / torch.hypot(*normal))
    tau = along_features(constant_of(operation, "temperature", z), a)

    def derivative(t: Tensor) -> Tensor:
        return unit_slope(t, tau)

    t = p * a + q * b
    # The products may cancel.
    doubt = centre + 2.0**-45 * z.flatten(1).norm(dim=1)
    change = derivative(t) - 1

    def pull(u: Tensor) -> Tensor:
        first, second = split_pairs(u)
        turned = change * (p * first + q * second)
        return join_pairs(first + turned * p, second + turned * q)

    def share(u: Tensor) -> Tensor:
        first, second = split_pairs(u)
        # Relative to the pair, so that cancellation is covered.
        return (p * first + q * second).abs() + 1e-12 * torch.hypot(first, second)

    return LocalJacobian(pull, share, bump_chord(t, doubt, (1 + 1e-12) / tau, derivative))
