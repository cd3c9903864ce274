"""The commands ``train.py`` and ``certify.py``: Hydra in front of the two runs.

Everything heavy is imported when a job runs, so that ``--help`` and a typing error answer at once.
"""

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustcert.certificate.places import checkpoint_of
from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION, find_mistake, ordered
from robustcert.config.renamed_options import register_renamed_options
from robustcert.errors import BrokenCertificate, ConfigError, typed
from robustcert.runs.fresh import is_new, removed_unless
from robustcert.runs.job import job_key, run_job
from robustcert.runs.memory import keep_freed_memory
from robustcert.runs.permission import admit_working_folder
from robustcert.runs.pipes import outlive_readers
from robustcert.runs.sweep import finish_sweeps
from robustcert.training.stage import loading


def train() -> None:
    """``python train.py``: compose, train, certify."""
    _main("train", _train)


def certify() -> None:
    """``python certify.py``: certify a checkpoint, or an ONNX model."""
    _main("certify", _certify)


def register_resolvers() -> None:
    """Make known what ``conf/`` needs: its resolvers, and the old names of its options."""
    register_renamed_options()
    # Cached: the folder is asked for several times and must not change within a run.
    OmegaConf.register_new_resolver("run_folder", _run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True)
    OmegaConf.register_new_resolver("if_new", _if_new, replace=True)
    OmegaConf.register_new_resolver("job_key", _job_key, replace=True)
    OmegaConf.register_new_resolver("typed", typed, replace=True)
    OmegaConf.register_new_resolver("options", _options, replace=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values; what is missing is ``"???"``."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _run_folder(resume: str | None) -> str:
    if resume:
        return str(Path(resume).resolve().parent.parent)
    return f"outputs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def _if_new(resume: str | None, value: str) -> str | None:
    return None if resume else value


def _options(*groups: str) -> str:
    loader = GlobalHydra.instance().config_loader()
    return "".join(f"{group}: {', '.join(loader.get_group_options(group))}\n" for group in groups)


def _job_key(*, _root_: DictConfig) -> str:
    parts = {}
    for key in map(str, _root_):
        if key not in ("hydra", "logger") and not OmegaConf.is_missing(_root_, key):
            value = _root_[key]
            node = OmegaConf.is_config(value)
            parts[key] = OmegaConf.to_container(value, resolve=True) if node else value
    return job_key(parts)


def _run_id(folder: str) -> str:
    return hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]


def _main(name: str, job: Callable[[DictConfig], Any]) -> None:
    outlive_readers()
    sys.argv[1:] = ordered(several(_with_files(name, sys.argv[1:])))
    mistake = find_mistake(name, sys.argv[1:])
    if mistake:
        sys.exit(f"error: {mistake}")
    if {"-h", "--help"} & set(sys.argv[1:]):
        _list_options_at_once()
    failed = 0
    try:
        hydra.main(config_path=str(CONFIG_DIR), config_name=name, **HYDRA_VERSION)(
            _answering(job)
        )()
    finally:
        failed = finish_sweeps()
    if failed:
        sys.exit(1)


def _list_options_at_once() -> None:
    """Spare ``--help`` a copy of Hydra's whole repository for each group: most of its time."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.object_type import ObjectType

    def options(
        self: ConfigLoaderImpl, group_name: str, results_filter: Any = ObjectType.CONFIG
    ) -> list[str]:
        return self.repository.get_group_options(group_name, results_filter)

    ConfigLoaderImpl.get_group_options = options  # type: ignore[method-assign, assignment]


def _with_files(name: str, arguments: list[str]) -> list[str]:
    """The arguments with a run's folder replaced by the checkpoint in it that is meant.

    ``certify`` takes it as a word: a run's folder, its certificate, a checkpoint or an ONNX file;
    ``train`` continues ``resume=<run>``.
    """
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        path = argument.removeprefix("resume=")
        last = os.path.join(path, "checkpoints", "last.ckpt")
        if name == "train" and path != argument and os.path.isfile(last):
            argument = f"resume={_quoted(last)}"
        word = before not in _WITH_A_VALUE and not argument.startswith(("-", "checkpoint="))
        if name == "certify" and word and argument.endswith(".onnx") and "=" not in argument:
            argument = f"network={_quoted(argument)}"
        elif name == "certify" and word and os.path.exists(argument):
            argument = f"checkpoint={_quoted(checkpoint_of(argument))}"
        found.append(argument)
    return found


def several(arguments: list[str]) -> list[str]:
    """The arguments in Hydra's terms: ``logger=[csv,tensorboard]`` are two nodes by name.

    ``certifier`` and ``logger`` take several options, each under its own name; ``lr_schedule`` and
    ``logger`` may be null, as a group is that is left out.
    """
    found = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        names = [name.strip() for name in value.strip("[] ").split(",")]
        listed = value.startswith("[") and value.endswith("]") and all(names)
        if key in ("certifier", "logger") and listed:
            one = len(names) == 1
            placed = (f"+{key}@{key}.{name}={name}" for name in names)
            found += [f"{key}={names[0]}"] if one else [f"~{key}", *placed]
        elif key in ("logger", "lr_schedule") and value == "null":
            found.append(f"~{key}")
        else:
            found.append(argument)
    return found


# Hydra's flags that are followed by a value.
_WITH_A_VALUE = (
    *("-cd", "--config-dir", "-cp", "--config-path", "-cn", "--config-name", "-c", "--cfg"),
    *("-p", "--package", "-i", "--info", "-sc", "--shell-completion"),
)


def _quoted(value: str) -> str:
    """A value as Hydra's grammar has it, whatever characters it holds."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _answering(job: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """The job, with a user's mistake answered in one line; HYDRA_FULL_ERROR=1 tells where."""

    def answering(config: DictConfig) -> Any:
        try:
            return job(config)
        except (ValueError, OSError, OmegaConfBaseException, BrokenCertificate) as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            message = "error: " + " ".join(str(error).split())
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                # The other jobs of a sweep go on, and Hydra repeats the first error at the end.
                logging.getLogger(__name__).error(message)
                raise CompactHydraException(message) from None
            sys.exit(message)
        except KeyboardInterrupt:
            sys.exit("interrupted")

    return answering


def _train(config: DictConfig) -> float:
    settings = HydraConfig.get()
    several = settings.mode == RunMode.MULTIRUN
    folder = Path(settings.runtime.output_dir)
    # As typed: ${key} is of the job's configuration, not of Hydra's.
    given = cast(list[str], OmegaConf.to_container(settings.overrides.task, resolve=False))
    new = is_new(folder)
    with removed_unless(lambda: several, folder):
        values = plain(config)
        # Of a run that is resumed, everything stands in its checkpoint.
        if not values["resume"]:
            for key in sorted(OmegaConf.missing_keys(config)):
                raise ConfigError(f"{key}: a value is needed: set {key}=...")
        admit_working_folder(values["allow_targets"])
        with loading("loading torch and Lightning"):
            from robustcert.runs.train import train as run

        keep_freed_memory()
        _one_voice()
        if values["resume"]:
            values = resumed(values, given)
    choices = {k: v for k, v in settings.runtime.choices.items() if not str(k).startswith("hydra/")}
    command = {"overrides": given, "choices": choices}
    if not several:
        return run(values, folder, command=command, new=new)
    # A worker of joblib takes several jobs; elsewhere the process is the job's own, or ours.
    shared = "joblib" in settings.launcher._target_
    return run_job(values, folder, command=command, own_process=shared)


def _certify(config: DictConfig) -> dict[str, float]:
    values = plain(config)
    # What a dataset recommends for training.
    values.pop("normalization", None)
    if values["checkpoint"] == "???":
        values["checkpoint"] = None
    if values["checkpoint"] is None and values["network"] is None:
        raise ValueError(
            f"certify needs a network: {typed('certify')} outputs/<run>, or set "
            "checkpoint=<run>/checkpoints/best.ckpt or network=<model>.onnx"
        )
    admit_working_folder(values["allow_targets"])
    with loading("loading torch"):
        from robustcert.config.schema import check_call
        from robustcert.runs.certify import certify as run

    keep_freed_memory()
    _one_voice()
    check_call(run, values, "")
    return run(**values)


def _one_voice() -> None:
    """Let Hydra's handlers print what Lightning says, once and without its advertisements."""
    logging.getLogger("lightning").handlers.clear()
    noise = ("\N{ELECTRIC LIGHT BULB}", "TPU ", "GPU ", "Loading `train_", "`Trainer.fit` stopped")
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: not record.getMessage().startswith(noise))


def resumed(values: dict[str, Any], typed: list[str]) -> dict[str, Any]:
    """The configuration of the run to resume, with what may change on top.

    Args:
        values: What this command line composes to.
        typed: Its overrides.

    Raises:
        ValueError: an override would make it another run.
    """
    from robustcert.training.checkpoint import read_checkpoint

    config = OmegaConf.create(read_checkpoint(values["resume"]).config)
    OmegaConf.set_struct(config, True)
    for override in OverridesParser.create().parse_overrides(typed):
        key = override.key_or_group
        if override.is_delete() or not re.fullmatch(_MAY_CHANGE, key):
            raise ValueError(
                f"{override.input_line}: a resumed run stays the same run: only values of trainer, "
                "logger, threads, certify, certify_device, certifier, validation and attack and "
                "the place of the data can change"
            )
        if key not in ("resume", "allow_targets"):
            OmegaConf.update(config, key, override.value(), force_add=override.is_add())
    # What a checkpoint's classes may be is for the command line to say.
    return {**plain(config), "allow_targets": values["allow_targets"], "resume": values["resume"]}


_MAY_CHANGE = (
    r"resume|threads|allow_targets|certify|certify_device"
    r"|(trainer|logger|certifier|validation|attack)\..+"
    r"|dataset\.(root|download|checksum)|loader\.(num_workers|eval_batch_size|generated)"
)

# At import: a launcher's worker imports this module, and composes its job before it calls anything.
register_resolvers()
