"""What a certification needs, and what it does not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import run

from robustcert.errors import ConfigError
from robustcert.runs.attack import build_attack
from robustcert.runs.certify import certify

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


def test_attacks_take_a_tenth_of_training_unless_a_setting_says_else() -> None:
    assert build_attack({}).limited(6000.0, 1).seconds == 600.0
    assert build_attack({}).limited(10.0, 2).seconds == 30.0
    assert build_attack({"seconds": 5}).limited(6000.0, 1).seconds == 5
    with pytest.raises(ConfigError, match=r"attack: .*seconds of at least 0 or null"):
        build_attack({"seconds": -1.0})


def test_a_run_is_certified_by_the_certifier_of_its_training_unless_another_is_named(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    run(folder, "activation=smooth", "certifier=second_order", "certify=false")
    few: dict[str, Any] = {"samples": 8, "attack": {"samples": 0}}
    certify(str(folder), output="own", **few)
    named = {"_target_": "robustcert.certifiers.LipschitzCertifier"}
    certify(str(folder), output="other", certifier=named, **few)
    claims = [json.loads((folder / o / "certificate.json").read_text()) for o in ("own", "other")]
    found = [claim["certifier"]["_target_"].rpartition(".")[2] for claim in claims]
    assert found == ["CombinedCertifier", "LipschitzCertifier"]
