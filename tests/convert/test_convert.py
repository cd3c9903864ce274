"""Networks of published checkpoints compute what the original code computed."""

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.miniatures import write_cifar10

import robustcert
from robustcert.convert import SOURCES, ConversionError, convert
from robustcert.convert.__main__ import main
from robustcert.convert.run import network_of
from robustcert.lipschitz import fold_network, lipschitz_bound
from robustcert.runs.certify import certify

# Random weights, with the logits that the code of the named commit gave.
FIXTURES = Path(__file__).parents[1] / "fixtures" / "published"
NAMES = sorted(path.name.removesuffix(".pt.gz") for path in FIXTURES.glob("*.pt.gz"))


def source_of(name: str) -> str:
    return max((s for s in SOURCES if name.startswith(s)), key=len)


def saved(name: str) -> dict[str, Any]:
    content = gzip.decompress((FIXTURES / f"{name}.pt.gz").read_bytes())
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return loaded


def read(name: str, folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    fixture = saved(name)
    (folder / "config.json").write_text(json.dumps(fixture.get("options")))
    shape, classes = tuple(fixture["inputs"].shape[1:]), fixture["logits"].shape[1]
    data: Any = SimpleNamespace(input_shape=shape, num_classes=classes)
    content = fixture["checkpoint"]
    return network_of(source_of(name), content, folder / "file.pth", data)[1].eval(), fixture


def test_every_source_has_a_fixture() -> None:
    assert {source_of(name) for name in NAMES} == {*SOURCES}
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_a_network_gives_the_logits_of_the_original_code(name: str, tmp_path: Path) -> None:
    model, fixture = read(name, tmp_path)
    x, logits = fixture["inputs"].double() / 255, fixture["logits"].double()
    scale = float(logits.abs().max())
    with torch.no_grad():
        module = model(x.float()).double()
    folded = fold_network(model, tuple(x.shape[1:]))(x)
    assert float((module - logits).abs().max()) <= 1e-5 * scale
    assert float((folded - logits).abs().max()) <= 1e-5 * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_pair_of_inputs_moves_further_apart_than_the_bound(name: str, tmp_path: Path) -> None:
    model, fixture = read(name, tmp_path)
    x = fixture["inputs"].float() / 255
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 1e-2
    bound = lipschitz_bound(model, tuple(x.shape[1:]))
    with torch.no_grad():
        moved = (model(x + step) - model(x)).norm(dim=1)
    assert (moved <= bound * step.flatten(1).norm(dim=1) * (1 + 1e-3)).all()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "cifar10-2x8_799.pth"
    torch.save(saved("liresnet")["checkpoint"], path)
    return path


def test_a_checkpoint_becomes_a_run(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["liresnet", str(published), str(out)]) == 0
    said = capsys.readouterr().out
    assert str(out / "checkpoints" / "best.ckpt") in said
    assert f"certify {out}" in said
    module, fixture = robustcert.load_module(out), saved("liresnet")
    x = fixture["inputs"].float() / 255
    with torch.no_grad():
        difference = (module(x) - fixture["logits"]).abs().max()
    assert difference <= 1e-5 * fixture["logits"].abs().max()
    assert main(["liresnet", str(published), str(out)]) == 1
    assert "is not replaced" in capsys.readouterr().err


@pytest.mark.slow
def test_a_converted_checkpoint_is_certified_like_ours(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    convert("liresnet", published, out)
    data = write_cifar10(tmp_path / "data")
    settings: dict[str, Any] = {"root": str(data), "download": False}
    certify(str(out), samples=2, dataset=settings, attack={"samples": 2, "steps": 2})
    from robustcert.check.command import main as check

    assert check([str(out / "certificate-2")]) == 0


class Code:
    """What a pickle can hold: a call of any function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def damaged(content: dict[str, Any], what: str) -> Any:
    weights = content["backbone"]
    if what == "missing":
        del weights["conv.gamma"]
    elif what == "extra":
        weights["conv.rotation"] = torch.zeros(3)
    elif what == "shape":
        weights["neck.kernel"] = weights["neck.kernel"][:, :-1]
    elif what == "nan":
        weights["head.weight"][0, 0] = torch.nan
    elif what == "text":
        weights["head.weight"] = "text"
    elif what == "activation":
        content["configs"]["model"]["act_name"] = "RAbs"
    elif what == "depth":
        content["configs"]["model"]["depth"] = 3
    elif what == "dataset":
        content["configs"]["dataset"]["name"] = "mnist"
    elif what == "bare":
        return weights
    elif what == "code":
        content["callback"] = Code()
    return content


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("missing", "conv.gamma"),
        ("extra", "conv.rotation: no such tensor in LiResNet"),
        ("shape", r"neck.kernel: expected shape \(8, 128\), got \(8, 127\)"),
        ("nan", "head.weight: expected finite numbers"),
        ("text", "head.weight: expected a tensor, got str"),
        ("activation", "configs.model.act_name: expected one of minmax, got 'RAbs'"),
        ("depth", r"conv.weights: expected shape \(3, 8, 8, 3, 3\), got \(2, 8, 8, 3, 3\)"),
        ("dataset", "configs.dataset.name: expected one of cifar10, .*, got 'mnist'"),
        ("bare", "the keys backbone and configs"),
        ("code", "holds code, of which none was executed"),
    ],
)
def test_another_file_is_refused_in_one_line_that_names_it(
    what: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(damaged(saved("liresnet")["checkpoint"], what), "file.pth")
    with pytest.raises(ConversionError, match=named):
        convert("liresnet", "file.pth", "run")
    assert main(["liresnet", "file.pth", "run"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: file.pth: ")
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    with pytest.raises(ConversionError, match=r"file\.pth: no such file"):
        convert("liresnet", path, tmp_path / "run")
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"file\.pth: not a readable checkpoint"):
        convert("liresnet", path, tmp_path / "run")
