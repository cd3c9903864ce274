"""The commands ``train.py`` and ``certify.py``: Hydra in front of :mod:`robustcert.run`.

Everything heavy is imported when a job runs, so that ``--help`` and a typing error answer at once.
"""

import difflib
import hashlib
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside the package; a checkout has it beside the package.
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
# Hydra 1.4 drops version_base and warns if it is given.
_VERSION = {"version_base": "1.3"} if hydra.__version__ < "1.4" else {}


def _run_folder(resume: str | None) -> str:
    if resume:
        return str(Path(resume).resolve().parent.parent)
    return f"outputs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def _run_id(folder: str) -> str:
    return hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]


def register_resolvers() -> None:
    """Make ``${run_folder:...}`` and ``${run_id:...}`` known to OmegaConf."""
    # Cached: the folder is asked for several times and must not change within a run.
    OmegaConf.register_new_resolver("run_folder", _run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True)


def train() -> Any:
    """``python train.py``: compose, train, certify."""
    return _main("train", _train)


def certify() -> Any:
    """``python certify.py``: certify a checkpoint."""
    return _main("certify", _certify)


def _main(name: str, job: Callable[[DictConfig], Any]) -> Any:
    register_resolvers()
    message = explain_command_line(name, sys.argv[1:])
    if message:
        sys.exit(f"error: {message}")
    return hydra.main(config_path=str(CONFIG_DIR), config_name=name, **_VERSION)(job)()


def _train(config: DictConfig) -> float | None:
    def job() -> float:
        from robustcert.run import train as run_train

        settings = HydraConfig.get()
        multirun = settings.mode == RunMode.MULTIRUN
        plain = _plain(config)
        if plain["resume"]:
            plain = _resumed(plain, list(settings.overrides.task))
        return run_train(plain, Path(settings.runtime.output_dir), multirun=multirun)

    return _report(job)


def _certify(config: DictConfig) -> dict[str, float] | None:
    def job() -> dict[str, float]:
        from robustcert.run import certify as run_certify

        if OmegaConf.is_missing(config, "checkpoint"):
            raise ValueError("set checkpoint=<run>/checkpoints/best.ckpt")
        return run_certify(_plain(config))

    return _report(job)


def _report(job: Callable[[], Any]) -> Any:
    # A user's mistake is answered in one line; in a sweep Hydra reports the failed job itself.
    try:
        return job()
    except (ValueError, OSError) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        import logging

        logging.getLogger(__name__).debug("traceback", exc_info=True)
        sys.exit(f"error: {error}")


def _plain(config: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _resumed(plain: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The run's own configuration, with the values of this command line on top."""
    from robustcert.checkpoint import read_checkpoint

    config = OmegaConf.create(read_checkpoint(plain["resume"]).config)
    OmegaConf.set_struct(config, True)
    for override in OverridesParser.create().parse_overrides(overrides):
        if isinstance(OmegaConf.select(config, override.key_or_group), DictConfig):
            raise ValueError(
                f"{override.input_line}: a resumed run keeps its groups; only values can change"
            )
        OmegaConf.update(config, override.key_or_group, override.value())
    return {**_plain(config), "run_dir": plain["run_dir"], "resume": plain["resume"]}


def explain_command_line(config_name: str, arguments: list[str]) -> str | None:
    """One line that says what is wrong with the overrides, or None.

    Hydra's own answer to ``model.widht=64`` is to add the key with a plus sign, which is the wrong
    advice for a typing error; this names what is allowed instead.
    """
    overrides = [a for a in arguments if not a.startswith("-")]
    if any(
        a in ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
        or a.startswith("--config")
        for a in arguments
    ):
        return None  # Hydra must find the user's own groups first
    if any(a in ("--help", "-h", "--hydra-help", "--version") for a in arguments):
        return None
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        return str(error).splitlines()[0]
    with hydra.initialize_config_dir(str(CONFIG_DIR), **_VERSION):
        good: list[str] = []
        for override in parsed:
            for candidate in _candidates(override):
                try:
                    hydra.compose(config_name, overrides=[*good, candidate])
                except (HydraException, OmegaConfBaseException) as error:
                    return _explain(config_name, override, candidate, str(error))
            good.append(_candidates(override)[0])
    return None


def _candidates(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if override.is_range_sweep() or override.is_interval_sweep():
        return [f"{override.key_or_group}=1"]
    return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]


def _explain(config_name: str, override: Override, candidate: str, error: str) -> str:
    key = override.key_or_group
    options = re.search(r"Available options[^:]*:\s*(.*)", error, re.DOTALL)
    if options:
        names = options.group(1).split()
        chosen = candidate.partition("=")[2]
        return f"{candidate}: no {chosen!r} in {key}; choose from {', '.join(names)}"
    if "not in struct" in error or "Could not override" in error:
        base = hydra.compose(config_name, return_hydra_config=key.startswith("hydra"))
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(base, parent, throw_on_missing=False) if parent else base
        allowed = [str(k) for k in node] if isinstance(node, DictConfig) else []
        if not allowed:
            allowed = [str(k) for k in base]
            return f"{key}: no such key; the top level has {', '.join(allowed)}"
        close = difflib.get_close_matches(leaf, allowed, n=1)
        hint = f"did you mean {parent + '.' if parent else ''}{close[0]}? " if close else ""
        return f"{key}: no such key; {hint}{parent or 'the top level'} has {', '.join(allowed)}"
    return f"{candidate}: {error.splitlines()[0]}"
