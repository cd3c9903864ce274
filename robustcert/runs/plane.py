"""The picture of a certificate on the plane."""

from pathlib import Path

import torch

from robustcert.certificate.figures import draw_level_sets
from robustcert.certifiers import Certifier
from robustcert.data import Dataset
from robustcert.network.network import PlainNetwork

# Points along each side of the unit square.
GRID = 81


def draw_plane(path: Path, certifier: Certifier, network: PlainNetwork, source: Dataset) -> None:
    """Draw level sets of the certified radius over the unit square.

    Args:
        path: PNG to write.
        certifier: What certifies.
        network: On inputs of shape (2,).
        source: The dataset, which may know the distance to its true boundary.
    """
    line = torch.linspace(0, 1, GRID, dtype=torch.float64, device="cpu")
    grid = torch.cartesian_prod(line, line)
    found = certifier.certify(network, grid)
    distance = getattr(source, "distance", None)
    draw_level_sets(
        path,
        found.radius.view(GRID, GRID).numpy(),
        found.prediction.view(GRID, GRID).numpy(),
        truth=None if distance is None else distance(grid).view(GRID, GRID).numpy(),
        title=source.name,
    )
