"""Small networks of other libraries, trained here, with what they report and what is proved.

    python -m benchmarks.studies.peer_certificates --out docs/peers
    python -m robustcert.board docs/pretrained docs/peers --out docs/board.md

Networks of deel-torchlip and orthogonium (`pip install 'robustcert[bridges]'`) are trained on the
embedded digits with the libraries' own layers, activations and losses. Each gets a certificate
folder, and in it `reported.json`: the accuracy, the Lipschitz constant that the library assumes,
and the verified accuracy that this constant gives, by the library's own function where it has one.
One network is exported to layers of torch before it is trained, and keeps no constraint.

Prints for each the constant, the median radius by it and by the assumed one, and the share of
samples that an attack changes inside the assumed radius.
"""

import argparse
import json
import math
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robustcert
from robustcert.attacks import margin_attack
from robustcert.certificate.claim import write_certificate
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import LipschitzCertifier, strict_arithmetic
from robustcert.data import Digits
from robustcert.errors import UnsoundNetworkError
from robustcert.network.agreement import require_agreement
from robustcert.network.bounds import sequence_bound
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork

RADII = (0.25, 0.5, 1.0)
WIDTH, BATCH = 128, 128
# What both libraries promise of a network of their layers.
ASSUMED = 1.0
# Factor of the logits of a network that is trained by cross-entropy.
TEMPERATURE = 10.0

Built = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], str]


def torchlip(activation: str) -> Built:
    """A dense network of deel-torchlip, its loss, and whose number is reported."""
    from deel import torchlip as library

    active = {
        "group_sort": library.GroupSort2,
        "lprelu": library.LPReLU,
    }[activation]
    network = library.Sequential(
        nn.Flatten(),
        library.SpectralLinear(64, WIDTH),
        active(),
        library.SpectralLinear(WIDTH, WIDTH),
        active(),
        library.SpectralLinear(WIDTH, 10),
        k_coef_lip=ASSUMED,
    )
    loss = library.HKRMulticlassLoss(alpha=50 / 51, min_margin=0.5)

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = loss(logits, nn.functional.one_hot(labels, 10))
        return value

    said = f"deel-torchlip {version('deel-torchlip')}: margin over the root of 2, constant assumed"
    return network, objective, said


def exported(activation: str) -> Built:
    """The same network of torch's layers, as the library exports it, before it is trained."""
    from deel import torchlip as library

    network, _, said = torchlip(activation)

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        # The library's loss has no minimum without constraints.
        return F.cross_entropy(TEMPERATURE * logits, labels)

    return library.vanilla_model(network, in_place=False), objective, said


def orthogonium(activation: str) -> Built:
    """A dense network of orthogonium, its loss, and whose number is reported."""
    from orthogonium import layers
    from orthogonium.losses import LossXent

    active = {"max_min": layers.MaxMin, "abs": layers.Abs, "relu": nn.ReLU}[activation]
    network = nn.Sequential(
        nn.Flatten(),
        layers.OrthoLinear(64, WIDTH),
        active(),
        layers.OrthoLinear(WIDTH, WIDTH),
        active(),
        layers.OrthoLinear(WIDTH, 10),
    )
    said = f"orthogonium {version('orthogonium')}: losses.VRA with last_layer_type='global', L=1"
    return network, LossXent(10, offset=0.5**0.5, temperature=0.25), said


# Every network: its library, its activation.
PEERS = {
    "torchlip_group_sort": ("deel", torchlip, "group_sort"),
    "torchlip_lprelu": ("deel", torchlip, "lprelu"),
    "torchlip_exported": ("deel", exported, "group_sort"),
    "orthogonium_max_min": ("orthogonium", orthogonium, "max_min"),
    "orthogonium_abs": ("orthogonium", orthogonium, "abs"),
    "orthogonium_relu": ("orthogonium", orthogonium, "relu"),
}


def train(network: nn.Module, objective: Callable[[Tensor, Tensor], Tensor], epochs: int) -> None:
    """Train on the digits, as the libraries' examples do."""
    examples = Digits().read("train")
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(examples)).split(BATCH):
            loss = objective(network(examples.inputs[rows]), examples.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    network.eval()


@torch.no_grad()
def reported(network: nn.Module, source: str) -> dict[str, object]:
    """What the library says of the test split."""
    examples = Digits().read("test")
    logits, labels = network(examples.inputs), examples.labels
    shares = {f"{r!r}": _verified(logits, labels, r, source) for r in RADII}
    accuracy = float((logits.argmax(1) == labels).double().mean())
    return {"accuracy": accuracy, "verified": shares, "constant": ASSUMED, "source": source}


def _verified(logits: Tensor, labels: Tensor, radius: float, source: str) -> float:
    if not source.startswith("orthogonium"):
        own = logits.gather(1, labels[:, None])[:, 0]
        rival = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        return float(((own - rival) / (ASSUMED * 2**0.5) > radius).double().mean())
    from orthogonium.losses import VRA

    # It puts a tensor on a GPU in any case.
    with mock.patch.object(Tensor, "cuda", lambda self: self):
        found = VRA(logits, labels, last_layer_type="global", L=ASSUMED, eps=radius)
    return float(found.double().mean())


def certify(network: nn.Module, folder: Path) -> dict[str, float]:
    """Certify a network on the test split, into a folder; what is proved beside what is assumed."""
    source = Digits()
    examples = source.read("test")
    folded = fold_network(network, tuple(examples.inputs.shape[1:]))
    certifier = LipschitzCertifier()
    with strict_arithmetic():
        require_agreement(network, folded, examples.inputs)
    found = certifier.certify(folded, examples.inputs)
    split = CertifiedSplit(examples.inputs, examples.labels, examples.indices, found)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"dataset": {"split": "test", **source.provenance()}}
    write_certificate(folder, folded, certifier.claim(folded), split, RADII, record)
    right = found.prediction == examples.labels
    return {
        "constant": sequence_bound(folded.operations, folded.input_shape),
        "proved": float(found.radius[right].median()),
        **attacked(folded, examples.inputs[right], examples.labels[right]),
    }


def attacked(network: PlainNetwork, x: Tensor, labels: Tensor) -> dict[str, float]:
    """The median radius by the assumed constant, and the share that is changed inside it."""
    x = x.double()
    with torch.no_grad():
        largest = network(x).topk(2, dim=1).values
    # Of logits that are 1-Lipschitz together, two change their difference by sqrt(2) at most.
    assumed = (largest[:, 0] - largest[:, 1]) / (math.sqrt(2) * ASSUMED)
    margin, _ = margin_attack(network, x, labels, 0.999 * assumed, steps=100)
    return {"assumed": float(assumed.median()), "broken": float((margin <= 0).double().mean())}


def main() -> None:
    """Train, certify and write what is reported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/peers"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS))
    options = parser.parse_args()
    for name in options.only:
        package, build, activation = PEERS[name]
        if find_spec(package) is None:
            print(f"{name}: {package} is not installed")
            continue
        torch.manual_seed(options.seed)
        network, objective, source = build(activation)
        train(network, objective, options.epochs)
        said = reported(network, source)
        try:
            row = certify(robustcert.freeze(network), options.out / name)
        except UnsoundNetworkError as error:
            print(f"{name}: {error}")
            continue
        (options.out / name / "reported.json").write_text(json.dumps(said, indent=1) + "\n")
        print(f"{name:<20}" + "".join(f"  {key} {value:.7f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
