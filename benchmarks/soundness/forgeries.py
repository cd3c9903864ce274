"""Forged certificate folders: what a forger changes, who puts every digest and count right again.

An honest folder of each of the networks :data:`KINDS` is changed by the corruptions here: those of
:data:`EVERYWHERE` fit any network, those of :data:`SOMEWHERE` the networks that they name, and
:func:`per_tensor` has some for every constant. None of the results may be verified.
"""

import csv
import hashlib
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from robustcert import activations
from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import (
    Certifier,
    CombinedCertifier,
    LipschitzCertifier,
    QuadricCertifier,
)
from robustcert.certifiers.second_order.curvature import is_covered
from robustcert.check import FLOAT64, UnreadableError, check, evaluate, read_network, walk
from robustcert.data import as_numbers
from robustcert.models import MLP, ConvNet, DeepSubspaces, LayerFamily, Subspaces
from robustcert.models.normalize import Normalize
from robustcert.network.branches import Sum
from robustcert.network.fold import fold_network
from robustcert.network.input_space import InputSpace, scaling
from robustcert.network.input_space import factor as factor_of
from robustcert.network.linear import Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork

FLOAT_FILES = ("network.safetensors", "samples.safetensors", "radii.csv")
METRIC_FILE = "metric.safetensors"
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


# Networks in a metric: the kind of network, and that of the metric.
METRICS = {
    "scaled": ("table", "scale"),
    "scaled-maxmin": ("maxmin", "scale"),
    "mahalanobis": ("table", "matrix"),
    "scaled-convnet": ("convnet", "scale"),
    "mahalanobis-smooth": ("smooth-table", "matrix"),
    "scaled-quadric": ("quadric", "scale"),
    "columns-quadric": ("quadric-table", "scale"),
    "mahalanobis-quadric": ("quadric-table", "matrix"),
    "scaled-affine": ("affine", "scale"),
}


def measured(kind: str) -> PlainNetwork:
    """A network of :data:`METRICS`."""
    base, metric = METRICS[kind]
    network = build(base)
    size, table = network.input_shape[0], len(network.input_shape) == 1
    generator = torch.Generator().manual_seed(len(kind))
    scale = 0.5 + torch.rand(size, generator=generator, dtype=torch.float64)
    names = tuple(f"c{i}" for i in range(size)) if table else None
    if metric == "matrix":
        matrix = torch.randn(size, 5, generator=generator, dtype=torch.float64) / 2
        matrix[2] = 0
        return replace(network, space=InputSpace("columns", names, factor_of(matrix)))
    if size > 1:
        scale[1] = 0
    return replace(
        network, space=InputSpace("columns" if table else "images", names, scaling(scale))
    )


def build_table(kind: str) -> PlainNetwork:
    """A network of six columns."""
    if kind == "affine":
        return fold_network(
            nn.Sequential(Normalize([0.3], [0.5], channels=6), nn.Linear(6, 3)), (6,)
        )
    if kind == "quadric-table":
        spread = Normalize([0.3], [0.5, 1.0, 2.0, 4.0, 3.0, 0.7], channels=6)
        subspaces = Subspaces((6,), 3, per_class=2, rank=2)
        return fold_network(unsettle(nn.Sequential(spread, subspaces)), (6,))
    activation = activations.ReLU if kind == "table" else activations.SmoothMaxMin
    table = MLP(
        (6,), 3, width=8, depth=2, layer=LAYERS, activation=activation, mean=(0.3,), std=(2.0,)
    )
    return fold_network(unsettle(table), (6,))


def build(kind: str) -> PlainNetwork:
    torch.manual_seed(len(kind))
    if kind in METRICS:
        return measured(kind)
    if kind in ("affine", "table", "smooth-table", "quadric-table"):
        return build_table(kind)
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
    if kind == WIDE:
        inner = [Dense(nn.init.orthogonal_(torch.empty(16, 16))) for _ in range(31)]
        head = Dense(torch.full((1, 16), 300.0) + torch.randn(3, 16) / 100)
        return PlainNetwork((Flatten(), *inner, head), (1, 4, 4))
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


def write(folder: Path, network: PlainNetwork, split: CertifiedSplit, certifier: Certifier) -> None:
    write_certificate(folder, network, certifier.claim(network), split, [0.001, 0.01])


def certify(folder: Path, network: PlainNetwork, arithmetic: Any = "float64") -> Path:
    """A folder for random samples, some of which are predicted as labelled."""
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    inputs = torch.randint(0, 256, (SAMPLES, *network.input_shape), dtype=torch.uint8)
    if network.space.kind == "columns":
        inputs = 3 * torch.randn(SAMPLES, *network.input_shape)
    quadratic = network.operations[-1].kind == "quadratics"
    certifier: Certifier = QuadricCertifier() if quadratic else LipschitzCertifier(arithmetic)
    if network.space.metric is not None and is_covered(network):
        certifier = CombinedCertifier()
    certificates = certifier.certify(network, as_numbers(inputs, network.space.kind))
    target = certificates.prediction.clone()
    target[::4] = (target[::4] + 1) % 3
    split = CertifiedSplit(inputs, target, torch.arange(SAMPLES), certificates)
    write(folder, network, split, certifier)
    return folder


def certify_kind(root: Path, kind: str) -> Path:
    """The honest folder of a kind, with its samples as a dataset's file beside it."""
    folder = certify(root / kind, build(kind), "float32" if kind == WIDE else "float64")
    samples = load_file(folder / "samples.safetensors")
    np.savez(root / f"{kind}.npz", x_test=samples["inputs"], y_test=samples["labels"])
    return folder


KINDS = ("relu", "maxmin", "smooth", "convnet", "grouped", "residual", "quadric", "deep-quadric")
# Of a worst-case float32 error far above its margins: rounding would excuse any prediction.
WIDE = "wide"
# What a network of quadratics has not, and so no forger can change.
OF_NORMS = ("bound", "constant", "head", "a weight")


class Folder:
    """A certificate folder in the hands of a forger, who puts every digest right again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claim: dict[str, Any] = json.loads((path / "certificate.json").read_text())
        self.tensors = load_file(path / "network.safetensors")
        self.samples = load_file(path / "samples.safetensors")
        has_metric = (path / METRIC_FILE).exists()
        self.metric = load_file(path / METRIC_FILE) if has_metric else {}
        with (path / "radii.csv").open(newline="") as file:
            self.head, *self.rows = csv.reader(file)
        self.raw: dict[str, bytes] = {}
        # What a forger who cannot put the digest right again leaves.
        self.kept_digest: str | None = None
        # Inputs and labels of the data that the folder is compared with.
        self.data: tuple[np.ndarray, np.ndarray] | None = None

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
        self.claim["summary"]["undecided"] = 0
        for row, good in zip(self.rows, right, strict=True):
            row[3] = str(int(good))
        for entry in self.claim["summary"]["certified"]:
            radius = float.fromhex(entry["radius"])
            beyond = [float.fromhex(row[6]) > radius for row in self.rows]
            entry["count"] = sum(g and b for g, b in zip(right, beyond, strict=True))

    def save(self) -> None:
        save_file(self.tensors, self.path / "network.safetensors")
        save_file(self.samples, self.path / "samples.safetensors")
        if self.metric:
            save_file(self.metric, self.path / METRIC_FILE)
        lines = [",".join(row) for row in (self.head, *self.rows)]
        (self.path / "radii.csv").write_text("\n".join(lines) + "\n")
        for name, content in self.raw.items():
            (self.path / name).write_bytes(content)
        if isinstance(self.claim.get("network"), dict) and "digest" in self.claim["network"]:
            self.claim["network"]["digest"] = self.kept_digest or self.digest()
        if "files" in self.claim:
            for name in (*FLOAT_FILES, *([METRIC_FILE] if self.metric else [])):
                content = (self.path / name).read_bytes()
                self.claim["files"][name] = hashlib.sha256(content).hexdigest()
        if self.data is not None:
            inputs, labels = self.data
            np.savez(self.path.with_name("data.npz"), x_test=inputs, y_test=labels)
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
                if "branches" in entry:
                    line["branches"] = len(entry["branches"])
                total.update(json.dumps(line, sort_keys=True).encode())
                for key in sorted(tensors):
                    total.update(key.encode() + tensors[key].tobytes())
                for branch in entry.get("branches", []):
                    total.update(json.dumps({"branch": len(branch)}).encode())
                    walk(branch)

        walk(self.operations)
        return total.hexdigest()


def refused(path: Path) -> bool:
    """Whether the checker refuses the folder, in either way, with any ``data.npz`` beside it."""
    data = [file for file in [path.with_name("data.npz")] if file.exists()]
    try:
        lines = check(path, exact=6, seed=0, data=data).mismatches
    except UnreadableError as error:
        lines = [str(error)]
    assert all(line.isascii() and line.isprintable() for line in lines)
    return bool(lines)


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


for key in ("samples", "correct", "undecided"):

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


for label, value in {"2": 2, "true": True, "3.0": 3.0, "'3'": "3", "null": None}.items():

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
    "with a key twice": lambda folder: text_of(folder).replace("{", '{"format": 3,', 1).encode(),
    "with NaN": lambda folder: text_of(folder).replace('"format": 3', '"format": NaN').encode(),
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


# Accuracy.


@everywhere("all predictions are the labels")
def _(folder: Folder) -> None:
    for row in range(len(folder.rows)):
        if folder.rows[row][1] != folder.rows[row][2]:
            folder.rows[row][2] = folder.rows[row][1]
            folder.set_radius(row, 0.0)
    folder.recount()


@everywhere("a correct prediction that is called undecided too")
def _(folder: Folder) -> None:
    folder.claim["summary"]["undecided"] = folder.claim["summary"]["correct"]


@everywhere("a correct prediction counted, and not listed")
def _(folder: Folder) -> None:
    next(row for row in folder.rows if row[3] == "1")[3] = "0"


def excuse(folder: Folder, rows: Sequence[int]) -> None:
    """Predict the labels of rows, with the margins that they have."""
    operations = read_network(folder.claim["network"], folder.tensors)
    norms = {op.path: 1.0 for op in walk(operations)}
    inputs = folder.samples["inputs"].astype(np.float32) / np.float32(255)
    logits = evaluate(operations, inputs.astype(np.float64), norms, [FLOAT64]).values
    for k in rows:
        label = int(folder.rows[k][1])
        margin = logits[k, label] - np.delete(logits[k], label).max()
        folder.rows[k][2], folder.rows[k][7] = str(label), f"{margin:.9g}"
        if margin <= 0:
            folder.set_radius(k, 0.0)
    folder.recount()


@everywhere("all predictions are the labels, with the margins of these")
def _(folder: Folder) -> None:
    excuse(folder, range(len(folder.rows)))


@somewhere(WIDE, "all predictions are the labels, which rounding excuses")
def _(folder: Folder) -> None:
    excuse(folder, range(len(folder.rows)))


for k in range(0, SAMPLES, 4):

    @somewhere(WIDE, f"prediction {k} is the label, which rounding excuses")
    def _(folder: Folder, k: int = k) -> None:
        excuse(folder, [k])


# Data.


def data_of(folder: Folder) -> tuple[np.ndarray, np.ndarray]:
    """The samples as those of a dataset."""
    return folder.samples["inputs"].copy(), folder.samples["labels"].copy()


for label, alter in {
    "floats that truncate to the samples": lambda x, y: (x + np.float64(0.4), y),
    "floats from 0 to 255": lambda x, y: (x.astype(np.float32), y),
    "the samples in another order": lambda x, y: (x[::-1], y[::-1]),
    "other labels": lambda x, y: (x, (y + 1) % 3),
    "a pixel changed": lambda x, y: (np.where(np.arange(x.size).reshape(x.shape), x, x + 1), y),
    "the images transposed": lambda x, y: (x.swapaxes(-1, -2), y),
    "flat images": lambda x, y: (x.reshape(len(x), -1), y),
    "wider integers": lambda x, y: (x.astype(np.int32), y),
    "labels of floating point": lambda x, y: (x, y + 0.25),
    "labels of two dimensions": lambda x, y: (x, np.stack([y, y], 1)),
    "negative labels": lambda x, y: (x, y - 5),
    "fewer rows": lambda x, y: (x[:-1], y[:-1]),
    "NaN": lambda x, y: (np.full(x.shape, np.nan, np.float32), y),
}.items():

    @everywhere(f"data of {label}")
    def _(folder: Folder, alter: Callable[..., Any] = alter) -> None:
        folder.data = alter(*data_of(folder))


# Digest.


@everywhere("another digest")
def _(folder: Folder) -> None:
    folder.kept_digest = folder.digest()[::-1]


@somewhere("residual", "a branch more from what follows a sum, under the old digest")
def _(folder: Folder) -> None:
    folder.kept_digest = folder.digest()
    head = folder.operations[2]
    # The branch becomes a sum of its own, whose second branch would have been the next one.
    inner = {"kind": "sum", "name": "", "options": {}, "tensors": {}, "branches": head["branches"]}
    folder.operations[2] = {**inner, "branches": [[inner]]}
    for entry in head["branches"][1]:
        for key, name in entry["tensors"].items():
            moved = name.replace("2.branch1.", "2.branch0.0.branch1.")
            entry["tensors"][key], folder.tensors[moved] = moved, folder.tensors.pop(name)


# Values and keys that nobody proves.


for factor in (0.0, 0.5, 1.5):

    @everywhere(f"values of {factor:g} times the bounds that nothing reads beside them")
    def _(folder: Folder, factor: float = factor) -> None:
        for bound in folder.claim["bounds"]:
            bound["lower"] = (float.fromhex(bound["bound"]) * factor).hex()


for label, keys in {
    "a hundred keys": [f"key {k}" for k in range(100)],
    "a million keys": [f"key {k}" for k in range(10**6)],
    "a key of a thousand characters": ["k" * 1000],
}.items():

    @everywhere(f"{label} that nothing reads")
    def _(folder: Folder, keys: list[str] = keys) -> None:
        folder.claim |= dict.fromkeys(keys, 1)


@everywhere("a thousand files that nothing reads")
def _(folder: Folder) -> None:
    for k in range(1000):
        (folder.path / f"{k}.txt").touch()


for place in ("claim", "network", "summary", "files"):

    @everywhere(f"a key that nothing reads in {place}")
    def _(folder: Folder, place: str = place) -> None:
        folder.claim[place]["more"] = "1"


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

            yield f"bound {i} lowered by {slack:g}", lower


def forge(honest: dict[str, Path], root: Path, kind: str, corruption: Corruption) -> Path:
    folder = Folder(Path(shutil.copytree(honest[kind], root / "forged")))
    corruption(folder)
    folder.save()
    return folder.path
