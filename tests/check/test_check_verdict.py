"""What a verdict says: accuracy is proved, data compared by value, and the rest listed as said."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.soundness.forgeries import SAMPLES, Folder, build, certify, write
from robustcert.certificate.samples import CertifiedSplit, read_radii
from robustcert.certifiers import CROWNCertifier, LipschitzCertifier
from robustcert.check import Report, UnreadableError, check, prove_network
from robustcert.check.arithmetic import FLOAT32, FLOAT64
from robustcert.check.dataset import by_digest, compare
from robustcert.check.forward.floating import evaluate
from robustcert.check.network.digest import digest
from robustcert.check.network.reading import read_network
from robustcert.data import to_unit
from robustcert.errors import ReportError
from robustcert.network.branches import Sum
from robustcert.network.linear import Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.report.claim import read_claim


def deep(layers: int = 32, width: int = 16) -> PlainNetwork:
    """A network whose worst-case error in float32 is far above its margins."""
    torch.manual_seed(0)
    inner = [Dense(torch.nn.init.orthogonal_(torch.empty(width, width))) for _ in range(layers)]
    # Logits that are large beside their differences.
    head = torch.full((1, width), 300.0) + torch.randn(10, width) / 100
    return PlainNetwork((Flatten(), *inner[1:], Dense(head)), (1, 4, 4))


def folder_of(
    path: Path, net: PlainNetwork, labels: torch.Tensor, certifier: LipschitzCertifier
) -> Path:
    path.mkdir(parents=True)
    torch.manual_seed(1)
    inputs = torch.randint(0, 256, (len(labels), *net.input_shape), dtype=torch.uint8)
    found = certifier.certify(net, to_unit(inputs))
    split = CertifiedSplit(inputs, labels, torch.arange(len(labels)), found)
    write(path, net, split, certifier)
    return path


def mismatches(path: Path, **options: Any) -> list[str]:
    try:
        return check(path, **{"exact": 6, "seed": 0, **options}).mismatches
    except UnreadableError as error:
        return [str(error)]


@pytest.fixture(scope="module")
def wide_error(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(2))
    root = tmp_path_factory.mktemp("deep")
    return folder_of(root / "honest", deep(), labels, LipschitzCertifier("float32"))


def test_correct_predictions_of_a_float32_claim_are_decided_in_float64(wide_error: Path) -> None:
    report = check(wide_error, exact=6, seed=0)
    assert report.verified, report.mismatches
    summary = json.loads((wide_error / "certificate.json").read_text())["summary"]
    certificates = read_radii(wide_error / "radii.csv")
    labels = torch.from_numpy(Folder(wide_error).samples["labels"])
    assert summary["correct"] == int((certificates.prediction == labels).sum()) > 0
    assert summary["undecided"] == 0


def test_predictions_that_rounding_excuses_are_not_correct(
    wide_error: Path, tmp_path: Path
) -> None:
    folder = Folder(Path(shutil.copytree(wide_error, tmp_path / "forged")))
    # What the worst case of float32 allows, for all labels at once.
    operations = read_network(folder.claim["network"], folder.tensors)
    bounds = zip(operations, folder.claim["bounds"], strict=True)
    norms = {op.path: float.fromhex(entry["bound"]) for op, entry in bounds}
    x = folder.samples["inputs"].astype(np.float32) / np.float32(255)
    found = evaluate(operations, x.astype(np.float64), norms, [FLOAT64, FLOAT32])
    excused = 0
    for k, row in enumerate(folder.rows):
        label = int(row[1])
        margin = found.values[k, label] - np.delete(found.values[k], label).max()
        if margin > -found.centre[1, k] and row[2] != row[1]:
            row[2], row[7] = row[1], f"{margin:.9g}"
            folder.set_radius(k, 0.0)
            excused += 1
    assert excused > 20
    folder.recount()
    folder.save()
    assert any("called correct" in line for line in mismatches(folder.path))
    # Without that word, the folder says no more than what is so.
    for row in folder.rows:
        if row[4] == "abstain":
            row[3] = "0"
    correct = sum(row[3] == "1" for row in folder.rows)
    folder.claim["summary"] |= {"correct": correct, "undecided": 0}
    folder.claim["summary"]["undecided"] = sum(r[1] == r[2] and r[3] == "0" for r in folder.rows)
    for entry in folder.claim["summary"]["certified"]:
        entry["count"] = sum(
            row[3] == "1" and float.fromhex(row[6]) > float.fromhex(entry["radius"])
            for row in folder.rows
        )
    folder.save()
    report = check(folder.path, exact=6, seed=0)
    assert report.verified
    assert any(topic == "undecided" for topic, _ in report.checked)


def tied(eps: float) -> PlainNetwork:
    weight = torch.zeros(3, 16, dtype=torch.float64)
    weight[0], weight[1] = 1.0, 1.0
    bias = torch.tensor([eps, 0.0, -1.0], dtype=torch.float64)
    return PlainNetwork((Flatten(), Dense(weight, bias)), (1, 4, 4))


@pytest.mark.parametrize("eps", [0.0, 2.0**-50])
def test_predictions_that_rounding_leaves_open_are_undecided(tmp_path: Path, eps: float) -> None:
    labels = torch.zeros(5, dtype=torch.long)
    path = folder_of(tmp_path / "tied", tied(eps), labels, LipschitzCertifier())
    folder = Folder(path)
    assert folder.claim["summary"]["correct"] == 0
    assert folder.claim["summary"]["undecided"] == 5
    assert check(path).verified
    folder.recount()
    folder.save()
    # Exact arithmetic decides what float64 leaves open.
    assert bool(mismatches(path)) == (eps == 0.0)


@pytest.mark.parametrize("kind", ["quadric", "deep-quadric"])
def test_ties_of_quadratics_are_not_correct(tmp_path: Path, kind: str) -> None:
    folder = Folder(certify(tmp_path / "tied", build(kind)))
    for name in folder.find("quadratics")["tensors"].values():
        first, _, third = np.split(folder.tensors[name], 3)
        folder.tensors[name] = np.concatenate([first, first, third])
    for k, row in enumerate(folder.rows):
        folder.samples["labels"][k] = 0
        row[1:3], row[7] = ["0", "0"], "0"
        folder.set_radius(k, 0.0)
    folder.recount()
    folder.save()
    assert all(
        "called correct" in line or "margin" in line or "largest" in line
        for line in mismatches(folder.path)
    )
    assert mismatches(folder.path)


def test_correct_predictions_are_proved_beside_radii_that_are_not(tmp_path: Path) -> None:
    net = build("relu")
    labels = torch.zeros(SAMPLES, dtype=torch.long)
    folder = Folder(folder_of(tmp_path / "crown", net, labels, CROWNCertifier()))
    honest = check(folder.path)
    assert honest.uncovered
    assert not honest.mismatches
    assert any(topic == "correct" for topic, _ in honest.checked)
    row = next(row for row in folder.rows if row[2] != "0")
    row[2] = "0"
    folder.recount()
    folder.save()
    assert mismatches(folder.path)


# The data.


@pytest.fixture(scope="module")
def black(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 50 black images as bytes."""
    path = tmp_path_factory.mktemp("black") / "certificate"
    path.mkdir()
    net = build("relu")
    inputs = torch.zeros(50, *net.input_shape, dtype=torch.uint8)
    found = LipschitzCertifier().certify(net, to_unit(inputs))
    split = CertifiedSplit(inputs, found.prediction, torch.arange(50), found)
    write(path, net, split, LipschitzCertifier())
    return path


def archive(path: Path, inputs: Any, labels: Any) -> Path:
    np.savez(path, x_test=inputs, y_test=labels)
    return path


def test_floats_that_truncate_to_the_samples_are_other_samples(black: Path, tmp_path: Path) -> None:
    labels = Folder(black).samples["labels"]
    images = np.random.RandomState(0).rand(50, 4, 4)
    found = mismatches(black, data=[archive(tmp_path / "a.npz", images, labels)])
    assert any("is not row" in line for line in found)
    for dtype in (np.float32, np.float64, np.uint8):
        data = [archive(tmp_path / "b.npz", np.zeros((50, 4, 4), dtype), labels)]
        assert check(black, data=data).verified


@pytest.mark.parametrize(
    ("inputs", "labels", "said"),
    [
        (np.zeros((5, 1, 2, 2), np.int16), np.zeros(5, int), "uint8 or floating point"),
        (np.zeros((5, 1, 2, 2), bool), np.zeros(5, int), "uint8 or floating point"),
        (np.zeros((5, 1, 2, 2), np.uint8), np.full(5, 0.5), "integer labels"),
        (np.zeros((5, 1, 2, 2), np.uint8), np.zeros((5, 1), int), "integer labels"),
        (np.zeros((5, 1, 2, 2), np.uint8), np.zeros(4, int), "integer labels"),
        (np.zeros((5, 1, 2, 2), np.uint8), np.full(5, -1), "labels from 0"),
        (np.zeros((5, 1, 2, 2), np.uint8), np.full(5, 2**64 - 1, np.uint64), "labels from 0"),
        (np.zeros(5, np.uint8), np.zeros(5, int), "shape"),
    ],
)
def test_data_of_another_kind_is_refused(
    tmp_path: Path, inputs: Any, labels: Any, said: str
) -> None:
    file = archive(tmp_path / "data.npz", inputs, labels)
    indices = np.arange(5)
    with pytest.raises(UnreadableError, match=said):
        compare([file], np.zeros((5, 1, 2, 2), np.uint8), np.zeros(5, np.int64), indices)
    with pytest.raises(UnreadableError, match=said):
        by_digest([file], np.zeros((5, 32), np.uint8), indices, (1, 2, 2))


def test_data_are_compared_in_the_units_of_the_network(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    values = pixels.astype(np.float32) / np.float32(255)
    labels, rows = np.arange(4), np.arange(4)
    for data in (pixels, values, values.astype(np.float64)):
        file = archive(tmp_path / "data.npz", data, labels)
        for inputs in (pixels, values):
            assert compare([file], inputs, labels, rows)[1] == []
            near, value = inputs.copy(), inputs[2, 0, 3, 3]
            near[2, 0, 3, 3] = value - 1 if value > 1 else np.nextafter(value, np.float32(0))
            assert len(compare([file], near, labels, rows)[1]) == 1
        assert "shape" in compare([file], pixels.reshape(4, 1, 4, 16), labels, rows)[1][0]


# The digest.


def test_functions_that_differ_in_their_branches_alone_have_two_digests(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second, inner = (Dense(torch.randn(4, 4)) for _ in range(3))
    head = Dense(torch.randn(3, 4))
    # b1(P(x)) + b2(x), and b1(P(x)) + b2(P(x)).
    apart = PlainNetwork((Sum(((inner, Sum(((first,),))), (second,))), head), (4,))
    together = PlainNetwork((Sum(((inner, Sum(((first,), (second,)))),)), head), (4,))
    x = torch.rand(3, 4)
    assert not torch.allclose(apart(x), together(x))
    assert apart.digest() != together.digest()
    for name, net in {"apart": apart, "together": together}.items():
        folder = Folder(certify(tmp_path / name, net))
        operations = read_network(folder.claim["network"], folder.tensors)
        assert digest((4,), operations) == net.digest()


def test_the_digest_of_a_chain_is_that_of_its_operations_and_constants() -> None:
    net = PlainNetwork((Dense(torch.eye(2)),), (2,))
    line = '[2]{"kind": "dense", "shapes": {"weight": ["float32", 2, 2]}}weight'
    content = line.encode() + np.eye(2, dtype="<f4").tobytes()
    assert net.digest() == hashlib.sha256(content).hexdigest()


def structure(random: np.random.RandomState, depth: int) -> list[Any]:
    """Operations as nested lists: None is a flatten, a list a sum of branches."""
    return [
        [structure(random, depth - 1) for _ in range(random.randint(1, 4))]
        if depth and random.rand() < 0.4
        else None
        for _ in range(random.randint(0, 3))
    ]


def operations_of(shape: list[Any]) -> tuple[Any, ...]:
    return tuple(
        Flatten() if part is None else Sum(tuple(operations_of(branch) for branch in part))
        for part in shape
    )


def parse(stream: str) -> list[Any]:
    """The structure that a hashed stream was made from."""
    lines: list[dict[str, Any]] = []
    decoder, place = json.JSONDecoder(), 0
    while place < len(stream):
        line, place = decoder.raw_decode(stream, place)
        lines.append(line)
    rest: Iterator[dict[str, Any]] = iter(lines[1:])

    def one(line: dict[str, Any]) -> Any:
        if line["kind"] == "flatten":
            return None
        return [
            [one(next(rest)) for _ in range(next(rest)["branch"])] for _ in range(line["branches"])
        ]

    return [one(line) for line in rest]


def test_structures_can_be_read_back_from_what_the_digest_is_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.RandomState(0)
    shapes = [structure(random, 3) for _ in range(300)]
    for shape in shapes:
        net = PlainNetwork(operations_of(shape), (4,))
        streams: list[bytes] = []

        class Recorder:
            def __init__(self, content: bytes = b"", streams: list[bytes] = streams) -> None:
                self.streams = streams
                streams.append(content)

            def update(self, content: bytes) -> None:
                self.streams.append(content)

            def hexdigest(self) -> str:
                return ""

        with monkeypatch.context() as patch:
            patch.setattr("robustcert.network.branches.hashlib.sha256", Recorder)
            net.digest()
        assert parse(b"".join(streams).decode()) == shape
    different = {json.dumps(shape) for shape in shapes}
    digests = {PlainNetwork(operations_of(shape), (4,)).digest() for shape in shapes}
    assert len(digests) == len(different)


# What the verdict says.


def test_unread_keys_are_taken_as_said(tmp_path: Path) -> None:
    folder = Folder(certify(tmp_path / "certificate", build("relu")))
    folder.claim["dataset"] = {"name": "CIFAR-10 test, all 10000"}
    junk = [f"a{k}" for k in range(12)]
    folder.claim |= dict.fromkeys([*junk, "zebra"], 1)
    folder.save()
    (folder.path / "vra.png").write_bytes(b"")
    report = check(folder.path)
    said = "\n".join(report.said)
    assert report.verified
    assert all(f" {key}" in said for key in ["dataset", *junk, "zebra"])
    assert "vra.png" in said
    assert "--data" in said


@pytest.mark.parametrize("keys", [[f"k{k}" for k in range(100)], ["k" * 1000]])
def test_unreasonable_unread_keys_are_refused(tmp_path: Path, keys: list[str]) -> None:
    folder = Folder(certify(tmp_path / "certificate", build("relu")))
    folder.claim |= dict.fromkeys(keys, 1)
    folder.save()
    with pytest.raises(UnreadableError, match="keys beside the claims"):
        check(folder.path)


def test_a_folder_of_the_format_before_is_answered_in_one_line(tmp_path: Path) -> None:
    folder = Folder(certify(tmp_path / "certificate", build("relu")))
    folder.claim["format"] = 2
    folder.save()
    for read in (check, prove_network):
        with pytest.raises(UnreadableError, match="certify the network again") as error:
            read(folder.path)
        assert "\n" not in str(error.value)
    with pytest.raises(ReportError, match="certify the checkpoint again"):
        read_claim(folder.path)


def test_a_report_says_what_it_rests_on() -> None:
    from robustcert.check.command import outcome

    report = Report()
    assert "taken as said" in outcome(report)[1]
    report.compared.append(("samples", "all"))
    assert "given data" in outcome(report)[1]
    # What is worse is said, whatever there is besides.
    for add, status, word in (
        (report.untried.append, 3, "PARTLY CHECKED"),
        (report.uncovered.append, 1, "UNPROVED"),
        (report.mismatches.append, 1, "REFUSED"),
    ):
        add("something")
        assert not report.verified
        assert outcome(report)[0] == status
        assert outcome(report)[1].startswith(word)


# The command.

HOSTILE = (
    *("numpy", "json", "argparse", "typing", "subprocess", "re", "dataclasses", "pathlib"),
    *("hashlib", "signal", "traceback", "importlib", "flint", "torch", "types", "warnings"),
)
# What an installed console script does.
LAUNCHER = "import sys\nfrom robustcert.check.isolation import main\nsys.exit(main())\n"
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A certificate folder with modules that leave a mark when they are executed."""
    folder = certify(tmp_path / "hostile", build("relu"))
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n"
        )
    return folder


def launched(
    command: list[str], folder: Path, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if path is not None:
        environment["PYTHONPATH"] = path
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("bin") / "robustcert-check"
    path.write_text(LAUNCHER)
    return [sys.executable, str(path)]


@pytest.mark.parametrize("path", [None, ".", "", f":{CHECKOUT}", f"{CHECKOUT}:"])
def test_the_script_executes_nothing_of_the_current_folder(
    hostile: Path, script: list[str], path: str | None
) -> None:
    done = launched([*script, ".", "--exact", "2"], hostile, path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("VERIFIED")
    assert not (hostile.parent / "executed").exists()


def test_isolated_modules_execute_nothing_of_the_current_folder(hostile: Path) -> None:
    done = launched([sys.executable, "-I", "-m", "robustcert.check", "."], hostile)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (hostile.parent / "executed").exists()


def test_python_m_refuses_a_folder_of_modules(hostile: Path) -> None:
    # Python itself imports some of them before any program can look.
    for name in ("types", "warnings", "importlib", "re"):
        (hostile / f"{name}.py").unlink()
    done = launched([sys.executable, "-m", "robustcert.check", "."], hostile)
    assert done.returncode == 2
    assert done.stdout.startswith("UNREADABLE, nothing is verified: the current folder holds")
    assert len(done.stdout.splitlines()) == 1
    assert not (hostile.parent / "executed").exists()


def test_python_m_checks_in_a_folder_without_modules_and_in_the_checkout(tmp_path: Path) -> None:
    folder = certify(tmp_path / "certificate", build("relu"))
    for place in (folder, CHECKOUT):
        command = [sys.executable, "-m", "robustcert.check", str(folder), "--exact", "0"]
        done = launched(command, place)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_check_that_takes_too_long_is_ended(tmp_path: Path, script: list[str]) -> None:
    folder = certify(tmp_path / "certificate", build("relu"))
    done = launched([*script, str(folder), "--seconds", "0.001"], tmp_path)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        "UNREADABLE, nothing is verified: the check took more than 0.001 s: raise --seconds"
    ]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; print('VERIFIED'); os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("print('VERIFIED'); raise SystemExit(1)", "without a verdict"),
        ("print('VERIFIED'); raise SystemExit(3)", "without a verdict"),
        ("print('PARTLY CHECKED')", "without a verdict"),
        ("print('VERIFIED'); print(); raise SystemExit(0)", "without a verdict"),
        ("", "without a verdict"),
    ],
)
def test_a_check_that_is_killed_verifies_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, said: str
) -> None:
    from robustcert.check import supervisor

    monkeypatch.setattr(supervisor, "command", lambda *_: [sys.executable, "-c", code])
    assert supervisor.main(["folder"]) == 2
    printed = capsys.readouterr().out
    assert printed.startswith("UNREADABLE, nothing is verified: ")
    assert said in printed
    assert len(printed.splitlines()) == 1


def test_nothing_but_sys_and_os_is_imported_before_the_start_is_isolated() -> None:
    code = (
        "import sys, os; before = set(sys.modules)\n"
        "import robustcert.check.isolation\n"
        "after = {m for m in sys.modules if not m.startswith('robustcert')}\n"
        "assert after == before, after - before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
