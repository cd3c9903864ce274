"""How figures look: colours that mean the same in all of them, files that repeat by the byte."""

import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

Scheme = Literal["light", "dark"]

# Okabe and Ito's colours, told apart by colour-blind eyes, on white as on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
BLUE, RED, GREEN, *_ = COLOURS
# What is proved, what is attacked, and what is known besides.
VERIFIED, ATTACKED, NEUTRAL = GREEN, RED, "0.5"
# Marks of points and lines, told apart without colours.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
# Activations in the order of their colours, which they have in every figure.
ACTIVATIONS = (
    *("relu", "maxmin", "smooth", "n_activation", "householder", "abs", "identity"),
    *("groupsort", "softplus", "smooth_abs", "smooth_n", "smooth_householder", "beta_abs", "tanh"),
    *("householder2", "linear_spline", "norm_pair", "sin_cos", "grafted"),
)
# Paper, ink and grid of the colour schemes.
SCHEMES: dict[Scheme, tuple[str, str, str]] = {
    "light": ("#ffffff", "#1c2024", "#c9ced6"),
    "dark": ("#171a1f", "#e6e8eb", "#3d444d"),
}
# Shares that are all above it are drawn by what is missing to 1.
NEAR_ONE = 0.9


def look(name: str, variant: int = 0) -> dict[str, Any]:
    """Colour, marker and line of an activation, or of anything else by its name.

    Args:
        name: An option of ``activation=``, or another name.
        variant: Which of several series of this name.
    """
    known = name in ACTIVATIONS
    place = ACTIVATIONS.index(name) if known else zlib.crc32(name.encode())
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[(place + place // len(COLOURS) + variant) % len(MARKERS)],
        "linestyle": LINES[variant % len(LINES)],
    }


def style(scheme: Scheme = "light") -> Any:
    """Our settings of matplotlib by name: ``plt.rcParams.update(style())`` in a notebook.

    Args:
        scheme: Colours of paper and ink.
    """
    from matplotlib.rcsetup import cycler

    paper, ink, grid = SCHEMES[scheme]
    return {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
        "legend.facecolor": paper,
        "axes.edgecolor": grid,
        "axes.prop_cycle": cycler(color=COLOURS),
        "grid.color": grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.markersize": 5,
        "font.size": 10,
        # Text stays text where a figure is edited or searched.
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "robustcert",
    }


@contextmanager
def drawing(size: tuple[float, float], scheme: Scheme = "light") -> Iterator[Any]:
    """An empty matplotlib figure in our style; it is saved inside, by :func:`save`.

    Args:
        size: Width and height in inches.
        scheme: Colours of paper and ink.
    """
    # The object interface draws without a display and without pyplot's global state.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(style(scheme)):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        yield figure


def encoded(figure: Any, kind: str = "png") -> bytes:
    """A figure as a file of a kind: ``png`` for pages, ``pdf`` or ``svg`` for papers."""
    # Without dates, and the version of what drew it, the same numbers give the same bytes.
    without = {
        "png": {"Software": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
        "svg": {"Creator": None, "Date": None},
    }
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format=kind, metadata=without[kind])
    return buffer.getvalue()


def save(figure: Any, *paths: Path) -> None:
    """Write a figure, in the kind that each file's suffix names."""
    for path in paths:
        path.write_bytes(encoded(figure, path.suffix.removeprefix(".")))


def share_axis(axes: Any, values: Sequence[float], label: str, which: Literal["x", "y"]) -> bool:
    """Set up an axis of shares in percent; returns whether what is missing to 1 is drawn.

    That is where all are near 1: their differences are seen on a logarithmic axis of 1 - share,
    upside down, so that more is further up or to the right as ever.

    Args:
        axes: Matplotlib's.
        values: What will be drawn.
        label: What is counted, as in ``verified at 0.5``.
        which: Which axis.
    """
    setter = getattr(axes, f"set_{which}label")
    missing = bool(values) and min(values) > NEAR_ONE and max(values) < 1
    setter(f"not {label} (%)" if missing else f"{label} (%)")
    if missing:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        getattr(axes, f"set_{which}scale")("log")
        axis = getattr(axes, f"{which}axis")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
        axis.set_inverted(True)
    elif len(set(values)) == 1:
        # Around one number matplotlib draws an axis of noise, below 0 as well.
        getattr(axes, f"set_{which}lim")(0, 100)
    return missing


def in_percent(share: float, missing: bool) -> float:
    """A share as an axis of :func:`share_axis` shows it."""
    return 100 * (1 - share) if missing else 100 * share
