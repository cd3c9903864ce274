"""Pictures of results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from robustcert.certificate.style import (
    ATTACKED,
    NEUTRAL,
    VERIFIED,
    drawing,
    save,
)

Array = NDArray[Any]


def draw_vra_curve(
    path: Path,
    curve: tuple[Sequence[float], Sequence[float]],
    *,
    accuracy: float,
    empirical: Sequence[tuple[float, float]],
    samples: int,
    attacked: int,
    title: str,
    label: str = "verified",
    units: str = "input units",
) -> None:
    """Draw verified robust accuracy against radius with the attack's accuracy beside it.

    Args:
        path: PNG to write.
        curve: Radii, and the verified robust accuracy at each.
        accuracy: Clean accuracy.
        empirical: Pairs of radius and accuracy under attack.
        samples: Certified samples.
        attacked: Attacked samples.
        title: What was certified.
        label: What the curve is called.
        units: What radii are measured in.
    """
    with drawing((6.4, 4.2)) as figure:
        axes = figure.add_subplot(xlabel=rf"$\ell_2$ radius ({units})", title=title)
        axes.plot(*curve, color=VERIFIED, label=f"{label} ({samples} samples)")
        axes.fill_between(*curve, color=VERIFIED, alpha=0.12)
        axes.axhline(accuracy, color=NEUTRAL, linestyle=":", label=f"clean accuracy {accuracy:.3f}")
        if empirical:
            radii, values = zip(*empirical, strict=True)
            axes.plot(
                radii,
                values,
                color=ATTACKED,
                marker="o",
                linestyle="--",
                label=f"under PGD ({attacked} samples)",
            )
        axes.set(ylabel="share of samples", ylim=(0, 1.02), xlim=(0, None))
        axes.legend(loc="lower left")
        save(figure, path)


def draw_level_sets(
    path: Path,
    radius: Array,
    prediction: Array,
    *,
    truth: Array | None,
    title: str,
) -> None:
    """Draw the certified radius over the unit square beside the distance to the true boundary.

    Args:
        path: PNG to write.
        radius: Certified radii on a grid, shape ``(M, M)``, first axis the first coordinate.
        prediction: Classes there, shape ``(M, M)``.
        truth: Distance to the true boundary there, shape ``(M, M)``, where it is known.
        title: What was certified.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    line = [i / (len(radius) - 1) for i in range(len(radius))]
    top = float((radius if truth is None else truth).max())
    levels = [level for level in MaxNLocator(6).tick_values(0, top) if 0 < level < top]
    with drawing((5.4, 5.4)) as figure:
        axes = figure.add_subplot(aspect="equal")
        axes.grid(False)
        axes.imshow(
            prediction.T,
            origin="lower",
            extent=(0, 1, 0, 1),
            cmap="Pastel2",
            interpolation="nearest",
        )
        handles = []
        for name, values, color in (
            ("distance to the true boundary", truth, NEUTRAL),
            ("certified radius", radius, VERIFIED),
        ):
            if values is not None and levels:
                contours = axes.contour(line, line, values.T, levels, colors=color, linewidths=1.2)
                axes.clabel(contours, fontsize=7, fmt="%g")
                handles.append(Line2D([], [], color=color, label=name))
        axes.set(title=title, xlabel=r"$x_1$", ylabel=r"$x_2$")
        if handles:
            # On the picture, whose classes are light.
            axes.legend(handles=handles, loc="upper left", frameon=True, framealpha=0.8)
        save(figure, path)
