"""Pictures of results show what they were given, where it is."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from robustcert.certificate.figures import draw_level_sets
from robustcert.certificate.style import NEUTRAL, VERIFIED

GREEN = np.array(to_rgb(VERIFIED))
LINE = np.linspace(0, 1, 41)
FIRST, SECOND = np.meshgrid(LINE, LINE, indexing="ij")


def green(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels in the colour of certified radii, the legend's left out."""
    pixels = imread(path)[..., :3]
    rows, columns = np.nonzero(np.abs(pixels - GREEN).max(axis=-1) < 0.02)
    # The legend is at the top left.
    inside = ~((rows < 0.25 * len(pixels)) & (columns < 0.6 * pixels.shape[1]))
    return rows[inside] / len(pixels), columns[inside] / pixels.shape[1]


@pytest.mark.parametrize("axis", [0, 1])
def test_level_sets_lie_along_the_axis_that_they_should(tmp_path: Path, axis: int) -> None:
    # A radius that only depends on one coordinate: level sets run along the other one.
    radius = np.maximum(0, (FIRST, SECOND)[axis] - 0.5)
    draw_level_sets(
        tmp_path / "levels.png", radius, (radius > 0).astype(int), truth=None, title="half"
    )
    rows, columns = green(tmp_path / "levels.png")
    across, along = (columns, rows) if axis == 0 else (rows, columns)
    # Four levels, a few pixels wide each, on the right or in the upper half.
    assert len(np.unique(across)) < 0.2 * len(np.unique(along))
    assert across.min() > 0.5 if axis == 0 else across.max() < 0.5


def test_a_radius_of_nothing_is_drawn_without_level_sets(tmp_path: Path) -> None:
    nothing = np.zeros_like(FIRST)
    draw_level_sets(tmp_path / "a.png", nothing, nothing.astype(int), truth=None, title="none")
    assert len(green(tmp_path / "a.png")[0]) == 0


def test_the_true_distance_is_drawn_beside_it(tmp_path: Path) -> None:
    pictures = []
    for name, truth in (("a", None), ("b", np.abs(FIRST - SECOND) / 2**0.5)):
        path = tmp_path / f"{name}.png"
        draw_level_sets(path, 0.3 * FIRST, (FIRST > 0.5).astype(int), truth=truth, title="toy")
        pixels = imread(path)[..., :3]
        pictures.append(int((np.abs(pixels - float(NEUTRAL)).max(axis=-1) < 0.02).sum()))
    assert pictures[1] > 10 * max(1, pictures[0])
