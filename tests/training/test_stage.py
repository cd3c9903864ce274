"""What takes longer than a moment is said while it lasts, and what is quick is not."""

import gc
import logging
import sys
import time

import pytest

from robustcert.training import stage as module
from robustcert.training.stage import loading, stage


def test_a_long_stage_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_SILENCE", 0.001)
    caplog.set_level(logging.INFO)
    with stage("attacking 9 samples", 9, bar=False) as advance:
        advance(4)
        before = len(caplog.messages)
        while len(caplog.messages) < before + 2:
            time.sleep(0.001)
    assert caplog.messages[-1].startswith("attacking 9 samples: 4 of 9 samples, ")
    count = len(caplog.messages)
    time.sleep(0.02)
    assert len(caplog.messages) == count


def test_a_quick_stage_and_one_that_nobody_listens_to_are_silent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    with stage("quick", bar=False) as advance:
        advance(1)
    assert not caplog.messages
    monkeypatch.setattr(module, "MAX_SILENCE", 0.001)
    caplog.set_level(logging.WARNING)
    with stage("unheard", bar=False):
        time.sleep(0.02)
    assert not caplog.messages


def test_an_error_in_a_stage_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="of its own"), stage("failing", bar=False):
        raise ValueError("of its own")


def test_where_a_bar_is_drawn_there_are_no_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with stage("reading", 3, "files", bar=True) as advance:
        advance(3)
    assert not caplog.messages


def test_of_several_processes_the_first_one_speaks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_SILENCE", 0.001)
    caplog.set_level(logging.INFO)
    for rank, said in (("1", False), ("0", True)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with stage("loading", bar=False):
            time.sleep(0.02)
        assert bool(caplog.messages) == said


def test_nothing_is_searched_for_garbage_while_torch_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    gc.unfreeze()
    with loading("loading torch"):
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def test_what_was_loaded_before_is_no_reason_to_stop_searching() -> None:
    with loading("loading torch"):
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0
