"""The independent checker: honest folders verify, forged ones do not, and it stands alone."""

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.configs import slow_but
from helpers.miniatures import write_idx
from safetensors.numpy import load_file
from torch import nn

from benchmarks.soundness.forgeries import (
    EVERYWHERE,
    FLOAT_FILES,
    KINDS,
    OF_NORMS,
    SAMPLES,
    SOMEWHERE,
    WIDE,
    Corruption,
    Folder,
    build,
    certify,
    certify_kind,
    forge,
    per_tensor,
    refused,
    write,
)
from robustcert import activations
from robustcert import norms as norms_module
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import LipschitzCertifier, lipschitz
from robustcert.check import UnreadableError, check
from robustcert.check.arithmetic import FLOAT64
from robustcert.check.command import main
from robustcert.check.exact_products import (
    add_up,
    digit_bits,
    exact_gram,
    split_floats,
    split_integers,
)
from robustcert.check.fixed_point import to_integers
from robustcert.check.forward.exact import evaluate_exactly
from robustcert.check.forward.floating import evaluate
from robustcert.check.network.operation import Operation
from robustcert.check.network.reading import read_network
from robustcert.check.norms import convolution as checked_convolution
from robustcert.check.norms.operation import find, prove
from robustcert.data import to_unit
from robustcert.network.activation import Activation
from robustcert.network.fold import fold_network
from robustcert.network.forward_error import ForwardError
from robustcert.network.linear import Affine, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.norms import convolution
from robustcert.norms.convolution import conv_norm_bound
from robustcert.norms.dense import dense_norm_bound
from robustcert.norms.estimates import power_iteration

# Of matrices; the largest two take seconds.
SIZES = [(1, 1), (1, 9), (30, 7), (64, 64), (200, 260), (300, 270)]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("honest")
    return {kind: certify_kind(root, kind) for kind in (*KINDS, WIDE)}


@pytest.mark.parametrize("kind", [*KINDS, WIDE])
def test_honest_folders_verify(honest: dict[str, Path], kind: str, tmp_path: Path) -> None:
    report = check(honest[kind], exact=SAMPLES, seed=0)
    assert report.mismatches == []
    # The forger's own way of saving changes nothing that matters.
    folder = Folder(Path(shutil.copytree(honest[kind], tmp_path / "copy")))
    folder.recount()
    folder.save()
    data = [honest[kind].parent / f"{kind}.npz"]
    assert check(folder.path, data=data).mismatches == []


def case(kind: str, name: str, corruption: Corruption) -> Any:
    marks = pytest.mark.slow if "a million" in name else ()
    return pytest.param(kind, corruption, id=f"{kind}: {name}".replace("/", " "), marks=marks)


CASES = [
    *(case("maxmin", name, function) for name, function in EVERYWHERE.items()),
    *(case(kind, name, function) for (kind, name), function in SOMEWHERE.items()),
    *(case(kind, name, function) for kind in KINDS for name, function in per_tensor(kind)),
]
SLOW_CASES = [
    case(kind, name, function)
    for name, function in EVERYWHERE.items()
    for kind in KINDS
    if kind != "maxmin" and not ("quadric" in kind and any(word in name for word in OF_NORMS))
]


@pytest.mark.parametrize(("kind", "corruption"), CASES)
def test_forged_folders_are_refused(
    honest: dict[str, Path], tmp_path: Path, kind: str, corruption: Corruption
) -> None:
    assert refused(forge(honest, tmp_path, kind, corruption))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "corruption"), SLOW_CASES)
def test_forged_folders_are_refused_for_every_network(
    honest: dict[str, Path], tmp_path: Path, kind: str, corruption: Corruption
) -> None:
    assert refused(forge(honest, tmp_path, kind, corruption))


def test_corruptions_are_many_and_distinct() -> None:
    assert len({parameters.id for parameters in CASES}) == len(CASES) >= 200


@pytest.mark.parametrize("name", ["certificate.json", *FLOAT_FILES])
@pytest.mark.parametrize("how", ["missing", "link", "folder", "pipe", "changed", "cut"])
def test_damaged_files_are_refused(
    honest: dict[str, Path], tmp_path: Path, name: str, how: str
) -> None:
    folder = Path(shutil.copytree(honest["relu"], tmp_path / "damaged"))
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if how == "link":
        path.symlink_to(honest["relu"] / name)
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "changed":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    assert refused(folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing")


def low_dense_bound(weight: torch.Tensor) -> float:
    norm, _ = power_iteration(weight.double(), torch.ones(weight.shape[1]).double(), 3)
    return float(norm)


def circular_grid(weight: torch.Tensor, size: Any, *_: Any) -> float:
    # The grid of the input's own size, which is that of a circular convolution.
    transform = np.fft.fft2(weight.double().numpy(), tuple(size)).transpose(2, 3, 0, 1)
    return float(np.linalg.norm(transform, 2, axis=(2, 3)).max())


def reshaped_kernel(weight: torch.Tensor, *_: Any) -> float:
    return float(torch.linalg.matrix_norm(weight.double().flatten(1), 2))


def row_norms(weight: torch.Tensor) -> torch.Tensor:
    longest = float(weight.double().norm(dim=1).max()) * math.sqrt(2) * 0.7
    return longest * (1 - torch.eye(len(weight), dtype=torch.float64))


def no_error(network: PlainNetwork, x: torch.Tensor) -> ForwardError:
    zero = torch.zeros(len(x), dtype=torch.float64)
    return ForwardError(network(x), zero, 0.0, 1.0, zero + math.inf)


DEFECTS: dict[str, tuple[str, list[tuple[Any, str, Any]], str]] = {
    "power iteration for a bound": (
        "relu",
        [(norms_module, "dense_norm_bound", low_dense_bound)],
        "is not proved to be an upper bound",
    ),
    "a circular grid for zero padding": (
        "highpass",
        [(norms_module, "conv_norm_bound", circular_grid)],
        "is not proved to be an upper bound",
    ),
    "the norm of the reshaped kernel": (
        "convnet",
        [(norms_module, "conv_norm_bound", reshaped_kernel)],
        "is not proved to be an upper bound",
    ),
    "the input's scale forgotten": (
        "maxmin",
        [(Affine, "lipschitz_bound", lambda self, shape: 1.0)],
        "is not proved to be an upper bound",
    ),
    "row norms for row distances": (
        "maxmin",
        [(norms_module, "row_distance_bounds", row_norms)],
        "pairwise[",
    ),
    "no allowance for rounding": (
        "maxmin",
        [(lipschitz, "forward_error", no_error)],
        "is not proved by the exact margin",
    ),
    "no allowance for rounding, smooth": (
        "smooth",
        [(lipschitz, "forward_error", no_error)],
        "is not proved by the exact margin",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_of_the_certifier_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    # Everything else in these folders fits together.
    kind, replacements, expected = DEFECTS[defect]
    for place, name, replacement in replacements:
        monkeypatch.setattr(place, name, replacement)
    report = check(certify(tmp_path / "certificate", build(kind)), exact=SAMPLES)
    assert report.mismatches
    assert all(expected in line for line in report.mismatches)


@pytest.mark.parametrize(
    ("function", "constants"),
    [
        ("n_activation", {"corners": [[0.5] * 8, [-0.5] * 8]}),
        ("linear_spline", {"slopes": [[0.5, -1.5]], "step": 1.0}),
        ("householder2", {"rays": [[[1.0] * 4, [0.0] * 4]] * 3}),
        ("householder", {"normal": [[0.0] * 4, [0.0] * 4]}),
        ("smooth_abs", {"temperature": 0.0}),
        ("sin_cos", {"frequency": -1.0}),
    ],
)
def test_constants_that_break_a_lipschitz_constant_are_refused(
    tmp_path: Path, function: str, constants: dict[str, Any]
) -> None:
    activation = Activation(
        function=getattr(import_module(f"robustcert.activations.{function}"), function),
        constants={key: torch.tensor(value) for key, value in constants.items()},
        lipschitz=1.0,
    )
    outputs = 16 if function == "sin_cos" else 8
    network = PlainNetwork(
        (Flatten(), Dense(torch.randn(8, 16)), activation, Dense(torch.randn(3, outputs))),
        (1, 4, 4),
    )
    with pytest.raises(UnreadableError, match=f"operation 2 .*{function}"):
        check(certify(tmp_path / "certificate", network))


@pytest.mark.parametrize("kind", ["relu", "maxmin", "grouped"])
def test_radii_are_decided_to_the_last_bit(
    honest: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    # Of the real function alone, whose margins are rational numbers: m / K rounded down verifies,
    # the next number does not.
    folder = Folder(Path(shutil.copytree(honest[kind], tmp_path / "exact")))
    folder.claim["claim"]["functions"].pop("F64")
    operations = read_network(folder.claim["network"], folder.tensors)
    norms = {op.path: 1.0 for op in operations}
    pixels = folder.samples["inputs"].astype(np.float32) / np.float32(255)
    found = evaluate_exactly(operations, pixels.astype(np.float64), norms)
    assert not found.error.any()
    bounds = []
    for row, logits in zip(folder.rows, found.values.tolist(), strict=True):
        c = int(row[2])
        bounds.append(
            min(
                Fraction(logits[c] - logits[j], 1 << found.places)
                / Fraction(float.fromhex(folder.claim["pairwise"][c][j]))
                for j in range(len(logits))
                if j != c
            )
        )
    for k, bound in enumerate(bounds):
        radius = float(bound)
        folder.set_radius(k, radius if radius < bound else math.nextafter(radius, 0.0))
    folder.recount()
    folder.save()
    assert check(folder.path, exact=0).mismatches == []
    for k in (0, 5):
        again = Folder(Path(shutil.copytree(folder.path, tmp_path / f"beyond{k}")))
        again.set_radius(k, math.nextafter(float.fromhex(folder.rows[k][6]), math.inf))
        again.recount()
        again.save()
        assert [f"line {k + 2}:" in line for line in check(again.path, exact=0).mismatches] == [
            True
        ]


def test_a_smaller_radius_is_no_lie(honest: dict[str, Path], tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(honest["relu"], tmp_path / "modest")))
    folder.set_radius(0, float.fromhex(folder.rows[0][6]) / 2)
    folder.set_radius(1, 0.0)
    folder.recount()
    folder.save()
    assert check(folder.path).verified


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@pytest.mark.parametrize("name", activations.__all__)
def test_every_activation_is_known(tmp_path: Path, name: str, arithmetic: str) -> None:
    folder = certify(tmp_path / "certificate", build(name), arithmetic)
    report = check(folder, exact=SAMPLES)
    assert report.mismatches == []
    # The other way round: what the exact evaluation says, float64 confirms within its error.
    claim = json.loads((folder / "certificate.json").read_text())
    operations = read_network(claim["network"], load_file(folder / "network.safetensors"))
    norms = {
        op.path: float.fromhex(bound["bound"])
        for op, bound in zip(operations, claim["bounds"], strict=True)
    }
    points = 4 * np.random.RandomState(0).randn(50, 1, 4, 4)
    found = evaluate(operations, points, norms, [FLOAT64])
    exact = evaluate_exactly(operations, points, norms)
    real = np.array([[float(Fraction(z, 1 << exact.places)) for z in row] for row in exact.values])
    error = np.linalg.norm(found.values - real, axis=1)
    assert (error <= found.centre[0] + 1e-15 * abs(real).max()).all()
    assert (found.centre[0] < 1e-10).all()
    assert (exact.error < 1e-60).all()


def operation(kind: str, weight: np.ndarray, shape: tuple[int, ...], **options: Any) -> Operation:
    outputs = (weight.shape[0],)
    if kind == "convolution":
        outputs = tuple(
            torch.nn.functional.conv2d(
                torch.zeros(1, *shape, dtype=torch.float64),
                torch.from_numpy(weight).double(),
                stride=options["stride"],
                padding=options["padding"],
                dilation=options["dilation"],
                groups=options["groups"],
            ).shape[1:]
        )
    return Operation(kind, "", "0", options, {"weight": weight}, shape, outputs)


@pytest.mark.parametrize("seed", range(30))
def test_norms_of_convolutions(seed: int) -> None:
    random = np.random.RandomState(seed)
    groups, out, inner = random.randint(1, 4, 3)
    size = random.randint(5, 10, 2)
    options: dict[str, Any] = {
        "stride": [int(n) for n in random.randint(1, 4, 2)],
        "padding": [int(n) for n in random.randint(0, 5, 2)],
        "dilation": [int(n) for n in random.randint(1, 3, 2)],
        "groups": int(groups),
    }
    weight = random.randn(groups * out, inner, *random.randint(1, 4, 2)).astype(np.float32)
    op = operation("convolution", weight, (int(groups * inner), *map(int, size)), **options)
    claimed = conv_norm_bound(weight, tuple(size), **options)
    assert prove(op, claimed).method
    columns = torch.eye(math.prod(op.input_shape), dtype=torch.float64)
    matrix = torch.nn.functional.conv2d(
        columns.reshape(-1, *op.input_shape), torch.from_numpy(weight).double(), **options
    ).flatten(1)
    true = float(torch.linalg.matrix_norm(matrix, 2))
    assert true <= claimed
    assert true <= find(op) <= claimed * (1 + 1e-9)
    for share in (1 - 1e-11, 1 - 1e-6, 0.9):
        assert not prove(op, true * share).method


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (30, 9), (9, 30)])
def test_symbols_along_one_dimension(size: tuple[int, int], groups: int, stride: int) -> None:
    # Without the matrix, and the symbols along both prove a higher bound only.
    torch.manual_seed(0)
    weight = torch.randn(2 * groups, 2, 5, 5).numpy()
    options = {"stride": [stride] * 2, "padding": [0, 0], "dilation": [1, 1], "groups": groups}
    op = operation("convolution", weight, (2 * groups, *size), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "operator_norm_bound", lambda *_: None)
        claimed = conv_norm_bound(weight, size, **options)
        patch.setattr(convolution, "mixed_norm_bound", lambda *_: None)
        assert claimed < conv_norm_bound(weight, size, **options) * (1 - 1e-3)
    columns = torch.eye(math.prod(op.input_shape)).double().reshape(-1, *op.input_shape)
    matrix = torch.nn.functional.conv2d(columns, torch.from_numpy(weight).double(), **options)
    true = float(torch.linalg.eigvalsh(matrix.flatten(1) @ matrix.flatten(1).T).max().sqrt())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked_convolution, "_whole_matrices", lambda _: iter(()))
        found = prove(op, claimed).method
        assert "1x" in found or "x1 " in found
        # The largest block of both dimensions is above this: none may be left out.
        assert not prove(op, claimed * (1 - 1e-6)).method
        assert not prove(op, true * (1 - 1e-9)).method
        assert true * (1 - 1e-12) <= find(op) <= claimed * (1 + 1e-9)


def test_norm_of_a_convolution_that_reads_padding_only() -> None:
    weight = np.zeros((2, 1, 3, 3), np.float32)
    weight[:, :, 0, 0] = 1
    options: dict[str, Any] = {"padding": [1, 1], "dilation": [1, 1], "groups": 1}
    for side, stride in ((1, 1), (3, 5), (2, 9)):
        op = operation("convolution", weight, (1, side, side), stride=[stride] * 2, **options)
        assert prove(op, 0.0).method
    op = operation("convolution", weight * 0, (1, 300, 300), stride=[1, 1], **options)
    assert prove(op, 0.0).method
    op = operation("convolution", weight, (1, 300, 300), stride=[1, 1], **options)
    assert not prove(op, 0.0).method
    assert not prove(op, math.sqrt(2) * (1 - 1e-12)).method
    # Sides above 256 are bounded on a coarser grid, here as there.
    assert prove(op, conv_norm_bound(weight, (300, 300), padding=1)).method
    op = operation("convolution", weight, (1, 100, 100), stride=[1, 1], **options)
    assert prove(op, math.sqrt(2) * (1 + 1e-9)).method


@pytest.mark.parametrize("size", slow_but(SIZES, SIZES[:-2]))
@pytest.mark.parametrize("how", ["random", "orthogonal", "scaled", "flat", "tiny", "zero"])
def test_norms_of_matrices(size: tuple[int, int], how: str) -> None:
    torch.manual_seed(sum(size))
    weight = torch.randn(size)
    if how == "orthogonal":
        nn.init.orthogonal_(weight)
    elif how == "scaled":
        weight = weight * 2.0 ** torch.randint(-30, 30, (size[0], 1))
    elif how == "flat":
        weight = torch.ones(size)
    elif how == "tiny":
        weight = weight * 1e-30
    elif how == "zero":
        weight = weight * 0
    op = operation("dense", weight.numpy(), (size[1],))
    claimed = dense_norm_bound(weight)
    assert prove(op, claimed).method
    assert prove(op, claimed * 1.5).method
    true = float(torch.linalg.matrix_norm(weight.double(), 2))
    for share in (1 - 1e-11, 1 - 1e-6, 0.5) if true else ():
        assert not prove(op, true * share).method


def test_a_gap_of_one_direction_is_seen() -> None:
    # An all-ones start of power iteration would see norm 1; the true one is 16 sqrt 2.
    weight = np.eye(64, dtype=np.float32)
    weight[0, :2], weight[1, :2] = (16, -16), (0.5, 0.5)
    op = operation("dense", weight, (64,))
    assert not prove(op, 22.627).method
    assert prove(op, 22.62742).method


def test_products_in_digits_are_exact() -> None:
    random = np.random.RandomState(0)
    left = np.array([[random.randint(-(2**60), 2**60) ** 3 for _ in range(40)] for _ in range(7)])
    left = left.astype(object)
    left[0] = [int(v) ** 5 - 1 for v in range(-20, 20)]
    assert (exact_gram(left) == left @ left.T).all()
    bits = digit_bits(40)
    digits = split_integers(left, bits)
    parts = {k: digit.astype(np.int64) for k, digit in enumerate(digits)}
    assert (add_up(parts, bits) == left).all()
    values = np.rint(random.randn(50) * 2.0**70)
    parts = {k: d.astype(np.int64) for k, d in enumerate(split_floats(values, bits))}
    assert (add_up(parts, bits) == np.array([int(v) for v in values], dtype=object)).all()
    with pytest.raises(ValueError, match="digits"):
        split_floats(values, bits, 2)


def test_integers_of_floats_are_exact() -> None:
    values = np.array([0.0, -0.0, 1.0, -1.5, 5e-324, 1e300, 0.1, -3e-310, 2.0**60])
    whole, places = to_integers(values)
    assert [Fraction(z, 1 << places) for z in whole] == [Fraction(v) for v in values.tolist()]
    assert to_integers(np.array(0.75))[0] == 3
    assert to_integers(np.array([4.0, 8.0]))[1] == 0


def test_it_stands_alone() -> None:
    code = (
        "import sys, robustcert.check, robustcert.check.__main__\n"
        "ours = {m for m in sys.modules if m.startswith('robustcert')}\n"
        "assert all(m == 'robustcert' or m.startswith('robustcert.check') for m in ours), ours\n"
        "assert not {'torch', 'lightning', 'hydra', 'safetensors', 'flint'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_flint_it_says_what_to_install(
    honest: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flint", None)
    # Dense networks with piecewise linear activations need no balls.
    assert main([str(honest["maxmin"])]) == 0
    assert main([str(honest["smooth"])]) == 2
    assert "pip install 'robustcert[check]'" in capsys.readouterr().out


def test_the_command_line(
    honest: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(honest["relu"]), "--exact", "4", "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert "seed 7" in printed
    assert "not checked" in printed
    assert printed.splitlines()[-1].startswith("VERIFIED")
    forged = forge(honest, tmp_path, "relu", EVERYWHERE["a radius raised by 1 %"])
    assert main([str(forged)]) == 1
    printed = capsys.readouterr().out
    assert "MISMATCH    radii.csv line 5" in printed
    assert printed.splitlines()[-1] == "REFUSED: 1 claims do not follow"
    assert main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().out.startswith("UNREADABLE")
    done = subprocess.run([sys.executable, "-m", "robustcert.check", str(forged)], timeout=60)
    assert done.returncode == 1


def test_names_cannot_write_to_the_terminal(honest: dict[str, Path], tmp_path: Path) -> None:
    def rename(folder: Folder) -> None:
        folder.operations[1]["name"] = "x\n\x1b[2JVERIFIED" + "y" * 1000
        folder.operations[1]["kind"] = "\x1b[31m"

    with pytest.raises(UnreadableError) as error:
        check(forge(honest, tmp_path, "relu", rename))
    assert str(error.value).isascii()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


def test_undecided_predictions_are_counted(tmp_path: Path) -> None:
    weight = torch.randn(3, 16)
    weight[1] = weight[0]
    folder = certify(tmp_path / "tied", PlainNetwork((Flatten(), Dense(weight)), (1, 4, 4)))
    report = check(folder)
    assert report.verified
    assert any(topic == "undecided" for topic, _ in report.checked)


def test_data_that_nobody_can_read_are_told_before_anything_is_proved(
    honest: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("robustcert.check.verdict.prove_constants")
    with pytest.raises(UnreadableError, match="--data"):
        check(honest["maxmin"], data=["images.idx", "labels.idx", "more.idx"])


def test_samples_are_compared_with_the_dataset(tmp_path: Path) -> None:
    root = write_idx(tmp_path / "data", test=SAMPLES)
    files = [root / "t10k-images-idx3-ubyte.gz", root / "t10k-labels-idx1-ubyte.gz"]
    network = fold_network(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), (1, 28, 28))
    folder = Folder(certify(tmp_path / "certificate", network))
    report = check(folder.path, data=files)
    assert len(report.mismatches) == 10
    assert all(line.startswith("samples: ") for line in report.mismatches)
    images = np.frombuffer(gzip.decompress(files[0].read_bytes()), np.uint8)[16:]
    inputs = torch.from_numpy(images.reshape(SAMPLES, 1, 28, 28).copy())
    certificates = LipschitzCertifier().certify(network, to_unit(inputs))
    target = torch.arange(SAMPLES) % 10
    split = CertifiedSplit(inputs, target, torch.arange(SAMPLES), certificates)
    path = tmp_path / "true"
    path.mkdir()
    write(path, network, split, LipschitzCertifier())
    assert check(path, data=files).verified
    np.savez(tmp_path / "data.npz", x_test=inputs.numpy()[:, 0], y_test=target.numpy())
    assert check(path, data=[tmp_path / "data.npz"]).verified
    with pytest.raises(UnreadableError, match="--data"):
        check(path, data=[tmp_path / "absent.npz"])


def test_data_that_are_not_there_are_named(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("/nonexist", "/nonexist.npz:train"):
        assert main([str(tiny_run / "certificate"), "--data", name]) == 2
        said = f"--data: '{name}': no such file; expected idx images and labels, CIFAR .bin files"
        assert said in capsys.readouterr().out
