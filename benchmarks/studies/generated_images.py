"""Images from a simple generative model, for ``loader.generated``.

    python -m benchmarks.studies.generated_images outputs/generated.npz dataset=mnist
    loader.validation=0.05

Every class is a mixture of Gaussians among its principal components, fitted to the images that are
trained on: those of the validation split are left out. Overrides are those of the run that the
images are for.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from benchmarks.studies.claims import compose
from robustcert.config.build import COMMAND_LINE_TARGETS, build_data, build_dataset
from robustcert.data.dataset import Examples


def generate(
    examples: Examples,
    *,
    per_class: int = 6000,
    components: int = 60,
    clusters: int = 20,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``(N, H, W, C)`` and their labels, ``per_class`` of every class there is."""
    images, labels = [], []
    for label in examples.labels.unique().tolist():
        own = examples.inputs[torch.nonzero(examples.labels == label)[:, 0]]
        shape, flat = own.shape[1:], own.flatten(1).numpy().astype(np.float64)
        pca = PCA(components, random_state=seed).fit(flat)
        mixture = GaussianMixture(clusters, random_state=seed, reg_covar=1.0)
        drawn = mixture.fit(pca.transform(flat)).sample(per_class)[0]
        pixels = pca.inverse_transform(drawn).clip(0, 255).round().astype(np.uint8)
        images.append(pixels.reshape(per_class, *shape).transpose(0, 2, 3, 1))
        labels.append(np.full(per_class, label, dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)


def main() -> None:
    """Fit, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("overrides", nargs="*", help="of the run: dataset=..., loader.validation=")
    options = parser.parse_intermixed_args()
    config = compose(*options.overrides)
    data = build_data(config, build_dataset(config, COMMAND_LINE_TARGETS), COMMAND_LINE_TARGETS)
    images, labels = generate(data.stored("train"))
    options.file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(options.file, image=images, label=labels)


if __name__ == "__main__":
    main()
