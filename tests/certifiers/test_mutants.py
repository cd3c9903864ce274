"""Planted faults: whatever would certify too much fails a check of what a certificate claims.

``CHECKS`` compare the package with exact arithmetic, with materialised operators and with networks
whose distances are known. ``FAULTS`` are mistakes that certifiers have made, or could make, each
put in place of the right thing for one test; at least one check has to notice.
"""

import csv
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.configs import build, build_model, input_shape, layered_models, names, slow_but
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert import lipschitz, norms
from robustcert import margins as theorem
from robustcert.arithmetic.settings import PROCESS_SETTINGS
from robustcert.attacks import margin_attack
from robustcert.attacks.crosscheck import INSIDE
from robustcert.certificate import samples
from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import (
    Certificates,
    Claim,
    GlobalCertifier,
    LipschitzCertifier,
    Proof,
    QuadricCertifier,
    arithmetic,
    base,
    certify,
)
from robustcert.certifiers import lipschitz as lipschitz_module
from robustcert.certifiers.feature_moves import FeatureMoves
from robustcert.certifiers.global_robustness import certifier as global_module
from robustcert.errors import NormBoundError, UnsoundNetworkError
from robustcert.layers import ConstrainedLinear, NormPool2d, UnconstrainedLinear
from robustcert.margins import row_distances
from robustcert.metrics import AverageCertifiedRadius, RejectionRate, VerifiedRobustAccuracy
from robustcert.models import Classifier, Head, Normalize, Subspaces
from robustcert.network import bounds as bounds_module
from robustcert.network import branches as branches_module
from robustcert.network import centred as centred_module
from robustcert.network import fold as fold_module
from robustcert.network import forward_error as forward_error_module
from robustcert.network import input_space as space_module
from robustcert.network import network as network_module
from robustcert.network import overrides, skew_series
from robustcert.network.activation import Activation, Slopes
from robustcert.network.blocks import ResidualBlock
from robustcert.network.bounds import operation_bound, run, sequence_bound
from robustcert.network.branches import Sum
from robustcert.network.fold import _TORCH_FOLDS, fold, fold_network
from robustcert.network.input_space import InputSpace, Metric, factor, scaling
from robustcert.network.linear import Affine, Convolution, Dense, Flatten, Gather
from robustcert.network.network import PlainNetwork, output_bound, pairwise_bound, prefix_bounds
from robustcert.network.operation import Operation
from robustcert.network.quadratics import Quadratics
from robustcert.network.skew_series import SkewSeries
from robustcert.norms import convolution, lines, proof, scalars, symbols
from robustcert.norms import truncated as truncated_module
from robustcert.norms.dense import dense_norm_bound
from robustcert.norms.proof import Gram, residual_bound
from robustcert.norms.scalars import root_up

Row = list[Fraction]


# What is compared with


def fractions(values: Tensor) -> Row:
    return [Fraction(value) for value in values.flatten().tolist()]


def dot(a: Row, b: Row) -> Fraction:
    return sum((p * q for p, q in zip(a, b, strict=True)), Fraction(0))


def quotient(weight: Tensor) -> Fraction:
    """Squared Rayleigh quotient of the leading singular vector, exactly: never above the norm."""
    matrix = weight.detach().double()
    vector = fractions(torch.linalg.svd(matrix / matrix.abs().max())[2][0])
    image = [dot(fractions(row), vector) for row in matrix]
    return dot(image, image) / dot(vector, vector)


def covers(bound: float, square: Fraction | float) -> bool:
    """Whether ``bound`` is at least the root of ``square``; false for NaN."""
    return bound == math.inf or (bound >= 0 and Fraction(bound) ** 2 >= square)


def matrix_norm(function: Callable[[Tensor], Tensor], shape: Sequence[int]) -> float:
    """Norm of a linear map, by applying it to every unit vector; less its own rounding."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        norm = torch.linalg.matrix_norm(function(basis).flatten(1), 2)
    return float(norm) * (1 - 1e-12)


def exact(operations: Sequence[Operation], x: Row) -> Row:
    """Outputs of dense and affine operations, ReLUs and sums, in rationals."""
    for operation in operations:
        if isinstance(operation, Dense):
            bias = operation.bias
            shift = [Fraction(0)] * len(operation.weight) if bias is None else fractions(bias)
            x = [dot(fractions(w), x) + b for w, b in zip(operation.weight, shift, strict=True)]
        elif isinstance(operation, Affine):
            factors, shifts = fractions(operation.scale), fractions(operation.shift)
            x = [s * v + t for s, v, t in zip(factors, x, shifts, strict=True)]
        elif isinstance(operation, Sum):
            branches = [exact(branch, x) for branch in operation.branches]
            x = [sum(values, Fraction(0)) for values in zip(*branches, strict=True)]
        else:
            assert operation.function is torch.relu
            x = [max(v, Fraction(0)) for v in x]
    return x


def check_linear(network: PlainNetwork, x: Tensor, arithmetic: Any = "float64") -> None:
    """A network that is linear is certified no further than its hyperplanes are away."""
    size, metric = network.input_shape[0], network.space.metric
    origin = exact(network.operations, [Fraction(0)] * size)
    columns = [exact(network.operations, fractions(e)) for e in torch.eye(size)]
    slopes = [[c[i] - origin[i] for c in columns] for i in range(len(origin))]
    result = LipschitzCertifier(arithmetic).certify(network, x)
    for point, c, radius in zip(x, result.prediction.tolist(), result.radius.tolist(), strict=True):
        logits = exact(network.operations, fractions(point))
        for j, slope in enumerate(slopes):
            if radius > 0 and j != c:
                normal = [a - b for a, b in zip(slopes[c], slope, strict=True)]
                if metric is not None:
                    normal = [dot(fractions(column), normal) for column in as_matrix(metric).mT]
                assert logits[c] > logits[j]
                assert Fraction(radius) ** 2 * dot(normal, normal) <= (logits[c] - logits[j]) ** 2


def as_matrix(metric: Metric) -> Tensor:
    return metric.weight if isinstance(metric, Dense) else metric.scale.diag()


def measured(network: PlainNetwork, metric: Metric) -> PlainNetwork:
    return replace(network, space=InputSpace("columns", None, metric))


def refuses(action: Callable[[], Any]) -> bool:
    try:
        action()
    except UnsoundNetworkError:
        return True
    return False


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(n, n, seed=seed))[0]


def kernel_of_ones() -> Tensor:
    """An all-ones start sees norm 1, the true norm is 16 sqrt 2."""
    weight = torch.eye(8)
    weight[0, :2], weight[1, :2] = torch.tensor([16.0, -16.0]), 0.5
    return weight


def hidden_gap(sigma: float = 1.05) -> Tensor:
    values = torch.ones(12)
    values[0] = sigma
    return orthogonal(12, 1) * values @ orthogonal(12, 2)


MATRICES = {
    "start in kernel": kernel_of_ones(),
    "hidden gap": hidden_gap(),
    "gaussian": randn(7, 11),
    "zero row sums": randn(9, 9) - randn(9, 9).mean(1, keepdim=True),
    "scalar": torch.tensor([[0.3]]),
    "1e-30": 1e-30 * randn(6, 5),
    "1e30": 1e30 * randn(5, 6),
    "rows from 2^-40 to 2^40": randn(8, 8) * 2.0 ** torch.linspace(-40, 40, 8)[:, None],
    "float64": randn(6, 6).double() / 3,
    "a band": torch.ones(90, 90).tril(1).triu(-1),  # factorised panel by panel
}
RIDGE = torch.tensor([[1.0, -1.0, 1.0]])
STRIPES = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
# Weight, size, and stride, padding, dilation, groups.
CONVOLUTIONS: dict[str, tuple[Tensor, tuple[int, int], tuple[int, int, int, int]]] = {
    "high pass": ((RIDGE.T @ RIDGE)[None, None], (3, 3), (1, 1, 1, 1)),
    "box": (torch.ones(1, 1, 3, 3), (9, 9), (1, 1, 1, 1)),
    "box by 2": (torch.ones(1, 1, 4, 4), (8, 8), (2, 1, 1, 1)),
    "every other pixel": (torch.ones(1, 1, 1, 1), (6, 6), (2, 0, 1, 1)),
    "falling stripes": (STRIPES[None, None], (9, 9), (1, 1, 1, 1)),
    "random by 3": (randn(3, 2, 2, 2), (7, 8), (3, 0, 1, 1)),
    "random by 2": (randn(2, 3, 4, 4), (6, 6), (2, 1, 1, 1)),
    "dilated": (randn(2, 1, 3, 2), (7, 6), (1, 2, 2, 1)),
    "second group": (
        torch.tensor([1.0, 9.0]).view(2, 1, 1, 1) * randn(2, 1, 3, 3),
        (5, 5),
        (1, 1, 1, 2),
    ),
    "nine groups": (  # too many for their matrices
        (RIDGE.T @ RIDGE).repeat(9, 1, 1, 1),
        (4, 4),
        (1, 1, 1, 9),
    ),
    "nine groups that differ": (randn(9, 1, 3, 3, seed=18), (4, 4), (1, 1, 1, 9)),
    "between grid points": (torch.tensor([[[[1.0, 0.785, -0.8]]]]), (1, 200), (1, 0, 1, 1)),
}


# Checks


def norms_of_matrices() -> None:
    for name, weight in MATRICES.items():
        bound = operation_bound(Dense(weight), weight.shape[1:])
        assert covers(bound, quotient(weight)), name


def norms_by_any_factor() -> None:
    for seed in range(20):
        real = torch.randn(1, 1 + seed % 3, 1 + seed % 2, dtype=torch.float64)
        gram = Gram.of(real.numpy())
        for t in (0.0, float(gram.real.max()), float(gram.real.max()) * 0.7, 40.0):
            for scale in (0.0, 1.0):
                factor = scale * torch.randn(1, real.shape[2], real.shape[2], dtype=torch.float64)
                assert residual_bound(gram, t, factor) >= quotient(real[0])


def norms_of_convolutions() -> None:
    for name, (weight, size, options) in CONVOLUTIONS.items():
        stride, padding, dilation, groups = options
        shape = (weight.shape[1] * groups, *size)
        arguments = (weight, None, (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
        norm = matrix_norm(Convolution(*arguments), shape)
        with pytest.MonkeyPatch.context() as patch:
            # The closest bound, then without the whole matrix, then by symbols alone.
            for dear in ("", "operator_norm_bound", "mixed_norm_bound"):
                if dear:
                    patch.setattr(convolution, dear, lambda *_: None)
                assert operation_bound(Convolution(*arguments), shape) >= norm, (name, dear)


def norms_within_a_map() -> None:
    # Of small convolutions too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truncated_module, "LEAST_SIDE", 1)
        patch.setattr(truncated_module, "KEPT_SHARE", 0.6)
        for out, inner in ((6, 6), (3, 6)):
            weight = randn(out, inner, 3, 3)
            copy, axis = proof.scaled(weight), symbols.Axis.of(3, 5, 1, 1, 1, circular=False)
            bound = truncated_module.truncated_norm_bound(copy.values[None], (axis, axis))
            assert bound is not None
            norm = matrix_norm(partial(F.conv2d, weight=weight.double(), padding=1), (inner, 5, 5))
            assert copy.unscale(bound) >= norm


def norms_of_constrained_layers() -> None:
    for name in ("aol", "cayley", "cholesky", "unconstrained"):
        family = build("layer", name)
        dense = family.dense(6, 6, bias=False)
        conv = family.conv(2, 3, 3, padding=1, input_size=(5, 5), bias=False)
        for layer, shape in ((dense, (6,)), (conv, (2, 5, 5))):
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.copy_(1e4 * torch.randn_like(parameter))
            if hasattr(layer, "vector"):  # whatever a checkpoint says
                layer.vector.copy_(torch.eye(layer.vector.numel())[0].view(layer.vector.shape))
            bound = lipschitz.lipschitz_bound(layer.eval(), shape)
            assert bound >= matrix_norm(fold(layer)[0], shape), name


def constants_of_activations() -> None:
    scale = 10.0 ** torch.linspace(-3, 3, 60, dtype=torch.float64)[:, None]
    points = torch.cat([scale * torch.randn(60, 8, dtype=torch.float64), torch.zeros(1, 8)])
    for name in names("activation"):
        (operation,) = fold(build("activation", name)(8))
        x = points.clone().requires_grad_()
        rows = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in operation(x).T]
        slope = torch.linalg.matrix_norm(torch.stack(rows, 1), 2).max()
        assert operation_bound(operation, (8,)) >= float(slope) * (1 - 1e-12), name


def triple(x: Tensor) -> Tensor:
    return 3 * x


def bounds_of_compositions() -> None:
    dense, half = Dense(2 * torch.eye(2)), Dense(torch.eye(2) / 2)
    slope = Activation(triple, {}, lipschitz=3.0)
    operations = (dense, slope, Sum(((), (half, slope))), Affine(*torch.tensor([[4.0, 1], [0, 0]])))
    assert sequence_bound(operations, (2,)) >= matrix_norm(lambda x: run(operations, x), (2,))


def bounds_of_weighted_sums() -> None:
    for weights, factors in (([0.5, 0.5], [-3.0, -3.0]), ([2.0, -1.0], [1.0, 1.0])):
        repeated = Gather(torch.zeros(2, dtype=torch.int64))
        scale = Affine(torch.tensor(factors), torch.zeros(2))
        total = Sum(((), (Dense(torch.tensor([weights])), repeated, scale)))
        assert operation_bound(total, (2,)) >= matrix_norm(total, (2,))


def bounds_of_residual_blocks() -> None:
    relu = Activation(torch.relu, {}, lipschitz=1.0, slopes=Slopes(0.0, 1.0))
    for scale in (0.9, 1.0, 1.25):
        # Where every unit is on, this is x - 2 scale^2 x.
        block = ResidualBlock(torch.eye(2), torch.full((2,), scale), relu, torch.full((2,), 9.0))
        bound = operation_bound(block, (2,))
        assert covers(bound, max(Fraction(1), (1 - 2 * Fraction(scale) ** 2) ** 2))


def bounds_of_skew_series() -> None:
    for a, scales in ((1.0, [1.0]), (2.0, [1.0, 0.5]), (0.5, [0.25])):
        weight = torch.tensor([[0.0, a], [-a, 0.0]])[:, :, None, None]
        series = SkewSeries.of(weight=weight, scales=torch.tensor(scales))
        bound = operation_bound(series, (2, 1, 1))
        assert bound >= matrix_norm(series, (2, 1, 1))
    try:
        operation_bound(SkewSeries.of(weight=abs(weight), scales=torch.ones(1)), (2, 1, 1))
        raise AssertionError("a kernel that is not skew has a bound")
    except UnsoundNetworkError:
        pass


def linear_radii() -> None:
    near = 10.0 ** -torch.arange(1, 13, dtype=torch.float64)
    for rows in (
        torch.tensor([[1.0, 0], [-1, 0.01], [0, 0.5]]),
        torch.tensor([[0.6, 0.8], [0.6, -0.8], [-1, 0]]),
        torch.tensor([[1.0, 1], [1, 1 + 1e-6], [-1, 1]]),
        randn(5, 2),
    ):
        # Up to the first hyperplane from one side, and points at random.
        normal = (rows[0] - rows[1]).double()
        foot = -0.1 * normal / normal.square().sum() + normal.flip(0) * torch.tensor([1.0, -1.0])
        x = torch.cat([foot + near[:, None] * normal, torch.randn(20, 2, dtype=torch.float64)])
        bias = torch.zeros(len(rows))
        bias[0] = 0.1
        check_linear(PlainNetwork((Dense(rows, bias),), (2,)), x)


def radii_behind_linear_layers() -> None:
    x = torch.randn(12, 2, dtype=torch.float64)
    for weight in MATRICES.values():
        # Rows along the leading singular vector, so that nothing is lost between the layers.
        leading = torch.linalg.svd(weight.double())[0][:, 0].float()
        network = PlainNetwork(
            (Dense(weight), Dense(torch.stack([leading, -leading, leading * 0.5]))),
            weight.shape[1:],
        )
        check_linear(network, torch.randn(3, weight.shape[1], dtype=torch.float64))
    head = Dense(torch.tensor([[1.0, 0], [-1, 0], [0, 0.3]]))
    normalize = Affine(torch.tensor([8.0, 0.5]), torch.tensor([-4.0, -0.1]))
    check_linear(PlainNetwork((normalize, head), (2,)), x)
    branches = Sum(((), (Dense(torch.tensor([[2.0, 0.1], [0, 1]])),)))
    check_linear(PlainNetwork((branches, head), (2,)), x)


METRICS = [
    *map(scaling, torch.tensor([[3.0, 0.1, 0.0], [0.0, 7.0, 1.3], [0.01, 0.03, 0.02]])),
    *(factor(randn(3, k, seed=k)) for k in (1, 3, 5)),
]


def radii_in_a_metric() -> None:
    x = torch.randn(3, 3, dtype=torch.float64)
    scales = Affine(torch.tensor([0.5, 20.0, 1.0]), torch.zeros(3))
    layers = [Dense(randn(3, 3, seed=seed)) for seed in range(2)]
    for operations in ((layers[0],), (scales, layers[0]), (scales, *layers), (layers[0], scales)):
        head = Dense(randn(4, operations[-1](x).shape[1], seed=9))
        for metric in METRICS:
            check_linear(measured(PlainNetwork((*operations, head), (3,)), metric), x)
            check_linear(measured(PlainNetwork((Sum((operations, ())), head), (3,)), metric), x)
    # The ball of an input that was rounded need not hold the input, whose other features are fixed.
    network = measured(PlainNetwork((layers[0],), (3,)), METRICS[0])
    assert not LipschitzCertifier("float32").certify(network, x).radius.any()
    # Intervals of one output are those of the composition as well.
    for metric in METRICS:
        line = measured(PlainNetwork((Dense(randn(1, 3)),), (3,)), metric)
        normal = [dot(fractions(randn(1, 3)), fractions(c)) for c in as_matrix(metric).mT]
        assert covers(float(output_bound(line)[0]), dot(normal, normal))


def norms_in_a_metric() -> None:
    """Compositions are computed with rounding; here it is not the exact ones' and often below."""
    # a b is above 1, and rounded to it.
    a, b = 1 + 3 * 2.0**-52, 1 - 3 * 2.0**-52 + 2.0**-53
    assert a * b == 1.0
    exactly = Fraction(a) * Fraction(b)
    chain = [Affine(torch.tensor([s], dtype=torch.float64), torch.zeros(1)) for s in 40 * (a, b)]
    network = PlainNetwork((*chain[1:], Dense(torch.tensor([[1.0], [0.0]]))), (1,))
    network = measured(network, scaling(chain[0].scale))
    assert covers(float(pairwise_bound(network)[0, 1]), exactly**80)
    w = torch.tensor([[2**10 * a, -(2.0**10)]], dtype=torch.float64)
    m = torch.tensor([[b], [1 - 2.0**-10]], dtype=torch.float64)
    for order in ([0, 1], [1, 0]):  # whichever comes first, the sum cancels after it was rounded
        rows = torch.cat([w[:, order], 0 * w])
        network = measured(PlainNetwork((Dense(rows),), (2,)), factor(m[order]))
        exactly = dot(fractions(w), fractions(m))
        assert covers(float(pairwise_bound(network)[0, 1]), exactly**2)
    skew = torch.tensor([[1.0, 9.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    for metric, weight in [(m, w) for m in METRICS for w in (skew, skew.mT.contiguous())]:
        network = measured(PlainNetwork((Dense(weight),), (3,)), metric)
        matrix = weight.double() @ as_matrix(metric)
        norm = matrix_norm(lambda u, m=matrix: u @ m.mT, matrix.shape[1:])
        assert covers(prefix_bounds(network)[1], norm**2)
    scale = torch.tensor([5.0, 0.2], dtype=torch.float64)
    for groups in (1, 2):
        conv = Convolution(randn(4, 2 // groups, 3, 3), None, (1, 1), (1, 1), (1, 1), groups)
        operations = (Affine(torch.tensor([0.1, 3.0]), torch.zeros(2)), conv, Flatten())
        network = measured(PlainNetwork(operations, (2, 5, 5)), scaling(scale))
        norm = matrix_norm(lambda u, net=network: run(net.operations, u * SCALE), (2, 5, 5))
        assert covers(prefix_bounds(network)[-1], norm**2)


def pairs_in_a_metric() -> None:
    """Changes of a linear map over all pairs, which are known, and what float64 adds to them."""
    weight, identity = randn(2, 3, seed=4), torch.eye(2, dtype=torch.float64)
    plain = PlainNetwork((Dense(weight),), (3,))
    for norm, order in (("linf", 1), ("l2", 2)):
        certifier = GlobalCertifier([-1e3, 1e3], 0.5, norm, "symbolic", tries=1)  # type: ignore[arg-type]
        without = certifier.bounds(plain, identity, output_bound(plain), compared=0)
        for metric in METRICS[::2]:
            moved = weight.double() @ as_matrix(metric)
            network = measured(plain, metric)
            found = certifier.bounds(network, identity, output_bound(network), compared=0)
            for bound in found.proved.values():
                assert (bound >= 0.5 * torch.linalg.vector_norm(moved, order, dim=1)).all()
            assert found.rounding >= without.rounding


def quadratics_in_a_metric() -> None:
    """Logits with known distances in u: where they are linear, and where one is a square."""
    w, flat = randn(1, 3, seed=7), torch.zeros(3, 1, 3)
    scales = Affine(torch.tensor([0.5, 20.0, 1.0]), torch.zeros(3))
    lines = Quadratics(flat, torch.zeros(3, 1), randn(3, 3, seed=6), torch.zeros(3), 3)
    frame = torch.stack([0 * w, w])
    bowl = Quadratics(frame, torch.zeros(2, 1), 0 * frame[:, 0], torch.tensor([2.0, 0.0]), 2)
    for metric in METRICS:
        for before in ((), (scales,)):
            matrix = as_matrix(metric).mT
            after = scales.scale if before else torch.ones(3)
            rows = [
                [p * q for p, q in zip(fractions(c), fractions(after), strict=True)] for c in matrix
            ]
            network = measured(PlainNetwork((*before, lines), (3,)), metric)
            x = torch.randn(8, 3, dtype=torch.float64)
            found = QuadricCertifier().certify(network, x)
            labels, radii = found.prediction.tolist(), found.radius.tolist()
            for point, c, r in zip(x, labels, radii, strict=True):
                y = [p * q for p, q in zip(fractions(point), fractions(after), strict=True)]
                for j in {0, 1, 2} - {c}:
                    normal = fractions(lines.slope[c].double() - lines.slope[j].double())
                    ahead, steep = dot(normal, y), [dot(row, normal) for row in rows]
                    assert Fraction(r) ** 2 * dot(steep, steep) <= ahead**2
            network = measured(PlainNetwork((*before, bowl), (3,)), metric)
            r = float(QuadricCertifier().certify(network, torch.zeros(1, 3)).radius)
            steep = [dot(row, fractions(w)) for row in rows]
            assert r > 0
            assert Fraction(r) ** 2 * dot(steep, steep) <= 2


SCALE = torch.tensor([5.0, 0.2], dtype=torch.float64).view(2, 1, 1)


def radii_of_two_networks() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    for scale in (1.0, 50.0):
        head = Dense(torch.tensor([[1.0, 0], [-1, 0]]))
        check_linear(PlainNetwork((Dense(scale * torch.eye(2)), head), (2,)), x)


def cancelling_biases() -> None:
    bias = torch.full((2,), 2.0**40)
    signs = torch.tensor([[1.0], [-1.0]])
    eye = torch.eye(2)
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None] * 2.0**-11
    for operations in (
        (Dense(signs, bias), Dense(eye, -bias)),
        (Dense(signs, bias), Dense(eye, -bias), Dense(1000 * eye)),
        (Dense(signs, bias), Affine(torch.ones(2), -bias), Dense(1000 * eye)),
        (Sum(((Dense(signs, bias),), (Dense(signs, -bias),))), Dense(eye)),
    ):
        check_linear(PlainNetwork(operations, (1,)), x)


def deployment_in_float32() -> None:
    bias = torch.full((2,), 2.0**16)
    eye, signs = torch.eye(2), torch.tensor([[1.0], [-1.0]])
    network = PlainNetwork((Dense(signs, bias), Dense(eye, -bias)), (1,))
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None] * 2.0**-3
    check_linear(network, x, "float32")
    result = LipschitzCertifier("float32").certify(network, x)
    certified = result.radius > 2.0**-26  # further than x is rounded
    assert 10 < certified.sum() < 90
    margin = network(x.float()).diff(dim=1)[:, 0] * (2 * result.prediction - 1)
    assert (margin[certified] > 0).all()


def error_at_a_distance() -> None:
    operations = (Dense(randn(8, 8)), Activation(torch.relu, {}, lipschitz=1.0), Dense(randn(3, 8)))
    network = PlainNetwork(operations, (8,))
    around = forward_error_module.forward_error(network, torch.zeros(1, 8, dtype=torch.float64))
    for distance in (1.0, 1e6):
        x = F.normalize(torch.randn(8, dtype=torch.float64), dim=0) * distance * (1 - 1e-6)
        error = [
            a - b
            for a, b in zip(
                exact(operations, fractions(x)), fractions(network(x[None])), strict=True
            )
        ]
        assert covers(float(around.centre) + around.growth * distance, dot(error, error))


def overflow_inside_the_ball() -> None:
    up, down = Dense(torch.tensor([[2.0**64]])), Dense(torch.tensor([[2.0**-64]]))
    head = Dense(torch.tensor([[1.0], [-1.0]]), torch.tensor([2.0**70, -(2.0**70)]))
    network = PlainNetwork((up, down, head), (1,))
    result = LipschitzCertifier("float32").certify(network, torch.zeros(1, 1))
    for size in (2.0**60, 2.0**63, 2.0**66, 2.0**69):
        assert result.radius <= size or network(torch.tensor([[-size]])).argmax(1) == 0
    # A norm is computed from squares.
    head = Dense(torch.tensor([[1.0], [-1.0]]), torch.tensor([2.0**80, -(2.0**80)]))
    pool = fold(NormPool2d(2))
    network = PlainNetwork((*pool, Flatten(), Dense(torch.tensor([[-1.0]])), head), (1, 2, 2))
    result = LipschitzCertifier("float32").certify(network, torch.zeros(1, 1, 2, 2))
    for size in (2.0**60, 2.0**66, 2.0**78):
        x = torch.full((1, 1, 2, 2), size)
        assert result.radius <= 2 * size or network(x).argmax(1) == 0


def attacks_inside_the_radius() -> None:
    head = Head(2, 5)  # unit rows at obtuse angles
    networks = [Classifier(nn.Sequential(nn.Linear(2, 2)), head)]
    for activation in ("smooth", "householder", "relu", "norm_pair"):
        networks.append(build_model("mlp", "cholesky", activation, input_shape=(2,)))
    networks.append(build_model("convnet", "unconstrained", "maxmin", input_shape=(2, 4, 4)))
    for module in networks:
        shape = (2, 4, 4) if module is networks[-1] else (2,)
        network = fold_network(module, shape)
        x = torch.rand(60, *shape, dtype=torch.float64)
        result = certify(network, x)
        held = (result.radius > 0) & result.radius.isfinite()
        radius = result.radius[held] * INSIDE
        least, _ = margin_attack(network, x[held], result.prediction[held], radius, steps=10)
        assert (least > 0).all()


def ties_are_not_certified() -> None:
    for rows in ([[1.0, 2], [1, 2]], [[1.0, 2], [1, 2], [0, 0]], [[0.0, 0], [0, 0]]):
        network = PlainNetwork((Dense(torch.tensor(rows), torch.ones(len(rows))),), (2,))
        assert not (certify(network, torch.rand(5, 2, dtype=torch.float64)).radius > 0).any()


def broken_numbers_are_not_certified() -> None:
    head = Dense(torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([1.0, 0]))
    network = PlainNetwork((head,), (2,))
    for value in (math.nan, math.inf, -math.inf, 1e308):
        x = torch.tensor([[value, value], [0.0, value]], dtype=torch.float64)
        assert not (certify(network, x).radius > 0).any()
    for value in (math.nan, math.inf):
        weight = torch.eye(2)
        weight[0, 0] = value
        dense, conv = Dense(weight), Convolution(weight[None, None])
        assert refuses(lambda: operation_bound(dense, (2,)))  # noqa: B023
        assert refuses(lambda: operation_bound(conv, (1, 2, 2)))  # noqa: B023
        for module in (nn.Linear(2, 2), Head(2, 2), build("layer", "cholesky").dense(2, 2)):
            with torch.no_grad():
                module.bias[1] = value
            assert refuses(lambda: fold(module))  # noqa: B023


class Tenfold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


def unknown_modules_are_refused() -> None:
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, args, output: 10 * output)
    for module in (Tenfold(), nn.LayerNorm(2), nn.Softmax(1), hooked):
        assert refuses(lambda: fold(nn.Sequential(nn.Linear(2, 2), module)))  # noqa: B023
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 2)
    try:
        assert refuses(lambda: fold(nn.Linear(2, 2)))
    finally:
        handle.remove()


def the_plain_network_is_the_module() -> None:
    shapes = {build_model(name, "aol", "smooth"): input_shape(name) for name in layered_models()}
    modules = list(shapes)
    modules.append(Subspaces((2, 8, 8), 3, per_class=2, rank=3))
    modules.append(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 3),
        )
    )
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    for module in modules:
        module.double().eval()
        with torch.no_grad():  # float64 numbers, biases that are not zero
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        shape = shapes.get(module, (2, 8, 8))
        z = x.view(-1, *shape)
        torch.testing.assert_close(
            fold_network(module, shape)(z), module(z), rtol=1e-12, atol=1e-12
        )


def arithmetic_is_strict() -> None:
    seen = []

    def probe(x: Tensor) -> Tensor:
        fast = torch.backends.cudnn.enabled or torch._C._get_nnpack_enabled()
        # Shapes are found with zeros, in any arithmetic.
        if x.any():
            seen.append("transforms" if fast else torch.get_float32_matmul_precision())
        return x

    network = PlainNetwork((Activation(probe, {}, lipschitz=1.0), Dense(torch.eye(2))), (2,))
    torch.set_float32_matmul_precision("medium")
    try:
        LipschitzCertifier("float32").certify(network, torch.rand(1, 2))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}


def split_of(radius: Tensor) -> CertifiedSplit:
    zeros = torch.zeros(len(radius), dtype=torch.long)
    certificates = Certificates(zeros, radius, radius, radius)
    return CertifiedSplit(zeros[:, None].float(), zeros, zeros.clone(), certificates)


def written_radii() -> None:
    radius = torch.tensor([0.1, 1 / 3, 0.99999996, 4.9999999e-7, 2.5, 1e5 / 3], dtype=torch.float64)
    network = PlainNetwork((Dense(torch.ones(2, 1)),), (1,))
    with TemporaryDirectory() as folder:
        claim = write_certificate(
            Path(folder),
            network,
            Claim(Proof.LIPSCHITZ, ("R",), pairwise=pairwise_bound(network)),
            split_of(radius),
            [0.1, 2.5],
        )
        with (Path(folder) / "radii.csv").open() as file:
            rows = list(csv.DictReader(file))
    for value, row in zip(radius.tolist(), rows, strict=True):
        assert Fraction(row["radius"]) <= Fraction(value)
        assert float.fromhex(row["radius_hex"]) == value
    assert [row["count"] for row in claim["summary"]["certified"]] == [4, 1]


def counts_at_equality() -> None:
    radius = torch.tensor([0.5, math.nan, 0.0, math.nextafter(0.5, 1)], dtype=torch.float64)
    correct = torch.tensor([True, True, True, True])
    accuracy, rejected, mean = (
        VerifiedRobustAccuracy([0.5]),
        RejectionRate(0.5),
        AverageCertifiedRadius(),
    )
    for metric in (accuracy, mean):
        metric.update(radius, correct)
    rejected.update(radius)
    assert accuracy.compute() == 0.25
    assert rejected.compute() == 0.75
    assert mean.compute() == pytest.approx(0.25)
    assert split_of(radius).certified_count(0.5) == 1


CHECKS = [
    norms_of_matrices,
    norms_of_convolutions,
    norms_within_a_map,
    constants_of_activations,
    bounds_of_compositions,
    bounds_of_weighted_sums,
    bounds_of_residual_blocks,
    bounds_of_skew_series,
    ties_are_not_certified,
    linear_radii,
    counts_at_equality,
    unknown_modules_are_refused,
    broken_numbers_are_not_certified,
    overflow_inside_the_ball,
    deployment_in_float32,
    arithmetic_is_strict,
    radii_of_two_networks,
    error_at_a_distance,
    cancelling_biases,
    norms_by_any_factor,
    norms_of_constrained_layers,
    radii_behind_linear_layers,
    written_radii,
    the_plain_network_is_the_module,
    attacks_inside_the_radius,
]


# Faults

Fault = Callable[[pytest.MonkeyPatch], None]


def put(owner: Any, name: str, new: Any) -> Fault:
    return lambda patch: patch.setattr(owner, name, new)


def wrap(owner: Any, name: str, change: Callable[[Any], Any]) -> Fault:
    return lambda patch: patch.setattr(owner, name, change(getattr(owner, name)))


def wrap_fold(owner: type[nn.Module], change: Callable[[Any], Any]) -> Fault:
    """As though the class had been written so: a fold that comes from elsewhere is refused."""
    return wrap(owner, "fold", lambda fold: wraps(fold)(change(fold)))


def both(first: Fault, second: Fault) -> Fault:
    def fault(patch: pytest.MonkeyPatch) -> None:
        first(patch)
        second(patch)

    return fault


def iterate(weight: Tensor, vector: Tensor, steps: int, epsilon: float = 1e-12) -> float:
    """Power iteration as it is often written."""
    for _ in range(steps):
        vector = weight.mT @ (weight @ vector)
        vector = vector / (vector.norm() + epsilon)
    return float((weight @ vector).norm())


def dense_bound(new: Callable[[Tensor], float]) -> Fault:
    return put(norms, "dense_norm_bound", new)


def conv_bound(new: Callable[..., float]) -> Fault:
    """``new(bound, weight, size, stride, padding, dilation, groups)``."""
    return wrap(norms, "conv_norm_bound", lambda bound: lambda *arguments: new(bound, *arguments))


def forward_error(
    change: Callable[[forward_error_module.ForwardError], forward_error_module.ForwardError],
) -> Fault:
    return wrap(
        lipschitz_module, "forward_error", lambda f: lambda network, x: change(f(network, x))
    )


def margins(change: Callable[[Tensor, Tensor], Tensor]) -> Fault:
    """``change(margins, logits)``."""
    return both(
        wrap(base, "margins", lambda f: lambda logits, y: change(f(logits, y), logits)),
        wrap(theorem, "margins", lambda f: lambda logits, y: change(f(logits, y), logits)),
    )


def head_distances(new: Callable[[Tensor], Tensor]) -> Fault:
    return put(norms, "row_distance_bounds", new)


def claiming(bound: float) -> type[Dense]:
    class Claiming(Dense):
        def lipschitz_bound(self, input_shape: Sequence[int]) -> float:
            return bound

    return Claiming


def fold_claims(layer: type[nn.Module], claim: Callable[[Any], float]) -> Fault:
    def change(fold: Callable[[Any], Dense]) -> Callable[[Any], Dense]:
        return lambda self: claiming(claim(self))(fold(self).weight, fold(self).bias)

    return wrap_fold(layer, change)


def first_quadrant(frequencies: Callable[..., Any]) -> Callable[..., Any]:
    def changed(axes: Any) -> Any:
        grid = frequencies(axes)
        return grid[(2 * grid <= [axes[0].points, axes[1].points]).all(1)]

    return changed


def by_shape(bound: Callable[..., float]) -> Callable[..., float]:
    known: dict[Any, float] = {}
    return lambda operation, shape: known.setdefault(
        (operation.kind, shape), bound(operation, shape)
    )


def zero_if_refused(bound: Callable[..., float]) -> Callable[..., float]:
    def changed(*arguments: Any) -> float:
        try:
            return bound(*arguments)
        except NormBoundError:
            return 0.0

    return changed


def other_metric(change: Callable[[Tensor], Tensor]) -> Fault:
    """Constants of another S than the claim's."""

    def changed(metric: Metric) -> Metric:
        if isinstance(metric, Dense):
            return factor(change(metric.weight))
        return scaling(change(metric.scale))

    return wrap(
        network_module,
        "composed",
        lambda f: lambda metric, operations, shape: f(changed(metric), operations, shape),
    )


def as_the_product(inner: space_module.Composed, weight: Tensor) -> space_module.Composed:
    """The scales of the first map for those of the last."""
    scale = inner.operation.scale[: len(weight), None]
    return space_module.Composed(Dense(weight * scale), inner.input_shape, inner.loss)


def shrink(name: str) -> Fault:
    """The constant of an activation, 1 % too small."""
    return wrap_fold(
        type(build("activation", name)(8)),
        lambda fold: lambda self: replace(fold(self), lipschitz=0.99 * fold(self).lipschitz),
    )


def in_float32(result: Certificates) -> Certificates:
    return replace(result, radius=result.radius.float().double())


def truncated(x: Tensor) -> Tensor:
    """Ten bits of mantissa, as TF32 keeps."""
    return (x.float().view(torch.int32) & ~0x1FFF).view(torch.float32).to(x)


def tf32_linear(dense: Dense, x: Tensor) -> Tensor:
    bias = None if dense.bias is None else dense.bias.to(x)
    return F.linear(truncated(x), truncated(dense.weight).to(x), bias)


def claim_float32(init: Callable[..., None]) -> Callable[..., None]:
    def changed(self: LipschitzCertifier, arithmetic: Any = "float64") -> None:
        init(self, arithmetic)
        self.dtype = torch.float64

    return changed


def count_at_least(self: VerifiedRobustAccuracy, radius: Tensor, correct: Tensor) -> None:
    self.certified += (radius[:, None] >= torch.tensor(self.radii)).mul(correct[:, None]).sum(0)
    self.total += radius.numel()


def count_unless_below(self: VerifiedRobustAccuracy, radius: Tensor, correct: Tensor) -> None:
    self.certified += (~(radius[:, None] <= torch.tensor(self.radii)) & correct[:, None]).sum(0)
    self.total += radius.numel()


def reject_if_below(self: RejectionRate, radius: Tensor) -> None:
    self.rejected += (radius <= self.epsilon).sum()
    self.total += radius.numel()


FAULTS: dict[str, Fault] = {
    # Norms of matrices
    "power iteration from ones": dense_bound(lambda w: iterate(w, torch.ones(w.shape[1]), 1000)),
    "few power iterations": dense_bound(lambda w: iterate(w, randn(w.shape[1]), 10)),
    "power iteration with an epsilon": dense_bound(
        lambda w: iterate(w.double(), randn(w.shape[1]).double(), 5000, 1e-5)
    ),
    "singular values in float32": dense_bound(lambda w: float(torch.linalg.matrix_norm(w, 2))),
    "estimate in float64": dense_bound(norms.norm_lower),
    "root left out": wrap(norms, "dense_norm_bound", lambda bound: lambda w: bound(w) ** 2),
    "norms 1 % too small": wrap(norms, "dense_norm_bound", lambda bound: lambda w: 0.99 * bound(w)),
    "factor trusted, residual left out": put(
        proof, "charge", lambda gram, t, residual: Fraction(t)
    ),
    "residual without rounding": both(
        both(
            put(scalars, "gamma", lambda count: Fraction(0)),
            put(proof, "gamma", lambda count: Fraction(0)),
        ),
        both(put(scalars, "UNIT", Fraction(0)), put(proof, "UNIT", Fraction(0))),
    ),
    "a band that is too narrow": wrap(
        proof, "bandwidth", lambda f: lambda reads: max(0, f(reads) - 1)
    ),
    "norm 0 where none is proved": wrap(norms, "dense_norm_bound", zero_if_refused),
    # Norms of convolutions
    "frequencies of the input's own grid": conv_bound(
        lambda bound, w, size, s, p, d, g: norms.circular_conv_norm_bound(w, size, s, g, d)
    ),
    "padding ignored": conv_bound(lambda bound, w, n, s, p, d, g: bound(w, n, s, 0, d, g)),
    "norm divided by the stride": conv_bound(
        lambda bound, w, n, s, p, d, g: bound(w, n, 1, p, d, g) / s[0]
    ),
    "one phase of the stride": both(
        wrap(lines, "blocks", lambda f: lambda w, axes: f(w, axes)[:1]),
        wrap(symbols, "blocks", lambda f: lambda w, axes: f(w, axes)[:1]),
    ),
    # Estimates alone leave none out here: they are to tell nothing.
    "blocks that are not needed, guessed": both(
        put(lines, "settled", lambda gram, t: (Fraction(0), torch.ones(len(gram.real)) > 0)),
        put(
            lines,
            "ritz_pairs",
            lambda matrices, steps: (torch.zeros(len(matrices)), torch.zeros(len(matrices), 1)),
        ),
    ),
    "norm of the reshaped kernel": conv_bound(
        lambda bound, w, *rest: norms.dense_norm_bound(w.flatten(1))
    ),
    "input size of another layer": conv_bound(
        lambda bound, w, n, *rest: bound(w, tuple(min(4, k) for k in n), *rest)
    ),
    "first group only": conv_bound(
        lambda bound, w, n, s, p, d, g: bound(w[: len(w) // g], n, s, p, d, 1)
    ),
    "first quadrant of frequencies": wrap(symbols, "frequencies", first_quadrant),
    "coarse grid for all frequencies": put(
        symbols, "grid", lambda period, degree: (min(period, 32 * degree or 1), Fraction(1))
    ),
    "last tap of a dimension left out": wrap(
        convolution,
        "unrolled",
        lambda f: lambda w, axis, d: f(w, replace(axis, taps=axis.taps[:-1]), d),
    ),
    "last row of a kernel left out of products": wrap(
        lines.Lines,
        "_placed",
        lambda f: (
            lambda self, products: f(
                replace(self, reads=np.where(np.arange(self.reads.shape[1]) > 0, self.reads, -1)),
                products,
            )
        ),
    ),
    "symbols along one dimension, root left out": wrap(
        convolution,
        "mixed_norm_bound",
        lambda f: lambda *args: (bound := f(*args)) and scalars.exact(root_up(bound)),
    ),
    "signals that end before their map does": wrap(
        truncated_module,
        "_waves",
        lambda f: (
            lambda points, axes, sides, sign: f(points, axes, tuple(n // 2 for n in sides), sign)
        ),
    ),
    "what is left of symbols taken off twice": wrap(
        truncated_module,
        "_cut_off",
        lambda f: lambda kept, own, waves, nu, growth: f(kept, own, waves, 2 * nu, growth),
    ),
    "convolutions 1 % too small": conv_bound(lambda bound, *arguments: 0.99 * bound(*arguments)),
    # Composition
    "sum of branches as their maximum": put(norms, "sum_up", max),
    "whatever is added to an input taken for the mean it loses": put(
        branches_module, "centred_bound", lambda branches, shape: 1.0
    ),
    "weights and factors of a sum taken for parallel": wrap(
        centred_module, "_norm_up", lambda f: lambda a, s, p: f(a, s, s * s)
    ),
    "identity branch left out": put(
        Sum,
        "lipschitz_bound",
        lambda self, shape: sum(sequence_bound(b, shape) for b in self.branches if b),
    ),
    "activations taken for 1-Lipschitz": put(
        Activation, "lipschitz_bound", lambda self, shape: 1.0
    ),
    "least input scale": put(
        Affine, "lipschitz_bound", lambda self, shape: float(self.scale.abs().min())
    ),
    "input scale ignored": put(Affine, "lipschitz_bound", lambda self, shape: 1.0),
    "residual block taken for 1-Lipschitz": put(
        ResidualBlock, "lipschitz_bound", lambda self, shape: 1.0
    ),
    "skew series taken for its exponential": put(
        SkewSeries, "lipschitz_bound", lambda self, shape: 1.0
    ),
    "series without the terms left out": put(
        skew_series, "series_bound", lambda scales, norm: Fraction(1)
    ),
    "bound of another network": wrap(bounds_module, "operation_bound", by_shape),
    "orthogonal by construction": fold_claims(ConstrainedLinear, lambda layer: 1.0),
    "norm from a stale buffer": fold_claims(
        UnconstrainedLinear, lambda layer: float(layer.lipschitz_estimate())
    ),
    # Pairs of classes
    "root 2 times the longest row": head_distances(
        lambda w: math.sqrt(2) * w.double().norm(dim=1).max().expand(len(w), len(w))
    ),
    "row of the rival left out": head_distances(
        lambda w: w.double().norm(dim=1, keepdim=True).expand(len(w), len(w))
    ),
    "row distances by a Gram matrix": head_distances(lambda w: row_distances(w).double()),
    "constants of another class": wrap(
        lipschitz_module, "pairwise_bound", lambda bound: lambda network: bound(network).roll(1, 0)
    ),
    "runner-up only": margins(
        lambda m, logits: m.where(logits >= logits.topk(2).values[:, 1:], 1e300)
    ),
    "tied classes masked": margins(
        lambda m, logits: m.where(logits < logits.amax(1, keepdim=True), 1e300)
    ),
    # Arithmetic
    "rounding left out": forward_error(
        lambda error: replace(error, centre=torch.zeros_like(error.centre), growth=0.0)
    ),
    "rounding at the sample only": wrap(
        forward_error_module,
        "_charge",
        lambda f: lambda state, centre, growth: f(state, centre, 0.0),
    ),
    "errors not amplified": put(
        forward_error_module, "operation_bound", lambda operation, shape: 1.0
    ),
    "errors of branches left out": lambda patch: patch.setitem(
        forward_error_module._JOINED,
        Sum,
        lambda op, state: replace(forward_error_module._step_sum(op, state), centre=state.centre),
    ),
    "overflow left out": forward_error(
        lambda error: replace(error, reach=torch.full_like(error.reach, math.inf))
    ),
    "NaN replaced by 0": forward_error(
        lambda error: replace(
            error,
            output=error.output.nan_to_num(),
            centre=error.centre.nan_to_num(0.0, 0.0, 0.0),
            reach=torch.full_like(error.reach, math.inf),
        )
    ),
    "squares left out of overflow": wrap_fold(
        NormPool2d, lambda fold: lambda self: replace(fold(self), squares=False)
    ),
    "transforms left on": put(
        arithmetic, "PROCESS_SETTINGS", [s for s in PROCESS_SETTINGS if s.strict is not False]
    ),
    "TF32 products": put(Dense, "__call__", tf32_linear),
    "fast arithmetic left on": put(
        LipschitzCertifier, "certify", inspect.unwrap(LipschitzCertifier.certify)
    ),
    "float64 evaluated, float32 claimed": wrap(LipschitzCertifier, "__init__", claim_float32),
    "sample rounded to float32": wrap(
        LipschitzCertifier,
        "certify",
        lambda f: lambda self, network, x: f(self, network, x.float()),
    ),
    # The network
    "weights rounded to five decimals": wrap(
        fold_module, "constant", lambda constant: lambda weight: constant(weight.round(decimals=5))
    ),
    "float64 weights rounded": wrap(
        fold_module, "constant", lambda constant: lambda weight: constant(weight.float())
    ),
    "NaN let through": put(fold_module, "constant", lambda weight: weight.detach().clone()),
    "bias of the head left out": wrap_fold(
        Head, lambda fold: lambda self: Dense(self.weight.detach())
    ),
    "mean of the inputs left out": wrap_fold(
        Normalize, lambda fold: lambda self: Affine(self.scale, torch.zeros_like(self.shift))
    ),
    "unknown module skipped": lambda patch: patch.setitem(_TORCH_FOLDS, Tenfold, lambda module: []),
    "hooks of all modules ignored": put(
        overrides,
        "registry",
        SimpleNamespace(_global_forward_hooks={}, _global_forward_pre_hooks={}),
    ),
    "hooks ignored": put(fold_module, "refuse_overrides", lambda module: None),
    # What is written and counted
    "radius in float32": wrap(
        LipschitzCertifier,
        "certify",
        lambda f: lambda *arguments: in_float32(f(*arguments)),
    ),
    "decimal to nearest": put(samples, "decimal_floor", lambda value: f"{value:.6f}"),
    "hexadecimal of a rounded radius": wrap(
        samples,
        "write_radii",
        lambda f: (
            lambda path, split, *status: f(
                path, replace(split, certificates=in_float32(split.certificates)), *status
            )
        ),
    ),
    "certified at equality": put(
        CertifiedSplit,
        "certified_count",
        lambda self, radius: int((self.correct & (self.certificates.radius >= radius)).sum()),
    ),
    "verified at equality": put(VerifiedRobustAccuracy, "update", count_at_least),
    "NaN radius verified": put(VerifiedRobustAccuracy, "update", count_unless_below),
    "NaN radius not rejected": put(RejectionRate, "update", reject_if_below),
    # Constants of activations
    **{f"{name} 1 % too small": shrink(name) for name in names("activation")},
}

# Mistakes of metrics alone, which no other check could notice.
METRIC_CHECKS = [
    norms_in_a_metric,
    radii_in_a_metric,
    pairs_in_a_metric,
    quadratics_in_a_metric,
]
METRIC_FAULTS: dict[str, Fault] = {
    "metric left out": both(
        put(network_module, "_affine_head", lambda network: None),
        put(
            network_module,
            "prefix_bounds",
            lambda network: [1.0, *range(1, 1 + len(network.operations))],
        ),
    ),
    "metric left out of constants alone": both(
        put(network_module, "_affine_head", lambda network: None),
        put(
            network_module,
            "_backbone_bound",
            lambda network: sequence_bound(network.backbone, network.input_shape),
        ),
    ),
    "frozen features alone": other_metric(lambda s: (s != 0).to(s)),
    "scales in another order": other_metric(lambda s: s.flip(0)),
    "inverse of the scales": other_metric(lambda s: torch.where(s == 0, s, 1 / s)),
    "transposed metric": other_metric(
        lambda s: s.mT if s.dim() == 2 and s.shape[0] == s.shape[1] else s
    ),
    "one direction of a matrix left out": other_metric(
        lambda s: s[:, :-1] if s.dim() == 2 and s.shape[1] > 1 else s
    ),
    "scales after the layer": wrap(
        space_module,
        "_dense",
        lambda f: (
            lambda before, weight: (
                as_the_product(before, weight)
                if isinstance(before.operation, Affine) and len(weight) == weight.shape[1]
                else f(before, weight)
            )
        ),
    ),
    "rounding of a composition left out": put(
        space_module,
        "_rounded",
        lambda product, before, *_: space_module.Composed(product, before.input_shape),
    ),
    "rounding of a product of matrices left out": put(
        space_module, "gamma", lambda count: Fraction(0)
    ),
    "loss of a composition left out of rows": wrap(
        network_module,
        "_affine_head",
        lambda f: lambda network: (found := f(network)) and replace(found, loss=Fraction(0)),
    ),
    "metric left out of all pairs": put(global_module, "_metric_step", lambda network: None),
    "gradients of quadratics among features": put(
        FeatureMoves, "back", lambda self, gradient: gradient
    ),
    "curvature of quadratics among features": put(
        FeatureMoves, "norm_after", lambda self, frame: dense_norm_bound(frame)
    ),
    "rounding of a box in units of u": put(
        global_module,
        "replace",
        lambda old, **new: old if new.keys() & {"space", "metric"} else replace(old, **new),
    ),
    "rounded inputs in a metric": put(
        lipschitz_module, "moved", lambda x, inputs: torch.zeros(len(x), dtype=torch.float64)
    ),
}


# Tests


def fails(check: Callable[[], None]) -> bool:
    torch.manual_seed(0)
    try:
        check()
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("check", [*CHECKS, *METRIC_CHECKS], ids=lambda check: check.__name__)
def test_a_check_passes(check: Callable[[], None]) -> None:
    torch.manual_seed(0)
    check()


# Faults that only the last of the checks notice.
LATE = {
    *("float64 weights rounded", "weights rounded to five decimals", "mean of the inputs left out"),
    *("hexadecimal of a rounded radius", "decimal to nearest"),
}


@pytest.mark.parametrize("name", slow_but(FAULTS, FAULTS.keys() - LATE))
def test_a_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[name](monkeypatch)
    assert any(fails(check) for check in CHECKS)


@pytest.mark.parametrize("name", METRIC_FAULTS)
def test_a_fault_of_a_metric_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    METRIC_FAULTS[name](monkeypatch)
    assert any(fails(check) for check in METRIC_CHECKS)
