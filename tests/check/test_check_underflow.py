"""Constants so small that their squares are 0: no radius grows by what is lost."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from benchmarks.soundness.forgeries import Folder, write
from robustcert.activations import Tanh
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import Certifier, CombinedCertifier, LipschitzCertifier
from robustcert.check import UnreadableError, check
from robustcert.network.input_space import InputSpace, scaling
from robustcert.network.linear import Affine, Dense
from robustcert.network.network import PlainNetwork


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scaled(scale: float, *rest: object, size: int = 1) -> PlainNetwork:
    first = Affine(wide(*[scale] * size), wide(*[0.0] * size))
    return PlainNetwork((first, *rest), (size,), InputSpace("columns"))  # type: ignore[arg-type]


def bent(scale: float, bias: float) -> PlainNetwork:
    """Its boundary is where ``scale x = -bias``."""
    head = Dense(wide(-0.5, 0.5).view(2, 1))
    return scaled(scale, Dense(wide(1.0).view(1, 1), wide(bias)), Tanh(1).fold(), head)


def written(folder: Path, network: PlainNetwork, certifier: Certifier, x: Tensor) -> Folder:
    folder.mkdir()
    found = certifier.certify(network, x)
    split = CertifiedSplit(x, found.prediction, torch.arange(len(x)), found)
    write(folder, network, split, certifier)
    return Folder(folder)


@pytest.mark.parametrize("scale", [1e-140, 1e-150, 1e-154, 1e-160, 1e-165, 1e-170])
def test_second_order_radii_end_at_the_boundary(scale: float) -> None:
    found = CombinedCertifier().certify(bent(scale, -0.5), torch.zeros(1, 1))
    assert 0 < float(found.radius) * scale <= 0.5


@pytest.mark.parametrize("times", [1.1, 20.0])
def test_the_checker_proves_no_second_order_radius_beyond_the_boundary(
    tmp_path: Path, times: float
) -> None:
    folder = written(tmp_path / "a", bent(1e-165, -5.0), CombinedCertifier(), torch.zeros(1, 1))
    assert check(folder.path, exact=1, seed=0).mismatches == []
    folder.set_radius(0, times * 5 / 1e-165)
    folder.recount()
    folder.save()
    assert check(folder.path, exact=1, seed=0).mismatches


def test_the_checker_proves_no_smaller_semidefinite_constant(tmp_path: Path) -> None:
    head = Dense(wide(0.5, 0.0, -0.5, 0.0).view(2, 2), wide(1.0, 0.0))
    network = scaled(1e-170, Dense(torch.eye(2, dtype=torch.float64)), head, size=2)
    folder = written(tmp_path / "a", network, LipschitzCertifier(), torch.zeros(1, 2))
    assert check(folder.path, exact=1, seed=0).mismatches == []
    folder.claim["claim"]["proof"] = "lipsdp"
    zero, constant = (0.0).hex(), (1e-183).hex()
    folder.claim["pairwise"] = [[zero, constant], [constant, zero]]
    multipliers = folder.path / "multipliers.safetensors"
    save_file({}, multipliers)
    digest = hashlib.sha256(multipliers.read_bytes()).hexdigest()
    folder.claim["files"]["multipliers.safetensors"] = digest
    folder.set_radius(0, 9e182)
    folder.recount()
    folder.save()
    assert any("pairwise" in line for line in check(folder.path, exact=1, seed=0).mismatches)


def test_metrics_are_of_sizes_that_do_not_underflow(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set norm\.scale in other units"):
        scaling(wide(1e-165))
    network = PlainNetwork((Dense(wide(1.0, -1.0).view(2, 1)),), (1,))
    network = PlainNetwork(network.operations, (1,), InputSpace("columns", None, scaling(wide(2))))
    folder = written(tmp_path / "a", network, LipschitzCertifier(), torch.ones(1, 1))
    assert check(folder.path, exact=1, seed=0).mismatches == []
    folder.metric["scale"] = wide(5.822e-320).numpy()
    folder.save()
    with pytest.raises(UnreadableError, match="expected sizes from"):
        check(folder.path, exact=1, seed=0)
