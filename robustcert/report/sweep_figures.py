"""Verified accuracy against capacity, and what it costs in accuracy and time."""

import math
from collections.abc import Sequence
from typing import Any

from robustcert.report.pictures import COLOURS, MARKERS, Picture, render
from robustcert.report.summary import Estimate, Group

# Maximum number of panels of a figure.
MAX_PANELS = 4


def draw_capacity(name: str, groups: Sequence[Group], radii: dict[float, str]) -> Picture:
    """VRA against the number of parameters, one line per activation, one panel per radius.

    Args:
        name: File name of the picture.
        groups: Configurations of one task.
        radii: Metric by radius.
    """
    chosen = list(radii.items())[:MAX_PANELS]
    series = _series(groups)
    sizes = sorted({e.mean for g in groups if (e := g.estimate("parameters"))})

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(chosen), sharex=True, squeeze=False)[0]
        for axes, (radius, metric) in zip(panels, chosen, strict=True):
            for i, (label, members) in enumerate(series.items()):
                points = _points(members, "parameters", metric)
                if points:
                    _errorbar(axes, points, i, label, line=True)
            axes.set(title=f"radius {radius:g}", xlabel="parameters", xscale="log")
            _label_sizes(axes, sizes)
        panels[0].set_ylabel("verified accuracy (%)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))

    alt = f"Verified accuracy against number of parameters for {', '.join(series)}"
    return render(
        name,
        draw,
        alt=alt,
        caption="Verified accuracy against capacity: mean over seeds, with the 95 % t-interval.",
        size=(3.2 * len(chosen) + 0.6, 3.9),
    )


def draw_pareto(
    name: str, groups: Sequence[Group], accuracy: str, vra: str, radius: float
) -> Picture:
    """Clean accuracy, VRA and seconds of training; what nothing beats in all three is ringed."""
    series = _series(groups)
    times = [e.mean for g in groups if (e := g.estimate("seconds.train"))]
    far = bool(times) and max(times) > 10 * min(times)
    best = {id(group) for group in pareto(groups, accuracy, vra)}

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, metric in ((left, accuracy), (right, "seconds.train")):
            for i, (label, members) in enumerate(series.items()):
                points = _points(members, metric, vra)
                if points:
                    _errorbar(axes, points, i, label, scale=_scale(metric))
                front = _points([g for g in members if id(g) in best], metric, vra)
                for x, y in front:
                    axes.plot(
                        _scale(metric) * x.mean,
                        100 * y.mean,
                        "o",
                        ms=15,
                        mfc="none",
                        mec=COLOURS[i % len(COLOURS)],
                        mew=1.4,
                    )
        left.set(xlabel="clean accuracy (%)", ylabel=f"verified accuracy at {radius:g} (%)")
        right.set(xlabel="training (s)", xscale="log" if far else "linear")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))

    alt = "Verified accuracy against clean accuracy, and against seconds of training"
    return render(
        name,
        draw,
        alt=alt,
        caption="What verified accuracy costs; ringed are configurations that no other beats in "
        "mean accuracy, verified accuracy and training time at once.",
        size=(8.4, 4.2),
    )


def pareto(groups: Sequence[Group], accuracy: str, vra: str) -> list[Group]:
    """The configurations that no other one beats in mean accuracy, VRA and training time at once.

    One beats another if it is at least as good in all three and better in one.
    """
    scores: list[tuple[Group, tuple[float, float, float]]] = []
    for group in groups:
        found = [group.estimate(metric) for metric in (accuracy, vra, "seconds.train")]
        if all(found):
            a, v, s = (e.mean for e in found if e is not None)
            scores.append((group, (a, v, -s)))
    return [
        group
        for group, mine in scores
        if not any(
            other != mine and all(o >= m for o, m in zip(other, mine, strict=True))
            for _, other in scores
        )
    ]


def _series(groups: Sequence[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.series, []).append(group)
    return found


def _points(groups: Sequence[Group], x: str, y: str) -> list[tuple[Estimate, Estimate]]:
    pairs = ((group.estimate(x), group.estimate(y)) for group in groups)
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return sorted(known, key=lambda pair: pair[0].mean)


def _errorbar(
    axes: Any,
    points: list[tuple[Estimate, Estimate]],
    i: int,
    label: str,
    *,
    scale: float = 1.0,
    line: bool = False,
) -> None:
    axes.errorbar(
        [scale * x.mean for x, _ in points],
        [100 * y.mean for _, y in points],
        yerr=[100 * (y.half if y.half is not None else math.nan) for _, y in points],
        color=COLOURS[i % len(COLOURS)],
        marker=MARKERS[i % len(MARKERS)],
        linestyle="-" if line else "",
        capsize=3,
        elinewidth=1,
        label=label,
    )


def _label_sizes(axes: Any, sizes: list[float]) -> None:
    # The sizes themselves tell more than powers of ten, as long as there is room for them.
    apart = [a for a, b in zip(sizes, [0.0, *sizes], strict=False) if a > 1.2 * b]
    if 0 < len(apart) <= 6:
        axes.set_xticks(
            apart, [f"{s / 1e6:.3g}M" if s >= 1e6 else f"{s / 1e3:.3g}k" for s in apart]
        )
        axes.minorticks_off()
        axes.margins(x=0.15)


def _scale(metric: str) -> float:
    return 1 if metric == "seconds.train" else 100
