"""How many radii a certifier decided itself, and how many are those of its fallback."""

from dataclasses import dataclass

import torch

from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import Certifier, LipschitzCertifier, Proof
from robustcert.data import as_numbers
from robustcert.network.network import PlainNetwork
from robustcert.training.validation import NEVER_BELOW


@dataclass(frozen=True)
class Decided:
    """Radii above 0 by what decided them.

    Attributes:
        own: Those of the certifier that are above its fallback's.
        radii: All of them.
        fallback: Name of the fallback.
    """

    own: int
    radii: int
    fallback: str


def decided_by(
    certifier: Certifier,
    network: PlainNetwork,
    result: CertifiedSplit,
    batch_size: int,
    device: torch.device,
) -> Decided | None:
    """Which radii are the certifier's own; None for one that has no fallback.

    Args:
        certifier: What made ``result``.
        network: The certified network.
        result: The certified split.
        batch_size: Samples certified at once: as for ``result``, so that equal radii are equal.
        device: Where the network is.
    """
    if not isinstance(certifier, NEVER_BELOW) or getattr(certifier, "alone", False):
        return None
    single = certifier.dtype == torch.float32
    fallback = LipschitzCertifier(arithmetic="float32" if single else "float64")
    own = 0
    rows = torch.arange(len(result.target), dtype=torch.int64, device="cpu")
    for part in rows.split(batch_size):
        x = as_numbers(result.inputs[part].to(device), network.space.kind)
        radius = fallback.certify(network, x).radius.cpu()
        own += int((result.certificates.radius[part] > radius).sum())
    return Decided(own, int((result.certificates.radius > 0).sum()), Proof.LIPSCHITZ.value)
