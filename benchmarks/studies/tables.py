"""Tables and signals: certified networks beside linear classifiers, forests and free networks.

    python -m benchmarks.studies.tables outputs/tables
    python -m benchmarks.studies.tables outputs/tables --show

Inputs are divided by the standard deviations of the training split, so that a radius counts them.
At each radius a row says which share of the test split is classified correctly and stays so,

* *proved*: a 1-Lipschitz network, trained and certified by this package;
* *proved*: logistic regression on steps between the values of each column, as a ReLU network whose
  radii CROWN proves; for tables with columns of few values;
* *exact*: logistic regression, |margin| / |w|, its penalty chosen by the share at the middle radius
  in five folds of the training split;
* *attacked*: a random forest, by the boundary attack with at least 5,000 queries for each sample
  and by the pointwise attack from several training rows; and an unconstrained network, by DDN and
  PGD. What an attack leaves is an upper bound of what is robust.

Every seed trains anew; the split is fixed. Results are kept one by one: start a stopped run again.
"""

import argparse
import itertools
import json
import platform
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.publish.results import binomial_interval

RADII = (0.25, 0.5, 1.0)
MIDDLE = 0.5
# What `train.py` is told for each dataset beside the table itself.
COMMON = (
    *("dataset.domain=columns", "certify=false", "trainer.enable_progress_bar=false"),
    *("loader.batch_size=32", "trainer.max_epochs=40", "epsilon_schedule.end=4"),
)
NETWORKS = {
    "breast_cancer": ("BreastCancer", ("capacity=tiny",)),
    "phishing": ("Phishing", ("capacity=small",)),
    "wine": ("Wine", ("capacity=tiny",)),
    "italy_power_demand": (
        "ItalyPowerDemand",
        ("model=convnet1d", "capacity=tiny", "layer=bcop", "loader.batch_size=8"),
    ),
    "gun_point": (
        "GunPoint",
        ("model=convnet1d", "capacity=tiny", "layer=bcop", "loader.batch_size=8"),
    ),
}
# Inverse penalties that logistic regression chooses from.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Share of the distance of two values in which a step between them climbs.
RAMP = 0.05
# Tables whose columns have few values.
FEW_VALUES = ("phishing",)
QUERIES = 5000
STARTS = 3  # training rows that the pointwise attack starts from
ATTACKED = 400  # test samples of the forest that are attacked at most, drawn once
TREES = 100
# Standard deviations within which foolbox's attacks stay.
BOUND = 50.0

Arrays = dict[str, np.ndarray]


def standardised(name: str, out: Path) -> tuple[Path, Arrays]:
    """The dataset in standard deviations of its training split, also as a file to train on."""
    import robustcert.data as data

    dataset = getattr(data, NETWORKS[name][0])()
    numbers = [torch.tensor(v) for v in data.standardisation(dataset)]
    mean, std = (v.view(-1, *(1,) * (len(dataset.input_shape) - 1)) for v in numbers)
    arrays: Arrays = {"columns": np.array(dataset.columns)}
    for split in ("train", "test"):
        examples = dataset.read(split)
        arrays[f"x_{split}"] = ((examples.inputs.double() - mean) / std).float().numpy()
        arrays[f"y_{split}"] = examples.labels.numpy()
    path = out / f"{name}.npz"
    np.savez(path, **arrays)
    return path, arrays


def shares(correct: np.ndarray, radius: np.ndarray) -> dict[str, Any]:
    """Accuracy, and how many correct samples have a radius above each of RADII."""
    counts = {str(r): int((correct & (radius > r)).sum()) for r in RADII}
    return {"samples": len(correct), "correct": int(correct.sum()), "at": counts}


def certified(name: str, path: Path, arrays: Arrays, seed: int, out: Path) -> dict[str, Any]:
    """A network of this package: radii are proved, and attacked beside that."""
    import hydra

    import robustcert
    from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION
    from robustcert.runs.commands import plain, register_resolvers
    from robustcert.runs.train import train

    register_resolvers()
    folder = out / "runs" / f"{name}_{seed}"
    typed = ("dataset=npz", f"dataset.root={path}", *COMMON, *NETWORKS[name][1], f"seed={seed}")
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        config = plain(hydra.compose("train", [*typed, f"epsilon={MIDDLE}"]))
    if not (folder / "results.json").exists():
        train(config, folder)
    module = robustcert.load_module(folder)
    found = robustcert.certify(module, torch.from_numpy(arrays["x_test"]))
    correct = (found.prediction == torch.from_numpy(arrays["y_test"])).numpy()
    distance = attacked(module, arrays, steps=40)
    assert (distance >= found.radius.numpy())[correct].all()
    return shares(correct, found.radius.numpy()) | {"attacked": shares(correct, distance)["at"]}


def attacked(module: nn.Module, arrays: Arrays, *, steps: int = 100) -> np.ndarray:
    """Distance to the nearest input of another class that DDN and PGD found."""
    import foolbox

    x, y = torch.from_numpy(arrays["x_test"]), torch.from_numpy(arrays["y_test"])
    model = foolbox.PyTorchModel(module.eval(), bounds=(-BOUND, BOUND), device="cpu")
    ddn = foolbox.attacks.DDNAttack(init_epsilon=MIDDLE, steps=steps)
    found, _, success = ddn(model, x, y, epsilons=None)
    distance = (found - x).flatten(1).norm(dim=1)
    distance = torch.where(success, distance, torch.inf)
    pgd = foolbox.attacks.L2PGD(steps=steps)
    for r in RADII:
        _, moved, success = pgd(model, x, y, epsilons=r)
        length = (moved - x).flatten(1).norm(dim=1)
        distance = torch.where(success, torch.minimum(distance, length), distance)
    return distance.double().numpy()


def free(arrays: Arrays, seed: int) -> dict[str, Any]:
    """A network of ReLUs without any constraint, trained by cross-entropy, attacked."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(arrays["x_train"]), torch.from_numpy(arrays["y_train"])
    classes = int(y.max()) + 1
    module = nn.Sequential(
        *(nn.Flatten(), nn.Linear(x[0].numel(), 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        nn.Linear(128, classes),
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(60):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        prediction = module(torch.from_numpy(arrays["x_test"])).argmax(1).numpy()
    return shares(prediction == arrays["y_test"], attacked(module, arrays))


def linear(arrays: Arrays) -> dict[str, Any]:
    """Logistic regression, whose radii are exact; its penalty is chosen in five folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    x, y = (arrays[k].reshape(len(arrays[k]), -1).squeeze() for k in ("x_train", "y_train"))

    def fitted(c: float, rows: np.ndarray) -> Any:
        return LogisticRegression(C=c, max_iter=10_000).fit(x[rows], y[rows])

    def score(c: float) -> int:
        folds = StratifiedKFold(5, shuffle=True, random_state=0).split(x, y)
        return sum(
            linear_shares(fitted(c, train), x[rest], y[rest])["at"][str(MIDDLE)]
            for train, rest in folds
        )

    best = max(PENALTIES, key=score)
    test = arrays["x_test"].reshape(len(arrays["x_test"]), -1)
    return linear_shares(fitted(best, np.arange(len(x))), test, arrays["y_test"]) | {"C": best}


def linear_shares(model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Exact radii of a linear classifier: the least margin over the norm of its weights."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes: one difference of logits
        weight, bias = np.concatenate([0 * weight, weight]), np.array([0.0, *bias])
    logits = x @ weight.T + bias
    rows = np.arange(len(y))
    margins = logits[rows, y][:, None] - logits
    lengths = np.linalg.norm(weight[y][:, None] - weight[None], axis=2)
    lengths[rows, y] = 1.0
    ratios = margins / lengths
    ratios[rows, y] = np.inf
    radius = ratios.min(1)
    return shares(radius > 0, radius)


def steps_between(x: Tensor) -> nn.Linear:
    r"""Pairs of ramps whose differences are steps between neighbouring values of each column.

    With m halfway between two values of distance d and w = RAMP, a step is
    :math:`\max(0, (z - m) / (w d) + 1/2) - \max(0, (z - m) / (w d) - 1/2)`.
    """
    weight, bias = [], []
    for column, values in zip(torch.eye(x.shape[1]).double(), x.double().T, strict=True):
        for low, high in itertools.pairwise(values.unique().tolist()):
            slope = 1 / (RAMP * (high - low))
            weight += [slope * column] * 2
            bias += [-slope * (low + high) / 2 + shift for shift in (0.5, -0.5)]
    ramps = nn.Linear(x.shape[1], len(bias))
    ramps.load_state_dict({"weight": torch.stack(weight), "bias": torch.tensor(bias)})
    return ramps


def stepped(arrays: Arrays) -> dict[str, Any]:
    """Logistic regression on such steps as a network of ReLUs, whose radii CROWN proves."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold

    from robustcert.certifiers import CROWNCertifier
    from robustcert.network.fold import fold_network

    x, test, target = (torch.from_numpy(arrays[k]) for k in ("x_train", "x_test", "y_test"))
    ramps = steps_between(x)
    up, down = ramps(x).detach().relu().view(len(x), -1, 2).unbind(2)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = LogisticRegressionCV(Cs=PENALTIES, cv=folds, max_iter=10_000)
    model.fit((up - down).numpy(), arrays["y_train"])
    weight = torch.from_numpy(model.coef_[0])
    difference = torch.stack([weight, -weight], 1).flatten() / 2
    bias = torch.from_numpy(model.intercept_) / 2
    head = nn.Linear(len(difference), 2)
    head.load_state_dict(
        {"weight": torch.stack([-difference, difference]), "bias": torch.cat([-bias, bias])}
    )
    module = nn.Sequential(ramps, nn.ReLU(), head)
    network = fold_network(module.eval(), (x.shape[1],))
    found = CROWNCertifier().certify(network, test)
    correct = (found.prediction == target).numpy()
    distance = attacked(module, arrays)
    assert (distance >= found.radius.numpy())[correct].all()
    return shares(correct, found.radius.numpy()) | {"attacked": shares(correct, distance)["at"]}


class Forest(nn.Module):
    """A forest as a function of tensors: logarithms of its probabilities, and queries counted."""

    def __init__(self, forest: Any) -> None:
        super().__init__()
        self.trees = [tree.tree_ for tree in forest.estimators_]
        self.queries = 0

    def forward(self, x: Tensor) -> Tensor:
        """What predict_proba gives, without its threads."""
        rows = np.ascontiguousarray(x.detach().flatten(1).numpy(), dtype=np.float32)
        self.queries += len(rows)
        votes = [tree.predict(rows) for tree in self.trees]
        shares = sum(v / v.sum(1, keepdims=True) for v in votes) / len(votes)
        return torch.from_numpy(np.log(shares + 1e-6)).float()


def forest(arrays: Arrays, seed: int) -> dict[str, Any]:
    """A random forest under the two attacks; its shares are those of the attacked samples."""
    from sklearn.ensemble import RandomForestClassifier

    x, y = (torch.from_numpy(arrays[k]) for k in ("x_train", "y_train"))
    grown = RandomForestClassifier(TREES, random_state=seed).fit(x.flatten(1).numpy(), y.numpy())
    model = Forest(grown).eval()
    test, target = (torch.from_numpy(arrays[k]) for k in ("x_test", "y_test"))
    everywhere = int((model(test).argmax(1) == target).sum())
    # In an order of its own: tables list their classes one after the other.
    rows = torch.from_numpy(np.random.RandomState(0).permutation(len(test)))[:ATTACKED]
    test, target = test[rows], target[rows]
    correct = model(test).argmax(1) == target
    radius = np.full(len(test), -np.inf)
    model.queries = 0
    radius[correct.numpy()] = nearest_found(model, test[correct], target[correct], x, seed)
    return shares(correct.numpy(), radius) | {
        "everywhere": everywhere,
        "queries": model.queries / max(1, int(correct.sum())),
    }


def nearest_found(model: Forest, x: Tensor, y: Tensor, rows: Tensor, seed: int) -> np.ndarray:
    """Distance to the nearest input of another class, by foolbox's boundary and pointwise attacks.

    Both start at training rows that the forest takes for another class, the nearest ones. The
    pointwise attack puts coordinates back one by one, which suits thresholds of single columns.
    """
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(-BOUND, BOUND), device="cpu")
    torch.manual_seed(seed)
    np.random.seed(seed)
    classes = model(rows).argmax(1)
    away = torch.cdist(x.flatten(1), rows.flatten(1))
    away[y[:, None] == classes[None]] = torch.inf
    order = away.argsort(1)
    boundary = foolbox.attacks.BoundaryAttack(steps=QUERIES)
    pointwise = foolbox.attacks.PointwiseAttack()
    least = torch.full((len(x),), torch.inf)
    attacks = [(boundary, 0), *((pointwise, start) for start in range(STARTS))]
    for attack, start in attacks:
        starts = rows[order[:, start]]
        found, _, success = attack(wrapped, x, y, starting_points=starts, epsilons=None)
        length = (found - x).flatten(1).norm(dim=1)
        least = torch.where(success, torch.minimum(least, length), least)
    return least.double().numpy()


def measure(names: list[str], models: list[str], seeds: int, forests: int, out: Path) -> None:
    """Models of every dataset and seed, each kept when it is there."""
    from robustcert.runs.results import processor

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "tables.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    rows["machine"] = f"{processor()}, one thread, Python {platform.python_version()}"
    made = {name: standardised(name, out) for name in names}
    kinds: dict[str, tuple[int, Callable[[str, int], dict[str, Any]]]] = {
        "stepped": (1, lambda name, _: stepped(made[name][1])),
        "linear": (1, lambda name, _: linear(made[name][1])),
        "certified": (seeds, lambda name, seed: certified(name, *made[name], seed, out)),
        "forest": (forests, lambda name, seed: forest(made[name][1], seed)),
        "free": (seeds, lambda name, seed: free(made[name][1], seed)),
    }
    for kind in models:
        count, task = kinds[kind]
        known = [name for name in names if kind != "stepped" or name in FEW_VALUES]
        for name, seed in product(known, range(count)):
            key = f"{name} {kind} {seed}"
            if key not in rows:
                start = time.process_time()
                rows[key] = task(name, seed)
                rows[key]["seconds"] = round(time.process_time() - start, 2)
                kept.write_text(json.dumps(rows, indent=1))
                print(key, json.dumps(rows[key]), flush=True)


KINDS = {
    "certified": "1-Lipschitz network, proved",
    "stepped": "logistic regression on steps, proved by CROWN",
    "linear": "logistic regression, exact",
    "forest": "random forest, boundary and pointwise attack",
    "free": "free network, DDN and PGD",
}


def table(rows: dict[str, Any]) -> str:
    """The rows as markdown: means and standard deviations over seeds, and the exact intervals."""
    lines = ["| data | model | seeds | accuracy | " + " | ".join(f"at {r:g}" for r in RADII) + " |"]
    lines.append("| --- " * (4 + len(RADII)) + "|")
    intervals = ["| data | " + f"95 % interval of the share at {MIDDLE:g}, seed by seed |"]
    intervals.append("| --- | --- |")
    for name in NETWORKS:
        for kind, words in KINDS.items():
            found = [v for k, v in rows.items() if k.startswith(f"{name} {kind} ")]
            if not found:
                continue
            count = np.array([[v["correct"], *(v["at"][str(r)] for r in RADII)] for v in found])
            share = count / found[0]["samples"]
            cells = [f"{s.mean():.3f}" + spread(s) for s in share.T]
            lines.append(f"| {name} | {words} | {len(found)} | " + " | ".join(cells) + " |")
            if kind == "certified":
                each = [binomial_interval(v["at"][str(MIDDLE)], v["samples"]) for v in found]
                text = ", ".join(f"{low:.3f}-{high:.3f}" for low, high in each)
                intervals.append(f"| {name} | {text} |")
    return "\n".join([*lines, "", *intervals, "", f"{rows['machine']}."])


def spread(share: np.ndarray) -> str:
    """Standard deviation over the seeds, if there are several."""
    return f" ± {share.std(ddof=1):.3f}" if len(share) > 1 else ""


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--models", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--forests", type=int, default=3, help="seeds of the forest")
    parser.add_argument("--show", action="store_true", help="print what has been measured")
    options = parser.parse_args()
    if not options.show:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measure(options.datasets, options.models, options.seeds, options.forests, options.out)
    print(table(json.loads((options.out / "tables.json").read_text())))


if __name__ == "__main__":
    main()
