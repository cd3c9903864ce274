"""The benchmark of accelerators, in small and on a CPU."""

import sys
from pathlib import Path

import pytest

from benchmarks import accelerator


@pytest.mark.slow
def test_the_page_on_an_accelerator_says_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    small = "--samples 3 --width 16 --depth 1 --batch 2 --repeats 1 --seconds 0"
    typed = ["accelerator", "--device", "cpu", "--page", str(page), *small.split()]
    monkeypatch.setattr(sys, "argv", typed)
    assert accelerator.main() == 0
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    certified = {row[0]: row[3] for row in rows if row[1] == "3"}
    assert certified == dict.fromkeys(("| dense", "| LiResNet", "| LipNeXt"), "verified")
    assert sum("16 x 1" in row[0] for row in rows) == 5
    assert sum("8 Cholesky layers of 64" in row[0] for row in rows) == 2


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
    monkeypatch.setattr(accelerator, "networks", lambda: {"dense": small_network()})
    rows, right = accelerator.certificates(accelerator.torch.device("cpu"), 2)
    assert not right
    assert len(rows) == 1


def small_network() -> accelerator.nn.Module:
    """A dense network of eight features."""
    return accelerator.MLP(
        (3, 32, 32), 10, width=8, depth=1, layer=accelerator.DENSE, activation=accelerator.MAXMIN
    )
