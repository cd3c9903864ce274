"""Certification writes as it goes: what a killed process leaves is finished to the same bits."""

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.miniatures import write_image_folder
from helpers.runs import run
from safetensors.torch import load_file, save_file

import robustcert.certificate.samples
from robustcert.atomic import resumable_folder
from robustcert.certificate.samples import SampleFiles, read_radii
from robustcert.certifiers import Certificates, LipschitzCertifier
from robustcert.check import check
from robustcert.check.command import main
from robustcert.data import DatasetError, Digits, Stream
from robustcert.runs import classification
from robustcert.runs.certify import certify

QUICK = {"samples": 4, "steps": 2, "seconds": 0.0}
TIMES = ("seconds", "took")


def best(folder: Path) -> str:
    return str(folder / "checkpoints" / "best.ckpt")


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a run, to write to, without its certificate."""
    ignore = shutil.ignore_patterns("certificate")
    return shutil.copytree(tiny_run, tmp_path / "run", ignore=ignore)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return value


def content(folder: Path) -> dict[str, Any]:
    """Every file of a certificate, without what took how long."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    found["certificate.json"] = timeless(json.loads(found["certificate.json"]))
    return found


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def killed_at(monkeypatch: pytest.MonkeyPatch, place: str, call: int) -> None:
    """The call of a function of the certification that never returns."""
    module = robustcert.certificate.samples if place == "_append" else classification
    original = getattr(module, place)
    calls: Iterator[int] = iter(range(10**6))

    def kill(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            if place == "_append":
                path, data = arguments
                with path.open("ab") as file:  # half of it arrived
                    file.write(data[: len(data) // 2])
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(module, place, kill)


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("_append", 5),
        *(
            pytest.param(*where, marks=pytest.mark.slow)
            for where in (
                ("_append", 0),
                ("_append", 4),
                ("attack_samples", 0),
                ("draw_vra_curve", 0),
            )
        ),
    ],
)
def test_an_interrupted_certification_is_finished_to_the_same_bits(
    folder: Path, tmp_path: Path, place: str, call: int
) -> None:
    target = folder / "certificate"
    options: dict[str, Any] = {"attack": QUICK, "batch_size": 20, "samples": 70}
    certify(best(folder), **options, output=str(tmp_path / "straight"))
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, place, call)
        with pytest.raises(Killed):
            certify(best(folder), **options, output=str(target))
    assert not target.exists()
    # Of each batch, inputs are appended first, then rows: half a batch is certified again.
    batches = count_batches(folder, **options, output=str(target))
    assert batches == 4 - (call // 2 if place == "_append" else 4)
    assert content(target) == content(tmp_path / "straight")
    assert not target.with_name("certificate.partial").exists()


def count_batches(folder: Path, **options: Any) -> int:
    """Certify, and tell how many batches were computed."""
    certified = []
    original = LipschitzCertifier.certify

    def counting(self: LipschitzCertifier, *arguments: Any) -> Certificates:
        certified.append(1)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LipschitzCertifier, "certify", counting)
        certify(best(folder), **{"attack": QUICK, "batch_size": 50, **options})
    return len(certified)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 40},
        {"samples": 300, "output": "same"},
        {"split": "validation", "output": "same"},
        {
            "certifier": {
                "_target_": "robustcert.certifiers.LipschitzCertifier",
                "arithmetic": "float32",
            }
        },
    ],
)
def test_what_was_certified_under_other_settings_is_not_kept(
    folder: Path, changed: dict[str, Any]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, "_append", 9)
        with pytest.raises(Killed):
            certify(best(folder), attack=QUICK, batch_size=50)
    if "output" in changed:
        changed = {**changed, "output": str(folder / "certificate")}
    count = {"samples": 300, "split": 144}
    size = next((count[key] for key in count if key in changed), 359)
    assert count_batches(folder, **changed) == -(-size // changed.get("batch_size", 50))
    assert check(folder / "certificate", exact=2).verified


def test_two_processes_never_write_one_certificate(folder: Path) -> None:
    with (
        resumable_folder(folder / "certificate", lambda path: False, "another"),
        pytest.raises(FileExistsError, match="another process is writing it"),
    ):
        certify(best(folder), attack=QUICK)


def test_a_folder_with_another_key_is_emptied_and_an_error_removes_one_without_work(
    tmp_path: Path,
) -> None:
    target = tmp_path / "target"

    def begin(key: str, error: type[BaseException]) -> list[str]:
        found = []

        def fail() -> None:
            with resumable_folder(
                target,
                replaceable=lambda path: False,
                key=key,
                keep=lambda path: (path / "a.txt").exists(),
            ) as partial:
                found.extend(sorted(path.name for path in partial.iterdir()))
                (partial / f"{key}.txt").write_text("content")
                (partial / "sub").mkdir(exist_ok=True)
                raise error

        with pytest.raises(error):
            fail()
        return found

    assert begin("a", KeyboardInterrupt) == ["key"]
    assert begin("a", DatasetError) == ["a.txt", "key", "sub"]
    assert begin("b", SystemExit) == ["key"]
    assert begin("b", OSError) == ["b.txt", "key", "sub"]
    assert list(tmp_path.iterdir()) == []


def write_some(folder: Path, stop: int, dtype: torch.dtype = torch.uint8) -> SampleFiles:
    """Samples up to ``stop``, in batches of four."""
    labels = torch.arange(10) % 3
    inputs = torch.arange(10 * 6).reshape(10, 2, 3).to(dtype)
    files = SampleFiles(folder, torch.arange(10) + 7, labels, (2, 3), dtype, 4)
    while files.done < stop:
        rows = slice(files.done, min(files.done + 4, 10))
        radius = torch.arange(10, dtype=torch.float64)[rows] / 3
        files.append(inputs[rows], Certificates(labels[rows], radius, radius, radius))
    return files


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_whatever_is_cut_off_the_same_files_come_out(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # some thousand of them
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    write_some(whole, 10, dtype)
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    for name, data in expected.items():
        for end in sorted({*range(0, len(data), 11), len(data) - 1, len(data)}):
            shutil.rmtree(cut, ignore_errors=True)
            shutil.copytree(whole, cut)
            os.truncate(cut / name, end)
            write_some(cut, 10, dtype)
            assert {path.name: path.read_bytes() for path in cut.iterdir()} == expected


def test_rows_about_other_samples_are_not_kept(tmp_path: Path) -> None:
    write_some(tmp_path, 10)
    text = (tmp_path / "radii.csv").read_text()
    (tmp_path / "radii.csv").write_text(text.replace("\n12,", "\n99,"))
    assert write_some(tmp_path, 0).done == 4


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_samples_are_a_safetensors_file(tmp_path: Path, dtype: torch.dtype) -> None:
    files = write_some(tmp_path, 10, dtype)
    found = load_file(tmp_path / "samples.safetensors")
    assert found["inputs"].dtype == dtype
    assert found["inputs"].flatten().tolist() == list(range(60))
    assert found["indices"].tolist() == list(range(7, 17))
    # The very bytes that the reference implementation writes.
    save_file(found, tmp_path / "reference.safetensors")
    written = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("samples", "reference")]
    assert written[0] == written[1]
    split = files.split(torch.empty(0))
    assert torch.equal(split.inputs[torch.tensor([9, 2])], found["inputs"][[9, 2]])
    assert torch.equal(split.inputs[:3], found["inputs"][:3])
    stored = split.inputs
    assert isinstance(stored, Stream)
    assert torch.equal(stored.select(slice(4, 8)).select([3, 0])[:], found["inputs"][[7, 4]])
    os.truncate(
        tmp_path / "samples.safetensors", (tmp_path / "samples.safetensors").stat().st_size - 1
    )
    with pytest.raises(ValueError, match="row 9 is not there"):
        stored[:]
    assert torch.equal(
        read_radii(tmp_path / "radii.csv").radius, torch.arange(10, dtype=torch.float64) / 3
    )


def test_many_large_inputs_are_named_by_their_digests(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    few: dict[str, Any] = {"attack": QUICK, "samples": 30}
    certify(best(folder), **few, output=str(tmp_path / "whole"))
    monkeypatch.setattr(robustcert.certificate.samples, "MAX_INPUT_BYTES", 1000)
    certify(best(folder), **few, output=str(tmp_path / "short"))
    whole, short = content(tmp_path / "whole"), content(tmp_path / "short")
    assert whole["radii.csv"] == short["radii.csv"]
    assert len(short["samples.safetensors"]) < len(whole["samples.safetensors"]) / 4
    with pytest.raises(ValueError, match="--data"):
        check(tmp_path / "short")
    test = Digits().read("test")
    x_test = test.inputs.numpy()
    np.savez(tmp_path / "digits.npz", x_test=x_test, y_test=test.labels.numpy())
    assert check(tmp_path / "short", exact=2, data=[tmp_path / "digits.npz"]).verified
    x_test[3, 0, 0, 0] += 0.125
    np.savez(tmp_path / "digits.npz", x_test=x_test, y_test=test.labels.numpy())
    assert main([str(tmp_path / "short"), "--data", str(tmp_path / "digits.npz")]) == 2
    assert "row 3 is not the input 3 of the digest" in capsys.readouterr().out


def test_a_damaged_image_keeps_what_was_certified_before_it(tmp_path: Path) -> None:
    images = write_image_folder(tmp_path / "images", classes=2)
    run(
        tmp_path / "run",
        "dataset=image_folder",
        f"dataset.root={images}",
        "dataset.size=8",
        "dataset.resize=8",
        "trainer.max_epochs=1",
        "certify=false",
    )
    broken = images / "test" / "class1" / "class1_1.png"
    good = broken.read_bytes()
    # Of the same size, so that the manifest is that of the whole image.
    broken.write_bytes(bytes(len(good)))
    with pytest.raises(DatasetError, match=r"class1_1\.png: expected a complete image"):
        certify(best(tmp_path / "run"), batch_size=1, attack=QUICK)
    rows = (tmp_path / "run" / "certificate.partial" / "radii.csv").read_text()
    assert rows.count("\n") == 1 + 3
    broken.write_bytes(good)
    assert count_batches(tmp_path / "run", batch_size=1) == 1
    finished = tmp_path / "run" / "certificate"
    assert check(finished).verified
    claim = json.loads((finished / "certificate.json").read_text())
    assert claim["dataset"]["files"][-1]["classes"] == ["class0", "class1"]


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(folder: Path, tmp_path: Path) -> None:
    target, straight = folder / "certificate", tmp_path / "straight"
    started = time.monotonic()
    in_process(folder, straight).join()
    took = time.monotonic() - started
    unfinished = 0
    for moment in np.random.RandomState(0).uniform(0, took, 20):
        process = in_process(folder, target)
        process.join(moment)
        process.kill()
        process.join()
        unfinished += target.with_name("certificate.partial").exists()
        if target.exists():
            assert content(target) == content(straight)
            shutil.rmtree(target)
    in_process(folder, target).join()
    assert content(target) == content(straight)
    assert check(target, exact=2).verified
    assert unfinished > 5


def in_process(folder: Path, output: Path) -> ForkProcess:
    """A certification in a process of its own, which has begun."""

    def work() -> None:
        # Threads of the parent's pool are not there after a fork.
        torch.set_num_threads(1)
        certify(best(folder), attack=QUICK, batch_size=2, output=str(output))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process
