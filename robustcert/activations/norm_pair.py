"""The norm of every pair or group of features."""

import torch
from torch import Tensor, nn

from robustcert.activations.features import along_features
from robustcert.activations.positive import Positive, over_least
from robustcert.network.activation import Activation, constant_of
from robustcert.network.jacobian import LocalJacobian, per_sample
from robustcert.network.local_error import counted
from robustcert.network.operation import constant


def norm_pair(x: Tensor, temperature: Tensor, group_size: int) -> Tensor:
    """``sqrt(|z|^2 + temperature^2) - temperature`` of every group z of neighbouring features."""
    groups = x.unflatten(1, (-1, group_size)).unbind(2)
    norm = temperature = along_features(temperature, groups[0])
    # Started at the temperature, hypot never meets (0, 0), where it has no gradient.
    for feature in groups:
        norm = torch.hypot(feature, norm)
    return norm - temperature


class NormPair(nn.Module):
    r"""Smooth norm of every group z of neighbouring features, :math:`\sqrt{|z|^2 + \tau^2} - \tau`.

    It has ``num_features / group_size`` outputs. The gradient of each is almost a unit vector where
    the norm is large against :math:`\tau`, so the gradient norm of whatever follows is preserved,
    and the level sets are round: a distance to a point is one unit, not many facets.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        group_size: Features that share one norm; must divide ``num_features``.
        temperature: Initial :math:`\tau`.
        learnable: Whether the temperature is trained, through its logarithm.
        per_feature: One temperature for each group rather than one for the layer.

    Example:
        >>> NormPair(2, temperature=0.5, learnable=False)(torch.tensor([[3.0, 4.0]]))
        tensor([[4.5249]])
    """

    def __init__(
        self,
        num_features: int,
        group_size: int = 2,
        temperature: float = 0.05,
        learnable: bool = True,
        per_feature: bool = False,
    ) -> None:
        super().__init__()
        if group_size < 1 or num_features % group_size:
            raise ValueError(
                f"NormPair(group_size={group_size}) cannot split {num_features} features evenly: "
                f"set model.width to a multiple of {group_size} or model.activation.group_size "
                f"to a divisor of {num_features}"
            )
        self.num_features = num_features
        self.out_features = num_features // group_size
        self.group_size = group_size
        size = self.out_features if per_feature else None
        self.temperature = Positive("NormPair", "temperature", temperature, learnable, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C / group_size, *)``."""
        return norm_pair(x, self.temperature(), self.group_size)

    def lipschitz_bound(self) -> float:
        r"""1: groups are disjoint, and the gradient :math:`z / \sqrt{|z|^2 + \tau^2}` is short."""
        return 1.0

    def jacobian_lipschitz_bound(self) -> float:
        r""":math:`1/\tau`, attained at 0.

        The Hessian :math:`(I - z z^T / r^2) / r` with :math:`r^2 = |z|^2 + \tau^2` has no
        eigenvalue above :math:`1/r`.
        """
        return over_least(1.0, self.temperature())

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        temperature = constant(self.temperature())
        # Each hypot adds 8u relative to the final one, which is at most |z| + tau; the difference
        # rounds an output of at most |z|.
        hypots = 8 * self.group_size
        return Activation(
            function=norm_pair,
            constants={"temperature": temperature, "group_size": self.group_size},
            lipschitz=1.0,
            jacobian_lipschitz=over_least(1.0, temperature),
            error=counted(hypots + 1, hypots * float(temperature.max()), roundings=hypots + 1),
            jacobian=norm_pair_jacobian,
        )


def norm_pair_jacobian(operation: Activation, z: Tensor, centre: Tensor) -> LocalJacobian:
    """The Jacobian at computed values z, and how fast it changes around them."""
    size = operation.constants["group_size"]
    assert isinstance(size, int)
    groups = z.unflatten(1, (-1, size))
    tau = along_features(constant_of(operation, "temperature", z), groups[:, :, 0])
    norm = torch.hypot(groups.norm(dim=2), tau)
    unit = groups / norm.unsqueeze(2)

    def pull(u: Tensor) -> Tensor:
        return (unit * u.unsqueeze(2)).flatten(1, 2)

    def chord(reach: Tensor) -> Tensor:
        # Unit vectors differ by at most 2 |z - z'| / (r + r') (Dunkl and Williams 1964), here in
        # one dimension more, whose entry is tau.
        least = torch.maximum(norm * (1 - 2.0**-22) - per_sample(centre, norm), tau)
        other = torch.maximum(least - per_sample(reach, norm), tau)
        return torch.minimum(2 / (least + other), 1 / tau) * (1 + 1e-12)

    return LocalJacobian(pull, torch.abs, chord)
