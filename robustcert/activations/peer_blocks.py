"""Twins of residual blocks of other packages that are bounded as a whole."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustcert.network.blocks import ResidualBlock
from robustcert.network.operation import constant, same
from robustcert.network.overrides import class_of
from robustcert.network.torch_activations import relu_activation


class Step(NamedTuple):
    """Constants of ``x -> x - 2 W' (t * relu(W x + b))``, t being ``scale**2``."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    padding: int = 0


class ResidualReLU(nn.Module):
    """A :class:`robustcert.network.blocks.ResidualBlock` with ReLU as a module."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.padding = step.padding
        for name, value in zip(("weight", "scale", "bias"), step[:3], strict=True):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to the same shape."""
        return self.fold()(x)

    def fold(self) -> ResidualBlock:
        """The block with its constants."""
        return ResidualBlock(
            constant(self.get_buffer("weight")),
            constant(self.get_buffer("scale")),
            relu_activation(),
            None if self.bias is None else constant(self.get_buffer("bias")),
            padding=self.padding,
        )


def where_it_runs(twin: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    """The twin, but the module itself where its weights cannot be computed: running it says why."""

    @wraps(twin)
    def made(module: Any) -> nn.Module:
        try:
            return twin(module)
        except RuntimeError:
            return cast(nn.Module, module)

    return made


def residual_block(module: Any) -> nn.Module:
    """Orthogonium's ``SDPBasedLipschitzResBlock``."""

    def step() -> Step:
        weight = ungrouped(module.kernel, module.groups)
        return Step(weight, _ones(weight), module.bias.flatten(), module.padding)

    return _twin(module, step)


def residual_dense(module: Any) -> nn.Module:
    """Orthogonium's ``SDPBasedLipschitzDense``."""

    def step() -> Step:
        return Step(module.weight, module.compute_t().sqrt(), module.bias.flatten())

    return _twin(module, step)


@where_it_runs
def residual_aoc(module: Any) -> nn.Module:
    """Orthogonium's ``AOCLipschitzResBlock``, which pads nothing, whatever it is told."""

    def step() -> Step:
        weight = ungrouped(module.in_conv.weight, module.groups)
        return Step(weight, _ones(weight), module.in_conv.bias)

    return _twin(module, step)


@where_it_runs
def residual_sll_aoc(module: Any) -> nn.Module:
    """Orthogonium's ``SLLxAOCLipschitzResBlock``: a block between two convolutions.

    What it computes by fused kernels is the composition. The first convolution extends the map by
    ``stride - 1`` on all sides; the block then reads the places that the fused kernel does.
    """
    side = module.kernel.shape[-1] + module.stride - 1
    wide = 2 * module.padding - side + module.kernel.shape[-1] - (module.stride - 1)
    fits = module.skip_kernel_size // 2 == module.stride - 1
    if wide < 0 or wide % 2 or not fits:
        return module

    def step() -> Step:
        weight = ungrouped(module.kernel, module.groups)
        return Step(weight, _ones(weight), module.bias.flatten(), wide // 2)

    block = _twin(module, step)
    if block is module:
        return module
    first = _convolution(module.pre_conv.weight, module.groups, padding=module.stride - 1)
    last = _convolution(module.post_conv.weight, module.groups, stride=module.stride)
    return nn.Sequential(first, block, last)


def _twin(module: Any, read: Callable[[], Step]) -> nn.Module:
    """The block that a module is; itself where it is another function at every call."""
    if class_of(module.activation) is not nn.ReLU:
        return module
    before = {name: value.clone() for name, value in module.named_buffers()}
    with torch.no_grad(), parametrize.cached():
        found = read()
        bias = None if found.bias is None else found.bias.detach().clone()
        step = Step(found.weight.clone(), found.scale.clone(), bias, found.padding)
    if not same(before, dict(module.named_buffers())):
        return module
    return ResidualReLU(step)


def _convolution(weight: Tensor, groups: int, *, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    out, inner = len(weight), weight.shape[1] * groups
    made = nn.Conv2d(
        inner, out, weight.shape[-1], stride, padding, groups=groups, bias=False, device="cpu"
    )
    made.weight = nn.Parameter(weight.detach().clone())
    return made


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weight of a convolution without groups that computes the same, zeros between groups."""
    rows = weight.detach().unflatten(0, (groups, -1))
    wide = rows.new_zeros(groups, rows.shape[1], groups, *rows.shape[2:])
    places = torch.arange(groups, dtype=torch.int64, device="cpu")
    wide[places, :, places] = rows
    return wide.flatten(2, 3).flatten(0, 1)


def _ones(weight: Tensor) -> Tensor:
    return torch.ones(len(weight), dtype=weight.dtype, device="cpu")
