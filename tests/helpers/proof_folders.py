"""Certificate folders with proofs of several kinds."""

from pathlib import Path

import torch

from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import Certifier
from robustcert.data import to_unit
from robustcert.network.network import PlainNetwork

SAMPLES = 12


def certify(folder: Path, net: PlainNetwork, certifier: Certifier) -> Path:
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    inputs = torch.randint(0, 256, (SAMPLES, *net.input_shape), dtype=torch.uint8)
    certificates = certifier.certify(net, to_unit(inputs))
    split = CertifiedSplit(inputs, certificates.prediction, torch.arange(SAMPLES), certificates)
    write_certificate(folder, net, certifier.claim(net), split, [0.01])
    return folder
