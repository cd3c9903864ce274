"""Learnable linear splines with slopes in [-1, 1]."""

import torch
from torch import Tensor, nn

from robustcert.activations.features import along_features
from robustcert.network.activation import Activation, Slopes
from robustcert.network.local_error import counted
from robustcert.network.operation import constant


def linear_spline(x: Tensor, slopes: Tensor, step: Tensor) -> Tensor:
    """The spline through 0 with these slopes on a grid of this step, centred at 0.

    ``slopes`` has shape ``(C, K)`` or ``(1, K)``, K even; the outer slopes go on to infinity.
    """
    rows, pieces = slopes.shape
    half = pieces // 2
    # The values at the knots are summed from the slopes here, not stored, so that the real function
    # is continuous, and therefore 1-Lipschitz, whatever slopes in [-1, 1] are stored.
    left = -slopes[:, :half].flip(1).cumsum(1).flip(1)
    right = slopes[:, half:-1].cumsum(1)
    values = torch.cat((left, torch.zeros_like(slopes[:, :1]), right), dim=1)
    knots = torch.arange(-half, half, dtype=torch.int64, device=x.device)
    intercepts = step * (values - slopes * knots)
    piece = (x / step + half).floor().nan_to_num(0.0).clamp(0, pieces - 1).long()
    if rows > 1:
        starts = pieces * torch.arange(rows, dtype=torch.int64, device=x.device)
        piece = piece + along_features(starts, x)
    return slopes.flatten()[piece] * x + intercepts.flatten()[piece]


class LinearSpline(nn.Module):
    r"""A piecewise linear function for every feature, with learned slopes in [-1, 1].

    Knots lie on a uniform grid on ``[-radius, radius]``; the outermost slopes go on beyond it.
    Every spline passes through 0 and starts as the absolute value.

    Reference: Ducotterd et al., `Improving Lipschitz-constrained neural networks by learning
    activation functions <https://arxiv.org/abs/2210.16222>`_, JMLR 2024. There, values at the knots
    are learned and their differences are clipped; here, slopes are.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        num_knots: Odd, at least 3, both ends of the grid included.
        radius: Half the length of the grid.
        shared: One spline for the layer rather than one for each feature.

    Example:
        >>> activation = LinearSpline(1, num_knots=5)
        >>> activation(torch.tensor([[-1.5]])).detach()
        tensor([[1.5000]])
        >>> activation.raw_slopes.shape  # one slope between any two knots
        torch.Size([1, 4])
    """

    step: Tensor

    def __init__(
        self, num_features: int, num_knots: int = 21, radius: float = 1.0, shared: bool = False
    ) -> None:
        super().__init__()
        if num_knots < 3 or num_knots % 2 == 0:
            raise ValueError(
                f"LinearSpline(num_knots={num_knots}) must be odd and at least 3: "
                "set model.activation.num_knots"
            )
        if not 1e-6 <= radius <= 1e6:
            raise ValueError(
                f"LinearSpline(radius={radius}) must lie between 1e-06 and 1e+06: "
                "set model.activation.radius"
            )
        self.num_features = self.out_features = num_features
        self.register_buffer("step", torch.tensor(2 * radius / (num_knots - 1)))
        centres = torch.arange(num_knots - 1) - num_knots // 2 + 0.5
        self.raw_slopes = nn.Parameter(centres.sign().repeat(1 if shared else num_features, 1))

    def slopes(self) -> Tensor:
        """Slopes from left to right, shape ``(C, num_knots - 1)`` or ``(1, num_knots - 1)``."""
        raw = self.raw_slopes
        # Reflected at -1 and 1 rather than clipped there, so that no slope loses its gradient.
        return torch.where(raw.abs() > 1, 2 * raw.sign() - raw, raw).clamp(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return linear_spline(x, self.slopes(), self.step)

    def lipschitz_bound(self) -> float:
        """1: each entry goes through a continuous function with slopes in [-1, 1]."""
        return 1.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        slopes, step = constant(self.slopes()), constant(self.step)
        # In units of u R, R the radius, m = K/2 pieces to each side: a value is a sum of at most m
        # slopes, within m; with slope times knot, their difference and the step m + 5. A point is
        # put in a neighbour's piece only within 3 of the knot, where the two differ by 6. The last
        # product and sum round by 2u |x|.
        half = slopes.shape[1] // 2
        radius = float(step) * half
        return Activation(
            function=linear_spline,
            constants={"slopes": slopes, "step": step},
            lipschitz=1.0,
            error=counted(2.0, (half + 11) * radius, roundings=half + 20),
            slopes=Slopes(float(slopes.min()), float(slopes.max())),
        )
