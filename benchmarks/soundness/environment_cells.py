"""What one process of environments.py does: certify, load, check and export under settings.

    python -m benchmarks.soundness.environment_cells JOB.json

The job names a folder, cells and a file for their outcomes. A job of kind ``reference`` fills the
folder: tiny networks, certificate folders, a checkpoint, the radii of all of them without any
setting, and what is true of the samples by exact arithmetic. A job of kind ``cells`` repeats what
it is told to under the settings of each cell and compares.
"""

import contextlib
import hashlib
import importlib
import json
import locale
import os
import re
import resource
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

# Variants of each network: a process meets each of them once under other settings, so that no
# bound that it remembers answers for the settings.
VARIANTS = 6
THREADS = (1, 2, 4)
SAMPLES, NEAR_TIES = 96, 256
# Repetitions while another thread changes settings.
RACES = 4

Job = dict[str, Any]
Settings = dict[str, Any]
# Labels and radii, or why there are none.
Result = dict[str, Any]


def limit_memory(megabytes: int) -> None:
    """Bound the address space of this process."""
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20,) * 2)


if __name__ == "__main__":
    # Last, for the other benchmarks: the package may be installed elsewhere.
    sys.path.append(str(Path(__file__).parents[2]))
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    if job["process"].get("memory"):
        limit_memory(job["process"]["memory"])

import torch  # noqa: E402  the address space is limited before
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

import robustcert  # noqa: E402
import robustcert.certificate.claim  # noqa: E402
import robustcert.certificate.predictor  # noqa: E402
import robustcert.certificate.samples  # noqa: E402
import robustcert.export  # noqa: E402
from benchmarks.soundness.dyadic import Truth, truth  # noqa: E402
from robustcert import certifiers  # noqa: E402
from robustcert.activations import GroupSort, LinearSpline, SmoothMaxMin  # noqa: E402
from robustcert.certificate.samples import CertifiedSplit, read_radii  # noqa: E402
from robustcert.check import check  # noqa: E402
from robustcert.data import to_unit  # noqa: E402
from robustcert.models import Subspaces  # noqa: E402
from robustcert.network.fold import fold_network  # noqa: E402
from robustcert.network.network import PlainNetwork  # noqa: E402


# Networks
def _near_tie_convolution() -> nn.Module:
    convolution, head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 16, 2, bias=False)
    _pair(convolution, head.weight.view(2, 4, 16))
    return nn.Sequential(convolution, nn.Flatten(), head)


def _near_tie_dense() -> nn.Module:
    first, head = nn.Linear(64, 8), nn.Linear(8, 2, bias=False)
    _pair(first, head.weight.view(2, 8, 1))
    return nn.Sequential(first, nn.ReLU(), head)


def _pair(layer: nn.Linear | nn.Conv2d, head: Tensor) -> None:
    """Pairs of features that nearly agree; one logit sums the first ones, the other the second."""
    weight = layer.weight.abs_()
    weight[1::2] = weight[::2] * (1 + 2.0**-10 * torch.randn(weight[::2].shape))
    layer.bias[1::2] = layer.bias[::2]
    size = 0.1 + torch.rand(head.shape[1] // 2, head.shape[2])
    head.zero_()
    head[0, ::2] = head[1, 1::2] = size


def _relu() -> nn.Module:
    sizes = nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    return nn.Sequential(*sizes)


def _sorting() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), GroupSort(4), nn.Flatten(), nn.Linear(16, 3))


def _splines() -> nn.Module:
    """Diagonal layers between splines, so that semidefinite bounds are attained."""
    network = nn.Sequential(
        *(nn.Linear(2, 2), LinearSpline(2, 3), nn.Linear(2, 2), LinearSpline(2, 3), nn.Linear(2, 2))
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(torch.diag(0.9 + 0.2 * torch.rand(2)))
            layer.bias.fill_(0.1)
        elif isinstance(layer, LinearSpline):
            # In bfloat16, what is just below the middle of 255/256 and 1 is 0.1 % less.
            layer.raw_slopes.copy_(torch.tensor([-0.3, 0.9975 + 2e-4 * float(torch.rand(()))]))
    return network


def _smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), SmoothMaxMin(8), nn.Linear(8, 3))


def _subspaces() -> nn.Module:
    return Subspaces((6,), 3, per_class=2, rank=2)


def _subnormal() -> nn.Module:
    """Half of the features are subnormal in float32, and the logits depend on them."""
    first, head = nn.Linear(4, 512, bias=False), nn.Linear(512, 2, bias=False)
    first.weight *= 2.0**-110
    first.weight[256:] *= 2.0**-17
    head.weight *= 2.0**110
    return nn.Sequential(first, nn.ReLU(), head)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "near_tie_convolution": (_near_tie_convolution, (1, 6, 6)),
    "near_tie_dense": (_near_tie_dense, (64,)),
    "relu": (_relu, (8,)),
    "sorting": (_sorting, (2, 4, 4)),
    "splines": (_splines, (2,)),
    "smooth": (_smooth, (6,)),
    "subspaces": (_subspaces, (6,)),
    "subnormal": (_subnormal, (4,)),
}
# What is not piecewise linear has no exact labels, and is compared only.
INEXACT = ("smooth", "subspaces")


def build(name: str, variant: int) -> tuple[nn.Module, Tensor]:
    """A network with its samples, float32."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(100 * sorted(NETWORKS).index(name) + variant)
        module = make().eval()
        x = torch.rand(NEAR_TIES if name.startswith("near") else SAMPLES, *shape)
        # Without a mean, which would decide for all samples alike.
        if name == "near_tie_convolution":
            x = 2 * x - 1
        # Near the points of one subspace each, where quadrics certify.
        if isinstance(module, Subspaces):
            x = module.point[torch.randint(6, (len(x),))] + 0.1 * x
    return module, x


# Operations
def _result(labels: Tensor, radii: Tensor) -> Result:
    return {"labels": labels.tolist(), "radii": [r.hex() for r in radii.tolist()]}


def _certify_module(module: nn.Module, x: Tensor) -> Result:
    found = robustcert.certify(module, x)
    return _result(found.prediction, found.radius)


def _certify(make: Callable[[], Any], module: nn.Module, x: Tensor) -> Result:
    network = fold_network(module, tuple(x.shape[1:]))
    found = make().certify(network, x)
    return _result(found.prediction, found.radius)


def _load(dtype: Any, folder: Path, x: Tensor) -> Result:
    label, radius, _ = robustcert.load(folder, dtype=dtype)(x)
    return _result(label, radius)


def _export(dtype: Any, folder: Path, x: Tensor, target: Path) -> Result:
    import onnxruntime

    path = target / f"{os.getpid()}.onnx"
    robustcert.export.to_onnx(robustcert.load(folder, dtype=dtype), path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    inputs = x.numpy().astype(dtype)
    label, radius = session.run(["label", "radius"], {"x": inputs})
    path.unlink()
    return {"labels": label.tolist(), "radii": [r.hex() for r in radius.tolist()]}


def _check(folder: Path) -> Result:
    return {"verified": bool(check(folder, 16, 0).verified)}


def _certify_checkpoint(folder: Path, target: Path) -> Result:
    from robustcert.runs.certify import certify

    output = target / f"certificate-{os.getpid()}-{time.monotonic_ns()}"
    with contextlib.redirect_stdout(None):
        certify(
            str(folder / "run" / "checkpoints" / "best.ckpt"),
            samples=64,
            output=str(output),
            attack={"samples": 0},
        )
    found = read_radii(output / "radii.csv")
    return _result(found.prediction, found.radius)


CERTIFIERS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "lipschitz": (
        certifiers.LipschitzCertifier,
        ["near_tie_convolution", "near_tie_dense", "relu", "sorting", "subnormal"],
    ),
    "eclipse_fast": (partial(certifiers.LipSDPCertifier, iterations=0), ["splines", "relu"]),
    "lipsdp": (partial(certifiers.LipSDPCertifier, iterations=5), ["splines"]),
    "second_order": (certifiers.CombinedCertifier, ["smooth"]),
    "crown": (certifiers.CROWNCertifier, ["relu"]),
    "local_lipsdp": (partial(certifiers.LocalLipschitzCertifier, rounds=3), ["relu"]),
}
FOLDERS = ("near_tie_convolution", "near_tie_dense", "relu", "sorting")
ARITHMETIC = ("float64", "float32")


def operations() -> list[tuple[str, str]]:
    """Every operation with its network: ``(operation, network)``."""
    found = [("certify", name) for name in NETWORKS if name != "subspaces"]
    for key, (_, names) in CERTIFIERS.items():
        found += [(f"{key} {arithmetic}", name) for arithmetic in ARITHMETIC for name in names]
    found += [("quadratic float64", "subspaces"), ("global_robustness float64", "relu")]
    for verb in ("load", "export"):
        found += [(f"{verb} {dtype}", name) for dtype in ARITHMETIC for name in FOLDERS]
    found += [(f"check {kind}", name) for kind in ("honest", "forged") for name in FOLDERS]
    return [*found, ("certify.py", "run")]


def perform(operation: str, network: str, variant: int, folder: Path, target: Path) -> Any:
    """The operation, ready to be run: what it reads has been made without any setting."""
    verb, _, option = operation.partition(" ")
    if verb == "certify.py":
        return partial(_certify_checkpoint, folder, target)
    if verb == "check":
        return partial(_check, folder / f"{network}-{option}")
    if verb in ("load", "export"):
        variant = 0
    module, x = build(network, variant)
    if verb == "certify":
        return partial(_certify_module, module, x)
    if verb == "load":
        return partial(_load, option, folder / f"{network}-honest", x)
    if verb == "export":
        return partial(_export, option, folder / f"{network}-honest", x, target)
    if verb == "quadratic":
        return partial(_certify, certifiers.QuadricCertifier, module, x)
    if verb == "global_robustness":
        make = partial(certifiers.GlobalCertifier, domain=(0.0, 1.0), method="lipschitz")
        return partial(_certify, make, module, x)
    return partial(_certify, partial(CERTIFIERS[verb][0], arithmetic=option), module, x)


# Settings
class ReducedProducts(TorchFunctionMode):
    """Products as a processor with units for them computes them, where it is asked to.

    oneDNN rounds the factors of float32 convolutions as ``ONEDNN_DEFAULT_FPMATH_MODE`` says, torch
    those of matrix products as its precision says, but only on processors with such units. This
    rounds them where the processor at hand does not.
    """

    MODES: ClassVar[dict[str, int]] = {"BF16": 16, "ANY": 16, "F16": 13, "TF32": 13}  # bits lost
    CONVOLUTIONS = (torch.conv2d, torch.conv_transpose2d)
    PRODUCTS = (nn.functional.linear, torch.mm, torch.matmul, torch.bmm, Tensor.__matmul__)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, with its factors rounded."""
        lost = 0
        if torch._C._get_mkldnn_enabled():
            if func in self.CONVOLUTIONS:
                variables = (f"{name}_DEFAULT_FPMATH_MODE" for name in ("ONEDNN", "DNNL"))
                lost = max(self.MODES.get(os.environ.get(name, ""), 0) for name in variables)
            elif func in self.PRODUCTS or func is torch.addmm:
                lost = 16 if torch.backends.mkldnn.matmul.fp32_precision == "bf16" else 0
        if lost:
            first = 1 if func is torch.addmm else 0
            factors = (self._rounded(factor, lost) for factor in args[first : first + 2])
            args = (*args[:first], *factors, *args[first + 2 :])
        return func(*args, **(kwargs or {}))

    def _rounded(self, factor: Any, lost: int) -> Any:
        if not isinstance(factor, Tensor) or factor.dtype != torch.float32 or factor.is_meta:
            return factor
        bits = factor.contiguous().view(torch.int32) + 2 ** (lost - 1)
        return (bits >> lost << lost).view(torch.float32)


def state() -> dict[str, Any]:
    """What an operation must leave as it found it."""
    return {
        "default dtype": torch.get_default_dtype(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "precisions": [
            getattr(owner, "fp32_precision", None)
            for owner in (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)
        ],
        "threads": torch.get_num_threads(),
        "flush-to-zero": sys.float_info.min / 2 == 0,
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "libraries": [
            torch.backends.cudnn.enabled,
            torch._C._get_nnpack_enabled(),
            torch._C._get_mkldnn_enabled(),
        ],
    }


@contextmanager
def applied(settings: Settings) -> Iterator[None]:
    """The settings of a cell, and none of them afterwards."""
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.float32)
        stack.callback(torch.set_float32_matmul_precision, "highest")
        stack.callback(torch.set_flush_denormal, False)
        stack.callback(torch.use_deterministic_algorithms, False)
        torch.set_num_threads(settings["threads"])
        torch.set_float32_matmul_precision(settings.get("precision", "highest"))
        torch.set_flush_denormal(settings.get("flush", False))
        if "deterministic" in settings:
            warn = settings["deterministic"] == "warn"
            torch.use_deterministic_algorithms(True, warn_only=warn)
        if "autocast" in settings:
            dtype = getattr(torch, settings["autocast"])
            stack.enter_context(torch.autocast("cpu", dtype=dtype))
        if "device" in settings:
            stack.enter_context(torch.device(settings["device"]))
        torch.set_default_dtype(getattr(torch, settings.get("dtype", "float32")))
        yield


@contextmanager
def meanwhile(what: str | None) -> Iterator[None]:
    """Another thread that changes settings, or certifies, all the time."""
    if what is None:
        yield
        return
    done = threading.Event()
    network = fold_network(nn.Sequential(nn.Linear(2, 2)).requires_grad_(False), (2,))

    def work() -> None:
        while not done.is_set():
            if what == "precision":
                for precision in ("medium", "highest"):
                    torch.set_float32_matmul_precision(precision)
            elif what == "dtype":
                for dtype in (torch.bfloat16, torch.float32):
                    torch.set_default_dtype(dtype)
            else:
                # What it refuses is not what is looked at.
                with contextlib.suppress(Exception):
                    certifiers.LipschitzCertifier().certify(network, torch.zeros(1, 2))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)


# What a refusal must speak of, if it is one of the setting.
REASONS = {
    "precision": r"precision|IEEE|bf16|bfloat16",
    "flush": r"flush|subnormal|denormal",
    "autocast": r"autocast",
    "deterministic": r"determin",
    "device": r"meta|device",
    "dtype": r"dtype|float16|bfloat16|float64",
    "meanwhile": r"precision|dtype|setting|thread|changed|bfloat16",
    "variables": r"FPMATH|precision",
    "processor": r"FPMATH|precision",
    "workers_flush": r"flush|subnormal|denormal",
    "memory": r"memory|alloc|map segment",
    "read_only": r"[Pp]ermission|read.only",
}


def is_refusal(error: BaseException, active: set[str]) -> bool:
    """Whether an exception says which of the active settings nothing is certified under."""
    said = f"{type(error).__name__}: {error}"
    own = type(error).__module__.startswith("robustcert")
    if "read_only" in active and isinstance(error, PermissionError):
        own = True
    # Python's and torch's own words for too little memory say what is wrong.
    if "memory" in active and isinstance(error, MemoryError | RuntimeError | ImportError):
        own = own or bool(re.search(REASONS["memory"], said, re.IGNORECASE))
    return own and any(re.search(REASONS[key], said, re.IGNORECASE) for key in active & {*REASONS})


class Reference:
    """What a reference job has left."""

    def __init__(self, folder: Path) -> None:
        content = json.loads((folder / "reference.json").read_text())
        self.results: dict[str, Result] = content["results"]
        self.truths = {key: Truth(**value) for key, value in content["truths"].items()}

    @staticmethod
    def key(operation: str, network: str, variant: int, threads: int) -> str:
        """Name of a result."""
        fixed = operation.split()[0] in ("load", "export", "check", "certify.py")
        return f"{operation}|{network}|{0 if fixed else variant}|{threads}"

    def compare(self, key: str, result: Result) -> tuple[str, int, int]:
        """``(failure, certificates, false ones)``; no failure if they are the very same."""
        expected = self.results[key]
        if "radii" not in result or "radii" not in expected:
            return ("" if result == expected else f"{result} where {expected}"), 0, 0
        radii = [float.fromhex(r) for r in result["radii"]]
        _, network, variant, _ = key.split("|")
        true = self.truths.get(f"{network}|{variant}")
        false = 0 if true is None else true.false(result["labels"], radii)
        certified = sum(r > 0 for r in radii)
        if false:
            return f"{false} of {certified} certificates are false", certified, false
        if result == expected:
            return "", certified, 0
        pairs = zip(radii, map(float.fromhex, expected["radii"]), strict=True)
        apart = max(abs(a - b) / b if b else float(a > 0) for a, b in pairs)
        return f"other radii, by up to {apart:.1e} relatively, or labels", certified, 0


def run_cell(
    cell: dict[str, Any], run: Callable[[], Result], key: str, job: Job, before: Settings
) -> dict[str, Any]:
    """Run an operation under the settings of a cell; how it ended, and what came out.

    The result has the name ``key`` among those to compare with; earlier cells of the process have
    left ``before``, which cannot be taken back.
    """
    settings, active = cell["settings"], {*cell["settings"], *job["process"], *before}
    process = job["process"]
    outcome: dict[str, Any] = {"outcome": "same", "certificates": 0, "false": 0}
    torch.set_num_threads(1)
    # Torch's own setting has no precision at all before one is set.
    torch.set_float32_matmul_precision("highest")
    clean = state()
    for _ in range(RACES if "meanwhile" in settings else 1):
        error: BaseException | None = None
        changed: list[str] = []
        result: Result = {}
        with contextlib.ExitStack() as stack:
            if process.get("processor") == "reduced":
                stack.enter_context(ReducedProducts())
            stack.enter_context(meanwhile(settings.get("meanwhile")))
            stack.enter_context(applied(settings))
            usual = state() if "meanwhile" not in settings else {}
            try:
                result = run()
            except Exception as problem:
                error = problem
            if usual:
                after = state()
                changed = [name for name in usual if usual[name] != after[name]]
        torch.set_num_threads(1)
        # Of a race, the settings of the other thread are not looked at.
        try:
            now = state()
            changed += [name for name in clean if clean[name] != now[name]]
        except RuntimeError as problem:
            changed.append(str(problem))
        if error is not None and "refused" in reference(job).results[key]:
            result, error = {"refused": type(error).__name__}, None
        if changed:
            outcome |= {"outcome": "failed", "why": f"left other settings: {changed}"}
        elif error is not None and is_refusal(error, active):
            outcome |= {"outcome": "refused", "why": f"{type(error).__name__}: {error}"[:300]}
        elif error is not None:
            last = "".join(traceback.format_exception(error))[-2000:]
            outcome |= {"outcome": "failed", "why": f"not a refusal: {last}"}
        else:
            why, certified, false = reference(job).compare(key, result)
            outcome["certificates"] += certified
            outcome["false"] += false
            if why:
                outcome |= {"outcome": "failed", "why": why}
        if outcome["outcome"] == "failed":
            break
    return outcome


@cache
def _reference(folder: Path) -> Reference:
    return Reference(folder)


def reference(job: Job) -> Reference:
    """The reference of a job, read once."""
    return _reference(Path(job["folder"]))


def run_cells(job: Job) -> None:
    """Every cell of a job; a line of the output file for each."""
    process, folder = job["process"], Path(job["folder"])
    target = Path(job["target"])
    with Path(job["output"]).open("a", buffering=1) as output:
        if process.get("locale"):
            try:
                locale.setlocale(locale.LC_ALL, "")
            except locale.Error:
                output.write(json.dumps({"skip": f"no locale {process['locale']} here"}) + "\n")
                return
        if process.get("read_only"):
            for cell in job["cells"]:
                # What is imported late is imported now: another user may not read Python's folder.
                with contextlib.suppress(Exception):
                    perform(cell["operation"], cell["network"], 0, folder, target)()
            # Also where such an operation was refused before it came to importing them.
            for name in ("onnx", "onnxruntime", "torch._dynamo"):
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
            target = folder / "read-only"
            os.setgid(65534)
            os.setuid(65534)
            if not os.access(folder, os.R_OK | os.X_OK) or os.access(target, os.W_OK):
                output.write(json.dumps({"skip": "no other user could read the folder"}) + "\n")
                return
        if process.get("workers_flush"):
            torch.set_flush_denormal(True)
            torch.set_num_threads(max(THREADS))
            torch.ones(2**20).relu_()
            torch.set_flush_denormal(False)
        reference(job)
        output.write(json.dumps({"started": True}) + "\n")
        uses: Counter[str] = Counter()
        before: Settings = {}
        for cell in job["cells"]:
            network, operation = cell["network"], cell["operation"]
            variant = uses[network] % VARIANTS
            uses[network] += 1
            key = Reference.key(operation, network, variant, cell["settings"]["threads"])
            run = perform(operation, network, variant, folder, target)
            outcome = run_cell(cell, run, key, job, before)
            output.write(json.dumps({"cell": cell} | outcome) + "\n")
            # Threads keep what was set in the one that started them.
            if cell["settings"].get("flush") and cell["settings"]["threads"] > 1:
                before["workers_flush"] = True


# Reference
def write_folder(folder: Path, network: PlainNetwork) -> None:
    """The certificate folder of random images, labelled as they are predicted."""
    folder.mkdir()
    certifier = certifiers.LipschitzCertifier()
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randint(0, 256, (32, *network.input_shape), dtype=torch.uint8, generator=draw)
    found = certifier.certify(network, inputs.float() / 255)
    split = CertifiedSplit(inputs, found.prediction, torch.arange(len(inputs)), found)
    claim = certifier.claim(network)
    robustcert.certificate.claim.write_certificate(folder, network, claim, split, [1e-4])


def forge(folder: Path) -> None:
    """Double the largest radius of a certificate folder and put its digests right."""
    path = folder / "radii.csv"
    lines = path.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    column = rows[0].index("radius_hex")
    largest = max(rows[1:], key=lambda row: float.fromhex(row[column]))
    radius = 2 * float.fromhex(largest[column])
    largest[column - 1] = robustcert.certificate.samples.decimal_floor(radius)
    largest[column] = radius.hex()
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    claim = json.loads((folder / "certificate.json").read_text())
    claim["files"]["radii.csv"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "certificate.json").write_text(json.dumps(claim))


def write_reference(job: Job) -> None:
    """Folders, a trained checkpoint, and the results without any setting."""
    folder = Path(job["folder"])
    for name in FOLDERS:
        module, x = build(name, 0)
        for kind in ("honest", "forged"):
            write_folder(folder / f"{name}-{kind}", fold_network(module, tuple(x.shape[1:])))
        forge(folder / f"{name}-forged")
    truths: dict[str, Any] = {}
    for name in NETWORKS:
        for variant in range(VARIANTS):
            module, x = build(name, variant)
            if name not in INEXACT:
                found = truth(fold_network(module, tuple(x.shape[1:])), x)
                truths[f"{name}|{variant}"] = vars(found)
    truths["run|0"] = vars(_truth_of_run(folder))
    results: dict[str, Result] = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        for operation, network in operations():
            for variant in range(VARIANTS):
                key = Reference.key(operation, network, variant, threads)
                if key in results:
                    continue
                try:
                    result = perform(operation, network, variant, folder, folder)()
                except ValueError as error:
                    result = {"refused": type(error).__name__}
                results[key] = result
    text = json.dumps({"results": results, "truths": truths})
    (folder / "reference.json").write_text(text)
    # Another user reads them.
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _truth_of_run(folder: Path) -> Truth:
    certificate = folder / "run" / "certificate"
    inputs = load_file(certificate / "samples.safetensors")["inputs"][:64]
    return truth(robustcert.load(certificate).network, to_unit(inputs))


if __name__ == "__main__":
    {"reference": write_reference, "cells": run_cells}[job["kind"]](job)
