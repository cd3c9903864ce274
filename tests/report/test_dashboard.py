"""The W&B dashboard: what it draws is named as it is logged, and refusals are one line."""

import sys
from typing import Any

import pytest
from helpers.dashboard_metrics import METRICS

from robustcert.report.dashboard import main, workspace

WORKSPACE = "wandb_workspaces.workspaces.Workspace"


def drawn(radii: list[float]) -> tuple[set[str], set[str]]:
    """The metrics and the configuration values that the panels read."""
    from wandb_workspaces.reports.v2 import Config

    metrics, values = set(), set()
    for panel in (p for section in workspace("me", "mine", radii).sections for p in section.panels):
        keys: list[Any] = list(getattr(panel, "media_keys", None) or [])
        for axis in (getattr(panel, "x", None), getattr(panel, "y", None)):
            keys += axis if isinstance(axis, list) else [axis]
        for key in keys:
            (values if isinstance(key, Config) else metrics).add(getattr(key, "name", key))
    return metrics - {None}, values


def test_verified_accuracy_is_drawn_at_every_radius_asked_for() -> None:
    metrics, values = drawn([0.1, 1 / 3])
    at = {f"{split}/vra_{radius}" for split in ("val", "test") for radius in ("0.1", "0.3333")}
    pictures = {"certificate/vra_curve", "certificate/level_sets"}
    assert metrics == METRICS | at | pictures
    assert values == {"parameters"}


def test_it_is_saved_once_under_the_name_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(f"{WORKSPACE}.save", lambda self: saved.append(self))
    monkeypatch.setattr(f"{WORKSPACE}.url", property(lambda self: "https://example.org/w"))
    assert main(["me/mine", "--radii", "0.5"]) == 0
    ((entity, project),) = ((found.entity, found.project) for found in saved)
    assert (entity, project) == ("me", "mine")
    assert capsys.readouterr().out == "https://example.org/w\n"


def test_a_server_that_refuses_is_answered_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(f"{WORKSPACE}.save", refuse)
    assert main(["me/mine"]) == 1
    expected = "error: the dashboard was not saved: ConnectionError: no route to host\n"
    assert capsys.readouterr().err == expected


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["me/mine"]) == 2
    assert "pip install 'robustcert[dashboard]'" in capsys.readouterr().err


@pytest.mark.parametrize("project", ["mine", "/mine", "me/"])
def test_a_project_without_its_entity_is_refused(
    project: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([project])
    assert "expected ENTITY/PROJECT" in capsys.readouterr().err
