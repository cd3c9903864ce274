"""A positive option of an activation, such as a temperature, fixed or learned."""

import math

import torch
from torch import Tensor, nn

MIN_VALUE, MAX_VALUE = 1e-6, 1e6


class Positive(nn.Module):
    r"""A positive number, or one per feature, stored as its logarithm.

    The logarithm may go anywhere; the value stays in :math:`[10^{-6}, 10^6]`, where neither it nor
    its square nor its inverse leaves the range of float32.

    Args:
        owner: Name of the activation, for messages.
        option: Name of its option, for messages.
        value: Initial value.
        learnable: Whether it is a parameter; a buffer otherwise.
        size: Number of values; None for one scalar.
    """

    log: Tensor

    def __init__(
        self, owner: str, option: str, value: float, learnable: bool, size: int | None = None
    ) -> None:
        super().__init__()
        if not MIN_VALUE <= value <= MAX_VALUE:
            raise ValueError(
                f"{owner}({option}={value}) must lie between {MIN_VALUE:g} and {MAX_VALUE:g}: "
                f"set model.activation.{option}"
            )
        log = torch.full(() if size is None else (size,), math.log(value))
        if learnable:
            self.log = nn.Parameter(log)
        else:
            self.register_buffer("log", log)

    def forward(self) -> Tensor:
        """The value."""
        return self.log.clamp(math.log(MIN_VALUE), math.log(MAX_VALUE)).exp()


def over_least(factor: float, value: Tensor) -> float:
    """``factor / min(value)``, rounded up."""
    # The product and the quotient round at most once each, and so does the factor.
    return factor / float(value.detach().min()) * (1 + 1e-15)
