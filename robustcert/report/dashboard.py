"""A saved W&B dashboard for these runs: ``python -m robustcert.dashboard ENTITY/PROJECT``.

Applied once, with the user's own login; what is drawn are the keys that ``logger=wandb`` logs.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from robustcert.errors import typed

NAME = "robustcert"


def workspace(entity: str, project: str, radii: Sequence[float]) -> Any:
    """The dashboard as an object of W&B's own library, not saved yet.

    Args:
        entity: User or team.
        project: W&B project.
        radii: Radii at which verified accuracy is drawn, in input units.
    """
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in _sections([f"{radius:.4g}" for radius in radii]).items()
        ],
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group")]),
    )


def _sections(radii: Sequence[str]) -> dict[str, list[Any]]:
    """The panels of every section; radii as the metrics' names have them."""
    from wandb_workspaces.reports.v2 import MediaBrowser, SummaryMetric

    return {
        "Verified accuracy": [
            _line("VRA at epsilon (validation)", "val/vra"),
            *(_line(f"VRA at {r} (validation)", f"val/vra_{r}") for r in radii),
            _line("Average certified radius (input units)", "val/acr"),
            _line("Clean accuracy (validation)", "val/accuracy"),
        ],
        "Lipschitz constant and tightness": [
            _line("Largest pairwise constant K", "val/lipschitz"),
            # Of runs with trainer=tightness.
            _line("Certified share of the distance", "val/tightness", "val/tightness_worst"),
            _line("Shares of bound and shape in it", "val/tightness_bound", "val/tightness_shape"),
            _line("Area between attack and proof", "val/certifiability_gap"),
            _line("Units with a kink within epsilon", "val/kinks"),
        ],
        "Capacity": [
            *(
                _scatter(
                    f"VRA at {r} (test) against parameters",
                    _config("parameters"),
                    f"test/vra_{r}",
                )
                for r in radii
            ),
            _scatter(
                "VRA at epsilon (validation) against seconds of training",
                SummaryMetric("seconds/train"),
                "val/vra",
            ),
        ],
        "Certificates": [
            MediaBrowser(
                title="VRA curves and level sets",
                media_keys=["certificate/vra_curve", "certificate/level_sets"],
            )
        ],
    }


def _line(title: str, *keys: str) -> Any:
    """Metrics against steps: mean and spread of the runs of a group."""
    from wandb_workspaces.reports.v2 import LinePlot

    return LinePlot(
        title=title,
        x="trainer/global_step",
        y=list(keys),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def _scatter(title: str, x: Any, metric: str) -> Any:
    """A run's last value of a metric against something that grows by factors."""
    from wandb_workspaces.reports.v2 import ScatterPlot, SummaryMetric

    return ScatterPlot(title=title, x=x, y=SummaryMetric(metric), log_x=True)


def _config(key: str) -> Any:
    from wandb_workspaces.reports.v2 import Config

    return Config(key)


def main(arguments: Sequence[str] | None = None) -> int:
    """Save the dashboard in a project; returns the exit status."""
    parser = argparse.ArgumentParser(prog=typed("dashboard"), description=__doc__)
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("--radii", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    options = parser.parse_args(arguments)
    entity, slash, project = options.project.partition("/")
    if not (entity and slash and project):
        parser.error(f"expected ENTITY/PROJECT, got {options.project!r}")
    try:
        found = workspace(entity, project, options.radii)
        found.save()
    except ImportError:
        sys.stderr.write("error: needs wandb-workspaces: pip install 'robustcert[dashboard]'\n")
        return 2
    except Exception as error:  # whatever the server or the network answers
        reason = " ".join(str(error).split())
        sys.stderr.write(f"error: the dashboard was not saved: {type(error).__name__}: {reason}\n")
        return 1
    sys.stdout.write(f"{found.url}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
