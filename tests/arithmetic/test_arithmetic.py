"""What is certified is computed in IEEE arithmetic, whatever the process's settings and threads."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from robustcert.arithmetic import products
from robustcert.arithmetic.known_products import Geometry, first_fault
from robustcert.arithmetic.products import tested_products
from robustcert.arithmetic.settings import PROCESS_SETTINGS, THREAD_SETTINGS, UnsoundArithmeticError
from robustcert.certificate.predictor import Predictor
from robustcert.certifiers import LipschitzCertifier, arithmetic, strict_arithmetic
from robustcert.certifiers.arithmetic import check_device
from robustcert.errors import ConfigError
from robustcert.network.activation import Activation
from robustcert.network.linear import Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork, pairwise_bound
from robustcert.runs.certifying_device import checked_device

CPU = torch.device("cpu")
F32, F64 = torch.float32, torch.float64


def settings() -> list[Any]:
    return [setting.read() for setting in (*PROCESS_SETTINGS, *THREAD_SETTINGS)]


def dense_network(*before: Activation) -> PlainNetwork:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    return PlainNetwork((*before, Dense(weight, torch.ones(5)), Dense(torch.eye(5))), (7,))


def convolutional() -> PlainNetwork:
    draw = torch.Generator().manual_seed(0)
    kernels, rows = torch.randn(8, 3, 3, 3, generator=draw), torch.randn(4, 512, generator=draw)
    operations = Convolution(kernels, padding=(1, 1)), Flatten(), Dense(rows)
    return PlainNetwork(operations, (3, 8, 8))


def samples(network: PlainNetwork, count: int = 20) -> Tensor:
    return torch.rand(count, *network.input_shape, generator=torch.Generator().manual_seed(1))


def in_thread(run: Callable[[], Any]) -> Any:
    result: list[Any] = []

    def target() -> None:
        try:
            result.append(run())
        except UnsoundArithmeticError as error:
            result.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    return result[0]


# Faults: other arithmetics of x W'


def exact(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w)


def rounded(bits: int) -> Callable[[Tensor], Tensor]:
    """Numbers cut to so many bits of their significand, as TF32 (11) and bfloat16 (8) are."""

    def cut(x: Tensor) -> Tensor:
        significand, exponent = x.double().frexp()
        return torch.ldexp((significand * 2.0**bits).trunc() * 2.0**-bits, exponent).to(x.dtype)

    return cut


def inputs_cut_to(bits: int) -> Callable[[Tensor, Tensor], Tensor]:
    cut = rounded(bits)
    return lambda x, w: F.linear(cut(x), cut(w))


def one_input_cut_to(bits: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, w: F.linear(x, rounded(bits)(w))


def bfloat16_pieces(x: Tensor, w: Tensor) -> Tensor:
    """Float32 as the sum of two bfloat16, without the product of the lower ones."""
    (a, c), (b, d) = ((h := v.bfloat16().to(v), (v - h).bfloat16().to(v)) for v in (x, w))
    return F.linear(a, b) + (F.linear(a, d) + F.linear(c, b))


def tf32_pieces(x: Tensor, w: Tensor) -> Tensor:
    """Float32 as the sum of two TF32, without the product of the lower ones."""
    cut = rounded(11)
    a, b = cut(x), cut(w)
    return F.linear(a, b) + (F.linear(a, cut(w - b)) + F.linear(cut(x - a), b))


def accumulated_in(keep: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Sums that are rounded to something else after every eighth product."""

    def product(x: Tensor, w: Tensor) -> Tensor:
        total = x.new_zeros(len(x), len(w))
        for a, b in zip(x.split(8, 1), w.split(8, 1), strict=True):
            total = keep(total + F.linear(a, b))
        return total

    return product


def truncating_sums(x: Tensor, w: Tensor) -> Tensor:
    """Sums of float32 products in float64, whose last bits are cut off instead of rounded."""
    return rounded(24)(F.linear(x.double(), w.double())).to(x)


def flushed(x: Tensor, w: Tensor) -> Tensor:
    tiny = torch.finfo(x.dtype).smallest_normal
    y = F.linear(*(torch.where(v.abs() < tiny, 0.0, v) for v in (x, w)))
    return torch.where(y.abs() < tiny, 0.0, y)


def emulated(slices: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Float64 from slices of 7 bits, below the largest entry of each row (Ozaki's scheme)."""

    def cut(x: Tensor) -> Tensor:
        exponent = x.abs().amax(1, keepdim=True).frexp().exponent
        unit = torch.ldexp(torch.ones_like(x), exponent - 7 * slices)
        return torch.where(unit > 0, (x / unit).trunc() * unit, x)

    return lambda x, w: F.linear(cut(x), cut(w))


FAULTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[torch.dtype, ...]]] = {
    "bfloat16": (inputs_cut_to(8), (F32, F64)),
    "TF32": (inputs_cut_to(11), (F32, F64)),
    "float16": (lambda x, w: F.linear(x.half().to(x), w.half().to(w)), (F32, F64)),
    "float32 for float64": (lambda x, w: F.linear(x.float(), w.float()).double(), (F64,)),
    "weights in TF32": (one_input_cut_to(11), (F32,)),
    "samples in TF32": (lambda x, w: F.linear(rounded(11)(x), w), (F32,)),
    "one bit less": (inputs_cut_to(23), (F32,)),
    "two pieces of bfloat16": (bfloat16_pieces, (F32,)),
    "two pieces of TF32": (tf32_pieces, (F32,)),
    "float16 accumulator": (accumulated_in(lambda y: y.half().to(y)), (F32, F64)),
    "bfloat16 accumulator": (accumulated_in(lambda y: y.bfloat16().to(y)), (F32, F64)),
    "float32 accumulator": (accumulated_in(lambda y: y.float().to(y)), (F64,)),
    "accumulator of 22 bits": (accumulated_in(rounded(22)), (F32,)),
    "truncating accumulator": (truncating_sums, (F32,)),
    "flush-to-zero": (flushed, (F32, F64)),
    **{f"{n} slices": (emulated(n), (F64,)) for n in (3, 7, 8, 9, 16)},
}


def of_dense(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def evaluate(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        y = product(x.flatten(1), w.flatten(1))
        return (y if b is None else y + b)[:, :, None, None]

    return evaluate


SHAPES = [(1, 1, 1), (1, 9, 4), (3, 2, 1), (5, 64, 10), (40, 784, 33)]


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_ieee_products_give_the_known_results(
    dtype: torch.dtype, shape: tuple[int, int, int], bias: bool
) -> None:
    geometry = Geometry.dense(*shape, bias)

    def backwards(x: Tensor, w: Tensor) -> Tensor:
        terms = (x[:, None] * w).flip(2).unbind(2)
        return sum(terms[1:], terms[0])

    for product in (exact, backwards):
        assert first_fault(of_dense(product), geometry, dtype, CPU) is None


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, (_, dtypes) in FAULTS.items() for dtype in dtypes]
)
def test_every_fault_gives_another_result(name: str, dtype: torch.dtype) -> None:
    # With a single product there is no sum, and a row of one entry is its largest.
    single = dtype == F32 and ("accumulator" in name or "two pieces" in name)
    small = [] if single or "slices" in name or "accumulator" in name else SHAPES[:3]
    for shape in (*small, *SHAPES[-2:]):
        for bias in (False, True):
            geometry = Geometry.dense(*shape, bias)
            assert first_fault(of_dense(FAULTS[name][0]), geometry, dtype, CPU), shape


def winograd(x: Tensor, w: Tensor) -> Tensor:
    """Winograd's F(2x2, 3x3) with padding 1."""
    points = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
    kernel = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    back = [[1, 1, 1, 0], [0, 1, -1, -1]]
    b, g, a = (torch.tensor(rows, dtype=x.dtype) for rows in (points, kernel, back))
    tiles = F.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    product = torch.einsum("nctuij,ocij->notuij", b @ tiles @ b.mT, g @ w @ g.mT)
    y = (a @ product @ a.mT).permute(0, 1, 2, 4, 3, 5)
    return y.reshape(len(x), len(w), *x.shape[2:])


def fourier(x: Tensor, w: Tensor) -> Tensor:
    """The transform of a larger torus, with padding 1."""
    size = x.shape[2] + 2, x.shape[3] + 2
    spectrum = torch.fft.rfft2(F.pad(x, (1, 1, 1, 1)))
    kernels = torch.fft.rfft2(w, size).conj()
    y = torch.fft.irfft2(torch.einsum("nchw,ochw->nohw", spectrum, kernels), size)
    return y[:, :, : x.shape[2], : x.shape[3]]


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transforms_give_other_results(dtype: torch.dtype, channels: int) -> None:
    geometry = Geometry((5, channels, 8, 8), (6, channels, 3, 3), padding=(1, 1))
    draw = torch.Generator().manual_seed(0)
    x, w = (
        torch.randn(shape, generator=draw, dtype=dtype)
        for shape in (geometry.inputs, geometry.weight)
    )
    usual = F.conv2d(x, w, padding=1)
    for transform in (winograd, fourier):
        torch.testing.assert_close(transform(x, w), usual)
        assert first_fault(lambda x, w, _, t=transform: t(x, w), geometry, dtype, CPU)


GEOMETRIES = [
    Geometry((5, 4, 7, 9), (6, 2, 3, 2), (2, 1), (1, 2), (1, 2), groups=2, bias=True),
    Geometry((4, 8, 9, 9), (8, 1, 3, 3), padding=(1, 1), groups=8),
    Geometry((1, 1, 5, 5), (1, 1, 5, 5)),
    Geometry((2, 1, 3, 3), (2, 1, 2, 2), padding=(3, 3), bias=True),
    Geometry((7, 4, 8, 8), (8, 4, 1, 1), stride=(2, 2)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_convolutions_give_the_known_results(geometry: Geometry, dtype: torch.dtype) -> None:
    g = geometry

    def evaluate(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w, b, g.stride, g.padding, g.dilation, g.groups)

    def fast(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return evaluate(rounded(11)(x), rounded(11)(w), b)

    with strict_arithmetic():
        assert first_fault(evaluate, g, dtype, CPU) is None
        assert first_fault(fast, g, dtype, CPU)


# The places where it is used


@contextmanager
def fault(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, cut: Any) -> Iterator[None]:
    usual = getattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(products, "_tested", {})
        patch.setattr(
            module, name, lambda x, w, *rest, **more: usual(cut(x), cut(w), *rest, **more)
        )
        yield


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_a_network_is_not_certified_by_faster_products(
    dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = rounded(11 if dtype == "float32" else 30)
    certifier = LipschitzCertifier(dtype)
    dense, convolution = dense_network(), convolutional()
    for network, module, name, said in (
        (dense, products, "_dense", "dense 5x7"),
        (convolution, products, "_dense", "dense 4x512"),
        (convolution, F, "conv2d", "convolution of"),
    ):
        x = samples(network)
        certifier.certify(network, x)
        with (
            fault(monkeypatch, module, name, cut),
            pytest.raises(UnsoundArithmeticError, match=said),
        ):
            certifier.certify(network, x)
    predictor = Predictor(dense, pairwise_bound(dense), dtype=dtype)
    with (
        fault(monkeypatch, products, "_dense", cut),
        pytest.raises(UnsoundArithmeticError, match=dtype),
    ):
        predictor(samples(dense, 3))


def test_the_error_names_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    network = dense_network()
    with (
        fault(monkeypatch, products, "_dense", rounded(8)),
        pytest.raises(UnsoundArithmeticError, match="ONEDNN_DEFAULT_FPMATH_MODE=BF16"),
    ):
        LipschitzCertifier().certify(network, samples(network))


def test_shapes_are_tested_once_and_blocks_change_no_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tested: list[int] = []
    usual = products._test

    def counting(evaluate: Any, geometry: Geometry, like: Tensor, name: str) -> None:
        tested.append(geometry.inputs[0])
        usual(evaluate, geometry, like, name)

    monkeypatch.setattr(products, "_tested", {})
    monkeypatch.setattr(products, "_test", counting)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2 * products.ROWS + 3, 5, generator=draw)
    weight, bias = torch.randn(4, 5, generator=draw), torch.randn(4, generator=draw)
    images = torch.randn(products.IMAGES + 2, 5, 6, 6, generator=draw)
    kernels = torch.randn(5, 4, 3, 3, generator=draw)
    for _ in range(2):
        with tested_products():
            blocks = products.linear(x, weight, bias)
            turned = products.linear(x.view(-1, 1, 5), weight.mT.contiguous().mT)
            maps = products.conv_transpose2d(images, kernels, padding=1)
    assert tested == [products.ROWS, products.ROWS, products.IMAGES]
    torch.testing.assert_close(blocks, F.linear(x, weight, bias))
    torch.testing.assert_close(turned[:, 0], F.linear(x, weight))
    torch.testing.assert_close(maps, F.conv_transpose2d(images, kernels, padding=1))
    leaf = x.clone().requires_grad_()
    with tested_products():
        products.linear(leaf, weight, bias).sum().backward()
    torch.testing.assert_close(leaf.grad, weight.sum(0).expand_as(x))


def test_few_tested_shapes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_tested", {})
    monkeypatch.setattr(products, "MAX_TESTED", 3)
    with tested_products():
        for width in range(1, 7):
            products.linear(torch.ones(2, width), torch.ones(2, width))
    assert len(products._tested) == 3


# Threads and settings


def test_a_setting_changed_by_another_thread_discards_the_batch() -> None:
    def change(x: Tensor) -> Tensor:
        if len(x) > 1:
            in_thread(lambda: torch.set_float32_matmul_precision("medium"))
        return x

    before = settings()
    network = dense_network(Activation(change, {}, lipschitz=1.0))
    with pytest.raises(UnsoundArithmeticError, match="matmul"):
        LipschitzCertifier("float32").certify(network, samples(network))
    assert settings() == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_whoever_was_inside_learns_of_a_change_that_another_mended() -> None:
    before = settings()
    region = strict_arithmetic()
    region.__enter__()
    torch.backends.nnpack.set_flags(True)
    # Who enters makes it strict again, for itself.
    in_thread(lambda: LipschitzCertifier().certify(dense_network(), torch.zeros(2, 7)))
    assert not torch._C._get_nnpack_enabled()
    with pytest.raises(UnsoundArithmeticError, match="NNPACK"):
        region.__exit__(None, None, None)
    assert settings() == before


def test_threads_leave_in_any_order() -> None:
    before = settings()
    for failing in (False, True):
        first, second = strict_arithmetic(), strict_arithmetic()
        inside, leave = threading.Event(), threading.Event()

        def other(context: Any = second, inside: Any = inside, leave: Any = leave) -> None:
            context.__enter__()
            inside.set()
            leave.wait()
            context.__exit__(None, None, None)

        first.__enter__()
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait()
        if failing:
            with pytest.raises(ZeroDivisionError):
                first.gen.throw(ZeroDivisionError())  # type: ignore[attr-defined]
        else:
            first.__exit__(None, None, None)
        strict = [setting.is_strict() for setting in PROCESS_SETTINGS]
        leave.set()
        thread.join()
        assert all(strict)
        assert settings() == before


def test_a_setting_that_cannot_be_read_changes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("mixed")

    before = settings()
    with monkeypatch.context() as patch:
        *others, last = PROCESS_SETTINGS
        broken = (*others, replace(last, read=refuse))
        patch.setattr(arithmetic, "PROCESS_SETTINGS", broken)
        with pytest.raises(UnsoundArithmeticError, match="cannot be read"):
            LipschitzCertifier().certify(dense_network(), torch.zeros(2, 7))
    assert settings() == before


def test_threads_that_switch_in_short_turns_get_no_other_certificate() -> None:
    network, stop = convolutional(), threading.Event()
    x = samples(network, 4)
    certifier = LipschitzCertifier("float32")
    expected, before = certifier.certify(network, x).radius, settings()

    def flip() -> None:
        while not stop.is_set():
            torch.set_float32_matmul_precision("medium")
            torch.set_float32_matmul_precision("highest")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=flip)
    thread.start()
    refused = 0
    try:
        for _ in range(300):
            try:
                assert torch.equal(certifier.certify(network, x).radius, expected)
            except UnsoundArithmeticError:
                refused += 1
            if refused > 3:
                break
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
        torch.set_float32_matmul_precision("highest")
    assert refused
    after = settings()
    # What `highest` writes, whoever writes it.
    assert after[:3] == before[:3]
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_worker_that_flushes_is_found() -> None:
    threads = torch.get_num_threads()

    def run() -> Any:
        # A thread of Python has workers of its own; they keep what is set when they start.
        torch.set_num_threads(2)
        if not torch.set_flush_denormal(True):
            return None
        torch.ones(2**18).mul(0.5)
        torch.set_flush_denormal(False)
        with strict_arithmetic():
            return "certified"

    try:
        found = in_thread(run)
    finally:
        torch.set_num_threads(threads)
    if found is None:
        pytest.skip("this processor does not flush")
    assert isinstance(found, UnsoundArithmeticError)
    assert "below the normal range" in str(found)


def test_flush_to_zero_within_a_region_discards_it() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor does not flush")
    region = strict_arithmetic()
    region.__enter__()
    torch.set_flush_denormal(True)
    with pytest.raises(UnsoundArithmeticError, match="flush_denormal"):
        region.__exit__(None, None, None)
    assert float(torch.tensor([2.0**-140]) / 2) > 0


def test_autocast_is_off_for_sampled_networks_too() -> None:
    def region() -> bool:
        with strict_arithmetic():
            return torch.is_autocast_enabled("cpu")

    with torch.autocast("cpu", torch.bfloat16):
        assert not region()
        assert torch.is_autocast_enabled("cpu")


def test_the_record_says_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", "BF16")
    with strict_arithmetic() as record:
        assert not torch.backends.mkldnn.enabled
    assert record["cudnn"] is record["nnpack"] is record["mkldnn"] is record["tf32"] is False
    assert record["float32_matmul_precision"] == "highest"
    assert record["flush_denormal"] is False
    assert record["self_tested"] is True
    assert record["variables"]["DNNL_DEFAULT_FPMATH_MODE"] == "BF16"


CHILD = """
import torch
from test_arithmetic import LipschitzCertifier, convolutional, samples, strict_arithmetic
torch.set_num_threads(1)
network = convolutional()
x = samples(network)
try:
    print([r.hex() for r in LipschitzCertifier("float32").certify(network, x).radius.tolist()])
except RuntimeError as error:
    print(type(error).__name__, error)
with strict_arithmetic():
    print(torch.backends.mkldnn.enabled)
"""


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
        *(
            pytest.param(name, value, marks=pytest.mark.slow)
            for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
            for value in ("F16", "TF32", "ANY")
        ),
    ],
)
def test_variables_of_onednn_change_no_radius(variable: str, value: str) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join(
        [str(here.parents[1]), str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]
    )
    environment = {**os.environ, "PYTHONPATH": path, variable: value}
    command = [sys.executable, "-c", CHILD]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = convolutional()
        radius = LipschitzCertifier("float32").certify(network, samples(network)).radius.tolist()
    finally:
        torch.set_num_threads(threads)
    found, enabled = run.stdout.splitlines()
    assert found == str([r.hex() for r in radius]) or found.startswith("UnsoundArithmeticError")
    assert enabled == "False"


class _Emulated(TorchDispatchMode):
    """Float64 whose sums, products or products of matrices have the precision of float32."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        wide = func.__name__.startswith(self.operation) and found.dtype == F64
        return found.float().double() if wide else found


def test_float64_of_this_machine_is_that_of_the_standard() -> None:
    check_device(CPU)


@pytest.mark.parametrize("operation", ["add.", "mul.", "div.", "mm."])
def test_a_device_whose_float64_is_inexact_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setattr(products, "_tested", {})
    with pytest.raises(ConfigError, match=r"certify_device: .* on cpu"), _Emulated(operation):
        checked_device("cpu", "certify_device")


@pytest.mark.parametrize("name", ["meta", "nowhere", "cuda:99"])
def test_a_device_without_float64_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device: no float64 arithmetic on '{name}' here"):
        checked_device(name)
