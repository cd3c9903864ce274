"""Certificate folders for tests of what is made from them."""

from pathlib import Path

import torch
from torch import nn

from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import Certifier, LipschitzCertifier
from robustcert.data import to_unit
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork


def perturbed(module: nn.Module, scale: float = 0.2) -> nn.Module:
    """The module with other parameters, biases and activations' own included."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape)
    return module


def plain_network(module: nn.Module, *shape: int) -> PlainNetwork:
    """The folded network of a perturbed module."""
    return fold_network(perturbed(module), shape)


def write_folder(
    folder: Path,
    network: PlainNetwork,
    certifier: Certifier | None = None,
    samples: int = 12,
) -> Path:
    """The certificate of random images, labelled as they are predicted but for every fourth."""
    folder.mkdir(parents=True, exist_ok=True)
    certifier = certifier or LipschitzCertifier()
    generator = torch.Generator().manual_seed(1)
    shape = (samples, *network.input_shape)
    inputs = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    certificates = certifier.certify(network, to_unit(inputs))
    target = certificates.prediction.clone()
    claim = certifier.claim(network, [to_unit(inputs)])
    assert claim.pairwise is not None
    target[::4] = (target[::4] + 1) % len(claim.pairwise)
    split = CertifiedSplit(inputs, target, torch.arange(samples), certificates)
    write_certificate(folder, network, claim, split, [0.01, 0.1])
    return folder
