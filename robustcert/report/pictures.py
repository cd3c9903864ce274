"""Pictures in two colour schemes, as bytes that only depend on what is drawn."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's colours, told apart by colour-blind eyes, on white as on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
# Marks of points, told apart without colours.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SCHEMES = {"light": ("#ffffff", "#1c2024", "#c9ced6"), "dark": ("#171a1f", "#e6e8eb", "#3d444d")}


@dataclass(frozen=True)
class Picture:
    """A picture for a page.

    Attributes:
        name: Its file name without suffix.
        alt: What it shows, for those who cannot see it.
        caption: What stands below it.
        wide: Whether it is too wide to be shrunk to a narrow screen.
        light: PNG on white.
        dark: PNG on black.
    """

    name: str
    alt: str
    caption: str
    wide: bool
    light: bytes
    dark: bytes


def render(
    name: str,
    draw: Callable[[Any], None],
    *,
    alt: str,
    caption: str,
    size: tuple[float, float] = (6.4, 4.2),
) -> Picture:
    """Draw on a matplotlib figure once for each colour scheme."""
    light, dark = (_png(draw, size, *_SCHEMES[key]) for key in ("light", "dark"))
    return Picture(name, alt, caption, size[0] > 7, light, dark)


def _png(
    draw: Callable[[Any], None], size: tuple[float, float], paper: str, ink: str, grid: str
) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
        "legend.facecolor": paper,
        "axes.edgecolor": grid,
        "grid.color": grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "font.size": 10,
    }
    buffer = io.BytesIO()
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        # Without the version of what drew it, the same numbers give the same bytes.
        figure.savefig(buffer, dpi=150, format="png", metadata={"Software": None})
    return buffer.getvalue()
