"""A saved W&B dashboard for these runs: ``python -m robustcert.dashboard ENTITY/PROJECT``.

Applied once, with the user's own login; what is drawn are the keys that ``logger=wandb`` logs.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

NAME = "robustcert"


def workspace(entity: str, project: str, radii: Sequence[float]) -> Any:
    """The dashboard as an object of W&B's own library, not saved yet.

    Args:
        entity: User or team.
        project: W&B project.
        radii: Radii at which verified accuracy is drawn, in input units.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws

    def line(title: str, *keys: str) -> Any:
        return panels.LinePlot(
            title=title,
            x="trainer/global_step",
            y=list(keys),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )

    def scatter(title: str, x: Any, y: str) -> Any:
        return panels.ScatterPlot(title=title, x=x, y=panels.SummaryMetric(y), log_x=True)

    at = [f"{radius:.4g}" for radius in radii]
    sections = {
        "Verified accuracy": [
            line("VRA at epsilon (validation)", "val/vra"),
            *(line(f"VRA at {r} (validation)", f"val/vra_{r}") for r in at),
            line("Average certified radius (input units)", "val/acr"),
            line("Clean accuracy (validation)", "val/accuracy"),
        ],
        "Lipschitz constant and tightness": [
            line("Largest pairwise constant K", "val/lipschitz"),
            # Of runs with trainer=tightness.
            line("Certified share of the distance", "val/tightness", "val/tightness_worst"),
            line("Shares of bound and shape in it", "val/tightness_bound", "val/tightness_shape"),
            line("Area between attack and proof", "val/certifiability_gap"),
            line("Units with a fold within epsilon", "val/folds"),
        ],
        "Capacity": [
            *(
                scatter(f"VRA at {r} (test) against parameters", _config("parameters"), key)
                for r, key in ((r, f"test/vra_{r}") for r in at)
            ),
            scatter(
                "VRA at epsilon (validation) against seconds of training",
                panels.SummaryMetric("seconds/train"),
                "val/vra",
            ),
        ],
        "Certificates": [
            panels.MediaBrowser(
                title="VRA curves and level sets",
                media_keys=["certificate/vra_curve", "certificate/level_sets"],
            )
        ],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=n, panels=p, is_open=True) for n, p in sections.items()],
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group")]),
    )


def _config(key: str) -> Any:
    from wandb_workspaces.reports.v2 import Config

    return Config(key)


def main(arguments: Sequence[str] | None = None) -> int:
    """Save the dashboard in a project; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m robustcert.dashboard", description=__doc__)
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
