"""What tests of check_curvature share."""

from pathlib import Path
from typing import Any

import torch

from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import Certificates, Certifier, CombinedCertifier, LipschitzCertifier
from robustcert.network.network import PlainNetwork

SAMPLES = 16


def write(
    folder: Path, net: PlainNetwork, found: Certificates, x: torch.Tensor, certifier: Certifier
) -> Path:
    folder.mkdir(parents=True)
    write_certificate(
        folder,
        net,
        certifier.claim(net),
        CertifiedSplit(x, found.prediction, torch.arange(len(x)), found),
        [0.01],
    )
    return folder


def certify(folder: Path, net: PlainNetwork, arithmetic: Any = "float64") -> Path:
    x = torch.rand(SAMPLES, *net.input_shape, generator=torch.Generator().manual_seed(1))
    certifier = CombinedCertifier(arithmetic)
    found = certifier.certify(net, x)
    first = LipschitzCertifier(arithmetic).certify(net, x)
    assert (found.radius > first.radius * (1 + 1e-5)).any()
    return write(folder, net, found, x, certifier)
