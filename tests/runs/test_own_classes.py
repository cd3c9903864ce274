"""A run whose activation is of the user's own package: every command takes the same permission."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.runs import run
from safetensors.torch import load_file

import robustcert
from robustcert import export, report
from robustcert.certificate.samples import read_radii
from robustcert.errors import ConfigError, NotCertifiedError

ACTIVATION = """
from torch import nn
from robustcert.network.activation import Activation
from robustcert.network.local_error import counted

def hinge_abs(x):
    return (x.abs() - 1).abs()

def hinge_abs_onnx(graph, x, shape, constants):
    return graph.apply("Abs", graph.sub(graph.apply("Abs", x), graph.constant(1.0)))

class HingeAbs(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = self.out_features = num_features

    def forward(self, x):
        return hinge_abs(x)

    def lipschitz_bound(self):
        return 1.0

    def fold(self):
        return Activation(hinge_abs, {}, lipschitz=1.0, error=counted(1.0, 1.0))
"""
onnxruntime = pytest.importorskip("onnxruntime")
TYPED = ("activation=relu", "model.activation._target_=ownlab.HingeAbs", "allow_targets=[ownlab]")
REMEDY = r"add allow_targets=\[ownlab\]"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's folder, with a finished run in it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "ownlab.py").write_text(ACTIVATION)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        run(folder / "run", *TYPED)
        yield folder
    del sys.modules["ownlab"]


def main(module: str, *typed: str) -> int:
    """The exit status of a command in the way of ``python -m``."""
    __import__(f"{module}.__main__")
    found: int = sys.modules[f"{module}.__main__"].main(typed)
    return found


@pytest.mark.parametrize("permission", ["allow_targets=[ownlab]", "--allow-targets=ownlab"])
def test_report_and_export_take_the_permission(
    folder: Path, tmp_path: Path, permission: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page, model = tmp_path / "report.html", tmp_path / "m.onnx"
    typed = {
        report: (str(folder / "run"), f"--out={tmp_path}"),
        export: (str(folder / "run"), str(model)),
    }
    for (module, arguments), written in zip(typed.items(), (page, model), strict=True):
        assert main(module.__name__, *arguments) > 0
        assert REMEDY.replace("\\", "") in capsys.readouterr().err.splitlines()[-1]
        assert not written.exists()
        assert main(module.__name__, *arguments, permission) == 0
    assert "softmax(logits)" in page.read_text()  # of logits that the network gave
    x = torch.rand(50, 1, 8, 8, dtype=torch.float64)
    found = robustcert.load(folder / "run", allow_targets=["ownlab"])(x)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    label, radius = map(torch.from_numpy, session.run(["label", "radius"], {"x": x.numpy()}))
    assert torch.equal(label, found.label)
    torch.testing.assert_close(radius, found.radius, rtol=0, atol=1e-9)


def test_load_gives_the_radii_of_the_certificate(folder: Path) -> None:
    certificate = folder / "run" / "certificate"
    with pytest.raises(ConfigError, match=REMEDY):
        robustcert.load(certificate)
    x = load_file(certificate / "samples.safetensors")["inputs"]
    found = robustcert.load(certificate, allow_targets=["ownlab"])(x)
    listed = read_radii(certificate / "radii.csv").radius
    assert (found.radius > 0).any()
    torch.testing.assert_close(found.radius, listed, rtol=0, atol=1e-9)


def test_nothing_is_imported_without_permission(folder: Path, tmp_path: Path) -> None:
    kept = sys.modules.pop("ownlab")
    try:
        for path in (folder / "run", folder / "run" / "certificate"):
            for allowed in ((), ("another",)):
                with pytest.raises(ConfigError, match=REMEDY):
                    robustcert.load(path, allow_targets=allowed)
        assert main("robustcert.report", str(folder / "run"), f"--out={tmp_path}") == 2
        assert "ownlab" not in sys.modules
    finally:
        sys.modules["ownlab"] = kept


def test_a_checkpoint_of_another_network_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(other, *TYPED, "seed=1", "certify=false")
    shutil.copytree(folder / "run" / "certificate", other / "certificate")
    with pytest.raises(NotCertifiedError, match="holds another network than the certificate"):
        robustcert.load(other, allow_targets=["ownlab"])
