r"""Means over seeds, with intervals, for every configuration among some runs.

The interval is Student's, of the mean over n seeds:
:math:`\bar x \pm t_{0.975,\,n-1}\, s / \sqrt n`. It covers the variation between training runs; the
sampling error of the split that all of them were tested on is not in it.
"""

import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustcert.report.runs import FINISHED, Run

# What makes no other experiment of a run.
_NOT_THE_EXPERIMENT = re.compile(
    r"seed|resume|threads|certify(_device)?|allow_targets|(logger|attack)(\..*)?|dataset\.(root|download|checksum)"
    r"|loader\.(num_workers|eval_batch_size)|trainer\.(enable_.*|default_root_dir|callbacks.*)"
    r"|callbacks\.gradients\..*"
)
# Maximum number of values of a hyperparameter of which each is a series of its own.
MAX_LEVELS = 6
# Keys that say how large a network is.
_SIZES = ("capacity", "model.width", "model.depth", "model.channels", "model.dense_depth")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        half: Half the width of its 95 % t-interval; None from one run alone.
        count: Runs behind it.
    """

    mean: float
    half: float | None
    count: int


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed only.

    Attributes:
        values: What tells this configuration from the others, by column.
        runs: The runs.
    """

    values: dict[str, str]
    runs: tuple[Run, ...]

    def estimate(self, metric: str) -> Estimate | None:
        """Mean and interval of a metric, ``seconds.train`` or ``parameters``; None without it."""
        return estimate([v for run in self.runs if (v := value_of(run, metric)) is not None])

    @property
    def series(self) -> str:
        """Everything but the size: what a line of a picture stands for."""
        return label_of(self)

    @property
    def task(self) -> tuple[str, float]:
        """Dataset and the radius that was trained for."""
        return task_of(self.runs[0])


def label_of(group: Group, without: Sequence[str] = ()) -> str:
    """A configuration in a few words: options of config groups by name, other values with theirs.

    Args:
        group: The configuration.
        without: Columns that are left out, beside sizes.
    """
    parts = [
        f"{key.rpartition('.')[2]}={value}" if "." in key else value
        for key, value in group.values.items()
        if key not in _SIZES and key not in without
    ]
    return ", ".join(parts) or "all"


def number_of(group: Group, column: str) -> float | None:
    """A column's value as a number; None where it is none."""
    try:
        value = float(group.values[column])
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def searched(groups: Sequence[Group]) -> list[str]:
    """Columns of numbers with more values than a sweep would list: hyperparameters of a search.

    A column may hold other values as well, such as null.
    """
    found = []
    for column in groups[0].values if groups else ():
        numbers = {v for group in groups if (v := number_of(group, column)) is not None}
        if len(numbers) > MAX_LEVELS:
            found.append(column)
    return found


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and t-interval of some values; None without any."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, None, 1)
    from scipy.special import stdtrit

    half = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, float(half), len(values))


def value_of(run: Run, metric: str) -> float | None:
    """A number of a run: a metric, ``seconds.<what>`` or ``parameters``."""
    if metric.startswith("seconds."):
        value = run.seconds.get(metric.removeprefix("seconds."))
    elif metric == "parameters":
        value = run.results.get("parameters")
    else:
        value = run.metrics.get(metric)
    number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if number and value is not None else None


def task_of(run: Run) -> tuple[str, float]:
    """Dataset and the radius that was trained for."""
    name = run.choices.get("dataset") or _last(run.config.get("dataset", {}).get("_target_", ""))
    return str(name), float(run.config.get("epsilon") or math.nan)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The finished runs by configuration, in a fixed order."""
    finished = [run for run in runs if run.state == FINISHED]
    flat = {id(run): experiment(run) for run in finished}
    columns = _columns(finished, flat)
    groups: dict[str, list[Run]] = {}
    for run in finished:
        groups.setdefault(json.dumps(flat[id(run)], sort_keys=True), []).append(run)
    found = [
        Group(
            {
                column: _text(members[0].choices.get(column, flat[id(members[0])].get(column)))
                for column in columns
            },
            tuple(members),
        )
        for members in groups.values()
    ]
    return sorted(found, key=_order)


def _order(group: Group) -> tuple[Any, ...]:
    size = group.estimate("parameters")
    return (group.task, group.series, size.mean if size else 0.0, *group.values.values())


def _columns(runs: Sequence[Run], flat: Mapping[int, dict[str, Any]]) -> list[str]:
    # Groups' options by name where they vary; beside them whatever else they leave open.
    names = sorted({n for run in runs for n in run.choices if n.partition("@")[0] != "logger"})
    chosen = [n for n in names if len({str(run.choices.get(n)) for run in runs}) > 1]
    keys = sorted({key for values in flat.values() for key in values})
    by_choice: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        combination = tuple(str(run.choices.get(name)) for name in chosen)
        by_choice.setdefault(combination, []).append(flat[id(run)])
    free = [
        key
        for key in keys
        if any(
            len({json.dumps(values.get(key)) for values in same}) > 1 for same in by_choice.values()
        )
    ]
    return [*sorted(chosen, key=_importance), *free]


def _importance(name: str) -> tuple[int, str]:
    order = ("dataset", "model", "layer", "activation", "capacity", "objective")
    return (order.index(name) if name in order else len(order), name)


def experiment(run: Run) -> dict[str, Any]:
    """The configuration by dotted key, without the seed and what changes no result."""
    return {k: v for k, v in _flatten(run.config) if not _NOT_THE_EXPERIMENT.fullmatch(k)}


def _flatten(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _text(value: Any) -> str:
    if isinstance(value, str):
        return _last(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "\N{EN DASH}" if value is None else json.dumps(value)


def _last(target: str) -> str:
    return target.rpartition(".")[2] if re.fullmatch(r"[A-Za-z_][\w.]*", target) else target
