"""What several test files share."""

from pathlib import Path

import pytest
from helpers.runs import run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; read it, don't write to it."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    run(folder)
    return folder
