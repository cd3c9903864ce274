"""Networks of published checkpoints compute what the original code computed."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.miniatures import write_cifar10

import robustcert
from robustcert.convert import SOURCES, ConversionError, convert
from robustcert.convert.__main__ import main
from robustcert.convert.bcop import bjorck
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


@pytest.mark.parametrize("layer", ["bcop", "cayley", "sandwich", "soc"])
def test_orthogonal_layers_have_a_constant_of_1(layer: str, tmp_path: Path) -> None:
    model, fixture = read(f"compared_{layer}", tmp_path)
    assert lipschitz_bound(model, tuple(fixture["inputs"].shape[1:])) <= 1 + 1e-4


def changed(name: str, tensor: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    content = saved(name)["checkpoint"]
    content[tensor] = change(content[tensor])
    return content


def named(name: str, content: Any, folder: Path) -> str:
    """The line in which a checkpoint is refused."""
    fixture = saved(name)
    shape, classes = tuple(fixture["inputs"].shape[1:]), fixture["logits"].shape[1]
    data: Any = SimpleNamespace(input_shape=shape, num_classes=classes)
    with pytest.raises(ConversionError) as error:
        network_of("compared", content, folder / "file.pth", data)
    return str(error.value)


def test_weights_that_depend_on_random_numbers_are_refused(tmp_path: Path) -> None:
    def flatten(free: torch.Tensor) -> torch.Tensor:
        left, values, right = torch.linalg.svd(free)
        values[..., -1] = 1e-4 * values[..., 0]
        return left * values[..., None, :] @ right

    for tensor in (
        "Block1.0.param_matrices",
        "ClassificationHead.1.parametrizations.weight.original",
    ):
        line = named("compared_bcop", changed("compared_bcop", tensor, flatten), tmp_path)
        assert f"file.pth: {tensor}: the original code divides by a norm" in line
        zero = changed("compared_bcop", tensor, torch.zeros_like)
        assert "what was drawn still shows" in named("compared_bcop", zero, tmp_path)
    even = changed("compared_bcop", "Block1.0.param_matrices", lambda free: free[:3])
    assert "an odd kernel, got 3" in named("compared_bcop", even, tmp_path)


@pytest.mark.parametrize("largest", [1.0, 2.0, 5.0])
def test_what_a_power_iteration_draws_does_not_show(largest: float) -> None:
    free = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    found = bjorck(free, 20, "here")
    share = torch.linalg.matrix_norm(free, 2, keepdim=True)
    for part in (1.0, 0.9, 0.7):
        again = bjorck(free / (part * share), 20, "here", scaled=False)
        torch.testing.assert_close(again, found, rtol=0, atol=1e-6)
    torch.testing.assert_close(bjorck(largest * free, 20, "here"), found)


def test_layers_of_eco_are_refused_by_name(tmp_path: Path) -> None:
    content = {
        "FirstConv.random_conv_filter": torch.randn(4, 4, 1),
        "FirstConv.us": torch.randn(1, 1, 4),
        "FirstConv.vs": torch.randn(1, 4, 1),
        "FirstConv.correction": torch.ones(1),
        "FirstConv.bias": torch.zeros(4),
    }
    line = named("compared_soc", content, tmp_path)
    assert "file.pth: its layers are those of ECO" in line
    assert "float16" in line


def test_vectors_without_a_bound_are_refused(tmp_path: Path) -> None:
    content = changed("compared_soc", "Block1.0.u3", torch.zeros_like)
    assert "Block1.0: expected vectors" in named("compared_soc", content, tmp_path)


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
