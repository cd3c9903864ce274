"""The independent checker: honest folders verify, forged ones do not, and it stands alone."""

import csv
import gzip
import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import write_idx
from safetensors.numpy import load_file, save_file
from torch import nn

from robustcert import activations, convolution, plain, spectral
from robustcert.certificate import CertifiedSplit, write_certificate
from robustcert.certifiers import LipschitzCertifier, QuadricCertifier, lipschitz
from robustcert.check import UnreadableError, check, norms
from robustcert.check.__main__ import main
from robustcert.check.digits import add_up, digit_bits, exact_gram, split_floats, split_integers
from robustcert.check.fixed import to_integers
from robustcert.check.forward import FLOAT64, evaluate, evaluate_exactly
from robustcert.check.network import Operation, read_network
from robustcert.check.norms import find, prove
from robustcert.data import to_unit
from robustcert.lipschitz import fold_network
from robustcert.models import MLP, ConvNet, DeepSubspaces, LayerFamily, Subspaces
from robustcert.plain import Convolution, Dense, Flatten, PlainNetwork, Sum
from robustcert.rounding import ForwardError
from robustcert.spectral import conv_norm_bound, dense_norm_bound, power_iteration

FLOAT_FILES = ("network.safetensors", "samples.safetensors", "radii.csv")
LAYERS = LayerFamily(
    dense=nn.Linear,
    conv=lambda i, o, k, stride, padding, input_size: nn.Conv2d(i, o, k, stride, padding),
)
SAMPLES = 24


def unsettle(module: nn.Module) -> nn.Module:
    """Random parameters, biases and activations' own included."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return module


def build(kind: str) -> PlainNetwork:
    torch.manual_seed(len(kind))
    if kind == "convnet":
        model = ConvNet(
            (3, 8, 8), 4, width=12, depth=3, layer=LAYERS, activation=activations.ReLU, channels=4
        )
        return fold_network(unsettle(model), (3, 8, 8))
    if kind == "grouped":
        conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
        act = activations.GroupSort(6, group_size=3)
        with torch.no_grad():
            outputs = act(conv(torch.zeros(1, 4, 5, 6))).numel()
        model = nn.Sequential(conv, act, nn.Flatten(), nn.Linear(outputs, 3))
        return fold_network(unsettle(model), (4, 5, 6))
    if kind == "highpass":
        signs = torch.tensor([[(-1.0) ** (i + j) for j in range(3)] for i in range(3)])
        kernel = signs.expand(4, 1, 3, 3) * torch.tensor([1, 2, 3, 4]).view(4, 1, 1, 1)
        conv = Convolution(kernel.clone(), padding=(1, 1))
        return PlainNetwork((conv, Flatten(), Dense(torch.randn(3, 100))), (1, 5, 5))
    if kind == "residual":
        inner = fold_network(
            unsettle(nn.Sequential(nn.Linear(8, 8), activations.ReLU(8), nn.Linear(8, 8))), (8,)
        )
        sums = Sum(((), inner.operations), name="block")
        return PlainNetwork(
            (Flatten(), Dense(torch.randn(8, 16)), sums, Dense(torch.randn(3, 8))), (1, 4, 4)
        )
    if kind == "quadric":
        return fold_network(unsettle(Subspaces((1, 4, 4), 3, per_class=2, rank=3)), (1, 4, 4))
    if kind == "deep-quadric":
        deep = DeepSubspaces(
            (1, 4, 4),
            3,
            width=8,
            depth=2,
            layer=LAYERS,
            activation=activations.SmoothMaxMin,
            per_class=1,
            rank=3,
            mean=(0.3,),
            std=(0.5,),
        )
        return fold_network(unsettle(deep), (1, 4, 4))
    activation = {
        "relu": activations.ReLU,
        "maxmin": activations.GroupSort,
        "smooth": activations.SmoothMaxMin,
    }.get(kind) or getattr(activations, kind)
    model = MLP(
        (1, 4, 4), 3, width=8, depth=2, layer=LAYERS, activation=activation, mean=(0.3,), std=(0.5,)
    )
    return fold_network(unsettle(model), (1, 4, 4))


def write(
    folder: Path, network: PlainNetwork, split: CertifiedSplit, certifier: LipschitzCertifier
) -> None:
    record = {"functions": certifier.functions, "proof": certifier.proof(network)}
    pairwise = certifier.pairwise_bound(network)
    write_certificate(folder, network, pairwise, split, [0.001, 0.01], record)


def certify(folder: Path, network: PlainNetwork, arithmetic: Any = "float64") -> Path:
    """A folder for random samples, some of them bytes, some correct."""
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    inputs = torch.randint(0, 256, (SAMPLES, *network.input_shape), dtype=torch.uint8)
    quadratic = network.operations[-1].kind == "quadratics"
    certifier = QuadricCertifier() if quadratic else LipschitzCertifier(arithmetic)
    certificates = certifier.certify(network, to_unit(inputs))
    target = certificates.prediction.clone()
    target[::4] = (target[::4] + 1) % 3
    split = CertifiedSplit(inputs, target, torch.arange(SAMPLES), certificates)
    write(folder, network, split, certifier)
    return folder


KINDS = ("relu", "maxmin", "smooth", "convnet", "grouped", "residual", "quadric", "deep-quadric")
# What a network of quadratics has not, and so no forger can change.
OF_NORMS = ("bound", "constant", "head", "a weight")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("honest")
    return {kind: certify(root / kind, build(kind)) for kind in KINDS}


class Folder:
    """A certificate folder in the hands of a forger, who puts every digest right again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claim: dict[str, Any] = json.loads((path / "certificate.json").read_text())
        self.tensors = load_file(path / "network.safetensors")
        self.samples = load_file(path / "samples.safetensors")
        with (path / "radii.csv").open(newline="") as file:
            self.head, *self.rows = csv.reader(file)
        self.raw: dict[str, bytes] = {}

    @property
    def operations(self) -> list[dict[str, Any]]:
        return self.claim["network"]["operations"]

    def find(self, kind: str) -> dict[str, Any]:
        return next(entry for entry in self.operations if entry["kind"] == kind)

    def set_radius(self, row: int, radius: float) -> None:
        millionths = math.floor(Fraction(radius) * 10**6)
        decimal = f"{millionths // 10**6}.{millionths % 10**6:06d}"
        self.rows[row][4:7] = ["certified" if radius > 0 else "abstain", decimal, radius.hex()]

    def recount(self) -> None:
        right = [row[1] == row[2] for row in self.rows]
        self.claim["summary"]["correct"] = sum(right)
        for row, good in zip(self.rows, right, strict=True):
            row[3] = str(int(good))
        for entry in self.claim["summary"]["certified"]:
            radius = float.fromhex(entry["radius"])
            beyond = [float.fromhex(row[6]) > radius for row in self.rows]
            entry["count"] = sum(g and b for g, b in zip(right, beyond, strict=True))

    def save(self) -> None:
        save_file(self.tensors, self.path / "network.safetensors")
        save_file(self.samples, self.path / "samples.safetensors")
        lines = [",".join(row) for row in (self.head, *self.rows)]
        (self.path / "radii.csv").write_text("\n".join(lines) + "\n")
        for name, content in self.raw.items():
            (self.path / name).write_bytes(content)
        if isinstance(self.claim.get("network"), dict) and "digest" in self.claim["network"]:
            self.claim["network"]["digest"] = self.digest()
        if "files" in self.claim:
            for name in FLOAT_FILES:
                content = (self.path / name).read_bytes()
                self.claim["files"][name] = hashlib.sha256(content).hexdigest()
        if "certificate.json" not in self.raw:
            (self.path / "certificate.json").write_text(json.dumps(self.claim))

    def digest(self) -> str:
        shape = self.claim["network"].get("input_shape")
        total = hashlib.sha256(json.dumps(shape).encode())

        def walk(entries: list[dict[str, Any]]) -> None:
            for entry in entries:
                found = {key: self.tensors.get(name) for key, name in entry["tensors"].items()}
                tensors = {key: array for key, array in found.items() if array is not None}
                shapes = {key: [a.dtype.name, *a.shape] for key, a in tensors.items()}
                line = {"kind": entry["kind"], **entry["options"], "shapes": shapes}
                total.update(json.dumps(line, sort_keys=True).encode())
                for key in sorted(tensors):
                    total.update(key.encode() + tensors[key].tobytes())
                for branch in entry.get("branches", []):
                    total.update(json.dumps({"branch": len(branch)}).encode())
                    walk(branch)

        walk(self.operations)
        return total.hexdigest()


def refused(path: Path) -> bool:
    """Whether the checker refuses the folder, in either way."""
    try:
        lines = check(path, exact=6, seed=0).mismatches
    except UnreadableError as error:
        lines = [str(error)]
    assert all(line.isascii() and line.isprintable() for line in lines)
    return bool(lines)


@pytest.mark.parametrize("kind", KINDS)
def test_honest_folders_verify(honest: dict[str, Path], kind: str, tmp_path: Path) -> None:
    report = check(honest[kind], exact=SAMPLES, seed=0)
    assert report.mismatches == []
    # The forger's own way of saving changes nothing that matters.
    folder = Folder(Path(shutil.copytree(honest[kind], tmp_path / "copy")))
    folder.recount()
    folder.save()
    assert check(folder.path).mismatches == []


# A corruption changes a Folder in memory, before all digests are put right.
Corruption = Callable[[Folder], None]
EVERYWHERE: dict[str, Corruption] = {}
SOMEWHERE: dict[tuple[str, str], Corruption] = {}


def everywhere(name: str) -> Callable[[Corruption], Corruption]:
    def add(function: Corruption) -> Corruption:
        EVERYWHERE[name] = function
        return function

    return add


@everywhere("a radius raised by 1 %")
def _(folder: Folder) -> None:
    folder.set_radius(3, float.fromhex(folder.rows[3][6]) * 1.01)
    folder.recount()


@everywhere("all radii raised by 1e-6")
def _(folder: Folder) -> None:
    for row in range(SAMPLES):
        folder.set_radius(row, float.fromhex(folder.rows[row][6]) * (1 + 1e-6))
    folder.recount()


@everywhere("an infinite radius")
def _(folder: Folder) -> None:
    folder.rows[2][4:7] = ["certified", "inf", "inf"]
    folder.recount()


@everywhere("the constants halved, the radii doubled")
def _(folder: Folder) -> None:
    for i, row in enumerate(folder.claim["pairwise"]):
        folder.claim["pairwise"][i] = [(float.fromhex(value) / 2).hex() for value in row]
    for row in range(SAMPLES):
        folder.set_radius(row, float.fromhex(folder.rows[row][6]) * 2)
    folder.recount()


@everywhere("a constant lowered by 1e-6")
def _(folder: Folder) -> None:
    table = folder.claim["pairwise"]
    table[0][1] = (float.fromhex(table[0][1]) * (1 - 1e-6)).hex()


@everywhere("a constant on the diagonal")
def _(folder: Folder) -> None:
    folder.claim["pairwise"][1][1] = (1.0).hex()


@everywhere("a table of constants that is too small")
def _(folder: Folder) -> None:
    folder.claim["pairwise"] = [row[:-1] for row in folder.claim["pairwise"][:-1]]


@everywhere("one bound too few")
def _(folder: Folder) -> None:
    del folder.claim["bounds"][-1]


@everywhere("two bounds exchanged")
def _(folder: Folder) -> None:
    bounds = folder.claim["bounds"]
    bounds[0], bounds[-1] = bounds[-1], bounds[0]


@everywhere("a bound for another input size")
def _(folder: Folder) -> None:
    folder.claim["bounds"][0]["input_shape"] = [1, 2, 2]


@everywhere("a lower value above its bound")
def _(folder: Folder) -> None:
    bound = folder.claim["bounds"][-1]
    bound["lower"] = (float.fromhex(bound["bound"]) * 1.001).hex()


@everywhere("another prediction")
def _(folder: Folder) -> None:
    folder.rows[5][2] = str((int(folder.rows[5][2]) + 1) % 3)
    folder.recount()


@everywhere("another prediction, not certified")
def _(folder: Folder) -> None:
    folder.rows[5][2] = str((int(folder.rows[5][2]) + 1) % 3)
    folder.set_radius(5, 0.0)
    folder.recount()


@everywhere("a prediction that is no class")
def _(folder: Folder) -> None:
    folder.rows[5][2] = "7"
    folder.recount()


@everywhere("another label in the table only")
def _(folder: Folder) -> None:
    folder.rows[1][1] = str((int(folder.rows[1][1]) + 1) % 3)
    folder.recount()


@everywhere("a label that is no class")
def _(folder: Folder) -> None:
    folder.samples["labels"][4] = 9
    folder.rows[4][1] = "9"
    folder.recount()


@everywhere("a negative label")
def _(folder: Folder) -> None:
    folder.samples["labels"][4] = -1


@everywhere("another index in the table only")
def _(folder: Folder) -> None:
    folder.rows[1][0] = "99"


@everywhere("an index twice")
def _(folder: Folder) -> None:
    folder.samples["indices"][1] = 0
    folder.rows[1][0] = "0"


@everywhere("a negative index")
def _(folder: Folder) -> None:
    folder.samples["indices"][0] = -1


@everywhere("correct where it is wrong")
def _(folder: Folder) -> None:
    folder.rows[0][3] = "1"


@everywhere("abstaining with a radius")
def _(folder: Folder) -> None:
    folder.rows[1][4] = "abstain"


@everywhere("certified with radius 0")
def _(folder: Folder) -> None:
    folder.rows[1][4:7] = ["certified", "0.000000", "0x0.0p+0"]


@everywhere("a decimal rounded up")
def _(folder: Folder) -> None:
    folder.rows[1][5] = f"{float(folder.rows[1][5]) + 1e-6:.6f}"


@everywhere("a decimal that is far too low")
def _(folder: Folder) -> None:
    folder.rows[1][5] = "0.000000"


@everywhere("another margin")
def _(folder: Folder) -> None:
    folder.rows[1][7] = f"{float(folder.rows[1][7]) * 1.001:.9g}"


@everywhere("a sample in negative")
def _(folder: Folder) -> None:
    folder.samples["inputs"][6] = 255 - folder.samples["inputs"][6]


@everywhere("inputs of another shape")
def _(folder: Folder) -> None:
    inputs = folder.samples["inputs"]
    folder.samples["inputs"] = inputs.reshape(SAMPLES, -1)[:, :-1].copy()


@everywhere("inputs as integers")
def _(folder: Folder) -> None:
    folder.samples["inputs"] = folder.samples["inputs"].astype(np.int64)


@everywhere("inputs above 1")
def _(folder: Folder) -> None:
    folder.samples["inputs"] = folder.samples["inputs"].astype(np.float32)


@everywhere("an input that is NaN")
def _(folder: Folder) -> None:
    folder.samples["inputs"] = folder.samples["inputs"].astype(np.float32) / np.float32(255)
    folder.samples["inputs"].flat[3] = np.nan


@everywhere("no samples")
def _(folder: Folder) -> None:
    folder.samples = {key: array[:0] for key, array in folder.samples.items()}
    folder.rows = []
    folder.claim["summary"]["samples"] = 0
    folder.recount()


@everywhere("a sample that is left out of the table")
def _(folder: Folder) -> None:
    del folder.rows[0]
    folder.recount()


@everywhere("an unknown tensor among the samples")
def _(folder: Folder) -> None:
    folder.samples["more"] = np.zeros(3, np.float32)


@everywhere("an unused tensor")
def _(folder: Folder) -> None:
    folder.tensors["99.weight"] = np.zeros(3, np.float32)


@everywhere("the head left out")
def _(folder: Folder) -> None:
    entry = folder.operations.pop()
    folder.claim["bounds"].pop()
    for name in entry["tensors"].values():
        del folder.tensors[name]


@everywhere("the first operation twice")
def _(folder: Folder) -> None:
    folder.operations.insert(0, folder.operations[0])


@everywhere("the network of no operation")
def _(folder: Folder) -> None:
    folder.claim["network"]["operations"] = []
    folder.claim["bounds"] = []
    folder.tensors = {}


@everywhere("an unknown operation")
def _(folder: Folder) -> None:
    folder.operations[-1]["kind"] = "attention"


@everywhere("a transposed head")
def _(folder: Folder) -> None:
    name = folder.operations[-1]["tensors"]["weight"]
    folder.tensors[name] = np.ascontiguousarray(folder.tensors[name].T)


@everywhere("a head with a third dimension")
def _(folder: Folder) -> None:
    name = folder.operations[-1]["tensors"]["weight"]
    folder.tensors[name] = folder.tensors[name][None]


for label, value in {"nan": np.nan, "inf": np.inf, "huge": 3e38}.items():

    @everywhere(f"a weight that is {label}")
    def _(folder: Folder, value: float = value) -> None:
        folder.tensors[folder.operations[-1]["tensors"]["weight"]].flat[1] = value


@everywhere("a weight of integers")
def _(folder: Folder) -> None:
    name = folder.operations[-1]["tensors"]["weight"]
    folder.tensors[name] = folder.tensors[name].astype(np.int64)


@everywhere("a weight in half precision")
def _(folder: Folder) -> None:
    name = folder.operations[-1]["tensors"]["weight"]
    folder.tensors[name] = folder.tensors[name].astype(np.float16)


@everywhere("two equal rows of the head, certified apart")
def _(folder: Folder) -> None:
    for name in folder.operations[-1]["tensors"].values():
        folder.tensors[name][:] = folder.tensors[name][:1]
    for row in range(SAMPLES):
        folder.set_radius(row, 0.1)
        folder.rows[row][7] = "0"
    zero = (0.0).hex()
    folder.claim["pairwise"] = [[zero for _ in row] for row in folder.claim["pairwise"]]
    folder.recount()


@everywhere("another input shape")
def _(folder: Folder) -> None:
    folder.claim["network"]["input_shape"].reverse()
    folder.claim["network"]["input_shape"].append(2)


@everywhere("an input shape of 2^60")
def _(folder: Folder) -> None:
    folder.claim["network"]["input_shape"] = [2**30, 2**30]


@everywhere("a tensor under another's name")
def _(folder: Folder) -> None:
    folder.operations[-1]["tensors"]["weight"] = "../../etc/passwd"


@everywhere("an option that does not exist")
def _(folder: Folder) -> None:
    folder.operations[-1]["options"]["bias"] = 0


@everywhere("branches of something that has none")
def _(folder: Folder) -> None:
    folder.operations[-1]["branches"] = []


@everywhere("a threshold moved under its count")
def _(folder: Folder) -> None:
    entry = folder.claim["summary"]["certified"][0]
    entry["decimal"] = 1e-9
    entry["radius"] = (1e-9).hex()
    entry["count"] = SAMPLES + 1


@everywhere("a threshold whose decimal is another number")
def _(folder: Folder) -> None:
    folder.claim["summary"]["certified"][0]["decimal"] *= 2


for key in ("samples", "correct"):

    @everywhere(f"one more in the summary's {key}")
    def _(folder: Folder, key: str = key) -> None:
        folder.claim["summary"][key] += 1


@everywhere("one more certified sample in the summary")
def _(folder: Folder) -> None:
    folder.claim["summary"]["certified"][0]["count"] += 1


for label, change in {
    "another norm": {"norm": "linf"},
    "other units": {"units": "pixels from 0 to 255"},
    "a stronger statement": {"statement": "Nothing can go wrong."},
    "inputs read otherwise": {"inputs": "p / 255"},
    "an unknown function": {"functions": {"R": "r", "BF16": "in bfloat16"}},
    "no function": {"functions": {}},
    "a function described otherwise": {"functions": {"R": "the network"}},
    "a key more": {"probability": "1"},
}.items():

    @everywhere(f"the claim with {label}")
    def _(folder: Folder, change: dict[str, Any] = change) -> None:
        folder.claim["claim"].update(change)


for label, value in {"2": 2, "true": True, "1.0": 1.0, "'1'": "1", "null": None}.items():

    @everywhere(f"format {label}")
    def _(folder: Folder, value: object = value) -> None:
        folder.claim["format"] = value


for key in ("format", "claim", "network", "bounds", "pairwise", "summary", "files"):

    @everywhere(f"no {key}")
    def _(folder: Folder, key: str = key) -> None:
        if key == "network":
            folder.claim["network"] = {}
        else:
            del folder.claim[key]


for label, text in {
    "NaN": "nan",
    "minus infinity": "-inf",
    "a negative number": "-0x1.0000000000000p-3",
    "minus zero": "-0x0.0p+0",
    "decimal": "0.125",
    "not as Python writes it": "0x2.0000000000000p-4",
    "beyond float64": "0x1.0000000000000p+2000",
    "a formula": "=1+1",
    "empty": "",
}.items():

    @everywhere(f"a hexadecimal radius that is {label}")
    def _(folder: Folder, text: str = text) -> None:
        folder.rows[1][6] = text

    @everywhere(f"a bound that is {label}")
    def _(folder: Folder, text: str = text) -> None:
        folder.claim["bounds"][-1]["bound"] = text


for column, text in {0: "1e3", 1: "+1", 2: "1.0", 3: "yes", 4: "proved", 7: "nan"}.items():

    @everywhere(f"{text!r} in column {column}")
    def _(folder: Folder, column: int = column, text: str = text) -> None:
        folder.rows[1][column] = text


def table(folder: Folder) -> bytes:
    return (folder.path / "radii.csv").read_bytes()


for label, edit in {
    "without its last newline": lambda content: content[:-1],
    "with an empty line": lambda content: content + b"\n",
    "with Windows lines": lambda content: content.replace(b"\n", b"\r\n"),
    "with another header": lambda content: content.replace(b"index", b"position", 1),
    "with a ninth column": lambda content: content.replace(b"\n", b",1\n"),
    "with quotes": lambda content: content.replace(b"certified", b'"certified"'),
    "with a byte that is not ASCII": lambda content: content.replace(b"certified", b"certif\xff"),
    "that is empty": lambda content: b"",
    "with a very long line": lambda content: content.replace(b"certified", b"c" * 10**6, 1),
    "of a million lines": lambda content: content + b"0\n" * 10**6,
}.items():

    @everywhere(f"radii.csv {label}")
    def _(folder: Folder, edit: Callable[[bytes], bytes] = edit) -> None:
        folder.raw["radii.csv"] = edit(table(folder))


def text_of(folder: Folder) -> str:
    return (folder.path / "certificate.json").read_text()


for label, rewrite in {
    "empty": lambda folder: b"",
    "a list": lambda folder: b"[]",
    "cut off": lambda folder: text_of(folder)[:-100].encode(),
    "followed by more": lambda folder: (text_of(folder) + "{}").encode(),
    "in UTF-16": lambda folder: text_of(folder).encode("utf-16"),
    "with a key twice": lambda folder: text_of(folder).replace("{", '{"format": 1,', 1).encode(),
    "with NaN": lambda folder: text_of(folder).replace('"format": 1', '"format": NaN').encode(),
    "nested deeply": lambda folder: b"[" * 200_000 + b"]" * 200_000,
    "of five million values": lambda folder: b"[" + b"0," * 5_000_000 + b"0]",
    "with an integer of 10^5 digits": lambda folder: b'{"format": ' + b"1" * 100_000 + b"}",
}.items():

    @everywhere(f"certificate.json {label}")
    def _(folder: Folder, rewrite: Callable[[Folder], bytes] = rewrite) -> None:
        folder.raw["certificate.json"] = rewrite(folder)


def header_of(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def with_header(
    content: bytes, change: Callable[[dict[str, Any]], None], tail: bytes = b""
) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    header = header_of(content)
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :] + tail


def first(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def set_entry(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda header: first(header).update({key: value})


for name in ("network.safetensors", "samples.safetensors"):
    for label, edit in {
        "with a byte more": lambda content: content + b"\0",
        "with a byte less": lambda content: content[:-1],
        "of seven bytes": lambda content: content[:7],
        "with a header of 2^63 bytes": lambda content: struct.pack("<Q", 2**63) + content[8:],
        "with a header past its end": lambda content: struct.pack("<Q", len(content)) + content[8:],
        "with a header that is no JSON": lambda content: content[:8] + b"#" + content[9:],
        "with an unknown dtype": lambda content: with_header(content, set_entry("dtype", "BF16")),
        "with a dtype that is none": lambda content: with_header(content, set_entry("dtype", [1])),
        "with a shape of 2^80": lambda content: with_header(
            content, set_entry("shape", [2**40, 2**40])
        ),
        "with a negative size": lambda content: with_header(content, set_entry("shape", [-1, -1])),
        "with a size of 1.5": lambda content: with_header(content, set_entry("shape", [1.5])),
        "with many dimensions": lambda content: with_header(content, set_entry("shape", [1] * 99)),
        "with offsets past its end": lambda content: with_header(
            content, set_entry("data_offsets", [0, 2**50])
        ),
        "with negative offsets": lambda content: with_header(
            content, set_entry("data_offsets", [-8, 0])
        ),
        "with offsets in reverse": lambda content: with_header(
            content, set_entry("data_offsets", [8, 0])
        ),
        "with overlapping tensors": lambda content: with_header(
            content, lambda header: header.update(again=dict(first(header)))
        ),
        "with a gap": lambda content: with_header(
            content,
            lambda header: (
                [
                    entry.update(data_offsets=[n + 4 for n in entry["data_offsets"]])
                    for entry in header.values()
                ]
                and None
            ),
            b"\0\0\0\0",
        ),
        "with a key more": lambda content: with_header(content, set_entry("order", "F")),
        "with 30,000 tensors": lambda content: with_header(
            content,
            lambda header: header.update(
                {
                    f"t{k}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
                    for k in range(30_000)
                }
            ),
        ),
    }.items():

        @everywhere(f"{name} {label}")
        def _(folder: Folder, name: str = name, edit: Callable[[bytes], bytes] = edit) -> None:
            folder.raw[name] = edit((folder.path / name).read_bytes())


def somewhere(kinds: str, name: str) -> Callable[[Corruption], Corruption]:
    def add(function: Corruption) -> Corruption:
        for kind in kinds.split():
            SOMEWHERE[kind, name] = function
        return function

    return add


for label, change in {
    "stride 0": {"stride": [0, 1]},
    "stride 1": {"stride": [1, 1]},
    "stride 3": {"stride": [3, 3]},
    "stride 2^31": {"stride": [2**31, 2**31]},
    "stride -1": {"stride": [-1, 1]},
    "stride true": {"stride": [True, True]},
    "stride 1.0": {"stride": [1.0, 1.0]},
    "one stride": {"stride": [1]},
    "no padding": {"padding": [0, 0]},
    "padding 3": {"padding": [3, 3]},
    "padding 2^30": {"padding": [2**30, 0]},
    "padding 10^4": {"padding": [10**4, 10**4]},
    "padding -1": {"padding": [-1, -1]},
    "padding 'same'": {"padding": "same"},
    "dilation 2": {"dilation": [2, 1]},
    "dilation 100": {"dilation": [100, 100]},
    "dilation 0": {"dilation": [0, 0]},
    "groups 4": {"groups": 4},
    "groups 0": {"groups": 0},
    "groups 2^40": {"groups": 2**40},
    "a padding mode": {"padding_mode": "circular"},
}.items():

    @somewhere("convnet grouped", f"a convolution with {label}")
    def _(folder: Folder, change: dict[str, Any] = change) -> None:
        entries = [entry for entry in folder.operations if entry["kind"] == "convolution"]
        entries[-1]["options"].update(change)


@somewhere("grouped", "one group in place of two")
def _(folder: Folder) -> None:
    folder.find("convolution")["options"]["groups"] = 1


@somewhere("convnet grouped", "a convolution without its stride")
def _(folder: Folder) -> None:
    del folder.find("convolution")["options"]["stride"]


@somewhere("convnet", "a mirrored kernel")
def _(folder: Folder) -> None:
    name = folder.find("convolution")["tensors"]["weight"]
    folder.tensors[name] = np.ascontiguousarray(folder.tensors[name][..., ::-1])


@somewhere("relu maxmin smooth convnet", "a scale of two channels")
def _(folder: Folder) -> None:
    for name in folder.find("affine")["tensors"].values():
        folder.tensors[name] = np.repeat(folder.tensors[name], 2)


@somewhere("maxmin grouped", "a group size of 0")
def _(folder: Folder) -> None:
    folder.find("activation")["options"]["group_size"] = 0


@somewhere("maxmin grouped", "a group size that does not divide")
def _(folder: Folder) -> None:
    folder.find("activation")["options"]["group_size"] = 5


@somewhere("maxmin", "a group size of 4")
def _(folder: Folder) -> None:
    folder.find("activation")["options"]["group_size"] = 4


@somewhere("maxmin grouped", "no group size")
def _(folder: Folder) -> None:
    del folder.find("activation")["options"]["group_size"]


for function in ("absolute", "identity", "tanh", "swish", "__class__", ["relu"], None):

    @somewhere("relu convnet", f"the activation {function}")
    def _(folder: Folder, function: object = function) -> None:
        folder.find("activation")["options"]["function"] = function


for label, value in {"0": 0.0, "-1": -1.0, "nan": np.nan, "1e-30": 1e-30, "1": 1.0}.items():

    @somewhere("smooth", f"a temperature of {label}")
    def _(folder: Folder, value: float = value) -> None:
        name = folder.find("activation")["tensors"]["temperature"]
        folder.tensors[name] = np.array(value, np.float32)


@somewhere("smooth", "three temperatures")
def _(folder: Folder) -> None:
    name = folder.find("activation")["tensors"]["temperature"]
    folder.tensors[name] = np.full(3, 0.1, np.float32)


@somewhere("smooth", "no temperature")
def _(folder: Folder) -> None:
    entry = folder.find("activation")
    del folder.tensors[entry["tensors"].pop("temperature")]


@somewhere("residual", "a weight inside a branch doubled")
def _(folder: Folder) -> None:
    folder.tensors["2.branch1.0.weight"] *= np.float32(2)


@somewhere("residual", "a branch left out")
def _(folder: Folder) -> None:
    folder.operations[2]["branches"].pop(0)


@somewhere("residual", "no branches")
def _(folder: Folder) -> None:
    folder.operations[2]["branches"] = []


@somewhere("residual", "branches of different shapes")
def _(folder: Folder) -> None:
    folder.operations[2]["branches"][1].pop()
    folder.operations[2]["branches"][0].append(folder.operations[0])
    for key in ("weight", "bias"):
        del folder.tensors[f"2.branch1.2.{key}"]


@somewhere("residual", "sums nested deeply")
def _(folder: Folder) -> None:
    entry = folder.operations[0]
    for _ in range(60):
        entry = {"kind": "sum", "name": "", "options": {}, "tensors": {}, "branches": [[entry]]}
    folder.operations[0] = entry


@somewhere("relu maxmin", "activation and dense layer exchanged")
def _(folder: Folder) -> None:
    operations = folder.operations
    operations[3], operations[4] = operations[4], operations[3]


@somewhere("relu maxmin smooth", "an activation left out")
def _(folder: Folder) -> None:
    place = folder.operations.index(folder.find("activation"))
    del folder.operations[place], folder.claim["bounds"][place]


@somewhere("relu", "dense layers that are called affine")
def _(folder: Folder) -> None:
    folder.find("dense")["kind"] = "affine"


@somewhere("quadric deep-quadric", "a radius raised by 1e-6")
def _(folder: Folder) -> None:
    row = next(k for k, row in enumerate(folder.rows) if row[4] == "certified")
    folder.set_radius(row, float.fromhex(folder.rows[row][6]) * (1 + 1e-6))
    folder.recount()


@somewhere("quadric deep-quadric", "an infinite radius")
def _(folder: Folder) -> None:
    folder.rows[2][4:7] = ["certified", "inf", "inf"]
    folder.recount()


@somewhere("quadric deep-quadric", "another prediction")
def _(folder: Folder) -> None:
    folder.rows[5][2] = str((int(folder.rows[5][2]) + 1) % 3)
    folder.recount()


@somewhere("quadric deep-quadric", "two classes exchanged")
def _(folder: Folder) -> None:
    for name in folder.find("quadratics")["tensors"].values():
        first, second, third = np.split(folder.tensors[name], 3)
        folder.tensors[name] = np.concatenate([second, first, third])


for label, change in {
    "two classes": {"classes": 2},
    "six classes": {"classes": 6},
    "four classes": {"classes": 4},
    "no class": {"classes": 0},
    "an option more": {"temperature": 1},
}.items():

    @somewhere("quadric", f"quadratics of {label}")
    def _(folder: Folder, change: dict[str, Any] = change) -> None:
        folder.find("quadratics")["options"].update(change)


for proof in ("lipschitz", "second-order", "lipsdp"):

    @somewhere("quadric", f"the proof {proof}")
    def _(folder: Folder, proof: str = proof) -> None:
        folder.claim["claim"]["proof"] = proof


@somewhere("relu", "the proof quadric")
def _(folder: Folder) -> None:
    folder.claim["claim"]["proof"] = "quadric"
    folder.claim["bounds"], folder.claim["pairwise"] = [], []


@somewhere("quadric deep-quadric", "constants where there are none")
def _(folder: Folder) -> None:
    folder.claim["pairwise"] = [[(0.0).hex()] * 3] * 3


@somewhere("quadric", "a frame that is missing")
def _(folder: Folder) -> None:
    del folder.tensors[folder.find("quadratics")["tensors"].pop("frame")]


@somewhere("quadric", "offsets of another shape")
def _(folder: Folder) -> None:
    name = folder.find("quadratics")["tensors"]["offset"]
    folder.tensors[name] = np.ascontiguousarray(folder.tensors[name].T)


for label, value in {"nan": np.nan, "huge": 3e38}.items():

    @somewhere("quadric", f"a frame with {label}")
    def _(folder: Folder, value: float = value) -> None:
        folder.tensors[folder.find("quadratics")["tensors"]["frame"]].flat[1] = value


@somewhere("quadric", "a class three times, certified apart")
def _(folder: Folder) -> None:
    for name in folder.find("quadratics")["tensors"].values():
        folder.tensors[name] = np.concatenate([np.split(folder.tensors[name], 3)[0]] * 3)
    for row in range(SAMPLES):
        folder.set_radius(row, 0.1)
        folder.rows[row][7] = "0"
    folder.recount()


def per_tensor(kind: str) -> Iterator[tuple[str, Corruption]]:
    """Every constant of a network changed, every bound lowered, every file damaged."""
    network = build(kind)

    def names(operations: Any, prefix: str = "") -> Iterator[str]:
        for i, operation in enumerate(operations):
            yield from (f"{prefix}{i}.{key}" for key in operation.tensors())
            for b, branch in enumerate(getattr(operation, "branches", ())):
                yield from names(branch, f"{prefix}{i}.branch{b}.")

    for name in names(network.operations):

        def grow(folder: Folder, name: str = name) -> None:
            folder.tensors[name] = np.asarray(folder.tensors[name] * 1.01 + 0.001, np.float32)

        def flip(folder: Folder, name: str = name) -> None:
            array = np.array(folder.tensors[name])
            array.flat[0] = -2 * array.flat[0] - 1
            folder.tensors[name] = array

        yield f"{name} grown", grow
        yield f"one entry of {name} changed", flip
    for i in range(len(network.operations) - ("quadric" in kind)):
        for slack in (1e-6, 0.5, 1.0):

            def lower(folder: Folder, i: int = i, slack: float = slack) -> None:
                bound = folder.claim["bounds"][i]
                bound["bound"] = (float.fromhex(bound["bound"]) * (1 - slack)).hex()
                bound["lower"] = None

            yield f"bound {i} lowered by {slack:g}", lower


def case(kind: str, name: str, corruption: Corruption) -> Any:
    return pytest.param(kind, corruption, id=f"{kind}: {name}".replace("/", " "))


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


def forge(honest: dict[str, Path], root: Path, kind: str, corruption: Corruption) -> Path:
    folder = Folder(Path(shutil.copytree(honest[kind], root / "forged")))
    corruption(folder)
    folder.save()
    return folder.path


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
        [(spectral, "dense_norm_bound", low_dense_bound)],
        "is not proved to be an upper bound",
    ),
    "a circular grid for zero padding": (
        "highpass",
        [(spectral, "conv_norm_bound", circular_grid)],
        "is not proved to be an upper bound",
    ),
    "the norm of the reshaped kernel": (
        "convnet",
        [(spectral, "conv_norm_bound", reshaped_kernel)],
        "is not proved to be an upper bound",
    ),
    "the input's scale forgotten": (
        "maxmin",
        [(plain.Affine, "lipschitz_bound", lambda self, shape: 1.0)],
        "is not proved to be an upper bound",
    ),
    "row norms for row distances": (
        "maxmin",
        [(spectral, "row_distance_bounds", row_norms)],
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
    others = [line for line in report.mismatches if "below its own lower value" not in line]
    assert others
    assert all(expected in line for line in others)


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
    activation = plain.Activation(
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
        patch.setattr(norms, "_whole_matrices", lambda _: iter(()))
        found = prove(op, claimed).method
        assert "1x" in found or "x1 " in found
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


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (30, 7), (64, 64), (200, 260), (300, 270)])
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


def test_ties_are_counted(tmp_path: Path) -> None:
    weight = torch.randn(3, 16)
    weight[1] = weight[0]
    folder = certify(tmp_path / "tied", PlainNetwork((Flatten(), Dense(weight)), (1, 4, 4)))
    report = check(folder)
    assert report.verified
    assert any(topic == "ties" for topic, _ in report.checked)


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
