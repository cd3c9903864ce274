"""Pictures for the page of one run."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustcert.certificate.style import BLUE, GREEN, RED
from robustcert.report.calibration import Calibration
from robustcert.report.claim import Claim
from robustcert.report.measures import acceptance, curve, wilson
from robustcert.report.pictures import Picture, render

if TYPE_CHECKING:
    from robustcert.report.separation import Separation


def draw_bracket(claim: Claim, rows: NDArray[np.int64], separation: "Separation | None") -> Picture:
    """Verified accuracy below, accuracy under attack above, and what the data allow.

    Args:
        claim: The certificate.
        rows: Which samples were attacked; both sides of the band between the two are of them.
        separation: Distances to samples of another class.
    """
    radius, verified = curve(claim.correct, claim.radius)
    attack = claim.record.get("attack") or {}
    tried = list(zip(attack.get("radii") or [], attack.get("accuracy") or [], strict=True))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.step(
            radius, 100 * verified, where="post", color=GREEN, label="verified: proved from below"
        )
        if tried:
            _draw_attacks(axes, tried, claim, rows)
        if separation is not None:
            half = np.sort(separation.half[np.isfinite(separation.half)])
            share = 100 * (1 - np.arange(len(half)) / max(1, len(separation.half)))
            axes.plot(half, share, color="0.5", lw=1, ls=":", label="half distance to other class")
        axes.axvline(claim.epsilon, color="0.5", lw=0.8)
        right = max([float(radius[-1]), *(r for r, _ in tried)], default=1.0) * 1.05
        axes.set(xlabel=f"radius ({claim.units})", ylabel="share of samples (%)", ylim=(0, 102))
        axes.set_xlim(0, right or 1.0)
        # The curves and the line of the radius take the room within.
        figure.legend(loc="outside lower center", ncols=2)

    return render(
        "bracket",
        draw,
        alt="Verified accuracy" + " and accuracy under attack" * bool(tried) + " against radius",
        caption=(
            "The truth about the attacked samples lies in the grey band: above what is proved of "
            "them, below what was broken. Bars are 95 % Wilson intervals for the attacked samples. "
            if tried
            else "The truth lies above the curve; how far nobody knows, as no attack was finished. "
        )
        + "The vertical line is the radius trained for"
        + (
            "; dotted, the share of samples whose nearest one of another class is more than twice "
            "the radius away."
            if separation
            else "."
        ),
    )


def _draw_attacks(
    axes: Any, tried: Sequence[tuple[float, float]], claim: Claim, rows: NDArray[np.int64]
) -> None:
    """Accuracy of the attacked samples, and the band between it and what is proved of them."""
    x, y = np.array(tried).T
    count = len(rows)
    bars = np.array([wilson(round(v * count), count) for v in y]).T
    radius, verified = curve(claim.correct[rows], claim.radius[rows])
    if count < len(claim.labels):
        label = f"verified, of the {count} attacked"
        axes.step(radius, 100 * verified, where="post", color=GREEN, lw=1, ls="--", label=label)
    # Between two radii that were tried, the smaller one's accuracy is what is known.
    grid, upper = np.array([0, *x]), np.array([claim.correct[rows].mean(), *y])
    axes.step(grid, 100 * upper, where="post", color=RED, lw=1, ls="--")
    axes.errorbar(
        x,
        100 * y,
        yerr=100 * np.abs(bars - y),
        color=RED,
        fmt="o",
        capsize=3,
        elinewidth=1,
        label=f"under attack ({count} samples): from above",
    )
    every = np.unique(np.concatenate([grid, radius[radius < x.max()]]))
    axes.fill_between(
        every,
        100 * verified[np.searchsorted(radius, every, side="right") - 1],
        100 * upper[np.searchsorted(grid, every, side="right") - 1],
        step="post",
        color="0.5",
        alpha=0.15,
        lw=0,
        label="unknown" if count == len(claim.labels) else "unknown, of the attacked",
    )


def draw_tradeoff(claim: Claim, epochs: Sequence[tuple[int, float, float]]) -> Picture:
    """Accuracy against VRA while training, and accuracy against abstention afterwards."""

    def draw(figure: Any) -> None:
        *panels, right = figure.subplots(1, 2 if epochs else 1, squeeze=False)[0]
        for left in panels:
            number, accuracy, vra = np.array(epochs).T
            left.plot(100 * accuracy, 100 * vra, color="0.6", lw=0.8)
            points = left.scatter(100 * accuracy, 100 * vra, c=number + 1, s=18, cmap="viridis")
            figure.colorbar(points, ax=left, label="epoch")
            best = number + 1 == (claim.record.get("checkpoint") or {}).get("epoch")
            left.plot(100 * accuracy[best], 100 * vra[best], "o", ms=12, mfc="none", mec=RED)
            left.set(
                xlabel="clean accuracy, validation (%)",
                ylabel=f"verified at {claim.epsilon:g}, validation (%)",
            )
        accepted, right_share = acceptance(claim.correct, claim.radius)
        right.plot(100 * accepted, 100 * right_share, color=BLUE)
        right.set(xlabel="accepted samples (%)", ylabel="accuracy of the accepted (%)")

    kept = (
        f"on the {claim.split} split: accuracy of the samples that are still accepted as the "
        "demanded radius grows, from right to left."
    )
    if not epochs:
        return render(
            "tradeoff",
            draw,
            alt="Accuracy of the accepted samples against their share",
            caption=f"{kept[0].upper()}{kept[1:]} How training moved cannot be shown: there is no "
            "metrics/metrics.csv beside this certificate, which logger=csv writes.",
        )
    return render(
        "tradeoff",
        draw,
        alt="Clean accuracy against verified accuracy by epoch; accuracy against acceptance",
        caption="Left: how training moved on the validation split; ringed, the certified epoch. "
        f"Right, {kept}",
        size=(9.2, 3.9),
    )


def draw_separation(claim: Claim, separation: "Separation") -> Picture:
    """Certified radius against half the distance to the nearest sample of another class."""
    count = len(separation.half)
    radius, correct = claim.radius[:count], claim.correct[:count]
    known = np.isfinite(separation.half) & np.isfinite(radius)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for mask, colour, label in ((correct, GREEN, "correct"), (~correct, RED, "wrong")):
            chosen = mask & known
            axes.plot(
                separation.half[chosen],
                radius[chosen],
                ".",
                ms=4,
                color=colour,
                alpha=0.6,
                label=label,
                rasterized=True,
            )
        top = float(separation.half[known].max()) if known.any() else 1.0
        axes.plot([0, top], [0, top], color="0.5", lw=0.8, ls="--", label="equal")
        axes.set(
            xlabel="half distance to the nearest of another class",
            ylabel="certified radius (input units)",
        )
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9)

    return render(
        "separation",
        draw,
        alt="Certified radius against half the distance to the nearest sample of another class",
        caption=f"Each dot is a sample of the {claim.split} split; neighbours are searched in "
        f"{separation.reference}.",
    )


def draw_reliability(found: Sequence[Calibration]) -> Picture:
    """Accuracy against confidence."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color="0.5", lw=0.8, ls="--")
        for item, colour in zip(found, (BLUE, RED), strict=False):
            size = 12 + 160 * np.array(item.count) / sum(item.count)
            x, y = 100 * np.array(item.confidence), 100 * np.array(item.accuracy)
            axes.plot(x, y, color=colour, lw=0.8, alpha=0.5)
            divided = "" if item.temperature == 1 else f" / {item.temperature:g}"
            axes.scatter(x, y, s=size, color=colour, label=f"softmax(logits{divided})")
        axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 102), ylim=(0, 102))
        axes.legend(fontsize=9)

    return render(
        "reliability",
        draw,
        alt="Accuracy against confidence",
        caption="Mean accuracy against mean confidence in fifteen equal bins; larger dots hold "
        "more samples. Below the dashed line the network is surer than it is right.",
    )


def thumbnail(image: NDArray[Any]) -> bytes | None:
    """A PNG of an input of shape (1, H, W) or (3, H, W); None for what is no image."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        return None
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    pixels = np.clip(image, 0, 1).repeat(3 // image.shape[0], axis=0).transpose(1, 2, 0)
    imsave(buffer, pixels, format="png", metadata={"Software": ""})
    return buffer.getvalue()
