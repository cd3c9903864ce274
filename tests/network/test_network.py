"""Plain operations: what they bound, what they refuse, and what identifies them."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcert import norms
from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation
from robustcert.network.bounds import _BOUNDS, run, sequence_bound
from robustcert.network.branches import Sum
from robustcert.network.forward_error import UNIT_ROUNDOFFS
from robustcert.network.linear import Affine, Convolution, Dense, Flatten
from robustcert.network.local_error import absolute_norm, gamma
from robustcert.network.network import PlainNetwork, pairwise_bound
from robustcert.network.operation import Operation, constant

RELU = Activation(torch.relu, {}, lipschitz=1.0)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(operation: Operation, shape: tuple[int, ...]) -> Tensor:
    """A linear operation as a float64 matrix, by its impulse responses."""
    impulses = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return operation(impulses).flatten(1).T


def norm(operation: Operation, shape: tuple[int, ...]) -> float:
    return float(torch.linalg.matrix_norm(matrix(operation, shape), 2))


def conv(**options: Any) -> Convolution:
    return Convolution(randn(6, 2, 3, 3), **options)


CONVOLUTIONS: list[tuple[Convolution, tuple[int, int, int]]] = [
    (conv(), (2, 5, 6)),
    (conv(padding=(1, 1)), (2, 5, 5)),
    (conv(stride=(2, 1), padding=(2, 0)), (2, 6, 5)),
    (conv(dilation=(1, 2), padding=(1, 2)), (2, 4, 6)),
    (conv(groups=2, padding=(1, 1)), (4, 4, 4)),
    (Convolution(randn(1, 1, 4, 4), stride=(2, 2), padding=(1, 1)), (1, 7, 7)),
]


# The linear operations


@pytest.mark.parametrize("case", range(len(CONVOLUTIONS)))
def test_a_convolution_bounds_its_matrix(case: int) -> None:
    operation, shape = CONVOLUTIONS[case]
    true = norm(operation, shape)
    assert true <= operation.lipschitz_bound(shape)
    magnitudes = replace(operation, weight=operation.weight.abs())
    assert norm(magnitudes, shape) <= absolute_norm(operation.weight)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 5)])
def test_a_dense_operation_bounds_its_matrix(shape: tuple[int, int]) -> None:
    operation = Dense(randn(*shape))
    true = torch.linalg.matrix_norm(operation.weight.double(), 2)
    assert true <= operation.lipschitz_bound((shape[1],)) <= true * (1 + 1e-6)
    assert torch.linalg.matrix_norm(operation.weight.double().abs(), 2) <= absolute_norm(
        operation.weight
    )


@pytest.mark.parametrize("exponent", [-1000, -600, 600, 900])
def test_the_norm_of_magnitudes_scales_with_the_weight(exponent: int) -> None:
    weight = randn(5, 3).double()
    scaled = absolute_norm(weight * 2.0**exponent)
    assert scaled == pytest.approx(absolute_norm(weight) * 2.0**exponent, rel=1e-12)


def test_an_affine_operation_is_its_largest_factor() -> None:
    operation = Affine(torch.tensor([0.5, -4.0, 1.0]), torch.tensor([1.0, 0.0, -2.0]))
    x, y = randn(2, 20, 3, 4, 5).double()
    ratio = (operation(x) - operation(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert (ratio <= operation.lipschitz_bound((3, 4, 5))).all()
    assert operation.lipschitz_bound((3, 4, 5)) == 4
    for channel, (a, b) in enumerate(zip([0.5, -4.0, 1.0], [1.0, 0.0, -2.0], strict=True)):
        assert torch.equal(operation(x)[:, channel], a * x[:, channel] + b)


def test_one_channel_is_not_copied_to_several() -> None:
    # Copied three times, the input would move by the root of three times as much.
    with pytest.raises(UnsoundNetworkError, match=r"normalize: .*\(1, 4, 4\)"):
        PlainNetwork(
            (
                Affine(torch.ones(3), torch.zeros(3), name="normalize"),
                Flatten(),
                Dense(randn(2, 48)),
            ),
            (1, 4, 4),
        )


# Composition


def branch(seed: int) -> tuple[Operation, ...]:
    return (Dense(randn(4, 4, seed=seed)), RELU, Dense(randn(4, 4, seed=seed + 1)))


def test_a_sum_adds_its_branches_and_their_bounds() -> None:
    operation = Sum((branch(0), branch(2), ()))
    x, y = randn(2, 200, 4).double()
    parts = [run(b, x) for b in (branch(0), branch(2))]
    torch.testing.assert_close(operation(x), x + parts[0] + parts[1])
    bound = operation.lipschitz_bound((4,))
    singles = [Fraction(sequence_bound(b, (4,))) for b in (branch(0), branch(2))]
    assert Fraction(bound) >= 1 + singles[0] + singles[1]
    assert bound == pytest.approx(float(1 + sum(singles)), rel=1e-15)
    slopes = (operation(x) - operation(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert slopes.max() <= bound


def test_a_sequence_is_bounded_by_the_exact_product() -> None:
    operations = branch(0)
    bounds = [Fraction(o.lipschitz_bound((4,))) for o in operations]
    product = bounds[0] * bounds[1] * bounds[2]
    assert product <= Fraction(sequence_bound(operations, (4,)))
    assert sequence_bound((), (4,)) == 1


def network(**changes: Any) -> PlainNetwork:
    operations: dict[str, Operation] = {
        "normalize": Affine(torch.tensor([2.0]), torch.tensor([-1.0])),
        "conv": Convolution(randn(2, 1, 3, 3), randn(2), padding=(1, 1)),
        "relu": RELU,
        "flatten": Flatten(),
        "head": Dense(randn(3, 32), randn(3)),
    }
    named = (replace(op, name=name) for name, op in (operations | changes).items())
    return PlainNetwork(tuple(named), (1, 4, 4))


def test_differences_of_logits_are_bounded_through_the_rows_of_the_head() -> None:
    net = network()
    assert net.head is net.operations[-1]
    pairwise = pairwise_bound(net)
    assert pairwise.dtype == torch.float64
    assert (pairwise.diagonal() == 0).all()
    backbone = sequence_bound(net.backbone, net.input_shape)
    rows = net.head.weight.double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    assert (pairwise >= backbone * distances).all()
    torch.testing.assert_close(pairwise, backbone * distances, rtol=1e-9, atol=0)
    x, y = randn(2, 300, 1, 4, 4).double()
    moved = net(x) - net(y)
    slopes = (moved[:, :, None] - moved[:, None]).abs() / (x - y).flatten(1).norm(dim=1)[
        :, None, None
    ]
    assert (slopes <= pairwise).all()


def test_without_a_dense_head_a_difference_costs_a_root_of_two() -> None:
    net = PlainNetwork((Dense(torch.diag(torch.tensor([3.0, 3.0, 1.0]))), RELU), (3,))
    assert net.head is None
    assert net.backbone == net.operations
    pairwise = pairwise_bound(net)
    off = ~torch.eye(3, dtype=torch.bool)
    assert (pairwise[off] >= 3 * Fraction(2) ** 0.5).all()
    torch.testing.assert_close(pairwise[off], torch.full((6,), 18**0.5, dtype=torch.float64))


def test_logits_that_never_part_have_the_constant_zero_or_nearly() -> None:
    rows = randn(1, 4).expand(2, 4).contiguous()
    assert pairwise_bound(PlainNetwork((Dense(rows),), (4,)))[0, 1] < 1e-300


def test_a_bound_that_overflows_is_no_bound() -> None:
    huge = Dense(torch.eye(4, dtype=torch.float64) * 1e200)
    with pytest.raises(UnsoundNetworkError):
        pairwise_bound(PlainNetwork((huge, huge), (4,)))
    endless = Activation(torch.relu, {}, lipschitz=math.inf, name="act")
    with pytest.raises(UnsoundNetworkError, match=r"act: its Lipschitz bound is inf"):
        sequence_bound((endless,), (4,))
    unknown = Activation(torch.relu, {}, lipschitz=math.nan)
    with pytest.raises(UnsoundNetworkError, match="nan"):
        sequence_bound((unknown,), (4,))


def test_bounds_are_computed_once_and_forgotten_with_the_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Tensor] = []

    def counting(weight: Tensor) -> float:
        calls.append(weight)
        return 1.0

    monkeypatch.setattr(norms, "dense_norm_bound", counting)
    gc.collect()
    before = len(_BOUNDS)
    operation = Dense(randn(3, 3))
    for _ in range(3):
        sequence_bound((operation, operation), (3,))
    assert len(calls) == 1
    del operation
    gc.collect()
    assert len(_BOUNDS) == before


# Constants


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_constants_are_copies_that_keep_their_value(
    dtype: torch.dtype, expected: torch.dtype
) -> None:
    weight = randn(3, 4).to(dtype).T.requires_grad_()
    frozen = constant(weight)
    assert frozen.dtype == expected
    assert not frozen.requires_grad
    assert frozen.is_contiguous()
    assert torch.equal(frozen.double(), weight.detach().double())
    with torch.no_grad():
        weight.zero_()
    assert frozen.abs().min() > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_constants_are_refused(value: float) -> None:
    with pytest.raises(UnsoundNetworkError, match="NaN or infinite"):
        constant(torch.tensor([1.0, value]))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_constants_must_be_real_numbers(dtype: torch.dtype) -> None:
    with pytest.raises(UnsoundNetworkError, match="real numbers"):
        constant(torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("unit", UNIT_ROUNDOFFS.values())
@pytest.mark.parametrize("terms", [1, 3, 1000, 2**20])
def test_gamma_is_rounded_up(terms: int, unit: float) -> None:
    exact = terms * Fraction(unit) / (1 - terms * Fraction(unit))
    assert exact <= Fraction(gamma(terms, unit)) <= exact * (1 + Fraction(1, 10**14))


def test_sums_of_too_many_terms_have_no_error_bound() -> None:
    for terms in (2**23, 2**24, 2**25):
        with pytest.raises(UnsoundNetworkError, match="sums of"):
            gamma(terms, UNIT_ROUNDOFFS[torch.float32])


def test_evaluation_takes_the_dtype_of_its_input() -> None:
    net = network()
    x = randn(5, 1, 4, 4)
    assert net(x).dtype == torch.float32
    assert net(x.double()).dtype == torch.float64
    torch.testing.assert_close(net(x).double(), net(x.double()), rtol=1e-5, atol=1e-5)
    moved = net.to(torch.device("cpu"), torch.float64)
    assert moved.dtype == torch.float64
    assert net.dtype == torch.float32
    assert torch.equal(moved(x.double()), net(x.double()))


def test_constants_of_branches_and_activations_move_too() -> None:
    def shift(x: Tensor, by: Tensor, times: int) -> Tensor:
        return x + times * by

    activation = Activation(shift, {"by": torch.ones(()), "times": 2}, lipschitz=1.0)
    net = PlainNetwork((Sum(((Dense(randn(3, 3)), activation), ())),), (3,))
    assert net.dtype == torch.float32
    moved = net.to(torch.device("cpu"), torch.float64)
    assert moved.dtype == torch.float64
    inner = moved.operations[0]
    assert isinstance(inner, Sum)
    for operation in inner.branches[0]:
        assert all(t.dtype == torch.float64 for t in operation.tensors().values())
    x = randn(4, 3).double()
    assert torch.equal(moved(x), net(x))


# What is refused, and how networks are told apart


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ((Dense(randn(2, 15), name="backbone.fc"),), r"^backbone\.fc: it does not take .* \(16,\)"),
        ((Convolution(randn(2, 3, 3, 3), name="conv"), Flatten()), r"^conv: "),
        ((Dense(randn(2, 16)), Dense(randn(2, 3), name="head")), r"^head: "),
    ],
)
def test_operations_that_do_not_fit_are_named(
    operations: tuple[Operation, ...], message: str
) -> None:
    with pytest.raises(UnsoundNetworkError, match=message):
        PlainNetwork(operations, (16,))


def test_logits_must_be_a_vector() -> None:
    with pytest.raises(UnsoundNetworkError, match="expected logits"):
        PlainNetwork((conv(),), (2, 5, 5))


def test_a_convolution_takes_images() -> None:
    # Torch would read (N, H, W) as one image of N channels.
    with pytest.raises(UnsoundNetworkError, match=r"conv: .*\(C, H, W\)"):
        pairwise_bound(
            PlainNetwork(
                (Convolution(randn(1, 1, 2, 2), name="conv"), Flatten(), Dense(randn(2, 9))), (4, 4)
            )
        )


def test_a_dense_operation_on_rows_of_a_matrix_is_charged_for_every_row() -> None:
    operation = Dense(randn(3, 4), randn(3))
    one, many = (
        operation.rounding(shape, UNIT_ROUNDOFFS[torch.float64]) for shape in ((4,), (25, 4))
    )
    assert one[0] == many[0]
    assert many[1] == pytest.approx(5 * one[1])


CHANGES: list[Callable[[], PlainNetwork]] = [
    lambda: network(normalize=Affine(torch.tensor([2.0]), torch.tensor([-1.0000001]))),
    lambda: network(conv=Convolution(randn(2, 1, 3, 3), padding=(1, 1))),
    lambda: network(conv=Convolution(randn(2, 1, 3, 3), randn(2), padding=(1, 1), groups=1)).to(
        torch.device("cpu"), torch.float64
    ),
    lambda: network(conv=Convolution(randn(2, 1, 1, 1), randn(2))),
    lambda: network(relu=Activation(torch.abs, {}, lipschitz=1.0)),
    lambda: network(relu=Activation(torch.clamp, {"min": 0}, lipschitz=1.0)),
    lambda: network(relu=Activation(torch.clamp, {"min": 1}, lipschitz=1.0)),
    lambda: network(relu=Activation(torch.clamp, {"min": torch.zeros(())}, lipschitz=1.0)),
    lambda: network(relu=Sum(((RELU,),))),
    lambda: network(relu=Sum(((RELU,), ()))),
    lambda: network(relu=Sum(((), (RELU,)))),
    lambda: network(head=Dense(randn(3, 32).nextafter(torch.tensor(math.inf)), randn(3))),
]


def test_the_digest_tells_networks_apart() -> None:
    assert network().digest() == network().digest()
    digests = {network().digest(), *(change().digest() for change in CHANGES)}
    assert len(digests) == 1 + len(CHANGES)


def test_the_digest_does_not_depend_on_names() -> None:
    net = network()
    renamed = replace(net, operations=tuple(replace(op, name="x") for op in net.operations))
    assert renamed.digest() == net.digest()
