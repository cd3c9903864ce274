"""Old names of options keep working for one release, wherever a user may have written them."""

import logging
from pathlib import Path

import hydra
import pytest
from helpers.runs import compose
from omegaconf import OmegaConf

from robustcert.config import renamed_options
from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION, find_mistake
from robustcert.config.renamed_options import RENAMED, current_option
from robustcert.report.runs import Run
from robustcert.runs.commands import plain, register_resolvers

ALIASES = [(group, old, new) for group, names in RENAMED.items() for old, new in names.items()]


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is said from here on: every name is told once in a process."""
    renamed_options._tell.cache_clear()
    caplog.set_level(logging.WARNING)
    return caplog


def line(group: str, old: str, new: str) -> str:
    return f"{group}={old} is called {group}={new} now: the old name ends with the next release"


def test_the_renamed_options_are_these() -> None:
    assert {old for _, old, _ in ALIASES} == {"combined", "global", "local_lipschitz", "quadric"}
    for group, old, new in ALIASES:
        assert (CONFIG_DIR / group / f"{new}.yaml").is_file()
        assert not (CONFIG_DIR / group / f"{old}.yaml").exists()


@pytest.mark.parametrize("command", ["train", "certify"])
@pytest.mark.parametrize(("group", "old", "new"), ALIASES)
def test_a_command_line_may_say_the_old_name(
    command: str, group: str, old: str, new: str, told: pytest.LogCaptureFixture
) -> None:
    register_resolvers()
    assert find_mistake(command, [f"{group}={old}"]) is None
    assert compose(f"{group}={old}", name=command) == compose(f"{group}={new}", name=command)
    assert told.messages == [line(group, old, new)]


def test_values_under_an_old_name_are_set_and_judged_as_under_the_new_one() -> None:
    typed = ("certifier=local_lipschitz", "certifier.rounds=3")
    assert find_mistake("certify", list(typed)) is None
    assert compose(*typed, name="certify")["certifier"]["rounds"] == 3
    answer = find_mistake("certify", ["certifier=local_lipschitz", "certifier.ruonds=3"])
    assert answer == find_mistake("certify", ["certifier=local_lipsdp", "certifier.ruonds=3"])
    assert answer is not None


def test_a_sweep_may_mix_old_names_and_new_ones(told: pytest.LogCaptureFixture) -> None:
    assert find_mistake("train", ["-m", "certifier=combined,second_order,lipschitz"]) is None
    assert told.messages == [line("certifier", "combined", "second_order")]


@pytest.mark.parametrize(("group", "old", "new"), ALIASES)
def test_a_users_own_experiment_may_say_the_old_name(
    tmp_path: Path, group: str, old: str, new: str, told: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "experiment").mkdir()
    mine = f"# @package _global_\ndefaults:\n  - override /{group}: {old}\nseed: 7\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(mine)
    typed = ["--config-dir", str(tmp_path), "experiment=mine"]
    register_resolvers()
    assert find_mistake("train", typed) is None
    searched = f"hydra.searchpath=[file://{tmp_path}]"
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        found = plain(hydra.compose("train", [searched, "experiment=mine"]))
    assert found == compose(f"{group}={new}", "seed=7")
    assert told.messages == [line(group, old, new)]


@pytest.mark.parametrize(("group", "old", "new"), ALIASES)
def test_a_configuration_of_ones_own_may_say_the_old_name(
    tmp_path: Path, group: str, old: str, new: str, told: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.yaml").write_text(f"defaults:\n  - train\n  - override {group}: {old}\n")
    register_resolvers()
    searched = f"hydra.searchpath=[file://{CONFIG_DIR}]"
    with hydra.initialize_config_dir(str(tmp_path), **HYDRA_VERSION):
        found = hydra.compose("mine", [searched])
    assert OmegaConf.to_container(found[group]) == compose(f"{group}={new}")[group]
    assert told.messages == [line(group, old, new)]


def test_hints_offer_no_old_name() -> None:
    register_resolvers()
    answer = find_mistake("train", ["certifier=quadratics"])
    assert answer is not None
    names = answer.partition("it has ")[2].split(", ")
    assert sorted(names) == sorted(path.stem for path in (CONFIG_DIR / "certifier").glob("*.yaml"))


@pytest.mark.parametrize(("group", "old", "new"), ALIASES)
def test_reports_compare_old_runs_with_new_ones(group: str, old: str, new: str) -> None:
    row = {"command": {"choices": {group: old, "activation": "relu"}}}
    run = Run("a", Path(), "complete", results=row)
    assert run.choices == {group: new, "activation": "relu"}
    assert current_option(group, new) == new
