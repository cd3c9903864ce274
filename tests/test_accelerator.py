"""The benchmark of accelerators, in small and on a CPU."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from helpers.miniatures import write_cifar10
from torch import nn

from benchmarks import accelerator
from benchmarks.accelerator import Page, Part, WrongError, fill, main
from benchmarks.speed import (
    accelerator_bounds,
    accelerator_steps,
    architecture_time,
    published_size,
)
from benchmarks.speed.accelerator_steps import Sizes
from benchmarks.speed.architecture_time import Step
from benchmarks.speed.published_arithmetic import (
    PowerIteration,
    PublishedNetwork,
    ReflectorTrunk,
    orthonormal_rows,
)
from robustcert.certifiers import UnsoundArithmeticError
from robustcert.check.report import Report
from robustcert.layers.cholesky import CholeskyOrthogonal
from robustcert.models import LayerFamily
from robustcert.norms.device import Place
from robustcert.norms.estimates import conv_norm_lower

CPU = torch.device("cpu")
SMALL = (
    *("--samples", "8", "--certified", "2", "--width", "16", "--depth", "1", "--batch", "2"),
    *("--repeats", "1"),
)
# A training of seconds.
OVERRIDES = (
    *("model.width=16", "model.depth=1", "model.neck_channels=16", "model.dense_width=16"),
    *("model.dense_depth=1", "loader.batch_size=8", "loader.validation=0.25", "attack.samples=2"),
)


def rows_of(page: Path) -> list[list[str]]:
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines]


# The compiler's own.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.slow
def test_the_page_on_an_accelerator_says_what_was_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    typed = ["--device", "cpu", "--page", str(page), *SMALL, "--seconds", "0"]
    assert main([*typed, "--backend", "aot_eager"]) == 0
    rows = rows_of(page)
    certified = {row[0]: row[3] for row in rows if row[1] == "8"}
    assert certified == dict.fromkeys(("dense", "LiResNet", "LipNeXt"), "verified")
    steps = [row[0] for row in rows if row[1].endswith(" ms")]
    for network, count in (("LiResNet++", 7), ("BRONet", 6), ("LipNeXt", 5), ("LipConvNet", 9)):
        assert sum(step.startswith(network) for step in steps) == count
    assert sum("8 Cholesky layers of 64" in step for step in steps) == 2
    assert sum("bfloat16" in step for step in steps) == 7
    assert sum("compiled" in step for step in steps) == 3
    assert sum("published operations" in step for step in steps) == 2
    # Bounds of six shapes and networks by both, and bounds with three rates in float64.
    assert [len(row) for row in rows if row[1].endswith(" s")] == [5] * 6 + [6, 6]
    assert "failed" not in page.read_text()
    assert "Left out" not in page.read_text()


@pytest.mark.slow
def test_a_training_is_certified_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path / "cifar10", records=8)
    monkeypatch.setenv("ROBUSTCERT_DATA", str(tmp_path))
    lines = list(accelerator.training(CPU, 1.0, OVERRIDES))
    assert "trainer.accelerator=cpu" in lines[0]
    assert "certify_device=cpu" in lines[0]
    assert lines[2].endswith(" at 1")
    assert lines[-1].endswith(": verified.")


def test_data_are_looked_for_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accelerator, "fill", lambda *_: pytest.fail("measured"))
    monkeypatch.setenv("ROBUSTCERT_DATA", str(tmp_path))
    page = tmp_path / "page.md"
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--page", str(page), "--override", "dataset.download=false"])
    assert "set ROBUSTCERT_DATA to a folder with CIFAR-10" in capsys.readouterr().err
    assert not page.exists()


def test_a_failure_late_loses_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[str]:
        yield "a line before"
        raise RuntimeError("no such kernel")

    page = Page(tmp_path / "page.md", "a CPU")
    good = Part("Good", ["head"], lambda: iter(["measured"]))
    assert fill(page, [good])
    assert not fill(page, [Part("Bad", [], failing), good])
    text = page.path.read_text()
    assert "a line before\n\nThis part failed: RuntimeError: no such kernel" in text
    assert text.count("measured") == 2


def test_a_step_that_fails_costs_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Step:
        raise RuntimeError("no such kernel")

    def too_large() -> Step:
        raise torch.OutOfMemoryError

    made = [lambda: lambda: None, too_large, failing, lambda: lambda: None]
    steps = [("a network", f"step {k}", make) for k, make in enumerate(made)]
    monkeypatch.setattr(accelerator_steps, "cases", lambda *_: steps)
    rows, found = accelerator_steps.step_rows(CPU, Sizes(16, 1, 2, 1, "eager")), []
    with pytest.raises(RuntimeError, match="steps failed: step 2"):
        found.extend(rows)
    assert [row.split(" | ")[1].split()[-1] for row in found] == ["ms", "memory", "failed", "ms"]


def test_what_does_not_fit_into_the_time_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless() -> Iterator[str]:
        yield "the first row"
        while True:
            time.sleep(0.01)

    parts = [Part("Long", [], endless), Part("Last", [], lambda: iter(["never"]))]
    monkeypatch.setattr(accelerator, "parts_of", lambda *_: parts)
    page = tmp_path / "page.md"
    typed = ["--device", "cpu", "--page", str(page), "--seconds", "0", "--minutes", "0.002"]
    assert main(typed) == 0
    text = page.read_text()
    assert "the first row" in text
    assert text.endswith("Left out, as the time was over: the rest of “Long”; “Last”.\n")


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (Report(), "verified"),
        (Report(mismatches=["row 1"]), "refused: row 1"),
        (Report(untried=["row 2"]), "not all was checked: row 2"),
        (Report(uncovered=["a claim"]), "not all was checked: a claim"),
    ],
)
def test_verified_is_said_of_what_was_checked_in_full(report: Report, said: str) -> None:
    assert accelerator.verdict(report) == said


def test_a_certificate_that_differs_on_the_device_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certify = accelerator.LipschitzCertifier.certify
    calls = []

    def drifting(self: accelerator.LipschitzCertifier, *arguments: object) -> object:
        found = certify(self, *arguments)  # type: ignore[arg-type]
        calls.append(found)
        found.radius.mul_(1 - 1e-6 * (len(calls) % 2))
        return found

    monkeypatch.setattr(accelerator.LipschitzCertifier, "certify", drifting)
    with pytest.raises(WrongError, match="dense"):
        noticed(monkeypatch)


@pytest.mark.parametrize(
    ("bounds", "failed", "said"),
    [((1.0, 1.0001), False, ""), ((1.0, 1.001), False, "one"), ((1.0, 1.0), True, "one, LiResNet")],
)
def test_bounds_of_a_device_that_are_others_or_the_cpus_are_noticed(
    bounds: tuple[float, float], failed: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def place(device: torch.device) -> Iterator[Place]:
        yield Place(device, failed)

    monkeypatch.setattr(accelerator_bounds, "bounds_on", place)
    found = iter(bounds)
    monkeypatch.setattr(accelerator_bounds, "shapes", lambda _: {"one": lambda: next(found)})
    monkeypatch.setattr(accelerator_bounds, "whole", lambda _: lambda: 1.0)
    rows = accelerator_bounds.bound_rows(CPU, Sizes(16, 1, 2, 1, "eager"))
    with pytest.raises(UnsoundArithmeticError, match=said) if said else nullcontext():
        assert [row.startswith("| one") for row in rows] == [True, False]


@pytest.mark.parametrize("left", ["untried", "uncovered", "mismatches"])
def test_a_certificate_that_is_not_verified_in_full_is_noticed(
    left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "check", lambda *_, **__: Report(**{left: ["something"]}))
    with pytest.raises(WrongError, match="dense"):
        noticed(monkeypatch)


def noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates of one small network; an error comes after its row."""
    small = accelerator.MLP(
        (3, 32, 32), 10, width=8, depth=1, layer=accelerator.DENSE, activation=accelerator.MAXMIN
    )
    monkeypatch.setattr(accelerator, "networks", lambda: {"dense": small})
    rows = accelerator.certificates(CPU, 2)
    assert next(rows).startswith("| dense | 2 |")
    next(rows)


# The operations of published code


def test_rows_by_published_operations_are_those_of_the_layer() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9)
    torch.testing.assert_close(orthonormal_rows(x), CholeskyOrthogonal(ridge=1e-3)(x))


def test_published_reflectors_are_unitary_and_power_iteration_finds_norms() -> None:
    torch.manual_seed(0)
    blocks = ReflectorTrunk(4, 2, 6).blocks()
    torch.testing.assert_close(
        blocks @ blocks.mH, torch.eye(4).expand(blocks.shape).to(blocks.dtype), atol=1e-4, rtol=0
    )
    weight = torch.randn(4, 3, 5, 5)
    norms = PowerIteration(3, 8, stride=2, padding=2, groups=1)
    for _ in range(20):
        found = float(norms(weight))
    # Of the same convolution.
    assert found == pytest.approx(conv_norm_lower(weight, (8, 8), 2, 2), rel=1e-3)


@pytest.mark.parametrize("reflects", [False, True])
def test_published_networks_have_their_published_number_of_parameters(reflects: bool) -> None:
    with torch.device("meta"):
        model = PublishedNetwork(
            width=512, depth=12, dense_width=2048, dense_depth=8, reflects=reflects
        )
    count = sum(p.numel() for p in model.parameters())
    # The papers: 83M and 69M.
    assert count / 1e6 == pytest.approx(69 if reflects else 83, abs=0.5)


# A recipe's step over that of its twin


@pytest.mark.parametrize("recipe", ["bronet_cifar10", "liresnet_plus_imagenet", "lipnext_cifar10"])
def test_the_twin_of_a_recipe_is_its_network_without_constraints(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[nn.Module] = []

    def steps_of(
        network: Callable[[LayerFamily], nn.Module], families: dict[str, LayerFamily], **sizes: int
    ) -> dict[str, Step]:
        built.extend(network(family) for family in (accelerator_steps.TWIN, *families.values()))
        return architecture_time.steps_of(network, families, **sizes)

    monkeypatch.setattr(published_size, "steps_of", steps_of)
    sizes = ["model.width=16", "model.depth=2"]
    if "lipnext" not in recipe:
        sizes += ["model.neck_channels=16", "model.dense_width=16", "model.dense_depth=1"]
    assert published_size.main([recipe, *sizes, "--training-step", "2"]) == 0
    assert capsys.readouterr().out.startswith("step of 2: ")
    twin, own = built
    assert constraints(own)
    assert not constraints(twin)
    assert biases(twin) == biases(own)


def constraints(model: nn.Module) -> list[nn.Module]:
    """Layers with parameters; parametrized ones have a class of their own."""
    return [
        module
        for module in model.modules()
        if any(kind.__module__.startswith("robustcert.layers") for kind in type(module).__mro__)
        and next(module.parameters(), None) is not None
    ]


def biases(model: nn.Module) -> list[torch.Size]:
    return [p.shape for name, p in model.named_parameters() if name.endswith("bias")]
