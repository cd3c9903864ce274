"""Products of matrices in training, by the faster of torch's two libraries for a processor."""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Multiplications from which a product is worth the copies into oneDNN's layout and back, and the
# least side of a matrix that is no stack of a few vectors: with 8 rows it takes two thirds.
MIN_MULTIPLICATIONS, MIN_SIDE = 2**23, 8
# Multiplications from which each product of a stack, one after the other, is worth its call.
MIN_IN_STACK = 2**21


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, up to the order of its sums, with the derivatives of that.

    On a processor torch asks MKL for products and oneDNN for convolutions. MKL uses vectors of 512
    bits on Intel's processors alone, oneDNN on all that have them: there large products of float32
    matrices take half of the time in oneDNN.

    Args:
        a: Shape ``(m, k)``; other shapes and types are left to torch.
        b: Shape ``(k, n)``.

    Example:
        >>> a, b = torch.randn(300, 200), torch.randn(200, 400)
        >>> torch.allclose(product(a, b), a @ b, atol=1e-4)
        True
    """
    return _Product.apply(a, b) if _is_faster(a, b) else a @ b


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` as :func:`torch.nn.functional.linear` has it, by :func:`product`."""
    if not _is_faster(x, weight.mT):
        return F.linear(x, weight, bias)
    y = product(x, weight.mT)
    return y if bias is None else y + bias


def gram(x: Tensor) -> Tensor:
    """``X^T X`` by :func:`product`, whose derivative takes one product more, not two.

    Args:
        x: Shape ``(m, n)``; other shapes, complex ones by ``X^H X``, are left to torch.

    Example:
        >>> gram(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        tensor([[1., 2.],
                [2., 5.]])
    """
    return _Gram.apply(x) if _is_faster(x.mT, x) else x.mH @ x


def products(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of stacks, each matrix for itself where that is faster and nothing is recorded.

    For functions that know their derivatives.

    Args:
        a: Shape ``(count, m, k)``.
        b: Shape ``(count, k, n)``.

    Example:
        >>> products(torch.ones(2, 1, 3), torch.ones(2, 3, 1)).shape
        torch.Size([2, 1, 1])
    """
    is_large = a[0].numel() * b.shape[-1] >= MIN_IN_STACK
    if torch.is_grad_enabled() or not (is_large and _takes_onednn(a, b)):
        return a @ b
    return torch.stack([_by_onednn(*pair) for pair in zip(a, b, strict=True)])


def _is_faster(a: Tensor, b: Tensor) -> bool:
    return (
        _takes_onednn(a, b)
        and a.dim() == b.dim() == 2
        and min(*a.shape, *b.shape) >= MIN_SIDE
        and a.numel() * b.shape[1] >= MIN_MULTIPLICATIONS
    )


def _takes_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether factors are of a kind that oneDNN multiplies, and faster than MKL if large."""
    return (
        # A compiler, autocast and other kinds of tensors have products of their own.
        not torch.compiler.is_compiling()
        and _mkl_is_narrow()
        and not torch.is_autocast_enabled("cpu")
        and all(
            type(x) in (Tensor, nn.Parameter)
            and x.dtype == torch.float32
            and x.device.type == "cpu"
            for x in (a, b)
        )
        and torch._C._get_mkldnn_enabled()
    )


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_whole(a), _whole(b.mT), None, "none", [], "")


def _like(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, in memory by columns where ``x`` is: what reads it reads it as it read ``x``."""
    return product(a, b) if x.stride(1) == 1 else product(b.mT, a.mT).mT


def _whole(x: Tensor) -> Tensor:
    """The matrix without gaps in memory, of which oneDNN knows nothing that is fast."""
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()


@cache
def _mkl_is_narrow() -> bool:
    """Whether the processor has vectors that MKL, which asks who made it, leaves alone."""
    if not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    described = Path("/proc/cpuinfo")
    maker = described.read_text() if described.exists() else platform.processor()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in maker


class _Product(torch.autograd.Function):
    """The product by oneDNN; what is derived from it is made of products again."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _by_onednn(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], _: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        at_a, at_b = ctx.needs_input_grad
        return (
            _like(a, grad, b.mT) if at_a else None,
            _like(b, a.mT, grad) if at_b else None,
        )

    @staticmethod
    def jvp(ctx: Any, a_moved: Tensor, b_moved: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        return product(a_moved, b) + product(a, b_moved)

    @staticmethod
    def vmap(_: Any, in_dims: tuple[int | None, int | None], a: Tensor, b: Tensor) -> Any:
        batches = (
            x if at is None else x.movedim(at, 0) for x, at in zip((a, b), in_dims, strict=True)
        )
        return torch.matmul(*batches), 0


class _Gram(torch.autograd.Function):
    """A product with itself: the gradients at both factors are one, of the symmetric part."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return product(x.mT, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], _: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return product(x, grad + grad.mT)

    @staticmethod
    def jvp(ctx: Any, moved: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        half = product(x.mT, moved)
        return half + half.mT
