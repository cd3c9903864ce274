"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_notebook_section_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    torch.manual_seed(0)
    exec(compile(code, str(README), "exec"), {})
    accuracy, verified = re.findall(r"\d\.\d+", capsys.readouterr().out.splitlines()[0])[0::2]
    assert float(accuracy) > 0.6
    assert float(verified) <= float(accuracy)


def test_every_option_that_the_readme_names_exists() -> None:
    conf = README.parent / "conf"
    # The notebook's keyword arguments are not options.
    text = re.sub(r"```python\n.*?```", "", README.read_text(), flags=re.DOTALL)
    for group in (p.name for p in conf.iterdir() if p.is_dir() and p.name != "hydra"):
        for names in re.findall(rf"\b{group}=([a-z0-9][\w.,]*)", text):
            for name in names.strip(".,").split(","):
                known = (conf / group / f"{name}.yaml").is_file()
                assert known or name == "hinge_abs", f"{group}={name}"
