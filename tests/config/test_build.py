"""From plain values to objects: what is allowed, what fits, what is answered."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn, optim

from robustcert.activations import GroupSort, ReLU
from robustcert.config.build import (
    CHECKPOINT_TARGETS,
    COMMAND_LINE_TARGETS,
    RESUME_TARGETS,
    build,
    check,
    resolve,
)
from robustcert.config.schema import check_call, matches
from robustcert.errors import ConfigError

RELU = {"_target_": "robustcert.activations.ReLU", "num_features": 4}


def make(node: dict[str, Any], **extra: Any) -> Any:
    return build(node, "key", COMMAND_LINE_TARGETS, **extra)


def test_a_node_becomes_the_object_that_it_names() -> None:
    assert type(make(RELU)) is ReLU
    sort = make({"_target_": "robustcert.activations.GroupSort", "group_size": 4}, num_features=8)
    assert isinstance(sort, GroupSort)
    assert sort.group_size == 4


def test_a_partial_node_becomes_the_class_with_arguments_bound() -> None:
    factory = make({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    assert isinstance(factory, partial)
    assert factory.func is optim.SGD
    assert factory(nn.Linear(1, 1).parameters()).defaults["lr"] == 0.5


def test_nodes_nest_in_arguments_lists_and_mappings() -> None:
    node = {"_target_": "torch.nn.ModuleDict", "modules": {"a": RELU}}
    assert isinstance(make(node)["a"], ReLU)
    node = {"_target_": "torch.nn.ModuleList", "modules": [RELU, RELU]}
    assert [type(m) for m in make(node)] == [ReLU, ReLU]


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("os.system", "'os.system' is not allowed: it is not in robustcert, torch, lightning$"),
        ("mylab.Net", r"If you trust it, add allow_targets=\[mylab\] to the command line$"),
        ("Net", "'Net' is not allowed"),
        ("robustcertificate.Net", "is not allowed"),
        ("robustcert.activations.RELU", "no class 'robustcert.activations.RELU'"),
        ("robustcert.nowhere.ReLU", "no class 'robustcert.nowhere.ReLU': No module named"),
        ("robustcert.runs.commands.os.system", "no class 'robustcert.runs.commands.os.system'"),
        ("robustcert.runs.commands.sys", "is not a class of"),
        (
            "robustcert.runs.commands.Path",
            "'robustcert.runs.commands.Path' is not a class of robustcert, torch",
        ),
        ("robustcert.runs.train.train", "is not a class of"),
        ("torch.load", "is not a class of"),
        ("", "'' is not allowed"),
        (None, "'None' is not allowed|None is not allowed"),
        (7, "7 is not allowed"),
    ],
)
def test_what_may_not_be_built_is_refused(target: Any, answer: str) -> None:
    with pytest.raises(ConfigError, match=rf"^key\._target_: .*{answer}"):
        make({"_target_": target})


def test_a_refused_module_is_not_even_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="not allowed"):
        make({"_target_": "evil_module.Net"})


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("torch.nn.ReLU", (True, True)),
        ("robustcert.data.Digits", (True, True)),
        ("torch.optim.NAdam", (False, True)),
        ("lightning.pytorch.Trainer", (False, True)),
        ("lightning.pytorch.loggers.CSVLogger", (False, True)),
        ("lightning.pytorch.strategies.DDPStrategy", (False, True)),
        ("lightning.pytorch.cli.LightningCLI", (False, False)),
        ("lightning.pytorch.LightningModule", (False, False)),
        ("torch.utils.data.DataLoader", (False, False)),
        ("torch.Tensor", (False, False)),
        ("lightning.Fabric", (False, False)),
        ("pathlib.Path", (False, False)),
    ],
)
def test_a_checkpoint_may_name_less_than_a_command_line(
    target: str, allowed: tuple[bool, bool]
) -> None:
    for expected, targets in zip(allowed, (CHECKPOINT_TARGETS, RESUME_TARGETS), strict=True):
        if expected:
            assert resolve(target, "key", targets).__name__ == target.rpartition(".")[2]
        else:
            with pytest.raises(ConfigError, match=r"is not (allowed|a class of)"):
                resolve(target, "key", targets)


@pytest.mark.parametrize(
    ("node", "answer"),
    [
        ({}, "key: needs a _target_, the class to build"),
        ({**RELU, "foo": 1}, "key.foo: ReLU takes no 'foo'; it takes num_features"),
        ({**RELU, "num_featurs": 1}, "did you mean num_features"),
        ({**RELU, "num_features": "x"}, "key.num_features: expected int, got 'x'"),
        ({**RELU, "num_features": 1.0}, "key.num_features: expected int, got 1.0"),
        ({**RELU, "num_features": True}, "key.num_features: expected int, got True"),
        ({**RELU, "num_features": None}, "key.num_features: expected int, got None"),
        ({**RELU, "num_features": "???"}, "a value is needed: set key.num_features=..."),
        ({"_target_": RELU["_target_"]}, "key: num_features missing: set key.num_features=..."),
        ({**RELU, "_recursive_": False}, "key._recursive_: only _target_ and _partial_"),
        ({**RELU, "_args_": [1]}, "key._args_: only _target_ and _partial_ are supported"),
        (
            {"_target_": "torch.nn.ModuleList", "modules": [RELU, {"_target_": "os.system"}]},
            r"key.modules\[1\]._target_: 'os.system' is not allowed",
        ),
        (
            {"_target_": "robustcert.activations.GroupSort", "num_features": 5},
            "key: GroupSort.*cannot split 5 features",
        ),
    ],
)
def test_what_does_not_fit_is_answered_with_the_key(node: dict[str, Any], answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        make(node)


def test_an_object_of_another_kind_is_refused_before_it_is_made() -> None:
    with pytest.raises(ConfigError, match="key: expected a Optimizer, got ReLU"):
        make(RELU, expected=optim.Optimizer)


def test_what_the_program_adds_cannot_be_set() -> None:
    with pytest.raises(ConfigError, match=r"key\.num_features: is set by the program"):
        make(RELU, num_features=3)


def test_checking_a_node_builds_nothing() -> None:
    node = {"_target_": "robustcert.activations.GroupSort", "num_features": 5}
    check(node, "key", COMMAND_LINE_TARGETS)  # 5 features would be refused


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, int, True),
        (1, float, True),
        (True, int, False),
        (1.5, int, False),
        ("1", float, False),
        (True, bool, True),
        (1, bool, False),
        ("a", str, True),
        ("a", Path, True),
        (None, int | None, True),
        ("x", int | None, False),
        ("cayley", Literal["cayley", "exp"], True),
        ("qr", Literal["cayley", "exp"], False),
        ([1, 2.5], list[float], True),
        ([1, "x"], Sequence[float], False),
        (3, list[float], False),
        ("abc", Sequence[str], False),
        ((1, 2), tuple[int, ...], True),
        ({"a": 1}, dict[str, int], True),
        ([1], dict[str, int], False),
        (RELU, nn.Module, True),
        ("relu", nn.Module, False),
        (3, Any, True),
    ],
)
def test_values_are_compared_with_annotations(value: Any, hint: Any, fits: bool) -> None:
    assert matches(value, hint) == fits


def test_functions_are_schemas_as_well() -> None:
    def function(width: int, *, name: "Undefined" = None) -> None:  # noqa: F821
        pass

    check_call(function, {"width": 3, "name": "x"}, "key")
    with pytest.raises(ConfigError, match="function takes no 'height'"):
        check_call(function, {"height": 3}, "")
