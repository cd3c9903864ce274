"""The independent checker on semidefinite certificates, and on degenerate ones."""

import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.proof_folders import SAMPLES, certify
from helpers.semidefinite_networks import network, steepest
from safetensors.numpy import load_file, save_file
from torch import Tensor

from benchmarks.soundness.forgeries import Folder, build
from robustcert.activations import Abs, GroupSort, Identity, ReLU, Softplus
from robustcert.certificate.restore import restore_network
from robustcert.certifiers import LipschitzCertifier, LipSDPCertifier
from robustcert.check import UnreadableError, check
from robustcert.check.arithmetic import FLOAT64
from robustcert.check.constants import _find
from robustcert.check.effort import UNLIMITED
from robustcert.check.forward.exact import evaluate_exactly
from robustcert.check.forward.floating import evaluate
from robustcert.check.network.operation import Operation
from robustcert.check.network.reading import read_network
from robustcert.check.semidefinite import constants, layers
from robustcert.layers.pool import NormPool2d
from robustcert.models import CircularShift
from robustcert.network import operation as operation_module
from robustcert.network.blocks import ResidualBlock, Sandwich
from robustcert.network.bounds import operation_bound, run, shapes
from robustcert.network.branches import Sum
from robustcert.network.forward_error import forward_error
from robustcert.network.linear import Affine, CircularConvolution, Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork, pairwise_bound
from robustcert.network.skew_series import SkewSeries
from robustcert.norms.estimates import conv_norm_lower

ACTIVATIONS = (
    *("relu", "maxmin", "smooth", "Softplus", "Tanh", "Abs", "SmoothAbs"),
    *("NActivation", "SmoothN", "LinearSpline"),
)


class SemidefiniteFolder(Folder):
    """A folder with multipliers in the hands of a forger."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.multipliers = load_file(path / "multipliers.safetensors")

    def save(self) -> None:
        path = self.path / "multipliers.safetensors"
        save_file(self.multipliers, path)
        self.claim["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        super().save()

    def scale_table(self, factor: float) -> None:
        table = self.claim["pairwise"]
        self.claim["pairwise"] = [[(float.fromhex(k) * factor).hex() for k in r] for r in table]


@pytest.mark.parametrize("per_pair", [False, True])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_semidefinite_certificates_verify(kind: str, per_pair: bool, tmp_path: Path) -> None:
    net = build(kind)
    folder = certify(tmp_path / "folder", net, LipSDPCertifier(30, per_pair=per_pair))
    claim = json.loads((folder / "certificate.json").read_text())
    assert claim["claim"]["proof"] == "lipsdp"
    assert "multipliers.safetensors" in claim["files"]
    table = torch.tensor([[float.fromhex(k) for k in row] for row in claim["pairwise"]])
    assert (table < pairwise_bound(net)).sum() == 6
    assert check(folder, exact=SAMPLES).mismatches == []
    assert check(folder).verified


def test_without_steps_and_without_activations(tmp_path: Path) -> None:
    assert check(certify(tmp_path / "fast", build("relu"), LipSDPCertifier(0))).verified
    linear = network(Identity(4).fold(), 8, 6, 3)
    assert check(certify(tmp_path / "linear", linear, LipSDPCertifier(5))).verified


def test_forged_semidefinite_certificates_are_refused(tmp_path: Path) -> None:
    folder = SemidefiniteFolder(certify(tmp_path / "folder", build("maxmin"), LipSDPCertifier(30)))
    folder.scale_table(1 - 3e-5)
    folder.save()
    lines = check(folder.path).mismatches
    assert len(lines) == 6
    assert all("is not proved" in line for line in lines)
    folder.scale_table(1 / (1 - 3e-5))
    folder.save()
    assert check(folder.path).verified
    # Other multipliers prove something else, or nothing.
    for factor in (0.5, 2.0, 1e6):
        honest = folder.multipliers
        folder.multipliers = {name: factor * value for name, value in honest.items()}
        folder.save()
        assert not check(folder.path).verified
        folder.multipliers = honest
    # A file that the claim does not list is not used.
    folder.claim["claim"]["proof"] = "lipschitz"
    del folder.claim["files"]["multipliers.safetensors"]
    Folder.save(folder)
    assert len(check(folder.path).mismatches) == 6


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_multipliers_are_positive_numbers(value: float, tmp_path: Path) -> None:
    folder = SemidefiniteFolder(certify(tmp_path / "folder", build("relu"), LipSDPCertifier(5)))
    folder.multipliers["1.0"] = folder.multipliers["1.0"].copy()
    folder.multipliers["1.0"][2] = value
    folder.save()
    with pytest.raises(UnreadableError, match="multipliers"):
        check(folder.path)


def test_multipliers_fit_the_layers(tmp_path: Path) -> None:
    folder = SemidefiniteFolder(certify(tmp_path / "folder", build("relu"), LipSDPCertifier(5)))
    honest = dict(folder.multipliers)
    for name, value in (
        ("1.0", honest["1.0"][1:].copy()),
        ("1.0", honest["1.0"].astype(np.float32)),
        ("more", honest["1.0"]),
    ):
        folder.multipliers = {**honest, name: value}
        folder.save()
        with pytest.raises(UnreadableError, match="multipliers"):
            check(folder.path)
    (folder.path / "multipliers.safetensors").unlink()
    with pytest.raises(UnreadableError, match="multipliers"):
        check(folder.path)


def read(folder: Path) -> tuple[Operation, ...]:
    claim = json.loads((folder / "certificate.json").read_text())
    return read_network(claim["network"], load_file(folder / "network.safetensors"))


@pytest.mark.parametrize("kind", [ReLU, Abs, GroupSort])
def test_any_multipliers_give_a_bound_or_nothing(kind: type, tmp_path: Path) -> None:
    net = network(kind(4).fold(), 3, 6, 6, 4, seed=3)
    operations = read(certify(tmp_path / "folder", net, LipschitzCertifier()))
    norms = {
        op.path: operation_bound(mine, shape)
        for op, (mine, shape) in zip(
            operations, shapes(net.operations, net.input_shape), strict=True
        )
    }
    truth = steepest(net).numpy()
    generator = np.random.default_rng(0)
    sizes = [count for _, count in layers(operations)]
    found = 0
    for _ in range(60):
        spread = generator.uniform(0, 1.5)
        falling = 2.0 ** (-generator.uniform(1, 5) * np.arange(1, len(sizes) + 1))
        guess = [
            size * np.exp(spread * generator.standard_normal(n))
            for size, n in zip(falling, sizes, strict=True)
        ]
        for table in constants(operations, norms, guess):
            found += 1
            assert (table >= truth * (1 - 1e-12)).all()
    assert found > 20


def test_a_radius_of_any_size_is_written_and_read(tmp_path: Path) -> None:
    weight = torch.tensor([[1e-38, 0.0], [0.0, 0.0]])
    net = PlainNetwork((Dense(weight, torch.tensor([3e38, 0.0])),), (2,))
    folder = certify(tmp_path / "folder", net, LipschitzCertifier())
    assert float(Folder(folder).rows[0][5]) > 1e75
    assert check(folder).verified


def test_logits_that_are_no_numbers_are_not_correct(tmp_path: Path) -> None:
    # Each overflows in float32, and their difference is NaN; the third class is predicted never.
    large = torch.full((1, 4), 3e38)
    head = torch.tensor([[1.0], [1.0], [0.0]])
    net = PlainNetwork(
        (Dense(large), Dense(torch.tensor([[1.0], [-1.0]])), Dense(head @ torch.ones(1, 2))), (4,)
    )
    folder = tmp_path / "folder"
    certify(folder, net, LipschitzCertifier("float32"))
    rows = Folder(folder).rows
    assert any(row[7] == "nan" for row in rows)
    for row in rows:
        assert row[1] == row[2]
        if row[7] == "nan":
            assert row[3:5] == ["0", "abstain"]
    report = check(folder)
    assert report.mismatches == []
    assert any(topic == "void" for topic, _ in report.checked)
    forged = Folder(folder)
    place = next(k for k, row in enumerate(rows) if row[7] == "nan")
    forged.rows[place][3] = "1"
    forged.save()
    assert check(forged.path).mismatches


def test_one_operation_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    twice = Dense(torch.randn(4, 4), torch.randn(4))
    net = PlainNetwork((Flatten(), twice, ReLU(4).fold(), twice), (1, 2, 2))
    assert check(certify(tmp_path / "folder", net, LipschitzCertifier())).verified


def whole_maps(kind: str) -> PlainNetwork:
    """Operations that are bounded as a whole, on inputs of (2, 6, 6) or 72."""
    torch.manual_seed(5)
    operations: list[operation_module.Operation] = []
    shape: tuple[int, ...] = (2, 6, 6)
    if kind == "norm_pool":
        conv = Convolution(torch.randn(3, 2, 3, 3), torch.randn(3), padding=(1, 1))
        operations = [conv, NormPool2d(3).fold(), Flatten()]
    elif kind == "circular":
        conv = CircularConvolution(
            torch.randn(3, 2, 8, 8),
            torch.randn(3),
            input_size=(6, 6),
            output_size=(2, 3),
            stride=(2, 2),
            padding=(1, 3),
        )
        operations = [conv, ReLU(3).fold(), Flatten()]
    elif kind == "circular of stride 1":
        conv = CircularConvolution(
            torch.randn(2, 2, 7, 7), input_size=(6, 6), output_size=(7, 7), padding=(3, 3)
        )
        operations = [conv, Flatten()]
    elif kind == "sandwich":
        operations = [Flatten()]
        for scale in (0.1, 0.3):
            operations.append(
                Sandwich(
                    scale * torch.randn(9, 72),
                    scale * torch.randn(9, 72),
                    torch.rand(9) + 0.5,
                    Softplus(9).fold() if scale == 0.1 else ReLU(9).fold(),
                    torch.randn(9),
                )
            )
    elif kind == "sandwich on a torus":
        for scale in (0.03, 0.06):
            factors = scale * torch.randn(2, 4, 2, 6, 6)
            psi = torch.rand(4) + 0.5
            inside = Softplus(4).fold() if scale == 0.03 else ReLU(4).fold()
            operations.append(Sandwich(*factors, psi, inside, torch.randn(4)))
        operations.append(Flatten())
    elif kind == "skew series":
        for scale, scales in ((0.05, torch.ones(12)), (0.4, torch.rand(4))):
            free = scale * torch.randn(2, 2, 3, 3)
            weight, count = free - free.transpose(0, 1).flip(2, 3), len(scales)
            scales = scales / torch.arange(1, count + 1)
            bias = torch.randn(2) if count == 4 else None
            operations.append(SkewSeries.of(weight=weight, scales=scales, bias=bias))
        operations.append(Flatten())
    elif kind == "residual":
        operations = [Flatten()]
        for scale in (0.05, 0.2):
            weight, bias = torch.randn(9, 72), torch.randn(9)
            operations.append(ResidualBlock(weight, scale * torch.rand(9), ReLU(9).fold(), bias))
    elif kind == "convolutional residual":
        for scale in (0.1, 0.5):
            weight, bias = torch.randn(4, 2, 3, 3), torch.randn(4)
            operations.append(
                ResidualBlock(weight, scale * torch.rand(4), Softplus(4).fold(), bias, padding=1)
            )
        operations.append(Flatten())
    elif kind == "shift":
        conv = Convolution(torch.randn(9, 2, 3, 3), torch.randn(9), padding=(1, 1))
        place = Affine(torch.ones(9), torch.randn(9, 6, 6))
        operations = [conv, place, CircularShift(9, 0.25).fold(), Flatten()]
    elif kind == "sum":
        inner = ResidualBlock(torch.randn(9, 72), 0.1 * torch.rand(9), ReLU(9).fold())
        operations = [Flatten(), Sum(((), (inner,)))]
    features = run(operations, torch.zeros(1, *shape)).shape[1]
    return PlainNetwork((*operations, Dense(torch.randn(3, features))), shape)


WHOLE = (
    *("norm_pool", "circular", "circular of stride 1", "sandwich", "residual"),
    *("convolutional residual", "sandwich on a torus", "skew series"),
    "shift",
    "sum",
)


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@pytest.mark.parametrize("kind", WHOLE)
def test_maps_that_are_bounded_as_a_whole(kind: str, arithmetic: Any, tmp_path: Path) -> None:
    net = whole_maps(kind)
    folder = certify(tmp_path / "folder", net, LipschitzCertifier(arithmetic))
    report = check(folder, exact=SAMPLES)
    assert report.mismatches == []
    operations = read(folder)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((5, *net.input_shape))
    truth = net(torch.from_numpy(x)).numpy()
    bounds = json.loads((folder / "certificate.json").read_text())["bounds"]
    norms: dict[str, Fraction] = {}
    for operation, entry in zip(operations, bounds, strict=True):
        _find(operation, norms, UNLIMITED, [])
        norms[operation.path] = Fraction(float.fromhex(entry["bound"]))
    rounded = {path: float(value) for path, value in norms.items()}
    found = evaluate(operations, x, rounded, [FLOAT64])
    assert np.allclose(found.values, truth, rtol=1e-12, atol=1e-12 * abs(truth).max())
    exact = evaluate_exactly(operations, x, rounded)
    values = np.array([[float(Fraction(z, 1 << exact.places)) for z in r] for r in exact.values])
    wrong = np.linalg.norm(values - found.values, axis=1)
    assert (wrong <= found.centre[0] + exact.error).all()
    # The errors are of use: not above those of the certifier.
    theirs = forward_error(net, torch.from_numpy(x)).centre.numpy()
    assert (found.centre[0] <= 1.5 * theirs).all()
    # A lower bound is refused, wherever it is.
    forged = Folder(folder)
    for place, entry in enumerate(bounds[:-1]):
        if entry["kind"] in plain_kinds(net):
            forged.claim["bounds"][place]["bound"] = (
                float.fromhex(entry["bound"]) * (1 - 1e-6)
            ).hex()
            forged.save()
            lines = check(forged.path).mismatches
            assert any("is not proved to be" in line for line in lines)
            forged.claim["bounds"][place]["bound"] = entry["bound"]


# A shift is a function of the room of models.
@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind != "shift"])
def test_the_network_of_a_folder_is_what_was_certified(kind: str, tmp_path: Path) -> None:
    net = whole_maps(kind)
    folder = certify(tmp_path / "folder", net, LipschitzCertifier())
    restored, x = restore_network(read(folder)), torch.randn(3, *net.input_shape).double()
    assert restored.digest() == net.digest()
    assert torch.equal(restored(x), net(x))


def test_a_series_is_of_a_skew_kernel(tmp_path: Path) -> None:
    folder = Folder(certify(tmp_path / "folder", whole_maps("skew series"), LipschitzCertifier()))
    for name in ("0.weight", "1.weight"):
        weight = folder.tensors[name].copy()
        folder.tensors[name] = weight + np.float32(1e-6) * (weight == weight.max())
        folder.save()
        with pytest.raises(UnreadableError, match="minus its own transpose"):
            check(folder.path)
        folder.tensors[name] = weight
    folder.tensors["0.scales"] = 2 * folder.tensors["0.scales"]
    folder.save()
    with pytest.raises(UnreadableError, match="scales from -1 to 1"):
        check(folder.path)


def plain_kinds(net: PlainNetwork) -> set[str]:
    return {op.kind for op in net.operations} - {"activation", "flatten", "dense"}


@pytest.mark.parametrize("kind", ["sandwich", "residual"])
def test_slopes_outside_0_to_1_are_refused(kind: str, tmp_path: Path) -> None:
    folder = Folder(certify(tmp_path / "folder", whole_maps(kind), LipschitzCertifier()))
    for function in ("absolute", "group_sort", "tanh", "nothing", "norm_pool"):
        for entry in folder.operations[1:-1]:
            if entry["options"]["activation"]["function"] == "relu":
                entry["options"]["activation"] = {"function": function}
        folder.save()
        if function == "tanh":
            assert check(folder.path).mismatches
        else:
            with pytest.raises(UnreadableError):
                check(folder.path)
        folder = Folder(tmp_path / "folder")
        for entry in folder.operations[1:-1]:
            if not any(key.startswith("activation.") for key in entry["tensors"]):
                entry["options"]["activation"] = {"function": "relu"}


def zero_kernels() -> list[Tensor]:
    corner = torch.zeros(2, 1, 3, 3)
    corner[:, :, 0, 0] = 1
    return [torch.zeros(2, 1, 3, 3), corner]


@pytest.mark.parametrize("kernel", zero_kernels())
def test_the_norm_of_the_zero_map_from_below(kernel: Tensor) -> None:
    # The corner of a kernel on one padded pixel reads padding only.
    assert conv_norm_lower(kernel, (1, 1), padding=1) == 0.0
