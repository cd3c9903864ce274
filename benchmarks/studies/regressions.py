"""Regressions beside certified ones: ridge regression, exactly, and a random forest, attacked.

    python -m benchmarks.studies.regressions outputs/regressions

Inputs are divided by the standard deviations of the training split, so that a radius counts them,
as it does with ``norm.scale=training``. At each radius a model has the mean over the test split of
the largest error within it:

* *ridge*: |residual| + |w| r, exact up to rounding, its penalty chosen by that error at the middle
  radius in five folds of the training split;
* *forest*: what 1,000 random changes of each row find, each scaled to the radius, so that the true
  error is at least that.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

RADII = (0.1, 0.25, 0.5)
MIDDLE = 0.25
TABLES = {"diabetes": "Diabetes"}
TREES = 100
TRIES = 1000
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)


def standardised(name: str) -> tuple[np.ndarray, ...]:
    """Inputs and targets of both splits, inputs in standard deviations of the training split."""
    import robustcert.data as data

    dataset = getattr(data, TABLES[name])()
    parts = [dataset.read(split) for split in ("train", "test")]
    x, test = (part.inputs.double().numpy() for part in parts)
    y, target = (part.labels.double().numpy() for part in parts)
    mean, deviation = (np.array(numbers) for numbers in data.standardisation(dataset))
    return (x - mean) / deviation, y, (test - mean) / deviation, target


def of_ridge(model: Any, x: np.ndarray, y: np.ndarray, radius: float) -> float:
    """The mean of the largest errors of a linear model within a radius."""
    residual = np.abs(model.predict(x) - y)
    return float((residual + np.linalg.norm(model.coef_) * radius).mean())


def ridge(name: str) -> dict[str, Any]:
    """Ridge regression, whose worst error within a radius is known."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold

    x, y, test, target = standardised(name)
    folds = list(KFold(5, shuffle=True, random_state=0).split(x))

    def score(penalty: float) -> float:
        fitted = [Ridge(penalty).fit(x[rows], y[rows]) for rows, _ in folds]
        pairs = zip(fitted, folds, strict=True)
        return sum(of_ridge(model, x[rest], y[rest], MIDDLE) for model, (_, rest) in pairs)

    best = min(PENALTIES, key=score)
    model = Ridge(best).fit(x, y)
    return {
        "words": f"ridge regression, penalty {best:g}, exact",
        "error": [of_ridge(model, test, target, 0.0)],
        "within": {f"{r:g}": [of_ridge(model, test, target, r)] for r in RADII},
    }


def forest(name: str, seeds: int) -> dict[str, Any]:
    """A random forest under random changes of every row."""
    from sklearn.ensemble import RandomForestRegressor

    x, y, test, target = standardised(name)
    errors: list[float] = []
    within: dict[str, list[float]] = {f"{r:g}": [] for r in RADII}
    for seed in range(seeds):
        model = RandomForestRegressor(TREES, random_state=seed).fit(x, y)
        change = np.random.RandomState(seed).standard_normal((TRIES, test.shape[1]))
        change /= np.linalg.norm(change, axis=1, keepdims=True)
        worst = np.abs(model.predict(test) - target)
        errors.append(float(worst.mean()))
        for radius in RADII:
            moved = (test[:, None] + radius * change).reshape(-1, test.shape[1])
            found = model.predict(moved).reshape(len(test), TRIES)
            # A change within a smaller radius is one within this.
            worst = np.maximum(worst, np.abs(found - target[:, None]).max(1))
            within[f"{radius:g}"].append(float(worst.mean()))
    words = f"random forest, at least: {TRIES:,} random changes of each row"
    return {"words": words, "error": errors, "within": within}


def main() -> None:
    """Measure, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the forest")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {name: [ridge(name), forest(name, options.seeds)] for name in TABLES}
    (options.out / "regressions.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
