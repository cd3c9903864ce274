"""A run that was killed and started again ends with the result of one that nobody disturbed."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soundness" / "kill_runs.py"


@pytest.mark.slow
def test_kill_9_at_any_moment_of_a_run_changes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--kills", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same result") == 4
    assert "0 of 4 results differ" in done.stdout
