"""What a certification needs, and what it does not."""

import subprocess
import sys
from pathlib import Path

import pytest

CERTIFY = """
import sys
from robustcert.runs.commands import certify
certify()
print(*(name for name in ("lightning", "torchmetrics", "wandb") if name in sys.modules), "loaded")
"""


@pytest.mark.slow
def test_a_certification_loads_no_framework_of_training(tiny_run: Path, tmp_path: Path) -> None:
    typed = (
        f"checkpoint={tiny_run}/checkpoints/best.ckpt",
        f"output={tmp_path / 'folder'}",
        *("samples=8", "attack.samples=2", "attack.steps=1"),
    )
    command = [sys.executable, "-c", CERTIFY, *typed]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "loaded"
    assert (tmp_path / "folder" / "certificate.json").is_file()
