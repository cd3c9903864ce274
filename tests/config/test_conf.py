"""Every file under conf/ composes, and every class that it names can be called with its values."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configs import build
from helpers.runs import WANDB, compose
from hydra.utils import get_class
from omegaconf import OmegaConf

from robustcert.config.build import COMMAND_LINE_TARGETS, build_module, check
from robustcert.config.command_line import CONFIG_DIR
from robustcert.data import Dataset, Examples
from robustcert.data.targets import Reals
from robustcert.models.scores import output_scores, training_scores

GROUPS = sorted(
    p.name for p in CONFIG_DIR.iterdir() if p.is_dir() and p.name not in ("hydra", "experiment")
)
OPTIONS = [(g, p.stem) for g in GROUPS for p in sorted((CONFIG_DIR / g).glob("*.yaml"))]
EXPERIMENTS = sorted(p.stem for p in (CONFIG_DIR / "experiment").glob("*.yaml"))
SECTIONS = ("dataset", "model", "objective", "optimizer", "trainer", "logger", "certifier")
GROUPED = ("callbacks",)
SCHEDULES = ("epsilon_schedule", "lr_schedule")
# What the program adds to a node.
PROVIDED = {
    "model": {"input_shape", "num_classes"},
    "trainer": {"callbacks", "default_root_dir"},
    "logger": {"save_dir"},
}
# Options that only make sense with others.
COMPANIONS = {
    **{key: ["model=convnet"] for key in ("2c2f", "4c3f", "6c2f")},
    "subspaces": ["~layer", "~capacity", "~activation"],
    "npz": ["dataset.root=data.npz"],
    "image_folder": ["dataset.root=images"],
    "wandb": list(WANDB[1:]),
}


class Shaped(Dataset):
    """No data, only shapes."""

    name = "shaped"
    input_shape = (1, 16, 16)
    num_classes = 3

    def read(self, split: str) -> Examples:
        raise NotImplementedError


class ShapedReals(Shaped):
    """The same for a regression."""

    num_classes = 1
    targets = Reals()  # type: ignore[assignment]


def check_sections(config: dict[str, Any]) -> None:
    for section in (*SECTIONS, *SCHEDULES):
        provided = frozenset(PROVIDED.get(section, set()) - config[section].keys())
        # The program's own: build_model wraps a model, and torch compiles steps, not a trainer.
        own = ("monotone", "compile")
        node = {key: value for key, value in config[section].items() if key not in own}
        check(node, section, COMMAND_LINE_TARGETS, provided)
    for section in GROUPED:
        for name, node in config.get(section, {}).items():
            check(node, f"{section}.{name}", COMMAND_LINE_TARGETS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_fits_its_class(group: str, option: str) -> None:
    config = compose(f"{group}={option}", *COMPANIONS.get(option, []))
    check_sections(config)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_fits_its_classes(experiment: str) -> None:
    config = compose(f"experiment={experiment}")
    check_sections(config)
    assert config["epsilon"] in config["radii"]


# Experiments that show something else than a verified accuracy.
STUDIES = ("grafting_digits", "pwl_limits")


@pytest.mark.parametrize("experiment", sorted({*EXPERIMENTS} - {*STUDIES}))
def test_an_experiment_has_a_measured_result_or_says_that_it_is_a_recipe(experiment: str) -> None:
    root = CONFIG_DIR.parent
    row = re.compile(rf"^\| `python train.py experiment={experiment}[ `]", re.MULTILINE)
    tables = [root / "docs" / name for name in ("results.md", "regression.md")]
    measured = any(row.search(page.read_text()) for page in tables)
    first = (CONFIG_DIR / "experiment" / f"{experiment}.yaml").read_text().splitlines()[1]
    assert measured != (first == "# Recipe: no result was measured.")
    pages = [page.read_text() for page in (*(root / "docs").glob("*.md"), root / "README.md")]
    named = [line for page in pages for line in page.splitlines() if experiment in line]
    assert measured or all("recipe" in line for line in named)


@pytest.mark.parametrize(
    ("group", "option"),
    [o for o in OPTIONS if o[0] in ("activation", "layer", "objective", "optimizer")],
)
def test_every_part_of_a_network_can_be_built(group: str, option: str) -> None:
    config = compose(f"{group}={option}", "model.width=8", "model.depth=2")
    real = group == "objective" and hasattr(build(group, option), "task")
    build_module(config, ShapedReals() if real else Shaped(), COMMAND_LINE_TARGETS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_a_narrow_network(experiment: str) -> None:
    config = compose(f"experiment={experiment}")
    narrow = {"width": 16, "depth": 2, "neck_channels": 32, "dense_width": 32, "rank": 2}
    config["model"] |= {k: v for k, v in narrow.items() if config["model"].get(k)}
    # Scales of the training split are of the dataset's own columns.
    config["norm"] = {}
    real = hasattr(get_class(config["objective"]["_target_"]), "task")
    dataset = ShapedReals() if real else Shaped()
    signals = config["model"]["_target_"].endswith("1d")
    size = (256,) if signals else (16, 16)
    dataset.input_shape = (len(config["normalization"]["mean"]), *size)
    module = build_module(config, dataset, COMMAND_LINE_TARGETS)
    x, target = torch.rand(2, *dataset.input_shape), torch.tensor([0, 2])
    scores = (output_scores if real else training_scores)(module.model, x)
    target = target.float() if real else target
    loss = module.objective(scores.logits(target), target, scores.pairwise, module.epsilon)
    loss.backward()
    assert loss.isfinite()


def test_every_option_of_certify_composes() -> None:
    for path in (CONFIG_DIR / "certifier").glob("*.yaml"):
        config = compose(f"certifier={path.stem}", name="certify")
        check(config["certifier"], "certifier", COMMAND_LINE_TARGETS)


def test_capacities_set_only_what_the_command_line_can_override() -> None:
    for path in (CONFIG_DIR / "capacity").glob("*.yaml"):
        assert {"width", "depth"} <= set(OmegaConf.load(path))
        companions = COMPANIONS.get(path.stem, [])
        config = compose(f"capacity={path.stem}", "model.width=1024", *companions)
        assert config["model"]["width"] == 1024


def recipes(model: str) -> list[str]:
    """Experiments of a model that are recipes of published networks."""
    found = []
    for path in (CONFIG_DIR / "experiment").glob("*.yaml"):
        is_recipe = path.read_text().splitlines()[1].startswith("# Recipe")
        if is_recipe and f"override /model: {model}\n" in path.read_text():
            found.append(f"experiment={path.stem}")
    return sorted(found)


def companions_of(capacity: str) -> list[str]:
    """What a capacity says that it is used with, and all recipes of that model; else any model."""
    text = (CONFIG_DIR / "capacity" / f"{capacity}.yaml").read_text()
    named = re.search(r"use with ((model|experiment)=(\w+))", text)
    if named is None:
        return [f"model={model}" for model in ("mlp", "residual_mlp", "convnet", "liresnet")]
    typed, model = named[1], compose(named[1])["model"]["_target_"]
    own = {p.stem for p in (CONFIG_DIR / "model").glob("*.yaml") if f" {model}\n" in p.read_text()}
    return sorted({typed, *(recipe for name in own for recipe in recipes(name))})


CAPACITIES = sorted(path.stem for path in (CONFIG_DIR / "capacity").glob("*.yaml"))


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_capacity_takes_effect_with_every_recipe_of_its_model(capacity: str) -> None:
    sizes = OmegaConf.load(CONFIG_DIR / "capacity" / f"{capacity}.yaml")
    for companion in companions_of(capacity):
        model = compose(companion, f"capacity={capacity}")["model"]
        assert {key: model[key] for key in sizes} == dict(sizes), companion


def test_every_capacity_that_is_named_is_there_with_its_size() -> None:
    root = CONFIG_DIR.parent
    pages = [*(root / "docs").glob("*.md"), root / "README.md", *CONFIG_DIR.glob("experiment/*")]
    named = {
        name
        for page in pages
        for names in re.findall(r"capacity=(\w+(?:,\w+)*)", page.read_text())
        for name in names.split(",")
    }
    assert {"tiny", "small", "lipnext_64m"} <= named <= {*CAPACITIES}


@pytest.mark.parametrize(
    ("capacity", "width"), [("lipnext_64m", 1024), ("lipnext_256m", 2048), ("lipnext_1b", 4096)]
)
def test_sizes_of_lipnext_are_those_of_its_paper(capacity: str, width: int) -> None:
    model = compose("experiment=lipnext_cifar10", f"capacity={capacity}")["model"]
    assert (model["width"], model["depth"]) == (width, 32)


def test_radii_contain_the_radius_that_is_trained_for() -> None:
    for path in (CONFIG_DIR / "dataset").glob("*.yaml"):
        values = OmegaConf.load(path)
        assert values.epsilon in values.radii, path
        assert sorted(values.radii) == list(values.radii), path


def test_every_group_says_where_it_belongs_and_is_named_in_the_help() -> None:
    for path in CONFIG_DIR.glob("*/*.yaml"):
        if path.parent.name != "hydra":
            assert path.read_text().startswith("# @package "), path


def test_examples_in_the_help_compose() -> None:
    for name in ("train", "certify"):
        suffix = "" if name == "train" else "_certify"
        text = (CONFIG_DIR / "hydra" / "help" / f"robustcert{suffix}.yaml").read_text()
        script = (Path(__file__).parents[2] / f"{name}.py").read_text()
        # Each begins with the command's name as it was typed.
        prompt = f"${{typed:{name}}}"
        examples = [line.split() for line in text.splitlines() if prompt in line]
        assert len(examples) >= 5
        for _, *typed in examples:
            typed = [t for t in typed if "<run>" not in t and "," not in t and t != "-m"]
            compose(*typed, name=name)
        assert f"python {name}.py" in script
