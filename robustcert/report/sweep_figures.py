"""Verified accuracy against capacity, hyperparameters and cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from robustcert.certificate.style import NEUTRAL, in_percent, look, share_axis
from robustcert.report.pictures import Picture, render
from robustcert.report.summary import Estimate, Group, label_of, number_of

# Maximum number of panels of a figure, and of series that have a name in it.
MAX_PANELS = 4
MAX_SERIES = 8
# Minimum number of runs that an interval is drawn of: with two it is wider than the axis.
MIN_RUNS = 3
# Times and values further apart than this factor are on a logarithmic axis.
MAX_LINEAR = 10


@dataclass(frozen=True)
class Series:
    """Groups that a figure draws alike.

    Attributes:
        label: What they have in common.
        style: Colour, marker and line, see :func:`robustcert.certificate.style.look`.
        groups: The configurations.
    """

    label: str
    style: dict[str, Any]
    groups: list[Group]


def series_of(groups: Sequence[Group], metric: str, without: Sequence[str] = ()) -> list[Series]:
    """Groups by whatever is neither a size nor named; beyond the best few, the rest as one.

    Args:
        groups: Configurations of one task.
        metric: By whose largest value they are the best.
        without: Columns that the figure shows in another way.
    """
    members: dict[str, list[Group]] = {}
    for group in groups:
        members.setdefault(label_of(group, without), []).append(group)

    def best(label: str) -> float:
        found = (group.estimate(metric) for group in members[label])
        return max((e.mean for e in found if e), default=-math.inf)

    named = sorted(members, key=best, reverse=True)
    named = named if len(named) <= MAX_SERIES else named[: MAX_SERIES - 1]
    seen: dict[str, int] = {}
    found = []
    for label in (label for label in members if label in named):
        name = members[label][0].values.get("activation", label)
        seen[name] = seen.get(name, -1) + 1
        found.append(Series(label, look(name, seen[name]), members[label]))
    rest = [group for label in members if label not in named for group in members[label]]
    if rest:
        style = {"color": NEUTRAL, "marker": ".", "linestyle": ""}
        found.insert(0, Series(f"{len(members) - len(named)} others", style, rest))
    return found


def draw_capacity(name: str, groups: Sequence[Group], radii: dict[float, str]) -> Picture:
    """VRA against the number of parameters, one line per series, one panel per radius.

    Args:
        name: File name of the picture.
        groups: Configurations of one task.
        radii: Metric by radius; those that no configuration has are left out.
    """
    chosen = _measured(groups, radii)
    series = series_of(groups, next(iter(chosen.values())))
    sizes = sorted({e.mean for g in groups if (e := g.estimate("parameters"))})

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(chosen), sharex=True, squeeze=False)[0]
        for axes, (radius, metric) in zip(panels, chosen.items(), strict=True):
            axes.set(title=f"radius {radius:g}", xlabel="parameters", xscale="log")
            missing = share_axis(axes, _means(groups, metric), "verified", "y")
            for one in series:
                _draw(axes, one, "parameters", metric, (_plain, _percent(missing)))
            _label_sizes(axes, sizes)
            if axes is not panels[0] and not missing:
                axes.set_ylabel("")
        _legend(figure, panels[0])

    return render(
        name,
        draw,
        alt=f"Verified accuracy against number of parameters for {_names(series)}",
        caption=f"Verified accuracy against capacity: mean over seeds, {_INTERVALS}.",
        size=(3.2 * len(chosen) + 0.6, 3.9),
    )


def draw_radii(name: str, groups: Sequence[Group], radii: dict[float, str]) -> Picture:
    """VRA against the radius, one line per series: of networks of one size."""
    chosen = _measured(groups, radii, math.inf)
    series = series_of(groups, next(iter(chosen.values())))
    every = [v for metric in chosen.values() for v in _means(groups, metric)]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(xlabel="radius (input units)")
        missing = share_axis(axes, every, "verified", "y")
        for one in series:
            for i, group in enumerate(one.groups):
                found = {r: e for r, m in chosen.items() if (e := group.estimate(m))}
                points = [(Estimate(r, None, 1), e) for r, e in found.items()]
                label = one.label if i == 0 else None
                _errorbar(axes, points, {**one.style, "label": label}, (_plain, _percent(missing)))
        _legend(figure, axes)

    return render(
        name,
        draw,
        alt=f"Verified accuracy against radius for {_names(series)}",
        caption=f"Verified accuracy at each radius: mean over seeds, {_INTERVALS}.",
    )


def draw_slices(
    name: str, groups: Sequence[Group], columns: Sequence[str], vra: str, radius: float
) -> Picture:
    """VRA against every hyperparameter that was searched, all others as they were drawn.

    Args:
        name: File name of the picture.
        groups: Configurations of one task.
        columns: Hyperparameters whose values are numbers.
        vra: Metric of verified accuracy.
        radius: At which it counts.
    """
    shown = list(columns)[: 2 * MAX_PANELS]
    series = series_of(groups, vra, columns)
    best = max(groups, key=lambda g: e.mean if (e := g.estimate(vra)) else -math.inf)
    wide = min(MAX_PANELS, len(shown))
    high = -(-len(shown) // wide)

    def draw(figure: Any) -> None:
        grid = figure.subplots(high, wide, sharey=True, squeeze=False).ravel()
        for axes, column in zip(grid, shown, strict=False):
            values = [v for g in groups if (v := number_of(g, column)) is not None]
            far = min(values) > 0 and max(values) > MAX_LINEAR * min(values)
            axes.set(xlabel=column.rpartition(".")[2], xscale="log" if far else "linear")
            missing = share_axis(axes, _means(groups, vra), f"verified at {radius:g}", "y")
            for one in series:
                points = _slice(one.groups, column, vra)
                style = {**one.style, "linestyle": "", "label": one.label}
                _errorbar(axes, points, style, (_plain, _percent(missing)))
            for x, y in _slice([best], column, vra):
                _ring(axes, x.mean, in_percent(y.mean, missing), "k")
        for axes in grid[len(shown) :]:
            axes.remove()
        for i, axes in enumerate(grid[: len(shown)]):
            axes.set_ylabel("" if i % wide else axes.get_ylabel())
        _legend(figure, grid[0])

    return render(
        name,
        draw,
        alt=f"Verified accuracy against {', '.join(shown)}",
        caption="Verified accuracy against each hyperparameter that was searched. A point is a "
        "configuration, in which the others have values of their own; ringed, the best.",
        size=(2.9 * wide + 0.8, 3.0 * high + 0.6),
    )


def draw_pareto(
    name: str,
    groups: Sequence[Group],
    accuracy: str,
    vra: str,
    radius: float,
    without: Sequence[str] = (),
) -> Picture:
    """Clean accuracy, VRA and seconds of training; what nothing beats in all three is ringed."""
    series = series_of(groups, vra, without)
    times = [e.mean for g in groups if (e := g.estimate("seconds.train"))]
    far = bool(times) and max(times) > MAX_LINEAR * min(times)
    best = {id(group) for group in pareto(groups, accuracy, vra)}

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        missing = share_axis(left, _means(groups, vra), f"verified at {radius:g}", "y")
        wrong = share_axis(left, _means(groups, accuracy), "right", "x")
        left.set_xlabel("wrong (%)" if wrong else "clean accuracy (%)")
        right.set(xlabel="training (s)", xscale="log" if far else "linear")
        scales = {accuracy: _percent(wrong), "seconds.train": _plain}
        for axes, metric in ((left, accuracy), (right, "seconds.train")):
            scale = scales[metric], _percent(missing)
            for one in series:
                _draw(axes, one, metric, vra, scale, line=False)
                front = [g for g in one.groups if id(g) in best]
                for x, y in _points(front, metric, vra):
                    _ring(axes, scale[0](x.mean), scale[1](y.mean), one.style["color"])
        _legend(figure, left)

    return render(
        name,
        draw,
        alt="Verified accuracy against clean accuracy, and against seconds of training",
        caption="What verified accuracy costs; ringed are configurations that no other beats in "
        f"mean accuracy, verified accuracy and training time at once. Means over seeds, "
        f"{_INTERVALS}.",
        size=(8.4, 4.2),
    )


_INTERVALS = f"with the 95 % t-interval where there are {MIN_RUNS} or more"
Scale = Callable[[float], float]


def pareto(groups: Sequence[Group], accuracy: str, vra: str, *, larger: bool = True) -> list[Group]:
    """The configurations that no other one beats in mean accuracy, VRA and training time at once.

    One beats another if it is at least as good in all three and better in one. Of errors, for which
    ``larger`` is false, less is better.
    """
    sign = 1 if larger else -1
    scores: list[tuple[Group, tuple[float, float, float]]] = []
    for group in groups:
        found = [group.estimate(metric) for metric in (accuracy, vra, "seconds.train")]
        if all(found):
            a, v, s = (e.mean for e in found if e is not None)
            scores.append((group, (sign * a, sign * v, -s)))
    return [
        group
        for group, mine in scores
        if not any(
            other != mine and all(o >= m for o, m in zip(other, mine, strict=True))
            for _, other in scores
        )
    ]


def _measured(
    groups: Sequence[Group], radii: dict[float, str], most: float = MAX_PANELS
) -> dict[float, str]:
    """Radii that some configuration has a number for: no panel is empty."""
    found = {radius: metric for radius, metric in radii.items() if _means(groups, metric)}
    return dict([*found.items()][: int(min(most, len(found)))])


def _means(groups: Sequence[Group], metric: str) -> list[float]:
    return [e.mean for group in groups if (e := group.estimate(metric)) is not None]


def _plain(value: float) -> float:
    return value


def _percent(missing: bool) -> Scale:
    return lambda share: in_percent(share, missing)


def _points(groups: Sequence[Group], x: str, y: str) -> list[tuple[Estimate, Estimate]]:
    pairs = ((group.estimate(x), group.estimate(y)) for group in groups)
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return sorted(known, key=lambda pair: pair[0].mean)


def _slice(groups: Sequence[Group], column: str, metric: str) -> list[tuple[Estimate, Estimate]]:
    pairs = ((number_of(group, column), group.estimate(metric)) for group in groups)
    return [(Estimate(x, None, 1), y) for x, y in pairs if x is not None and y is not None]


def _draw(
    axes: Any,
    series: Series,
    x: str,
    y: str,
    scale: tuple[Scale, Scale],
    *,
    line: bool = True,
) -> None:
    points = _points(series.groups, x, y)
    style = series.style if line else {**series.style, "linestyle": ""}
    if points:
        _errorbar(axes, points, {**style, "label": series.label}, scale)


def _errorbar(
    axes: Any,
    points: Sequence[tuple[Estimate, Estimate]],
    style: dict[str, Any],
    scale: tuple[Scale, Scale],
) -> None:
    """Means with their intervals, where these say something; shares stay between 0 and 1."""
    if not points:
        return
    ends = [_interval(y) for _, y in points]
    middle = [scale[1](y.mean) for _, y in points]
    bars = [
        [abs(scale[1](end[side]) - m) for end, m in zip(ends, middle, strict=True)]
        for side in (0, 1)
    ]
    # Upside down, the lower end of a share is the upper one of what is missing.
    if scale[1](1.0) < scale[1](0.0):
        bars.reverse()
    axes.errorbar(
        [scale[0](x.mean) for x, _ in points], middle, yerr=bars, capsize=3, elinewidth=1, **style
    )


def _interval(found: Estimate) -> tuple[float, float]:
    if found.half is None or found.count < MIN_RUNS:
        return math.nan, math.nan
    return max(0.0, found.mean - found.half), min(1.0, found.mean + found.half)


def _ring(axes: Any, x: float, y: float, colour: str) -> None:
    from matplotlib import rcParams

    colour = rcParams["text.color"] if colour == "k" else colour
    axes.plot(x, y, "o", ms=13, mfc="none", mec=colour, mew=1.4)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return  # one name tells nothing apart
    # As many columns as the longest name leaves room for.
    longest = max(map(len, labels)) + 6
    columns = max(1, min(4, len(labels), int(figure.get_figwidth() * 13) // longest))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _names(series: Sequence[Series]) -> str:
    return ", ".join(one.label for one in series)


def _label_sizes(axes: Any, sizes: list[float]) -> None:
    # The sizes themselves tell more than powers of ten, as long as there is room for them.
    apart = [a for a, b in zip(sizes, [0.0, *sizes], strict=False) if a > 1.2 * b]
    if 0 < len(apart) <= 6:
        axes.set_xticks(
            apart, [f"{s / 1e6:.3g}M" if s >= 1e6 else f"{s / 1e3:.3g}k" for s in apart]
        )
        axes.minorticks_off()
        axes.margins(x=0.15)
