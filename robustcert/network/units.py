"""What numbers a sample stands for: the one conversion to what networks compute with."""

import torch
from torch import Tensor


def in_units(inputs: Tensor) -> Tensor:
    r"""The real numbers that samples stand for, as float32 or float64.

    A byte p stands for the float32 nearest to :math:`p / 255`; a floating-point number stands for
    itself, half precision is widened exactly.

    Args:
        inputs: Any shape, uint8 or floating point.

    Returns:
        The same shape, cut from the graph.

    Raises:
        ValueError: the inputs stand for no real numbers, or may stand for several.
    """
    if not isinstance(inputs, Tensor):
        raise ValueError(
            f"expected inputs as a torch.Tensor, got {type(inputs).__name__}: convert an array by "
            "torch.from_numpy"
        )
    if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
        raise ValueError(
            f"expected inputs of type uint8, where p stands for p / 255, or floating point, got "
            f"{inputs.dtype}: give real numbers, by .float() if the values are in the network's "
            "units already, or pixels from 0 to 255 by .to(torch.uint8)"
        )
    if inputs.layout != torch.strided:
        raise ValueError(
            f"expected inputs with every entry stored, got {inputs.layout}: call .to_dense()"
        )
    inputs = inputs.detach().as_subclass(Tensor)
    if inputs.dtype == torch.uint8:
        # A divisor on the device itself: by a Python number, a GPU multiplies with its rounded
        # inverse.
        divisor = torch.full((), 255, dtype=torch.float32, device=inputs.device)
        return inputs.to(torch.float32).div_(divisor)
    # Whatever is shorter than float32 is held by it exactly.
    return inputs.to(torch.float32) if inputs.dtype.itemsize < 4 else inputs


def network_inputs(inputs: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """Samples :func:`in_units`, of the shape ``(N, *input_shape)`` that a network takes.

    Raises:
        ValueError: the inputs have another shape, or stand for no real numbers.
    """
    inputs = in_units(inputs)
    if inputs.dim() == 0 or tuple(inputs.shape[1:]) != tuple(input_shape):
        shape = ", ".join(("N", *map(str, input_shape)))
        raise ValueError(f"expected inputs of shape ({shape}), got {tuple(inputs.shape)}")
    return inputs


def finite_samples(inputs: Tensor) -> Tensor:
    """Whether all entries of a sample are finite numbers, and so is their sum, shape ``(N,)``."""
    # A sum is finite only if all its terms are, and takes a tenth of the time of looking at each.
    return torch.isfinite(inputs.flatten(1).sum(1))
