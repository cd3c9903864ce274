"""Dense products and convolutions of a network, tested where something is proved from them.

Within :func:`tested_products` a product is evaluated in blocks of samples, and every shape at which
it is evaluated has given the results of :mod:`robustcert.arithmetic.known_products` before:
libraries choose their kernels by shape. Elsewhere, as in training, it is torch's own.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.arithmetic.known_products import BITS, Evaluate, Geometry, first_fault
from robustcert.arithmetic.settings import UnsoundArithmeticError, loose_settings, variables

Pair = tuple[int, int]

# Rows of a dense product and images of a convolution that are evaluated at once: a test costs as
# much as one block, and smaller blocks are slower.
ROWS, IMAGES = 512, 32
# Number of tested shapes that are remembered.
MAX_TESTED = 4096


class _Thread(threading.local):
    """Number of times that this thread is within :func:`tested_products`."""

    depth = 0


class tested_products:
    """Within it, this thread's products are tested; entering and leaving cost a microsecond."""

    def __enter__(self) -> None:
        _thread.depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _thread.depth -= 1


_thread = _Thread()


@contextmanager
def untested_products() -> Iterator[None]:
    """Within it, this thread's products are torch's own: nothing is proved from their results."""
    depth, _thread.depth = _thread.depth, 0
    try:
        yield
    finally:
        _thread.depth = depth


def products_are_tested() -> bool:
    """Whether this thread is within :class:`tested_products`."""
    return _thread.depth > 0


_tested: dict[Any, None] = {}
_lock = threading.Lock()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W' + b`` of x ``(*, in)`` and W ``(out, in)``.

    Raises:
        UnsoundArithmeticError: it is to be tested, and is not evaluated as IEEE 754 asks for.
    """
    if not _is_tested(x):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    # Kernels for transposed weights are others.
    turned = weight.stride(0) == 1 and not weight.is_contiguous()
    weight = weight if turned else weight.contiguous()

    def test(part: Tensor) -> None:
        def evaluate(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            w = w.flatten(1)
            w = w.mT.contiguous().mT if turned else w
            return _dense(x.flatten(1), w, b)[:, :, None, None]

        geometry = Geometry.dense(len(part), part.shape[1], len(weight), bias is not None)
        _test(evaluate, geometry, x, f"dense {len(weight)}x{part.shape[1]}")

    key = ("dense", weight.shape, bias is None, turned)
    blocks = _blocks(rows, ROWS)
    _once((*key, len(blocks[0])), blocks[0], test)
    if len(blocks) == 1:
        y = _dense(rows, weight, bias)
    elif _differentiates(rows, weight, bias):
        y = _joined([_dense(part, weight, bias) for part in blocks], len(rows))
    else:
        y = rows.new_empty(len(rows), len(weight))
        for part, out in zip(blocks, _blocks(y, ROWS), strict=True):
            _dense(part, weight, bias, out)
    return y.view(*x.shape[:-1], len(weight))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Zero-padded convolution of x ``(N, C, H, W)``, as :func:`torch.nn.functional.conv2d`.

    Raises:
        UnsoundArithmeticError: it is to be tested, and is not evaluated as IEEE 754 asks for.
    """

    def evaluate(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    if not _is_tested(x):
        return evaluate(x, weight, bias)

    def test(part: Tensor) -> None:
        shapes = part.shape, weight.shape
        geometry = Geometry(*shapes, stride, padding, dilation, groups, bias is not None)
        _test(evaluate, geometry, x, f"convolution of {tuple(weight.shape)} kernels")

    options = tuple(stride), tuple(padding), tuple(dilation), groups
    key = ("convolution", weight.shape, *options, bias is None)
    return _images(x.contiguous(), key, test, lambda part: evaluate(part, weight, bias))


def conv_transpose2d(x: Tensor, weight: Tensor, padding: int = 0) -> Tensor:
    """Transposed convolution of stride 1 of x ``(N, C, H, W)``, weights ``(C, O, k, k)``.

    Raises:
        UnsoundArithmeticError: it is to be tested, and is not evaluated as IEEE 754 asks for.
    """
    if not _is_tested(x):
        return F.conv_transpose2d(x, weight, padding=padding)

    def turned(kernels: Tensor) -> Tensor:
        # A transposed convolution is one with channels exchanged and kernels turned around.
        return kernels.transpose(0, 1).flip(2, 3).contiguous()

    def evaluate(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
        return F.conv_transpose2d(x, turned(weight), padding=padding)

    def test(part: Tensor) -> None:
        channels, outputs, height, width = weight.shape
        around = height - 1 - padding, width - 1 - padding
        geometry = Geometry(part.shape, (outputs, channels, height, width), padding=around)
        _test(evaluate, geometry, x, f"transposed convolution of {tuple(weight.shape)} kernels")

    key = ("transposed convolution", weight.shape, padding)
    x = x.contiguous()
    return _images(x, key, test, lambda p: F.conv_transpose2d(p, weight, padding=padding))


def check_matrix_products(device: torch.device) -> None:
    """Test products of small matrices, on which bounds of norms rest, once per setting.

    Raises:
        UnsoundArithmeticError: they are not evaluated as IEEE 754 asks for.
    """
    _once(("matrices",), torch.empty(0, dtype=torch.float64, device=device), _test_matrices)


def _test_matrices(probe: Tensor) -> None:
    _test(_by_torch, _SMALL, probe, "matrix products of torch")
    if probe.device.type == "cpu":
        _test(_by_numpy, _SMALL, probe, "matrix products of NumPy")


def check_large_products(device: torch.device) -> None:
    """Test products of large matrices in batches, as bounds of norms have them, once per setting.

    Libraries choose kernels, and some of them whether to emulate float64, by size.

    Raises:
        UnsoundArithmeticError: they are not evaluated as IEEE 754 asks for.
    """
    probe = torch.empty(0, dtype=torch.float64, device=device)
    _once(("large matrices",), probe, _test_large_matrices)


def _test_large_matrices(probe: Tensor) -> None:
    for geometry, count, turned in product(_LARGE, (1, 2), (False, True)):
        evaluate = partial(_in_batches, count=count, turned=turned)
        _test(evaluate, geometry, probe, "products of large matrices")


# Shapes of the tested products of matrices: a small one, and those of Gram matrices and of factors.
_SMALL = Geometry.dense(40, 96, 24)
_LARGE = Geometry.dense(512, 2048, 256), Geometry.dense(1536, 512, 96)


def _by_torch(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
    return (x.flatten(1) @ weight.flatten(1).mT)[:, :, None, None]


def _in_batches(x: Tensor, weight: Tensor, _: Tensor | None, count: int, turned: bool) -> Tensor:
    """The same as ``count`` equal products; ``turned``: of matrices that lie in columns."""
    left, right = (part.flatten(1).repeat(count, 1, 1) for part in (x, weight))
    if turned:
        left, right = left.mT.contiguous().mT, right.mT.contiguous().mT
    return (left @ right.mT)[-1, :, :, None, None]


def _by_numpy(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
    product = x.flatten(1).numpy() @ weight.flatten(1).numpy().T
    return torch.from_numpy(product)[:, :, None, None]


def _is_tested(x: Tensor) -> bool:
    if not products_are_tested() or x.dtype not in BITS or x.device.type == "meta" or not len(x):
        return False
    # Shapes are found with one sample of zeros, whose product is the bias in any arithmetic.
    return len(x) > 1 or bool(x.any())


def _differentiates(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _blocks(x: Tensor, size: int) -> list[Tensor]:
    """Parts of a batch; on other devices than the CPU the whole of it, for their many units.

    All have one size, for which one test holds: the last one begins within the one before.
    """
    if x.device.type != "cpu" or len(x) <= size:
        return [x]
    return [x[min(start, len(x) - size) :][:size] for start in range(0, len(x), size)]


def _joined(blocks: list[Tensor], count: int) -> Tensor:
    """The results of the parts of a batch of ``count``."""
    rest = count - sum(map(len, blocks[:-1]))
    return torch.cat([*blocks[:-1], blocks[-1][-rest:]])


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    if bias is None:
        return torch.mm(x, weight.mT, out=out)
    return torch.addmm(bias, x, weight.mT, out=out)


def _images(
    x: Tensor,
    key: tuple[Any, ...],
    test: Callable[[Tensor], None],
    apply: Callable[[Tensor], Tensor],
) -> Tensor:
    blocks = _blocks(x, IMAGES)
    _once((*key, blocks[0].shape), blocks[0], test)
    return apply(x) if len(blocks) == 1 else _joined([apply(part) for part in blocks], len(x))


def _once(key: tuple[Any, ...], x: Tensor, test: Callable[[Tensor], None]) -> None:
    """Test what has not passed yet on this device, with these threads and settings."""
    key = (*key, x.dtype, x.device, torch.get_num_threads(), torch._C._get_mkldnn_enabled())
    if key in _tested:
        return
    if x.device.type != "cpu" and test is not _test_matrices:
        check_matrix_products(x.device)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        test(x)
    with _lock:
        while len(_tested) >= MAX_TESTED:
            del _tested[next(iter(_tested))]
        _tested[key] = None


def _test(
    evaluate: Evaluate,
    geometry: Geometry,
    like: Tensor,
    name: str,
) -> None:
    fault = first_fault(evaluate, geometry, like.dtype, like.device)
    if fault is not None:
        dtype = str(like.dtype).removeprefix("torch.")
        found = [f"{key}={value}" for key, value in variables().items()]
        raise UnsoundArithmeticError(
            f"{name}, {geometry.inputs[0]} samples, {dtype} on {like.device}: expected products "
            f"and sums that are rounded as IEEE 754 asks for, but {fault}, so that nothing is "
            f"certified. Settings that are not strict: {', '.join(loose_settings()) or 'none'}; "
            f"variables that are set: {', '.join(found) or 'none of those known'}. Unset what asks "
            "for faster arithmetic, or certify on another device or machine"
        )
