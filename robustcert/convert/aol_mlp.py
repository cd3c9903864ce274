"""AOL-MLP of berndprach/scaling_up_Lipschitz_networks: dense layers with rescaled columns.

Its files hold tensors alone, so that nothing in one tells an AOL layer from another rescaled one:
the name of the source says it.

Reference: Prach and Lampert, `Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz
Networks <https://arxiv.org/abs/2208.03160>`_, ECCV 2022.
"""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from robustcert.convert.network import Converted, neighbours
from robustcert.convert.published import ConversionError, Published
from robustcert.data import Dataset

MEANS = (0.491, 0.482, 0.447)
# Added to sums of columns.
RIDGE = 1e-6


def read(content: Any, path: Path, data: Dataset) -> Converted:
    """The network of a checkpoint."""
    weights = Published(content, path)
    # Flatten and zeros for further features come first; an activation stands between two layers.
    depth = sum(f"{2 + 2 * place}.weight" in weights for place in range(len(content)))
    if not depth:
        weights.shape("2.weight", 2)
    width = weights.shape("2.weight", 2)[0]
    inputs = math.prod(data.input_shape)
    if width < inputs or width % 2:
        raise ConversionError(
            f"{path}: 2.weight: expected an even number of features, at least {inputs}, got {width}"
        )
    network = Converted(tuple(data.input_shape), MEANS)
    network.flatten()
    for place in range(depth):
        name = f"{2 + 2 * place}"
        weight = rescaled(weights.take(f"{name}.weight", width, width))
        bias = weights.take(f"{name}.bias", width)
        if place == 0:
            # The further features are zeros.
            weight = weight[:, :inputs]
        if place == depth - 1:
            network.end(weight[: data.num_classes], bias[: data.num_classes])
        else:
            network.connect(weight, bias, order=neighbours(width))
            network.sort()
    weights.end("AOL-MLP")
    return network


def rescaled(weight: Tensor) -> Tensor:
    """Columns divided by the roots of the row sums of ``|W^T W|``."""
    return weight / ((weight.mT @ weight).abs().sum(0, keepdim=True) + RIDGE).sqrt()
