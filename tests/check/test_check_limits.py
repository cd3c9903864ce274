"""What a certificate folder can make the checker do: memory, time and errors are bounded."""

import json
import math
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import check_curvature, proof_folders
from helpers.configs import slow_but
from helpers.smooth_networks import NETWORKS
from safetensors.numpy import load_file
from torch import nn

from benchmarks.soundness.forgeries import Folder, build, certify, with_header, write
from robustcert import activations
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import LipschitzCertifier, LipSDPCertifier
from robustcert.check import UnreadableError, check, memory, reader
from robustcert.check.arithmetic import FLOAT64
from robustcert.check.forward import linear
from robustcert.check.forward.batches import float_bytes
from robustcert.check.forward.exact import trace_exactly
from robustcert.check.forward.floating import evaluate, trace
from robustcert.check.network.operation import Operation, walk
from robustcert.check.network.reading import read_network
from robustcert.check.norms import convolution
from robustcert.check.norms.scalars import round_up
from robustcert.check.reader import parse_safetensors, read_bytes, show
from robustcert.check.report import MAX_MISMATCHES, Report
from robustcert.data import to_unit
from robustcert.errors import UnsoundNetworkError
from robustcert.network.fold import fold_network
from robustcert.network.linear import Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.norms import symbols
from robustcert.norms.lines import _is_worth_unrolling

# Memory


def many(folder: Path, net: PlainNetwork, count: int) -> Path:
    """A folder of many samples."""
    folder.mkdir(parents=True)
    inputs = torch.randint(0, 256, (count, *net.input_shape), dtype=torch.uint8)
    certifier = LipschitzCertifier()
    found = certifier.certify(net, to_unit(inputs))
    write(
        folder, net, CertifiedSplit(inputs, found.prediction, torch.arange(count), found), certifier
    )
    return folder


def deep(folder: Path) -> Path:
    """A hundred activations on a thousand values."""
    relus = (activations.ReLU(1024).fold(),) * 100
    net = PlainNetwork((Flatten(), *relus, Dense(torch.randn(3, 1024))), (1, 32, 32))
    return many(folder, net, 2000)


def wide(folder: Path) -> Path:
    """Windows that read many values, and weights of eight megabytes."""
    parts = (
        Convolution(torch.randn(8, 8, 5, 5), padding=(2, 2)),
        Flatten(),
        Dense(torch.randn(256, 8 * 32 * 32)),
        activations.ReLU(256).fold(),
        Dense(torch.randn(3, 256)),
    )
    return many(folder, PlainNetwork(parts, (8, 32, 32)), 300)


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "deep": deep,
    "wide": wide,
    "convolutional": lambda folder: certify(folder, build("convnet")),
    "residual": lambda folder: certify(folder, build("residual")),
    "quadric": lambda folder: certify(folder, build("deep-quadric")),
    "second-order": lambda folder: check_curvature.certify(folder, NETWORKS["smooth_maxmin"]()),
    "lipsdp": lambda folder: proof_folders.certify(folder, build("relu"), LipSDPCertifier(5)),
}
LIMITED = """
import resource, sys
limit = int(sys.argv[1])
try:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
except (ValueError, OSError):
    sys.exit(77)
from robustcert.check.command import main
sys.exit(main([sys.argv[2], "--exact", "20", "--seed", "0"]))
"""


@pytest.mark.parametrize("name", slow_but(FOLDERS, set(FOLDERS) - {"wide"}))
def test_an_honest_folder_is_checked_in_the_memory_that_is_said_beforehand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    torch.manual_seed(0)
    path = FOLDERS[name](tmp_path / "folder")
    folder = Folder(path)
    operations = read_network(folder.claim["network"], folder.tensors)
    size = sum(file.stat().st_size for file in path.iterdir())
    need = memory.need(size, operations, folder.claim["claim"]["proof"])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(need.total), str(path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode == 77:
        pytest.skip("the address space cannot be limited here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{memory.FACTOR} times the folder's" in done.stdout
    assert need.total < 2**30 + 2**28


def test_the_last_state_alone_is_kept() -> None:
    activation = Operation("activation", "", "0", {"function": "relu"}, {}, (4,), (4,))
    states = trace([activation] * 5, np.ones((3, 4)), {"0": 1.0}, [FLOAT64], every=False)
    assert len(states) == 1
    exact = trace_exactly([activation] * 5, np.ones((3, 4)), {"0": 1.0}, every=False)
    assert len(exact) == 1
    # Gradients need every state, and batches become smaller.
    few = float_bytes([activation] * 5, every=True)
    assert few - float_bytes([activation], every=True) == 8 * 4 * 4


@pytest.mark.parametrize("stride", [1, 2])
def test_windows_in_pieces_are_the_whole(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(stride)
    weight = random.randint(-9, 9, (6, 2, 3, 2)).astype(np.float64)
    options = {"stride": [stride, 1], "padding": [2, 1], "dilation": [2, 1], "groups": 2}
    height = (9 + 4 - 5) // stride + 1
    operation = Operation(
        "convolution", "", "0", options, {"weight": weight}, (4, 9, 5), (6, height, 6)
    )
    x = random.randint(-9, 9, (5, 4, 9, 5)).astype(np.float64)
    u = random.randint(-9, 9, (5, 6, height, 6)).astype(np.float64)
    whole = linear.linear(operation, x, weight), linear.adjoint(operation, u, weight)
    assert whole[0].ravel() @ u.ravel() == x.ravel() @ whole[1].ravel()
    for chunk in (1, 100, 3000):
        monkeypatch.setattr(linear, "MAX_WINDOW_VALUES", chunk)
        assert (linear.linear(operation, x, weight) == whole[0]).all()
        assert (linear.adjoint(operation, u, weight) == whole[1]).all()


def test_a_file_is_read_in_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "radii.csv").write_bytes(b"x" * 1000)
    assert read_bytes(tmp_path, "radii.csv") == b"x" * 1000
    # One that grows between the look at its size and the read is refused.
    status = reader.os.fstat

    def before(handle: int) -> Any:
        found = status(handle)
        with (tmp_path / "radii.csv").open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(reader.os, "fstat", before)
    with pytest.raises(UnreadableError, match="changes while it is read"):
        read_bytes(tmp_path, "radii.csv")


# Time


def test_rows_are_counted_once_for_all_entries_of_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "folder", rows=50)
    folder.claim["summary"]["certified"] *= 100
    folder.save()
    calls: list[int] = []
    right = vars(reader.Row)["right"]

    def counted(row: reader.Row) -> bool:
        calls.append(row.index)
        return bool(right.fget(row))

    monkeypatch.setattr(reader.Row, "right", property(counted))
    assert check(folder.path, exact=4).verified
    assert len(calls) <= 5 * 50


def test_products_keep_a_bounded_number_of_digits() -> None:
    value = exact = Fraction(1)
    for k in range(300):
        factor = Fraction(math.nextafter(1.0, 2.0) * (5e-300 if k % 2 else 3e299))
        value, exact = round_up(value * factor), exact * factor
        assert value >= exact
    assert value <= exact * (1 + Fraction(1, 2**4000))
    assert value.numerator.bit_length() <= 4096
    tiny = Fraction(1)
    for _ in range(100):
        tiny = round_up(tiny * Fraction(5e-324))
    assert tiny == Fraction(1, 2**8192)
    with pytest.raises(UnreadableError, match="passes"):
        round_up(Fraction(2) ** 9000)
    third = round_up(Fraction(2**99, 3 * 2**99 + 1) + Fraction(1, 9 * 2**99), 64)
    assert Fraction(1, 3) <= third <= Fraction(1, 3) * (1 + Fraction(1, 2**62))
    assert round_up(Fraction(0.1) ** 10) == Fraction(0.1) ** 10


def test_mismatches_beyond_a_number_are_counted_only() -> None:
    report = Report()
    for _ in range(MAX_MISMATCHES + 7):
        report.expect(False, "wrong")
    assert len(report.mismatches) == MAX_MISMATCHES
    assert report.more == 7
    assert not report.verified


def folder_of(path: Path, rows: int = 4) -> Folder:
    """A folder of two logits of one value, to be made malicious."""
    torch.manual_seed(0)
    weight = torch.tensor([[1.0], [-1.0]])
    return Folder(many(path, PlainNetwork((Dense(weight),), (1,)), rows))


Malice = Callable[[Folder, int], None]
MALICE: dict[str, tuple[str, Malice]] = {}


def malice(name: str, expected: str) -> Callable[[Malice], Malice]:
    """A way to fill about as many bytes as are given, and what the refusal says."""

    def add(function: Malice) -> Malice:
        MALICE[name] = (expected, function)
        return function

    return add


@malice("summary entries times rows", "it is")
def _(folder: Folder, size: int) -> None:
    count = size // 200
    repeat(folder, count)
    entry = {"radius": (0.5).hex(), "decimal": 0.5, "count": -1 + 1}
    folder.claim["summary"]["certified"] = [entry] * count


@malice("rows that are all wrong", "status does not fit")
def _(folder: Folder, size: int) -> None:
    repeat(folder, size // 100)
    for row in folder.rows:
        row[4] = "abstain"


@malice("a JSON value nested deeply", "nested too deeply|values")
def _(folder: Folder, size: int) -> None:
    folder.raw["certificate.json"] = b"[" * (size // 2) + b"]" * (size // 2)


@malice("nested as deeply as can be read", "expected an object")
def _(folder: Folder, _: int) -> None:
    folder.claim["claim"] = nested(900)


@malice("integers of thousands of digits", "expected format")
def _(folder: Folder, size: int) -> None:
    folder.raw["certificate.json"] = (
        b'{"format": [' + b",".join([b"7" * 4000] * (size // 4000)) + b"]}"
    )


@malice("a float of millions of digits", "expected format")
def _(folder: Folder, size: int) -> None:
    folder.raw["certificate.json"] = b'{"format": 1.' + b"7" * size + b"}"


@malice("empty branches", "operations and branches")
def _(folder: Folder, size: int) -> None:
    total = {"kind": "sum", "name": "", "options": {}, "tensors": {}}
    folder.operations.insert(0, {**total, "branches": [[]] * min(size // 4, 10**6)})


@malice("more operations than there may be", "operations and branches|no tensor")
def _(folder: Folder, size: int) -> None:
    flatten = {"kind": "flatten", "name": "", "options": {}, "tensors": {}}
    folder.operations[:0] = [flatten] * min(size // 70, 500_000)


@malice("values that no file has", "values of a sample so far")
def _(folder: Folder, _: int) -> None:
    folder.claim["network"]["input_shape"] = [2**24]
    entry = {"kind": "activation", "name": "", "tensors": {}, "options": {"function": "relu"}}
    folder.operations[:0] = [entry] * 20


@malice("a long name", "unknown operation")
def _(folder: Folder, size: int) -> None:
    folder.operations[0].update(name="é" * (size // 2), kind="x" * (size // 2))


@malice("names of tensors", "no operation uses")
def _(folder: Folder, size: int) -> None:
    for k in range(min(10_000, size // 100)):
        folder.tensors[f"unused {k}"] = np.zeros(1, np.float32)


@malice("a table of as many classes as fit", "table of 2 by 2")
def _(folder: Folder, size: int) -> None:
    side = math.isqrt(size // 12)
    folder.claim["pairwise"] = [["0x0.0p+0"] * side] * side


@malice("many quadratic pieces", "pieces")
def _(folder: Folder, size: int) -> None:
    count = max(2**14 + 2, size // 20 // 2 * 2)
    shapes = {"frame": (count, 1, 1), "offset": (count, 1), "slope": (count, 1), "shift": (count,)}
    folder.operations[0] = {
        "kind": "quadratics",
        "name": "",
        "options": {"classes": 2},
        "tensors": {key: f"0.{key}" for key in shapes},
    }
    folder.tensors = {f"0.{key}": np.ones(shape, np.float32) for key, shape in shapes.items()}


@malice("weights over all binades", "binades")
def _(folder: Folder, size: int) -> None:
    weight = np.geomspace(1e-300, 1e300, max(size // 16, 100)).reshape(1, -1)
    folder.claim["network"]["input_shape"] = [weight.shape[1]]
    folder.tensors["0.weight"] = np.concatenate([weight, -weight])
    count = len(folder.samples["labels"])
    folder.samples["inputs"] = np.zeros((count, weight.shape[1]), np.uint8)
    folder.claim["bounds"][0] |= {"input_shape": [weight.shape[1]], "bound": (1e306).hex()}
    folder.claim["claim"]["functions"].pop("F32", None)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def repeat(folder: Folder, count: int) -> None:
    """The first row as often as that, under other indices."""
    for key, array in folder.samples.items():
        folder.samples[key] = np.repeat(array[:1], count, axis=0)
    folder.samples["indices"] = np.arange(count)
    folder.rows = [[str(k), *folder.rows[0][1:]] for k in range(count)]


def refusal(path: Path) -> str:
    """What the command prints about a folder that it does not verify, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "robustcert.check", str(path), "--exact", "4"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "VERIFIED:" not in done.stdout
    return done.stdout


def malicious(name: str, size: int, root: Path) -> tuple[list[str], Path]:
    """What a folder of about ``size`` bytes is to be refused with, any of these; and the folder."""
    expected, change = MALICE[name]
    folder = folder_of(root / "folder")
    change(folder, size)
    folder.save()
    return expected.split("|"), folder.path


@pytest.mark.parametrize("name", MALICE)
def test_malicious_folders_are_refused(name: str, tmp_path: Path) -> None:
    expected, folder = malicious(name, 2**18, tmp_path)
    try:
        found = "\n".join(check(folder, exact=4).mismatches)
    except UnreadableError as error:
        found = str(error)
    assert any(word in found for word in expected), found[:300]


@pytest.mark.slow
@pytest.mark.parametrize("name", MALICE)
def test_malicious_folders_of_64_megabytes_are_refused_soon(name: str, tmp_path: Path) -> None:
    expected, folder = malicious(name, 2**26, tmp_path)
    found = refusal(folder)
    # A certificate.json of that size, or as many values, is refused before it is parsed.
    assert any(word in found for word in [*expected, " more than "]), found[:300]


def test_no_loop_over_the_entries_of_a_map_as_one_matrix() -> None:
    # Every tap of a kernel of 200 x 200 reads the one value that there is.
    options = {"stride": [1, 1], "padding": [199, 199], "dilation": [1, 1], "groups": 1}
    weight = np.random.RandomState(0).randn(1, 1, 200, 200)
    wide = Operation("convolution", "", "0", options, {"weight": weight}, (1, 1, 1), (1, 200, 200))
    (matrix,) = convolution._whole_matrices(wide)
    assert (matrix[0, :, 0].reshape(200, 200) == weight[0, 0, ::-1, ::-1]).all()


# Errors


def test_a_message_is_short_whatever_it_shows() -> None:
    for value in (nested(900), "x" * 10**6, ["é" * 100] * 10**5, {"k": nested(50)}, "\ud800\n"):
        assert len(show(value)) <= 80
        assert show(value).isascii()
        assert show(value).isprintable()


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0], [0, 2**31, 2**31], [2**40, 0, 2**40]])
def test_a_shape_without_entries_is_no_way_to_a_huge_one(shape: list[int]) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    with pytest.raises(UnreadableError, match="at most"):
        parse_safetensors(struct.pack("<Q", len(header)) + header, "file")


def test_a_roll_of_what_is_no_map_is_refused(tmp_path: Path) -> None:
    folder = Folder(certify(tmp_path / "folder", build("relu")))
    folder.find("activation")["options"] = {"function": "circular_shift", "moved": 1}
    folder.save()
    with pytest.raises(UnreadableError, match="height and width"):
        check(folder.path)


def rows_of_points(classes: int = 3) -> PlainNetwork:
    """Dense layers over (k, n) inputs, flattened behind."""
    model = nn.Sequential(
        nn.Linear(4, 5), activations.ReLU(5), nn.Flatten(), nn.Linear(15, classes)
    )
    return fold_network(model, (3, 4))


def test_semidefinite_proofs_of_layers_over_rows_are_not_covered(tmp_path: Path) -> None:
    path = proof_folders.certify(tmp_path / "folder", build("relu"), LipSDPCertifier(5))
    with pytest.raises(UnsoundNetworkError, match="the operation dense"):
        LipSDPCertifier(5).pairwise_bound(rows_of_points())
    claim = Folder(path)
    other = Folder(certify(tmp_path / "rows", rows_of_points()))
    for name in ("network.safetensors", "samples.safetensors", "radii.csv"):
        shutil.copy(other.path / name, path / name)
    claim.claim |= {key: other.claim[key] for key in ("network", "bounds", "pairwise", "summary")}
    claim.claim["files"] |= {
        key: value for key, value in other.claim["files"].items() if key in claim.claim["files"]
    }
    (path / "certificate.json").write_text(json.dumps(claim.claim))
    report = check(path)
    assert not report.verified
    assert any("semidefinite" in line for line in report.uncovered)


# Fuzz

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        2**62,
        2**64,
        10**400,
        0.5,
        -0.0,
        1e308,
        "",
        "x",
        "\ud800",
    ),
    *([], {}, [0], [[]], {"a": 1}, [2**62, 0], "0x1.8p+0", "0x0.0p+0", "relu", "sum", "activation"),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in inside:
        found.append((*path, key))
        if isinstance(item, dict | list):
            found += places(item, (*path, key))
    return found


def mutate_json(value: Any, chance: random.Random) -> None:
    """One value replaced, removed, repeated or moved."""
    *path, key = chance.choice(places(value))
    for step in path:
        value = value[step]
    how = chance.randrange(4)
    if how == 0:
        value[key] = chance.choice(ODD)
    elif how == 1:
        del value[key]
    elif isinstance(value, list):
        value.insert(key, value[chance.randrange(len(value))])
    elif how == 2 and isinstance(value[key], int) and not isinstance(value[key], bool):
        value[key] += chance.choice((-1, 1, 2**20))
    else:
        value[chance.choice([*value, "new", "bias"])] = value[key]


def mutate_tensors(tensors: dict[str, Any], chance: random.Random) -> None:
    """One tensor of another shape, dtype or value, or none."""
    name = chance.choice([*tensors])
    array = tensors[name]
    how = chance.randrange(5)
    if how == 0:
        tensors[name] = array.reshape(chance.choice([(-1,), (1, *array.shape), (*array.shape, 1)]))
    elif how == 1:
        tensors[name] = array.astype(chance.choice([np.float32, np.float64, np.int64, np.uint8]))
    elif how == 2:
        tensors[name] = np.ascontiguousarray(array.T if array.ndim > 1 else array.flatten()[:-1])
    elif how == 3:
        changed = np.array(array)
        if changed.size:
            odd = [0, 1, 2, 5e-324, -1e30] if array.dtype.kind == "f" else [0, 1, 200]
            changed.flat[chance.randrange(changed.size)] = chance.choice(odd)
        tensors[name] = changed
    else:
        del tensors[name]


def fuzz(folder: Folder, chance: random.Random) -> None:
    """One change somewhere; the digests fit again but for changed bytes."""
    how = chance.randrange(5)
    if how == 0:
        mutate_json(folder.claim, chance)
    elif how == 1:
        mutate_tensors(chance.choice([folder.tensors, folder.samples]), chance)
    elif how == 2:
        row = chance.choice(folder.rows)
        row[chance.randrange(len(row))] = chance.choice(["", "0", "1", "-1", "nan", "inf", "0x1p0"])
    elif how == 3:
        name = chance.choice(["network.safetensors", "samples.safetensors"])
        content = (folder.path / name).read_bytes()

        def change(header: dict[str, Any]) -> None:
            if any(places(header)):
                mutate_json(header, chance)

        folder.raw[name] = with_header(content, change)
    else:
        name = chance.choice(["certificate.json", "radii.csv", "network.safetensors"])
        damaged = bytearray((folder.path / name).read_bytes())
        place = chance.randrange(len(damaged))
        if chance.random() < 0.5:
            damaged[place] ^= 1 << chance.randrange(8)
        else:
            del damaged[place : place + chance.randrange(1, 100)]
        folder.raw[name] = bytes(damaged)


def meaning(path: Path) -> Any:
    """What a folder claims: its table, its constants, its network and its counts."""
    claim = json.loads((path / "certificate.json").read_text())
    return (
        (path / "radii.csv").read_bytes(),
        *((path / f"{name}.safetensors").read_bytes() for name in ("network", "samples")),
        *(claim[key] for key in ("claim", "pairwise", "summary")),
        {key: value for key, value in claim["network"].items() if key != "digest"},
    )


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("miniatures")
    kinds = ("maxmin", "convnet", "residual", "deep-quadric", "LinearSpline")
    return [
        *(certify(root / kind, build(kind)) for kind in kinds),
        FOLDERS["second-order"](root / "second"),
        FOLDERS["lipsdp"](root / "lipsdp"),
    ]


def survives(miniatures: list[Path], seed: int, path: Path) -> None:
    """Whatever is changed, a report or an UnreadableError comes out."""
    chance = random.Random(seed)
    honest = chance.choice(miniatures)
    folder = Folder(Path(shutil.copytree(honest, path)))
    try:
        fuzz(folder, chance)
        folder.save()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        # The forger's own tools cannot write it down.
        return
    try:
        report = check(folder.path, exact=2, seed=0)
    except UnreadableError:
        return
    if report.verified and meaning(folder.path) != meaning(honest):
        assert still_true(folder, honest), f"seed {seed}"


def still_true(folder: Folder, honest: Path) -> bool:
    """Whether a changed folder claims no larger radius, and the margins that its network has."""
    before = {row[0]: float.fromhex(row[6]) for row in Folder(honest).rows}
    if any(float.fromhex(row[6]) > before.get(row[0], 0.0) for row in folder.rows):
        return False
    tensors = load_file(folder.path / "network.safetensors")
    operations = read_network(folder.claim["network"], tensors)
    inputs = torch.from_numpy(load_file(folder.path / "samples.safetensors")["inputs"])
    ones = dict.fromkeys((op.path for op in walk(operations)), 1.0)
    x = to_unit(inputs).double().numpy()
    logits = evaluate(operations, x, ones, [FLOAT64]).values
    own = np.array([int(row[2]) for row in folder.rows])
    rest = logits.copy()
    rest[np.arange(len(own)), own] = -math.inf
    margin = logits[np.arange(len(own)), own] - rest.max(axis=1)
    written = np.array([float(row[7]) for row in folder.rows])
    return bool((abs(margin - written) <= 1e-7 * (1 + abs(margin))).all())


@pytest.mark.parametrize("block", range(10))
def test_no_change_of_a_folder_leads_to_another_error(
    block: int, miniatures: list[Path], tmp_path: Path
) -> None:
    for seed in range(30 * block, 30 * (block + 1)):
        survives(miniatures, seed, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(50))
def test_no_change_of_a_folder_leads_to_another_error_thousands(
    block: int, miniatures: list[Path], tmp_path: Path
) -> None:
    for seed in range(100 * block + 1000, 100 * (block + 1) + 1000):
        survives(miniatures, seed, tmp_path / str(seed))


@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (3, 1), (3, 2), (5, 1)])
def test_what_is_bounded_along_one_dimension_is_proved_so(kernel: int, stride: int) -> None:
    """The widest convolutions whose bounds are of that kind are within the checker's limits."""
    tried = 0
    for size in (4, 6, 8, 10):
        axis = symbols.Axis.of(kernel, size, stride, 1, 1, circular=False)
        widths = [
            width
            for width in range(8, 300, 8)
            if _is_worth_unrolling(np.empty((1, width, width, kernel, kernel)), (axis, axis), 0)
        ]
        if not widths:
            continue
        shape = (widths[-1], widths[-1], kernel, kernel)
        options = {"stride": [stride] * 2, "padding": [1, 1], "dilation": [1, 1], "groups": 1}
        operation = Operation(
            "convolution",
            "",
            "0",
            options,
            {"weight": np.zeros(shape)},
            (shape[0], size, size),
            (shape[0], axis.outputs, axis.outputs),
        )
        assert len(list(convolution._mixed(operation))) == 2
        tried += 1
    assert tried
