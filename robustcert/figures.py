"""Pictures of results."""

from collections.abc import Sequence
from pathlib import Path


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
    """
    # The object interface draws without a display and without pyplot's global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*curve, color="#0b6e4f", label=f"{label} ({samples} samples)")
    axes.fill_between(*curve, color="#0b6e4f", alpha=0.12)
    axes.axhline(accuracy, color="0.5", linestyle=":", label=f"clean accuracy {accuracy:.3f}")
    if empirical:
        radii, values = zip(*empirical, strict=True)
        axes.plot(
            radii,
            values,
            color="#c1440e",
            marker="o",
            linestyle="--",
            label=f"under PGD, clipped to [0, 1] ({attacked} samples)",
        )
    axes.set(
        xlabel=r"$\ell_2$ radius (input units)",
        ylabel="share of samples",
        ylim=(0, 1.02),
        xlim=(0, None),
        title=title,
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=140)
