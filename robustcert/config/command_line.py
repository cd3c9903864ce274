"""What is wrong with a command line, in one line that names what is allowed."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path
from pkgutil import iter_modules

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

_PACKAGE = Path(__file__).parents[1]
# A wheel carries conf/ inside the package; a checkout has it beside the package.
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
# Hydra 1.4 drops version_base and warns if it is given.
HYDRA_VERSION = {"version_base": "1.3"} if hydra.__version__ < "1.4" else {}


LAST = Path("checkpoints", "last.ckpt")

# Launchers and sweepers that are extras, with their plugin and extra.
_PLUGINS = {
    **dict.fromkeys(("parallel", "joblib"), ("hydra_joblib_launcher", "sweeps")),
    **dict.fromkeys(("search", "optuna"), ("hydra_optuna_sweeper", "sweeps")),
    **dict.fromkeys(
        ("slurm", "submitit_slurm", "submitit_local"), ("hydra_submitit_launcher", "slurm")
    ),
}


def ordered(arguments: list[str]) -> list[str]:
    """Flags first, then ``key=value`` and ``~key``: Hydra's parser finds no two groups of these."""
    overrides = [a for a in arguments if a[:1] == "~" or ("=" in a and a[:1] != "-")]
    return [a for a in arguments if a not in overrides] + overrides


def find_mistake(config_name: str, arguments: list[str]) -> str | None:
    """What is wrong with the arguments, or None.

    Hydra's own answer to ``model.widht=64`` is to add the key with a plus sign, which is the wrong
    advice for a typing error.

    Args:
        config_name: ``train`` or ``certify``.
        arguments: What stands after the command, as :func:`ordered` gives it.
    """
    options, unknown = get_args_parser().parse_known_args(arguments)
    if options.help or options.hydra_help or options.shell_completion:
        return None
    for argument in unknown:
        return f"{argument}: no such flag; values are set without dashes, as in model.width=64"
    if options.config_name or options.config_path:
        return None  # not our configuration
    user_dir = Path(options.config_dir) if options.config_dir else None
    if user_dir and not user_dir.is_dir():
        return f"--config-dir {user_dir}: no such folder"
    for argument in options.overrides:
        if "=" not in argument and not argument.startswith("~"):
            return _explain_word(config_name, argument, user_dir)
    overrides = []
    for argument in options.overrides:
        try:
            overrides.append(OverridesParser.create().parse_override(argument))
        except HydraException as error:
            return f"{argument}: {str(error).splitlines()[0]}"
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        extra = [f"hydra.searchpath=[file://{user_dir.resolve()}]"] if user_dir else []
        sweeping = options.multirun or any(o.key_or_group == "hydra.mode" for o in overrides)
        return _check_overrides(config_name, overrides, extra, sweeping)


def _check_overrides(
    config_name: str, overrides: list[Override], extra: list[str], sweeping: bool
) -> str | None:
    for override in overrides:
        if override.is_sweep_override() and not sweeping:
            return _explain_sweep(override)
        mistake = (
            _check_resume(override, sweeping) or _check_extra(override) or _check_group(override)
        )
        if mistake:
            return mistake
    candidates = [list(_candidates(override)) for override in overrides]
    firsts = [values[:1] for values in candidates]
    # Composing costs a tenth of a second: once for all, and one by one only to find what is wrong.
    right = _composes(config_name, [*extra, *chain(*firsts)]) is None
    for i, (override, values) in enumerate(zip(overrides, candidates, strict=True)):
        is_group = (CONFIG_DIR / override.key_or_group).is_dir()
        others = chain(*firsts[:i], *(firsts[i + 1 :] if right else []))
        good = [*extra, *others]
        for candidate in (values if is_group else values[:1])[right:]:
            error = _composes(config_name, [*good, candidate])
            if error:
                # An option of a group is judged with the groups that are chosen.
                groups = (
                    [
                        value
                        for other, (value, *_) in zip(overrides, candidates, strict=True)
                        if other is not override and (CONFIG_DIR / other.key_or_group).is_dir()
                    ]
                    if all(candidates)
                    else []
                )
                chosen = groups if _composes(config_name, [*extra, *groups]) is None else []
                return _explain(config_name, [*extra, *chosen], override, candidate, error)
    return _check_capacity(config_name, extra, overrides)


def _check_capacity(config_name: str, extra: list[str], overrides: list[Override]) -> str | None:
    """A capacity of which an experiment that sets sizes itself leaves nothing, or a part."""
    typed = {override.key_or_group: list(_candidates(override)) for override in overrides}
    chosen, experiments = typed.pop("capacity", []), typed.get("experiment", [])
    for capacity in chosen if experiments else []:
        path = CONFIG_DIR / "capacity" / f"{capacity.partition('=')[2]}.yaml"
        if not path.is_file():
            continue
        firsts = chain(*(values[:1] for values in typed.values()))
        model = hydra.compose(config_name, overrides=[*extra, *firsts, capacity]).model
        sizes = {f"model.{key!s}": value for key, value in OmegaConf.load(path).items()}
        lost = [
            f"{key}={value}"
            for key, value in sizes.items()
            if key not in typed and model.get(key.removeprefix("model.")) != value
        ]
        if lost:
            names = " and ".join(size.partition("=")[0] for size in lost)
            return f"{capacity}: {experiments[0]} sets {names} itself: type {' '.join(lost)}"
    return None


# Keys of a node that are not for the command line.
_OURS = ("_target_", "_partial_")
# Groups of which several options may be chosen.
_SEVERAL = ("callbacks", "certifier", "logger")


def _explain_sweep(override: Override) -> str:
    """Several values without -m: a sweep, a list, or a fraction with a comma."""
    key, _, value = (override.input_line or "").partition("=")
    advice = ""
    if re.fullmatch(r"-?\d+,\d+", value):
        advice = f", a fraction is written {key}={value.replace(',', '.')}"
    if key in _SEVERAL or not (CONFIG_DIR / key).is_dir():
        advice += f", or write a list as {key}=[{value}]"
    return f"{override.input_line}: several values are a sweep: add -m{advice}"


def _composes(config_name: str, overrides: list[str]) -> str | None:
    """Why the overrides do not compose, or None."""
    try:
        config = hydra.compose(config_name, overrides=overrides)
        # As a job does: what values refer to has to be there. Loggers refer to the job itself.
        with open_dict(config):
            config.pop("logger", None)
        OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def _check_resume(override: Override, sweeping: bool) -> str | None:
    if override.key_or_group != "resume" or override.value() is None:
        return None
    if sweeping:
        return "resume: continues one run: leave out -m"
    path = Path(str(override.value()))
    # The run's folder is found from the file, before anything is written.
    if not path.is_file() or path.resolve().parent.name != "checkpoints":
        run = next((p for p in (path, *path.parents) if (p / LAST).is_file()), None)
        hint = f"did you mean resume={run}? " if run else near(str(path), "resume=")
        expected = "expected <run>/checkpoints/last.ckpt or <run>"
        return f"resume={path}: no such checkpoint; {hint}{expected}"
    return None


def _check_group(override: Override) -> str | None:
    """An option of a group, set where the group puts it: model.activation=relu."""
    key = override.key_or_group
    _, dot, group = key.rpartition(".")
    values = [candidate.partition("=")[2] for candidate in _candidates(override)]
    names = values and all(value.isidentifier() and value != "null" for value in values)
    if not (dot and names) or override.is_delete():
        return None
    files = CONFIG_DIR.glob(f"{group}/*.yaml")
    if not any(path.read_text().startswith(f"# @package {key}\n") for path in files):
        return None
    return (
        f"{override.input_line}: {key} is a class with its options, which {group} chooses: write "
        f"{group}={','.join(values)}"
    )


def _check_extra(override: Override) -> str | None:
    if override.key_or_group not in ("hydra/launcher", "hydra/sweeper"):
        return None
    plugin, extra = _PLUGINS.get(str(override.value()), ("", ""))
    if not plugin or plugin in {module.name for module in iter_modules(_plugin_path())}:
        return None
    return f"{override.input_line}: is optional: pip install 'robustcert[{extra}]'"


def _plugin_path() -> list[str]:
    spec = find_spec("hydra_plugins")
    return list(spec.submodule_search_locations or []) if spec else []


def _candidates(override: Override) -> Iterator[str]:
    """Each value that an override takes, as an override; none where only the sweeper knows them."""
    if not override.is_sweep_override():
        yield override.input_line or ""
    elif override.is_discrete_sweep():
        for value in override.sweep_string_iterator():
            yield f"{override.get_key_element()}={value}"


def _explain_word(config_name: str, word: str, user_dir: Path | None) -> str:
    folders = [CONFIG_DIR, *([user_dir] if user_dir else [])]
    groups = sorted({p.parent.name for folder in folders for p in folder.glob(f"*/{word}.yaml")})
    if config_name == "certify" and not groups:
        return (
            f"{word}: no such file or folder; {near(word)}expected a run's folder, its checkpoint, "
            "an .onnx file, or key=value, as in samples=100"
        )
    hint = f"did you mean {groups[0]}={word}?" if groups else "expected key=value, as in seed=1"
    return f"{word}: {hint}"


def near(path: str, prefix: str = "") -> str:
    """A hint at a file or folder whose name is close to that of one that is not there."""
    folder, name = os.path.split(path)
    beside = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    close = difflib.get_close_matches(name, set(beside) - {name}, n=1)
    return f"did you mean {prefix}{os.path.join(folder, close[0])}? " if close else ""


def _explain(
    config_name: str, extra: list[str], override: Override, candidate: str, error: str
) -> str:
    key = override.key_or_group
    options = re.search(r"Available options in [^\n]*:\n((?:\s+[^\n]+\n)+)", error)
    missing = re.search(rf"Could not load '{re.escape(key)}/([^']+)'", error)
    if options or missing:
        names = options.group(1).split() if options else _names(key)
        chosen = missing.group(1) if missing else candidate.partition("=")[2]
        typed = f"{key}={chosen}" if override.is_add() and override.package else candidate
        return f"{typed}: {key} has no {chosen!r}; {_hint(chosen, names)}it has {_list(names)}"
    config = hydra.compose(config_name, overrides=extra, return_hydra_config=True)
    groups = [str(name) for name in config.hydra.runtime.choices]
    if not key.startswith("hydra."):
        groups = [name for name in groups if not name.startswith("hydra/")]
        with open_dict(config):
            del config["hydra"]
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if override.is_add() and (key in groups or (isinstance(node, DictConfig) and leaf in node)):
        return f"{candidate}: {key} is there already: leave the plus sign out"
    if key in groups and override.value() is None:
        return f"{candidate}: leave a group out with ~{key}"
    if isinstance(node, DictConfig) and isinstance(node.get(leaf), DictConfig):
        names = [str(name) for name in node[leaf]]
        pairs = ", ".join(f"{name}: {candidate.partition('=')[2]}" for name in names)
        return f"{candidate}: {key} has {_list(names)}: write {key}='{{{pairs}}}'"
    if key.partition(".")[0] in groups and (hint := _option(key, config)):
        return f"{key}: no such key; {hint}"
    if not isinstance(node, DictConfig | None):
        return f"{key}: no such key; {parent} is the value {node!r}"
    if node is None or leaf not in node:
        where = parent if node is not None else ""
        names = [str(name) for name in (config if node is None else node)]
        names += [] if where else groups
        hint = _hint(leaf, names, parent) if where == parent else ""
        hint = (_other_options(key, groups) if parent else "") or hint
        if where and not hint and "_target_" in names:
            hint = f"for an option that is not in the configuration, write +{candidate}; "
        if not where:
            paths = list(_paths(config))
            hint = _hint_elsewhere(key, paths, close=False) or hint or _hint_elsewhere(key, paths)
        return f"{key}: no such key; {hint}{where or 'the top level'} has {_list(names) or 'none'}"
    return f"{candidate}: {' '.join(error.split())}"


def _names(group: str) -> list[str]:
    """The options of a group of ours."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def _option(key: str, config: DictConfig) -> str:
    """Advice on a key that goes on with an option of its group, which is not the one chosen."""
    group, _, rest = key.partition(".")
    option = rest.partition(".")[0]
    node = config.get(group)
    if option not in _names(group) or (isinstance(node, DictConfig) and option in node):
        return ""
    written = OmegaConf.load(CONFIG_DIR / group / f"{option}.yaml")
    return (
        f"{option} is an option of {group}: write {group}={option}, which has "
        f"{_list(list(map(str, written)))}"
    )


def _other_options(key: str, groups: Sequence[str]) -> str:
    """Advice on a key that another option of one of the groups has than the one that is chosen."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONFIG_DIR.glob("*/*.yaml")):
        package = path.read_text().partition("# @package ")[2].partition("\n")[0]
        inside = key if package == "_global_" else key.removeprefix(f"{package}.")
        within = package == "_global_" or inside != key
        if path.parent.name not in groups or path.parent.name == "experiment" or not within:
            continue
        node, _, leaf = inside.rpartition(".")
        written = OmegaConf.load(path)
        parent = OmegaConf.select(written, node) if node else written
        # A key without a value is listed, and not "in" it.
        if isinstance(parent, DictConfig) and leaf in list(parent):
            found.setdefault(path.parent.name, []).append(path.stem)
    return "".join(f"it is a key of {group}={', '.join(names)}; " for group, names in found.items())


def _hint(word: str, names: list[str], parent: str = "") -> str:
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {parent + '.' if parent else ''}{close[0]}? " if close else ""


def _hint_elsewhere(key: str, paths: list[str], close: bool = True) -> str:
    """A key of the same name, or a close one, deeper down: model.width for width or widht."""
    head, _, rest = key.partition(".")
    leaves = {path.rpartition(".")[2]: path for path in reversed(paths)}
    for name in (head, *(difflib.get_close_matches(head, leaves, n=1) if close else ())):
        if "." in leaves.get(name, "") or (name in leaves and rest):
            return f"did you mean {leaves[name]}{'.' + rest if rest else ''}? "
    return ""


def _list(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(name for name in names if name not in _OURS))


def _paths(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        path = f"{prefix}{key}"
        yield path
        if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, key):
            value = config[key]
            if isinstance(value, DictConfig):
                yield from _paths(value, f"{path}.")


def sweep_jobs(typed: Sequence[str]) -> list[tuple[str, ...]]:
    """The jobs of a multirun, each as its overrides, as Hydra's basic sweeper makes them.

    Raises:
        ValueError: an override cannot be parsed.
    """
    values: dict[str, list[str]] = {}
    try:
        overrides = OverridesParser.create().parse_overrides(list(typed))
    except HydraException as error:
        raise ValueError(str(error)) from error
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
    return list(product(*values.values()))
